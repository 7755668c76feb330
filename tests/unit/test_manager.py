"""ModelManager on a folder: what must hold when something went wrong before or goes wrong beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from mm_core import (
    CancelledError,
    ConfigError,
    ConflictError,
    IntegrityError,
    MMError,
    ModelManager,
    NotFoundError,
    PassingSource,
    PluginError,
    Plugins,
    PolicyError,
    TransientError,
    UsageError,
    hookimpl,
    load_settings,
)
from mm_core.registry import ModelRegistry
from mm_core.sink import Sink
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder, url

pytestmark = pytest.mark.unit

BUILT_IN = (local, memory, folder, url)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_bytes(b"{}")
    (path / "model.bin").write_bytes(b"w" * 3_000_000)
    return path


def manager_of(tmp_path, *plugins, **defaults):
    settings = load_settings(
        overrides={"defaults": {"backend": str(tmp_path / "store"), **defaults}}
    )
    return ModelManager(settings, plugins=Plugins([*BUILT_IN, *plugins]))


def test_what_a_scanner_refused_is_never_offered(tmp_path, mine):
    """A refused file that was stored is gone before the same version becomes AVAILABLE without it."""

    class Scanner:
        @hookimpl
        def mm_file_stored(self, file):
            if file.path.endswith(".pkl"):
                raise PolicyError("pickles are refused")

    (mine / "evil.pkl").write_bytes(b"evil")
    with manager_of(tmp_path, Scanner()) as manager:
        with pytest.raises(PolicyError):
            manager.push(mine, "m", version="v")
        assert manager.registry().get_model("m").status.value == "FAILED"
        manager.pull(str(mine), model_id="m", version="v", exclude=["*.pkl"])
        got = manager.get("m").path
        assert sorted(path.name for path in got.iterdir()) == ["config.json", "model.bin"]


def test_a_removed_version_made_anew_holds_no_old_file(tmp_path, mine):
    """Removing, changing and pushing under the same name leaves the new files alone."""
    with manager_of(tmp_path) as manager:
        manager.push(mine, "m", version="v")
        manager.remove("m")
        (mine / "model.bin").rename(mine / "other.bin")
        manager.push(mine, "m", version="v")
        names = sorted(path.name for path in manager.get("m").path.iterdir())
        assert names == ["config.json", "other.bin"]
        assert manager.verify().ok


def test_verify_finds_what_does_not_belong(tmp_path, mine):
    """A file that somebody put into a version's folder is a finding."""
    with manager_of(tmp_path) as manager:
        manager.push(mine, "m", version="v")
        (manager.get("m").path / "extra.pkl").write_bytes(b"x")
        report = manager.verify()
        assert [(bad.path, report.ok) for bad in report.bad] == [("extra.pkl", False)]


def test_a_damaged_manifest_of_another_version_stops_nothing(tmp_path, mine):
    """It is a finding of verify; new versions of the model can still come."""
    with manager_of(tmp_path) as manager:
        entry = manager.push(mine, "m", version="old").entry
        manager.sink().put(f".mm/manifests/{entry.manifest}.json", b"rotten")
        assert manager.push(mine, "m", version="new").entry.version == "new"
        report = manager.verify()
        assert [(bad.version, bad.path) for bad in report.bad] == [("old", "")]
        assert report.checked == 2


def test_a_version_that_was_only_registered_cannot_be_verified(tmp_path, mine):
    """Asked for by name, that is said instead of a cheerful nothing."""
    from mm_core import ModelEntry

    with manager_of(tmp_path) as manager:
        manager.registry().add_model(ModelEntry(model_id="m", version="1", path=mine))
        with pytest.raises(NotFoundError):
            manager.verify("m")
        assert manager.verify().ok


def test_a_lost_claim_stops_the_writer(tmp_path, mine):
    """When the heartbeat cannot be put any more, the pull ends before it makes bytes visible."""
    broken = threading.Event()

    class Cut(local.LocalSink):
        type = "cut"

        def put(self, key, data):
            if not key.startswith(".mm/claims/"):
                super().put(key, data)
            elif broken.is_set():
                raise TransientError("the network is gone")

        def begin_upload(self, key, *, size, identity):
            return None

        def write(self, key, chunks, *, size):
            def slowly():
                for chunk in chunks:
                    broken.set()
                    time.sleep(0.05)
                    yield chunk
                for _ in range(100):  # until the claim counts as lost
                    time.sleep(0.05)
                    yield b""

            super().write(key, guarded(slowly(), stop_seen), size=size)

    stop_seen: list[bool] = []

    def guarded(chunks, seen):
        try:
            yield from chunks
        except CancelledError:
            seen.append(True)
            raise

    class Offer:
        @hookimpl
        def mm_sinks(self) -> list[type[Sink]]:
            return [Cut]

    (mine / "model.bin").write_bytes(b"w" * 50_000_000)
    settings = load_settings(
        overrides={
            "defaults": {"backend": "b", "claim_timeout": 1.2, "jobs": 1},
            "backends": {"b": {"type": "cut", "root": str(tmp_path / "store")}},
        }
    )
    with ModelManager(settings, plugins=Plugins([*BUILT_IN, Offer()])) as manager:
        with pytest.raises(TransientError, match="claim"):
            manager.push(mine, "m", version="v")
        assert stop_seen
        assert not (tmp_path / "store/models/m/v/model.bin").exists()


