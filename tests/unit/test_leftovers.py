"""mm gc: what was begun and never finished goes, and nothing else does."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta

import pytest

from mm_core import ModelManager, Plugins, ResumableSink, UnfinishedUpload, load_settings
from mm_core.cli import main
from mm_core.cli.collect import _lines
from mm_core.registry import Claim, ModelRegistry
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder

pytestmark = pytest.mark.unit

HOUR = 3600.0
DAY = 24 * HOUR


class Parts(memory.MemorySink, ResumableSink):
    """A store whose clock is two days ahead of ours, with unfinished uploads."""

    def __init__(self, config):
        super().__init__(config)
        self.left: list[UnfinishedUpload] = []
        self.silent: set[str] = set()
        self.locked: set[str] = set()

    def stat(self, key):
        from dataclasses import replace

        found = super().stat(key)
        if found is None or key in self.silent:
            return None
        return replace(found, modified=found.modified + timedelta(days=2))

    def begin_upload(self, key, *, size, identity):
        return None

    def unfinished(self, prefix):
        yield from [upload for upload in self.left if upload.key.startswith(prefix)]

    def discard_unfinished(self, upload):
        if upload.key in self.locked:
            return False
        self.left.remove(upload)
        return True

    def leave(self, key, age, size=7):
        self.put("now", b"")
        modified = self.stat("now").modified - timedelta(seconds=age)
        self.delete(["now"])
        self.left.append(UnfinishedUpload(key=key, id=f"{key}{age}", modified=modified, size=size))


@pytest.fixture
def sink(tmp_path):
    return Parts(Parts.Config(root=f"memory://{tmp_path.name}"))


@pytest.fixture
def manager(sink, monkeypatch):
    from mm_core import place

    monkeypatch.setattr(place, "open_sink", lambda *_: sink)
    settings = load_settings(overrides={"defaults": {"backend": "memory://x"}})
    with ModelManager(settings, plugins=Plugins([memory, folder])) as manager:
        yield manager


def test_only_what_is_older_than_the_grace_goes(manager, sink):
    """By the store's own clock; outside models/ nothing is looked at."""
    sink.leave("models/m/v/old.bin", DAY + 60)
    sink.leave("models/m/v/young.bin", DAY - 60)
    sink.leave("elsewhere/old.bin", 9 * DAY)
    collected = manager.gc()
    assert [found.upload.key for found in collected.leftovers] == ["models/m/v/old.bin"]
    assert (collected.total_bytes, collected.kept) == (7, 1)
    assert [left.key for left in sink.left] == ["models/m/v/young.bin", "elsewhere/old.bin"]
    assert manager.gc(grace=HOUR).leftovers != ()
    assert [left.key for left in sink.left] == ["elsewhere/old.bin"]
    assert list(sink.list("")) == []


def test_what_a_writer_holds_is_told_as_kept(manager, sink):
    """A writer without a claim, or whose claim is over, but at work: the sink knows."""
    sink.leave("models/m/v/held.bin", 9 * DAY)
    sink.leave("models/m/v/old.bin", 9 * DAY)
    sink.locked.add("models/m/v/held.bin")
    collected = manager.gc()
    assert [found.upload.key for found in collected.leftovers] == ["models/m/v/old.bin"]
    assert (collected.total_bytes, collected.kept) == (7, 1)
    assert [left.key for left in sink.left] == ["models/m/v/held.bin"]


def test_a_dry_run_discards_nothing(manager, sink):
    """It tells the same."""
    sink.leave("models/m/v/old.bin", 2 * DAY, None)
    collected = manager.gc(dry_run=True)
    assert collected.to_json() == {
        "dry_run": True,
        "bytes": None,
        "kept": 0,
        "uploads": [
            {
                "key": "models/m/v/old.bin",
                "age_seconds": 2 * DAY,
                "bytes": None,
                "modified": collected.leftovers[0].to_json()["modified"],
            }
        ],
    }
    assert len(sink.left) == 1


def test_a_sum_with_an_unknown_size_is_unknown(manager, sink):
    """Not the sum of those that are known."""
    sink.leave("models/m/v/one.bin", 2 * DAY)
    sink.leave("models/m/v/two.bin", 2 * DAY, None)
    collected = manager.gc(dry_run=True)
    assert collected.to_json()["bytes"] is None
    assert list(_lines(collected))[-1] == "2 unfinished uploads, ?: nothing was done"


