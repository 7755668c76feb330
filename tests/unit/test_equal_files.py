"""Bytes that any model of the backend has are copied, not fetched; hints are only hints."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from mm_core import Action, ConflictError, ModelManager, Plugins, TransientError, load_settings
from mm_core.registry.layout import content_key
from mm_core.sink import read_bytes
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder

pytestmark = pytest.mark.unit

WEIGHTS = bytes(range(256)) * 8192
DIGEST = sha256(WEIGHTS).hexdigest()
HINT = content_key(DIGEST)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "model.bin").write_bytes(WEIGHTS)
    (path / "config.json").write_bytes(b"{}")
    return path


@pytest.fixture
def manager(tmp_path):
    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    with ModelManager(settings, plugins=Plugins([local, memory, folder])) as manager:
        yield manager


def planned(manager, mine, model_id="other"):
    plan = manager.plan(str(mine), model_id=model_id)
    return {file.file.path: (file.action, file.copy_from) for file in plan.files}


def test_another_models_large_file_is_copied(manager, mine):
    """Small files are fetched without asking; what was copied is verified, and counted as copied."""
    entry = manager.push(mine, "one").entry
    key = f"models/one/{entry.version}/model.bin"
    assert json.loads(read_bytes(manager.sink(), HINT)) == {"key": key, "size": len(WEIGHTS)}
    assert planned(manager, mine) == {
        "model.bin": (Action.COPY, key),
        "config.json": (Action.FETCH, None),
    }
    pulled = manager.push(mine, "other")
    assert (pulled.copied_bytes, pulled.fetched_bytes) == (len(WEIGHTS), 2)
    assert manager.verify().ok


def test_a_hint_names_the_newest_version(manager, mine):
    """So that removing the first of several models takes nothing away."""
    first = manager.push(mine, "one").entry
    second = manager.push(mine, "other").entry
    manager.remove(f"one@{first.version}")
    copy = f"models/other/{second.version}/model.bin"
    assert planned(manager, mine, "third")["model.bin"] == (Action.COPY, copy)


def test_a_removed_version_is_no_origin(manager, mine):
    """Its files may be swept at any time; they are fetched instead."""
    manager.push(mine, "one")
    manager.remove("one")
    assert planned(manager, mine)["model.bin"] == (Action.FETCH, None)


@pytest.mark.parametrize(
    "hint",
    [
        b"",
        b"rubbish",
        b"null",
        b"[]",
        b"7",
        b'{"size": 1}',
        b'{"key": 5, "size": 2097152}',
        b'{"key": "../../etc/passwd", "size": 2097152}',
        b'{"key": "models/one/v/../../../.mm/format.json", "size": 2097152}',
        b'{"key": ".mm/format.json", "size": 2097152}',
        b'{"key": "models/one/v/gone.bin", "size": 2097152}',
        b'{"key": "models/one/v/config.json", "size": 2097152}',
        b'{"key": "models/nobody/v/model.bin", "size": 2097152}',
        b'{"key": "models/one/v/model.bin", "size": "2097152"}',
    ],
)
def test_a_hint_is_never_trusted(manager, mine, hint):
    """Damaged, foreign or false hints cost a fetch, and nothing else."""
    manager.push(mine, "one", version="v")
    manager.sink().put(HINT, hint)
    assert planned(manager, mine)["model.bin"] == (Action.FETCH, None)
    assert manager.push(mine, "other").fetched_bytes == len(WEIGHTS) + 2
    assert manager.verify().ok


def test_wrong_bytes_are_not_copied(manager, mine):
    """A file of the right size that was damaged is found by reading back, and fetched."""
    manager.push(mine, "one", version="v")
    manager.sink().put("models/one/v/model.bin", b"x" * len(WEIGHTS))
    assert planned(manager, mine)["model.bin"][0] is Action.COPY
    pulled = manager.push(mine, "other")
    assert (pulled.copied_bytes, pulled.fetched_bytes) == (0, len(WEIGHTS) + 2)
    assert manager.verify("other").ok


def test_an_origin_that_goes_away_is_fetched(manager, mine, monkeypatch):
    """Swept between the plan and the copy: the pull fetches."""
    manager.push(mine, "one", version="v")
    copy = local.LocalSink.copy

    def swept(self, source_key, key):
        self.delete([source_key])
        copy(self, source_key, key)

    monkeypatch.setattr(local.LocalSink, "copy", swept)
    assert manager.push(mine, "other").fetched_bytes == len(WEIGHTS) + 2


def test_a_store_that_does_not_answer_for_a_hint_stops_nothing(manager, mine, monkeypatch):
    """Neither while planning nor after the commit."""
    read, put = local.LocalSink.read, local.LocalSink.put

    def no_read(self, key, start=0, end=None):
        if key.startswith(".mm/by-sha256/"):
            raise TransientError("no answer")
        return read(self, key, start, end)

    def no_put(self, key, data):
        if key.startswith(".mm/by-sha256/"):
            raise TransientError("no answer")
        put(self, key, data)

    monkeypatch.setattr(local.LocalSink, "read", no_read)
    monkeypatch.setattr(local.LocalSink, "put", no_put)
    manager.push(mine, "one")
    assert manager.push(mine, "other").entry.status.value == "AVAILABLE"


def test_no_manifest_of_another_model_is_read(manager, mine, monkeypatch):
    """The cost of a plan does not grow with the number of models."""
    for number in range(5):
        (mine / "config.json").write_text(str(number))
        manager.push(mine, f"m{number}")
    seen = []
    read = local.LocalSink.read

    def spied(self, key, start=0, end=None):
        seen.append(key)
        return read(self, key, start, end)

    monkeypatch.setattr(local.LocalSink, "read", spied)
    assert planned(manager, mine)["model.bin"][0] is Action.COPY
    assert not [key for key in seen if "/manifests/" in key]
    assert [key for key in seen if "/by-sha256/" in key] == [HINT]


@pytest.mark.parametrize("twin", [False, True])
def test_a_damaged_version_is_not_planned_from_itself(manager, mine, twin):
    """A lost file is fetched, or copied from another model; the pull does what the plan says."""
    if twin:
        other = manager.push(mine, "other", version="w").entry
    manager.push(mine, "one", version="v")
    if twin:  # the newest hint names the damaged version: another takes its place
        manager.registry().note_content(manager.registry().manifest(other).files[1])
    manager.sink().delete(["models/one/v/model.bin"])
    plan = manager.plan(str(mine), model_id="one", version="v")
    found = {file.file.path: (file.action, file.copy_from) for file in plan.files}
    copy = (Action.COPY, "models/other/w/model.bin")
    assert found == {
        "model.bin": copy if twin else (Action.FETCH, None),
        "config.json": (Action.PRESENT, None),
    }
    pulled = manager.push(mine, "one", version="v")
    assert (pulled.fetched_bytes, pulled.copied_bytes, pulled.present_bytes) == (
        plan.bytes_to(Action.FETCH),
        plan.bytes_to(Action.COPY),
        plan.bytes_to(Action.PRESENT),
    )
    assert manager.verify().ok


def test_mending_trusts_no_copy(manager, mine):
    """Wrong bytes under the other name: they are found by reading back, and fetched instead."""
    other = manager.push(mine, "other", version="w").entry
    manager.push(mine, "one", version="v")
    manager.sink().delete(["models/one/v/model.bin", "models/other/w/model.bin"])
    manager.sink().put("models/other/w/model.bin", bytes(len(WEIGHTS)))
    (weights,) = [f for f in manager.registry().manifest(other).files if f.path == "model.bin"]
    manager.registry().note_content(weights)
    pulled = manager.push(mine, "one", version="v")
    assert (pulled.fetched_bytes, pulled.copied_bytes) == (len(WEIGHTS), 0)
    assert manager.verify("one").ok


def test_another_version_of_that_name_is_refused_by_the_plan(manager, mine):
    """As by the pull."""
    manager.push(mine, "one", version="v")
    (mine / "config.json").write_bytes(b"[]")
    with pytest.raises(ConflictError, match=r"config\.json differs"):
        manager.plan(str(mine), model_id="one", version="v")