def test_impossible_jobs_are_refused(tmp_path, mine):
    """jobs below 1 is a mistake, not a pull that never ends."""
    with manager_of(tmp_path) as manager, pytest.raises(UsageError):
        manager.pull(str(mine), model_id="m", jobs=-1)


def test_the_rate_holds_for_all_that_a_manager_moves(tmp_path, mine):
    """Two pushes at once share the limit of their manager."""
    with manager_of(tmp_path, limit_rate="4MB") as manager:
        began = time.monotonic()
        threads = [threading.Thread(target=manager.push, args=(mine, name)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert time.monotonic() - began > 1.0  # 6 MB at 4 MB a second
        assert len(manager.list_models()) == 2


def test_a_version_never_changes(tmp_path, mine):
    """The same version name with other content is a conflict that says what differs."""
    with manager_of(tmp_path) as manager:
        manager.push(mine, "m", version="v")
        (mine / "config.json").write_bytes(b"[]")
        with pytest.raises(ConflictError, match=r"config\.json"):
            manager.push(mine, "m", version="v")


def test_get_refuses_a_folder_with_other_files(tmp_path, mine):
    """No loader may mix two versions; hidden files, also in hidden folders, do not count."""
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)
    (out / ".git/config").write_bytes(b"")
    with manager_of(tmp_path) as manager:
        manager.push(mine, "m")
        assert manager.get("m", output=out).path == out
        (out / "foreign.bin").write_bytes(b"")
        with pytest.raises(ConflictError, match=r"foreign\.bin"):
            manager.get("m", output=out)


def test_get_from_a_bucket_lands_in_the_cache(tmp_path, mine):
    """Without an output, and again after the version was removed and made anew."""
    with manager_of(tmp_path, backend="memory://get-from-a-bucket") as manager:
        manager.push(mine, "m", version="v")
        first = manager.get("m").path
        assert (first / "config.json").read_bytes() == b"{}"
        manager.remove("m")
        (mine / "model.bin").rename(mine / "other.bin")
        manager.push(mine, "m", version="v")
        assert (manager.get("m").path / "other.bin").exists()


def test_listeners_that_fail_harm_nothing(tmp_path, mine, caplog):
    """A listener and a hook that raise are logged once; the model comes."""

    class Broken:
        @hookimpl
        def mm_event(self, event):
            raise ZeroDivisionError

        @hookimpl
        def mm_committed(self, entry, backend):
            raise ZeroDivisionError

    def listener(event):
        raise ZeroDivisionError

    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    with ModelManager(settings, plugins=Plugins([*BUILT_IN, Broken()]), on_event=listener) as m:
        assert m.push(mine, "m").entry.status.value == "AVAILABLE"
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "event failed" in text]) == 2
    assert len([text for text in texts if "mm_committed" in text]) == 1


def test_a_pull_tells_its_own_listener_and_reads_through_what_is_put_before(tmp_path, mine):
    """Others hear of it as ever, and the listener of nothing else; the bytes pass by."""
    heard, own, passed = [], [], []

    class Watched(PassingSource):
        def read(self, file, start=0, end=None):
            for buffer in super().read(file, start, end):
                passed.append((file.path, bytes(buffer)))
                yield buffer

    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    with ModelManager(settings, plugins=Plugins(BUILT_IN), on_event=heard.append) as manager:
        manager.pull(str(mine), model_id="m", on_event=own.append, through=Watched)
        manager.push(mine, "n")
    assert {event.model_id for event in own} == {"m"}
    assert {event.model_id for event in heard} == {"m", "n"}
    assert [event for event in heard if event.model_id == "m"] == own
    read = {path: b"".join(b for p, b in passed if p == path) for path, _ in passed}
    assert read == {p.relative_to(mine).as_posix(): p.read_bytes() for p in mine.rglob("*.*")}