def test_a_version_that_is_being_pulled_is_left_alone(manager, sink):
    """However old its parts are; those of a version that only begins alike are not its."""
    sink.leave("models/m/v/old.bin", 9 * DAY)
    sink.leave("models/m/v2/old.bin", 9 * DAY)
    claim = ModelRegistry(sink).begin("m", "v")
    assert isinstance(claim, Claim)
    assert manager.gc().kept == 1
    assert [left.key for left in sink.left] == ["models/m/v/old.bin"]
    manager.registry().abandon(claim, "test")
    manager.gc()
    assert sink.left == []


def test_a_claim_whose_holder_died_holds_nothing(manager, sink, monkeypatch):
    """Killed on another machine, a day ago: its heartbeat is gone, and it is not waited for."""
    from mm_core.registry import begin

    monkeypatch.setattr(begin, "this_process", lambda: None)
    claim = ModelRegistry(sink).begin("m", "v")
    claim.close()
    sink.leave("models/m/v/old.bin", 9 * DAY)
    assert manager.gc(dry_run=True).leftovers == ()
    sink.silent.add(f".mm/claims/{claim.id}")
    assert manager.gc().kept == 0
    assert sink.left == []


def test_the_grace_of_the_settings_holds(sink, monkeypatch):
    """retention.grace, also of zero."""
    from mm_core import place

    monkeypatch.setattr(place, "open_sink", lambda *_: sink)
    for grace, count in (("3h", 0), ("1h", 1), (0, 1)):
        sink.left.clear()
        sink.leave("models/m/v/old.bin", 2 * HOUR)
        settings = load_settings(
            overrides={"defaults": {"backend": "memory://x"}, "retention": {"grace": grace}}
        )
        with ModelManager(settings, plugins=Plugins([memory])) as manager:
            assert len(manager.gc().leftovers) == count


def test_a_store_without_parts_has_nothing_to_do(capfd):
    """Exit 0, and it says so."""
    assert main(["gc", "--backend", "memory://none"]) == 0
    assert capfd.readouterr().out == "nothing to do\n"
    assert main(["gc", "--backend", "memory://none", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["uploads"] == []


def test_a_grace_that_is_none(capfd):
    """Exit 2, and the flag is named."""
    assert main(["gc", "--backend", "memory://none", "--grace", "soon"]) == 2
    assert "--grace: a duration is" in capfd.readouterr().err


def test_parts_on_a_local_disk(tmp_path, capfd):
    """The real thing: kept parts are told of, then discarded, and the models stay."""
    store = tmp_path / "store"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_bytes(b"{}")
    assert main(["push", str(mine), "m", "--version", "v", "--to", str(store), "-q"]) == 0
    sink = local.LocalSink(local.LocalSink.Config(root=str(store)))
    upload = sink.begin_upload("models/m/w/model.bin", size=20 << 20, identity="sha256:x")
    assert upload is not None
    upload.write_part(0, memoryview(bytes(upload.part_size)))
    upload.keep()
    old = time.time() - 2 * DAY
    for path in (store / "models/m/w").iterdir():
        os.utime(path, (old, old))
    capfd.readouterr()
    words = ["gc", "--backend", str(store)]
    assert main([*words, "--grace", "7d"]) == 0
    assert capfd.readouterr().out == "nothing to do; 1 younger or in use\n"
    assert main([*words, "-n"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[1].split() == ["models/m/w/model.bin", "2", "d", "4.0", "MiB"]
    assert shown[2] == "1 unfinished upload, 4.0 MiB: nothing was done"
    assert (store / "models/m/w").exists()
    assert main([*words, "--format", "quiet"]) == 0
    assert capfd.readouterr().out == "models/m/w/model.bin\n"
    assert not (store / "models/m/w").exists()
    assert main(["verify", "--backend", str(store)]) == 0


def test_a_folder_that_is_not_there(tmp_path, capfd, monkeypatch):
    """A mistyped path is an error, and a file as well; a backend that nobody used yet is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for words, code, said in (
        (["--backend", "./nothere"], 3, "there is no folder"),
        (["--backend", (tmp_path / "nothere").as_uri()], 3, "there is no folder"),
        (["--backend", "./file"], 2, "is not a folder"),
    ):
        assert main(["gc", *words]) == code
        assert said in capfd.readouterr().err
    (tmp_path / "mm.yaml").write_text("backends: {new: {type: local, root: ./new}}")
    assert main(["gc"]) == 0
    assert capfd.readouterr().out == "nothing to do\n"
    assert not (tmp_path / "nothere").exists()
