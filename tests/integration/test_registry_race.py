"""Many processes, one store: nothing is lost, nothing is doubled, also when some are killed."""

import multiprocessing
import os
import random
import signal

import pytest

from mm_core.plugins import Plugins
from mm_core.registry import Claim, ModelRegistry
from mm_core.registry.processes import this_process
from mm_core.schemas import ModelStatus
from mm_core.testing.registry import FaultySink, fill, manifest_for

pytestmark = pytest.mark.integration

SPAWN = multiprocessing.get_context("spawn")
MODELS = 2


def open_store(root):
    sink_type = Plugins.discover().sink_for(root)
    return sink_type(sink_type.Config(root=root))


def fill_many(store, number, versions, ready, rate):
    sink = FaultySink(open_store(store), rate=rate, seed=number)
    registry = ModelRegistry(sink, writer=f"writer-{number}", claim_timeout=300)
    ready.wait(120)
    for version in range(versions):
        fill(registry, f"org/model-{number % MODELS}", f"{number}.{version}", aliases=("prod",))


def race(store, writers, versions, *, rate=0.0):
    """Let processes fill versions at once; then everything must be there, once."""
    ready = SPAWN.Barrier(writers)
    workers = [
        SPAWN.Process(target=fill_many, args=(store, number, versions, ready, rate))
        for number in range(writers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * writers
    check(ModelRegistry(open_store(store)), writers * versions)


def check(registry, count):
    entries = registry.list_models()
    assert len({(entry.model_id, entry.version) for entry in entries}) == len(entries) == count
    assert {entry.status for entry in entries} == {ModelStatus.AVAILABLE}
    history = registry.history()
    assert [record.seq for record in history] == list(range(1, len(history) + 1))
    operations = [o for record in history for o in record.operations]
    assert len({o["id"] for o in operations}) == len(operations) == 3 * count
    last = {o["model_id"]: o["version"] for o in operations if o["op"] == "alias"}
    assert {m: a["prod"] for m, a in registry.aliases().items()} == last


def test_processes_on_a_disk_lose_nothing(local):
    """8 processes x 20 versions on a local disk: 160 entries, one unbroken chain."""
    race(local, writers=8, versions=20)


@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_processes_on_a_bucket_lose_nothing(store, request):
    """8 processes on S3 and on GCS, 20 versions each in a storm: one unbroken chain of all."""
    versions = 20 if os.environ.get("MM_STORM") == "1" else 6
    race(request.getfixturevalue(store), writers=8, versions=versions)


@pytest.mark.parametrize(("store", "versions"), [("local", 8), ("s3", 2), ("gcs", 2)])
def test_processes_with_faults_lose_nothing(store, versions, request):
    """3 processes with every fifth call failing, half of these after they took effect."""
    race(request.getfixturevalue(store), writers=3, versions=versions, rate=0.2)


def fill_shared(store, versions, seed):
    registry = ModelRegistry(open_store(store), claim_timeout=300)
    order = list(range(versions))
    random.Random(seed).shuffle(order)
    for version in order:
        begun = registry.begin("org/model", str(version))
        if isinstance(begun, Claim):
            registry.add(begun, manifest_for(begun))


@pytest.mark.skipif(this_process() is None, reason="needs /proc")
def test_killed_processes_stop_nobody(local):
    """Processes that pull the same 30 versions are killed again and again; the rest finish,
    without waiting for a heartbeat to grow old, and each version is added exactly once."""
    versions, seeds = 30, iter(range(100))

    def start():
        worker = SPAWN.Process(target=fill_shared, args=(local, versions, next(seeds)))
        worker.start()
        return worker

    registry = ModelRegistry(open_store(local))
    workers = [start() for _ in range(4)]
    for victim in range(5):
        while len(registry.history()) < 5 * (victim + 1):
            pass
        doomed = workers.pop(0)
        doomed.kill()
        doomed.join(60)
        assert doomed.exitcode in (-signal.SIGKILL, 0)
        workers.append(start())
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * 4
    entries = registry.list_models()
    assert len(entries) == versions
    assert {entry.status for entry in entries} == {ModelStatus.AVAILABLE}
    added = [o["version"] for r in registry.history() for o in r.operations if o["op"] == "add"]
    assert sorted(added) == sorted(map(str, range(versions)))