def test_a_policy_that_nobody_enforces_lets_nothing_in(tmp_path, mine):
    """Nobody may believe that a rule holds which no installed plugin knows."""
    settings = load_settings(
        overrides={
            "defaults": {"backend": str(tmp_path / "store")},
            "policies": {"default": {"licenses": {"allow": ["mit"]}}},
        }
    )
    with (
        ModelManager(settings, plugins=Plugins(BUILT_IN)) as manager,
        pytest.raises(PluginError, match="no plugin offers policies of type 'licenses'"),
    ):
        manager.push(mine, "m")


@pytest.mark.asyncio
async def test_a_cancelled_apull_has_ended_when_it_returns(tmp_path, mine):
    """Also when it is cancelled twice: the claim is given back, and a later pull completes."""
    began, go = threading.Event(), threading.Event()

    def on_event(event):
        if event.kind == "started":
            began.set()
            go.wait(10)

    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    with ModelManager(settings, plugins=Plugins(BUILT_IN), on_event=on_event) as manager:
        task = asyncio.ensure_future(manager.apull(str(mine), model_id="m"))
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert manager.registry().get_model("m").status.value == "FAILED"
        assert (await manager.apull(str(mine), model_id="m")).entry.status.value == "AVAILABLE"


def test_close_stops_what_runs(tmp_path, mine):
    """A pull in another thread ends with CancelledError when the manager is closed."""
    began, ended = threading.Event(), []

    def on_event(event):
        if event.kind == "started":
            began.set()
            stopped.wait(10)

    stopped = threading.Event()
    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    manager = ModelManager(settings, plugins=Plugins(BUILT_IN), on_event=on_event)

    def work():
        try:
            manager.push(mine, "m")
        except MMError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    began.wait(10)
    manager.close()
    stopped.set()
    thread.join(30)
    assert [type(error) for error in ended] == [CancelledError]


def test_an_interrupted_commit_is_not_carried_out_by_others(tmp_path, monkeypatch):
    """A caller interrupted while it waits for its turn takes its operations with it."""
    from mm_core import ModelEntry

    sink = local.LocalSink(local.LocalSink.Config(root=str(tmp_path / "s")))
    registry = ModelRegistry(sink)
    registry.add_model(ModelEntry(model_id="a", version="1", path=tmp_path))
    log = registry._log

    class Interrupted:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *_):
            return False

    turn = log._committing
    monkeypatch.setattr(log, "_committing", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        registry.remove("a", "1")
    monkeypatch.setattr(log, "_committing", turn)
    registry.add_model(ModelEntry(model_id="b", version="1", path=tmp_path))
    assert registry.get_model("a", "1").status.value == "AVAILABLE"


def test_a_pull_mends_what_is_missing_and_get_refuses_it(tmp_path, mine):
    """A lost file: get says damaged instead of handing it out, and a pull of the same fetches it."""
    with manager_of(tmp_path) as manager:
        manager.push(mine, "m", version="v", aliases=["prod"])
        (tmp_path / "store/models/m/v/model.bin").unlink()
        with pytest.raises(IntegrityError, match=r"model\.bin"):
            manager.get("m:prod")
        mended = manager.push(mine, "m", version="v")
        assert (mended.fetched_bytes, mended.present_bytes) == (3_000_000, 2)
        assert manager.verify().ok
        assert (manager.get("m:prod").path / "model.bin").stat().st_size == 3_000_000


def test_a_stuck_read_keeps_nobody_waiting(tmp_path, mine):
    """A cancelled pull ends although its source never gives another byte."""
    stuck, cancelled = threading.Event(), threading.Event()

    class Stuck(folder.FolderSource):
        type = "stuck"
        schemes = ("stuck",)

        def snapshot(self, request):
            return super().snapshot(replace(request, url=str(mine)))

        def read(self, file, start=0, end=None):
            yield b"w"
            cancelled.set()
            stuck.wait(60)

    class Offer:
        @hookimpl
        def mm_sources(self):
            return [Stuck]

    try:
        with manager_of(tmp_path, Offer()) as manager, pytest.raises(CancelledError):
            manager.pull("stuck://x", model_id="m", cancelled=cancelled)
    finally:
        stuck.set()


@pytest.mark.parametrize("root", ["s3://user:PASSWORD@bucket/x", "gs://user:PASSWORD@bucket/x"])
def test_a_password_in_a_bucket_url_is_refused_unseen(root):
    """It is a mistake, and the message does not repeat it."""
    from mm_plugins.sinks import gcs, s3

    with (
        pytest.raises(ConfigError) as caught,
        ModelManager(
            load_settings(), plugins=Plugins([*BUILT_IN, s3, gcs]), backend=root
        ) as manager,
    ):
        manager.list_models()
    assert "PASSWORD" not in str(caught.value)
