"""What the tests of bundles share: a store to export from, and what is told of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from mm_core import ModelManager
from mm_core.testing.material import noise

FILES = {"config.json": b'{"a": 1}', "deep/w.bin": noise(2_000_003), "empty": b"", "same": b"x"}


def push(manager, folder, files, model_id, **options):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return manager.push(folder, model_id, **options).entry


def make_store(tmp_path, key) -> str:
    """A store with three versions, of which one is signed."""
    place = str(tmp_path / "origin")
    with ModelManager(backend=place) as manager:
        push(manager, tmp_path / "one", FILES, "org/one", version="1", aliases=["prod", "old"])
        push(manager, tmp_path / "two", {"config.json": b"{}", "same": b"x"}, "two", version="2")
        push(manager, tmp_path / "three", {"a": b"a"}, "org/one", version="9")
        manager.sign("org/one@1", key=key)
    return place


def state_of(backend):
    """What is told of each version, but when it came and where it stands."""
    with ModelManager(backend=backend) as manager:
        registry, found = manager.registry(), {}
        for entry in registry.list_models():
            told = entry.to_json()
            del told["path"], told["download_date"]
            files = [(f.path, f.size, f.sha256) for f in registry.manifest(entry).files]
            found[entry.model_id, entry.version] = (told, files)
        assert manager.verify().ok
        return found


def mm(*words, code=0, **options):
    """Run mm in a process of its own; its JSON document."""
    run = subprocess.run(
        [sys.executable, "-m", "mm_core", *words, "--json"],
        capture_output=True, text=True, check=False, env=os.environ, **options,
    )  # fmt: skip
    assert run.returncode == code, run.stderr + run.stdout
    return json.loads(run.stdout)


def bring_there_and_compare(store, bundle, backend, public) -> None:
    """Import two of the three versions, twice: as they were in `store`, with a signature that holds."""
    with ModelManager(backend=backend) as manager:
        done = manager.import_bundle(bundle)
        told = [(one.reference, one.outcome) for one in done]
        assert told == [("org/one@1", "imported"), ("two@2", "imported")]
        again = manager.import_bundle(bundle)
        assert {(one.outcome, one.moved) for one in again} == {("present", 0)}
        (checked,) = manager.verify_signatures("org/one@1", public_keys=[public])
        assert checked.ok
    before = state_of(store)
    del before["org/one", "9"]
    assert state_of(backend) == before
