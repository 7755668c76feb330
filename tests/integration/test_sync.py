"""The wanted state: locked once, and the same on every backend, by one machine or by many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_core import IntegrityError, ModelManager, load_settings, read_lockfile
from mm_core.testing.hub import Fault
from mm_core.testing.material import noise

pytestmark = pytest.mark.integration

COUNT = 12
LARGE = noise(24 << 20)


def mm(folder: Path, *words: str, code: int = 0):
    """What ``mm`` says as JSON in a folder; its exit code must be that."""
    run = subprocess.run(
        [sys.executable, "-m", "mm_core", *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )
    assert run.returncode == code, run.stdout + run.stderr
    return json.loads(run.stdout)


@pytest.fixture
def wanted(hub, tmp_path, s3):
    """A dozen models and a large one, for a disk and for S3; the folder with their mm.yaml."""
    models = []
    for number in range(COUNT):
        files = {"config.json": b'{"n": %d}' % number, "w.safetensors": noise(9000 + 700 * number)}
        hub.add_repo(f"org/m{number}", files=files, license="mit")
        models.append(f"t/m{number}: {{source: 'hf://org/m{number}', aliases: [prod], to: [a, b]}}")
    hub.add_repo("org/large", files={"config.json": b"{}", "w.safetensors": LARGE})
    models.append("t/large: {source: 'hf://org/large', to: [a, b]}")
    write(tmp_path, s3, models)
    return tmp_path


def write(folder: Path, s3: str, models) -> None:
    text = "version: 1\ndefaults: {backend: a}\nbackends:\n  a: {type: local, root: ./a}\n"
    text += f"  b: {{type: s3, root: '{s3}'}}\nmodels:\n" + "".join(f"  {m}\n" for m in models)
    (folder / "mm.yaml").write_text(text)


def state_of(folder: Path):
    """What stands in both backends: each version, its files and its aliases."""
    settings = load_settings(folder / "mm.yaml")
    found = {}
    with ModelManager(settings) as manager:
        for backend in ("a", "b"):
            registry = manager.registry(backend)
            for entry in registry.list_models():
                files = {f.path: (f.size, f.sha256) for f in registry.manifest(entry).files}
                known = found.setdefault((backend, entry.model_id), [])
                known.append((entry.version, entry.status.value, sorted(entry.aliases), files))
            assert manager.verify(backend=backend).ok
    return found


def fetched(hub) -> int:
    """How many bytes of files the hub has sent."""
    return hub.sent_bytes


def test_one_process_and_four_shards_come_to_the_same(hub, wanted, s3):
    """Each model once per backend; a second sync asks the hub nothing, and the store next to nothing."""
    mm(wanted, "lock")
    total = sum(model.size_bytes for model in read_lockfile(wanted / "mm.lock").models.values())
    told = mm(wanted, "sync", "--locked")
    assert (told["failed"], told["changed"], len(told["steps"])) == (0, True, 2 * (COUNT + 1))
    assert fetched(hub) == told["moved_bytes"] == 2 * total
    alone = state_of(wanted)
    assert {len(versions) for versions in alone.values()} == {1}

    shards = wanted / "shards"
    shards.mkdir()
    lines = [line.strip() for line in (wanted / "mm.yaml").read_text().splitlines()]
    write(shards, f"{s3}-shards", [line for line in lines if line.startswith("t/")])
    (shards / "mm.lock").write_bytes((wanted / "mm.lock").read_bytes())
    before = fetched(hub)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mm_core", "sync", "--locked", "--shard", f"{part}/4", "-q"],
            cwd=shards,
        )
        for part in range(1, 5)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert state_of(shards) == alone
    assert fetched(hub) - before == 2 * total


def test_a_second_sync_asks_next_to_nothing(hub, wanted, s3_server):
    """The hub nothing at all, each backend for three objects at most."""
    mm(wanted, "sync")
    hub.requests.clear()
    s3_server.requests.clear()
    told = mm(wanted, "sync", "--locked", "--error-on-no-change", code=1)
    assert told["error"]["code"] == "no_change"
    assert hub.requests == []
    assert len(s3_server.requests) <= 3, "\n".join(map(str, s3_server.requests))
    assert mm(wanted, "--offline", "sync", "--locked")["changed"] is False


def test_only_what_is_locked_comes(hub, wanted):
    """Not what a branch names by now, and not other bytes under the same name."""
    mm(wanted, "lock")
    before = (wanted / "mm.lock").read_text()
    hub.add_repo("org/m0", files={"config.json": b"new", "w.safetensors": b"new"})
    assert mm(wanted, "lock")["changed"] is False
    told = {one["model_id"]: one["behind"] for one in mm(wanted, "outdated")["models"]}
    assert told == {f"t/m{n}": n == 0 for n in range(COUNT)} | {"t/large": False}
    mm(wanted, "sync", "--locked")
    locked = read_lockfile(wanted / "mm.lock").models["t/m0"]
    assert state_of(wanted)["a", "t/m0"][0][0] == locked.version
    mm(wanted, "lock", "t/m0", "--upgrade")
    changed = set((wanted / "mm.lock").read_text().splitlines()) - set(before.splitlines())
    assert len(changed) == 4  # its version, its revision and its two files
    repo = hub.repos["org/m1"]
    repo.commits[repo.refs["main"]]["w.safetensors"] = b"replaced in place"
    with ModelManager(load_settings(wanted / "mm.yaml")) as manager:
        lock = read_lockfile(wanted / "mm.lock")
        manager.remove("t/m1", backend="a")
        synced = manager.sync(lock)
        (error,) = synced.failed.values()
        assert isinstance(error, IntegrityError)
        assert "w.safetensors is" in str(error)


def test_some_fail(hub, wanted):
    """The others come; the exit code says that some did not, and the same again mends it."""
    mm(wanted, "lock")
    hub.faults.append(Fault("/api/models/org/m3*", kind="404", times=99))
    told = mm(wanted, "sync", "--locked", code=10)
    assert told["failed"] == 2
    assert set(told["error"]["errors"]) == {"t/m3 on a", "t/m3 on b"}
    assert len(state_of(wanted)) == 2 * COUNT
    hub.faults.clear()
    again = mm(wanted, "sync", "--locked")
    assert [s["model_id"] for s in again["steps"] if s["step"] == "fetch"] == ["t/m3", "t/m3"]


def test_pruning(hub, wanted, s3):
    """Former versions go, and models that are not wanted any more; what others named stays."""
    mm(wanted, "sync")
    hub.add_repo("org/m0", files={"config.json": b"1"})
    hub.add_repo("org/m1", files={"config.json": b"1"})
    mm(wanted, "alias", "set", "t/m1", "mine", "--backend", "a")
    mm(wanted, "push", "./cache", "t/own", "--to", "a")
    lines = [line.strip() for line in (wanted / "mm.yaml").read_text().splitlines()]
    write(wanted, s3, [line for line in lines if line.startswith("t/") and "t/m2:" not in line])
    assert mm(wanted, "lock", "--upgrade")["dropped"] == ["t/m2"]
    planned = mm(wanted, "sync", "--locked", "--prune", "-n")
    assert planned["dry_run"]
    done = mm(wanted, "sync", "--locked", "--prune")
    removed = [(s["model_id"], s["backend"]) for s in done["steps"] if s["step"] == "remove"]
    assert removed == [("t/m0", "a"), ("t/m0", "b"), ("t/m1", "b"), ("t/m2", "a"), ("t/m2", "b")]
    assert [(s["step"], s["model_id"]) for s in planned["steps"]] == [
        (s["step"], s["model_id"]) for s in done["steps"]
    ]
    state = state_of(wanted)
    assert len(state["a", "t/m1"]) == 2
    assert ("a", "t/own") in state
    assert ("a", "t/m2") not in state


def test_aliases_follow(wanted, s3):
    """Without a byte, and without asking the hub."""
    mm(wanted, "sync")
    text = (wanted / "mm.yaml").read_text()
    (wanted / "mm.yaml").write_text(text.replace("aliases: [prod]", "aliases: [prod, best]"))
    told = mm(wanted, "sync", "--locked", code=2)
    assert "other aliases" in told["error"]["message"]
    mm(wanted, "lock")
    done = mm(wanted, "sync", "--locked")
    assert {s["step"] for s in done["steps"]} == {"alias", "present"}
    assert state_of(wanted)["b", "t/m5"][0][2] == ["best", "prod"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"format": 2, "models": {}}',
        '{"format": 1, "models": {"../x": {"asked": {}, "version": "1", "files": {"a": "1"}}}}',
        '{"format": 1, "models": {"m": {"asked": {}, "version": "1", "files": {"../a": "1"}}}}',
        '{"format": 1, "models": {"m": {"asked": {}, "version": "1", "files": {}}}}',
        '{"format": 1, "models": {"m": 5}}',
    ],
)
def test_a_lock_that_is_none(wanted, text):
    """Is told as such, and nothing comes of it."""
    (wanted / "mm.lock").write_text(text)
    told = mm(wanted, "sync", "--locked", code=2)
    assert "is no lock" in told["error"]["message"]
    assert not (wanted / "a").exists()
