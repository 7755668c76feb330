"""A full disk is seen before the start."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from mm_core import (
    ModelManager,
    Plugins,
    RemoteFile,
    Request,
    ResumableSink,
    Snapshot,
    StorageError,
    UnfinishedUpload,
    hookimpl,
    load_settings,
)
from mm_core.cli import main
from mm_core.planning import make_plan
from mm_core.space import kept_bytes, refuse_if_full
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder

pytestmark = pytest.mark.unit

SIZE = 3_000_000


class Small(memory.MemorySink, ResumableSink):
    """A store that says how much room it has, and what earlier attempts left."""

    free: int | None = 0
    left: tuple[tuple[str, int | None], ...] = ()

    def free_bytes(self):
        return self.free

    def begin_upload(self, key, *, size, identity):
        return None

    def unfinished(self, prefix):
        for key, size in self.left:
            now = datetime.now(timezone.utc)
            yield UnfinishedUpload(key=f"{prefix}{key}", id="1", modified=now, size=size)

    def discard_unfinished(self, upload):
        raise AssertionError("nothing is discarded here")


def small(free, *left):
    sink = Small(Small.Config(root="memory://small"))
    sink.free, sink.left = free, left
    return sink


def plan_of(*sizes, present=()):
    files = tuple(
        RemoteFile(path=f"{n}.bin", size=size, sha256=f"{n}" * 64) for n, size in enumerate(sizes)
    )
    shot = Snapshot(source="x://m", revision="v", files=files, model_id="m")
    present = {f"models/m/v/{n}.bin": sizes[n] for n in present}
    return make_plan(Request(url="x://m"), shot, present=present, known={})


@pytest.mark.parametrize(
    ("sink", "plan"),
    [
        (small(100), plan_of(60, 40)),
        (small(None), plan_of(60, 41)),
        (small(10), plan_of(60, None)),
        (small(40), plan_of(60, 40, present=[0])),
        (small(0), plan_of(60, 40, present=[0, 1])),
    ],
)
def test_what_fits_or_cannot_be_told_is_let_through(sink, plan):
    """Room enough, a store that cannot say, a source that does not, and what is there already."""
    refuse_if_full(sink, plan)


def test_what_does_not_fit_is_refused_with_both_numbers():
    """Needs X, has Y, and what to do."""
    with pytest.raises(StorageError, match=r"needs 2\.0 KiB, .* 1\.0 KiB left") as caught:
        refuse_if_full(small(1024), plan_of(2048))
    assert caught.value.exit_code == 1
    assert "make room" in caught.value.hint


def test_parts_of_an_earlier_attempt_count_as_there():
    """But no more than the file itself, and only if their size is known."""
    refuse_if_full(small(50, ("0.bin", 50)), plan_of(100))
    refuse_if_full(small(50, ("0.bin", 500)), plan_of(60, 50))
    for left in (("0.bin", None), ("0.bin", 49), ("other.bin", 99)):
        with pytest.raises(StorageError):
            refuse_if_full(small(50, left), plan_of(100))


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "model.bin").write_bytes(b"w" * SIZE)
    return path


@pytest.fixture
def nearly_full(monkeypatch):
    monkeypatch.setattr(local.LocalSink, "free_bytes", lambda _self: SIZE - 1)


def manager_of(store, *plugins):
    settings = load_settings(overrides={"defaults": {"backend": str(store)}})
    return ModelManager(settings, plugins=Plugins([local, memory, folder, *plugins]))


def test_nothing_is_begun(tmp_path, mine, nearly_full):
    """Neither a claim nor a file; the same for a dry run's successor."""
    with manager_of(tmp_path / "store") as manager:
        with pytest.raises(StorageError, match=r"needs 2\.9 MiB"):
            manager.push(mine, "m", version="v")
        assert manager.registry().get_model("m") is None
        assert manager.registry().history() == []
    assert not (tmp_path / "store/models").exists()


def test_get_looks_too(tmp_path, mine, nearly_full):
    """A model from elsewhere that does not fit is refused, and the folder stays as it was."""
    with manager_of("memory://get-looks-too") as manager:
        manager.push(mine, "m", version="v")
        with pytest.raises(StorageError, match=r"needs 2\.9 MiB"):
            manager.get("m", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_that_is_there_needs_no_room(tmp_path, mine, monkeypatch):
    """Also one whose source states no hash, so that the plan alone would fetch it again."""

    class Unhashed(folder.FolderSource):
        type = "unhashed"
        schemes = ("unhashed",)

        def snapshot(self, request):
            from dataclasses import replace

            shot = super().snapshot(replace(request, url=str(mine)))
            files = tuple(replace(file, sha256=None) for file in shot.files)
            return replace(shot, files=files, revision="v")

    class Offer:
        @hookimpl
        def mm_sources(self):
            return [Unhashed]

    with manager_of(tmp_path / "store", Offer()) as manager:
        manager.pull("unhashed://x", model_id="m")
        monkeypatch.setattr(local.LocalSink, "free_bytes", lambda _self: 0)
        assert manager.pull("unhashed://x", model_id="m").fetched_bytes == 0
        (tmp_path / "store/models/m/v/model.bin").unlink()
        with pytest.raises(StorageError):
            manager.pull("unhashed://x", model_id="m")


def test_the_command_line_says_it(tmp_path, mine, nearly_full, capfd):
    """Exit 1, one error line and one hint; in JSON the code of a store's failure."""
    words = ["push", str(mine), "m", "--to", str(tmp_path / "store")]
    assert main(words) == 1
    assert "needs 2.9 MiB" in capfd.readouterr().err
    assert main([*words, "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["error"]["code"] == "storage"


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ((), 0),
        ((("0.bin", 50), ("other.bin", 9)), 50),
        ((("0.bin", 99), ("1.bin", 3)), 63),
        ((("0.bin", 50), ("1.bin", None)), None),
        ((("0.bin", 50), ("2.bin", None)), 50),
    ],
)
def test_what_earlier_attempts_left_is_told_where_it_is_known(left, kept):
    """Never more than a file has, and nothing of files that are not fetched."""
    assert kept_bytes(small(None, *left), plan_of(60, 40, 7, present=[2])) == kept


def test_a_version_that_is_there_keeps_no_parts(tmp_path):
    """Whoever mends it fetches the whole file."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.bin").write_bytes(bytes(9 << 20))
    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    with ModelManager(settings, plugins=Plugins([local, folder])) as manager:
        manager.push(mine, "m", version="v")
        sink = manager.sink()
        sink.delete(["models/m/v/model.bin"])
        upload = sink.begin_upload("models/m/v/model.bin", size=9 << 20, identity="sha256:x")
        upload.write_part(0, memoryview(bytes(upload.part_size)))
        upload.keep()
        plan = manager.plan(str(mine), model_id="m", version="v")
        assert kept_bytes(sink, plan) >= upload.part_size
        assert manager.kept_bytes(plan) == 0
