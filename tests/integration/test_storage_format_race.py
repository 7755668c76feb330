"""Processes of Model Manager and of the second program, one store: nothing is lost or doubled."""

import multiprocessing

import pytest
from storage_format import second
from storage_format.programs import Ours, Second, local

from mm_core.registry import ModelRegistry
from mm_core.testing.registry import registered

pytestmark = pytest.mark.integration

SPAWN = multiprocessing.get_context("spawn")
COMMITS = 25


def write_ours(root, number, ready):
    registry = ModelRegistry(local(root), commit_timeout=120)
    ready.wait(60)
    for count in range(COMMITS):
        registry.add_model(registered("org/model", f"{number}.{count}", aliases=("prod",)))


def write_second(root, number, ready):
    writer = second.Writer(root)
    ready.wait(60)
    for count in range(COMMITS):
        name = {"model_id": "org/model", "version": f"{number}.{count}"}
        fields = {"status": "AVAILABLE", "path": "/srv/x", "path_is": "path", "size_bytes": 0}
        writer.commit(
            {"op": "register", **name, **fields}, {"op": "alias", **name, "alias": "prod"}
        )


def test_race(tmp_path):
    """Four processes, two of each program, 25 commits each: every commit is in the log, once."""
    targets = [write_ours, write_second, write_ours, write_second]
    ready = SPAWN.Barrier(len(targets))
    workers = [
        SPAWN.Process(target=target, args=(tmp_path, number, ready))
        for number, target in enumerate(targets)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * len(targets)
    history = ModelRegistry(local(tmp_path)).history()
    assert [record.seq for record in history] == list(range(1, len(targets) * COMMITS + 1))
    made = [
        item["version"]
        for record in history
        for item in record.operations
        if item["op"] == "register"
    ]
    assert sorted(made) == sorted(f"{n}.{c}" for n in range(len(targets)) for c in range(COMMITS))
    ours, other = (program.open(tmp_path) for program in (Ours(), Second()))
    assert ours == other
    assert len(ours[1]["models"]["org/model"]["versions"]) == len(made)
    last = history[-1].operations[-1]["version"]
    assert ours[1]["models"]["org/model"]["aliases"] == {"prod": last}
