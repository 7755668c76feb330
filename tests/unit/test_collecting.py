"""mm gc: what nobody uses any more goes, and nothing else does."""

from __future__ import annotations

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest

from mm_core import (
    ConfigError,
    ConflictError,
    ModelEntry,
    ModelManager,
    ModelStatus,
    NotFoundError,
    Plugins,
    TransientError,
    UnfinishedUpload,
    load_settings,
)
from mm_core.cli import main
from mm_core.collecting import collect, make_gc_plan, sweeping
from mm_core.collecting.folders import Registered
from mm_core.registry import Claim, ModelRegistry, processes
from mm_core.registry.operations import operation
from mm_core.testing.registry import FaultySink, fill
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder

pytestmark = pytest.mark.unit

HOUR = 3600.0
DAY = 24 * HOUR
MIB = 1 << 20


class Store(memory.MemorySink):
    """A store whose clock is two days ahead of ours, and can be put on; with unfinished uploads."""

    def __init__(self, config):
        super().__init__(config)
        self.left: list[UnfinishedUpload] = []
        self.locked: set[str] = set()
        self.ahead = 2 * DAY
        self.since: dict[str, float] = {}

    def pass_time(self, seconds):
        """What is there is older by `seconds` now, by the store's clock."""
        for key in self._store.objects:
            self.since[key] = self.since.get(key, 0) + seconds
        self.left = [
            replace(left, modified=left.modified - timedelta(seconds=seconds)) for left in self.left
        ]

    def put(self, key, data):
        self.since.pop(key, None)
        super().put(key, data)

    def stat(self, key):
        found = super().stat(key)
        return None if found is None else self._dated(found)

    def list(self, prefix):
        return map(self._dated, super().list(prefix))

    def _dated(self, found):
        shift = timedelta(seconds=self.ahead - self.since.get(found.key, 0))
        return replace(found, modified=found.modified + shift)

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
    return Store(Store.Config(root=f"memory://{tmp_path.name}"))


@pytest.fixture
def make_manager(sink, monkeypatch):
    from mm_core import backends

    monkeypatch.setattr(backends, "open_sink", lambda *_: sink)

    def make(**retention):
        settings = {"defaults": {"backend": "memory://x"}, "retention": retention}
        return ModelManager(load_settings(overrides=settings), plugins=Plugins([memory, folder]))

    return make


@pytest.fixture
def manager(make_manager):
    with make_manager() as manager:
        yield manager


@pytest.fixture
def push(tmp_path, manager):
    """Push a version of two files."""

    def push(version, model_id="m", *, size=10, aliases=()):
        mine = tmp_path / "mine"
        mine.mkdir(exist_ok=True)
        (mine / "config.json").write_bytes(b"{}")
        (mine / "model.bin").write_bytes(version.encode()[:1] * size)
        return manager.push(mine, model_id, version=version, aliases=aliases).entry

    return push


def keys(sink, prefix="models/"):
    return [stored.key for stored in sink.list(prefix)]


# -- removed and failed versions ---------------------------------------------------------


def test_a_removed_version_waits_for_the_grace_and_then_goes(manager, push, sink):
    """Since its removal, by the store's clock; its files, its row, its file list and its hints."""
    push("1", size=2 * MIB)
    push("2")
    manager.remove("m@1")
    sink.pass_time(DAY - 60)
    assert manager.plan_gc().is_empty
    sink.pass_time(120)
    plan = manager.plan_gc()
    (version,) = plan.versions
    assert (version.name, version.status) == ("m@1", ModelStatus.DELETED)
    assert [stored.key for stored in version.objects] == [
        "models/m/1/config.json",
        "models/m/1/model.bin",
    ]
    assert plan.total_bytes == 2 * MIB + 2 + version.manifests[0].size
    assert keys(sink, ".mm/by-sha256/")
    assert manager.gc(plan).done == plan
    assert keys(sink) == ["models/m/2/config.json", "models/m/2/model.bin"]
    assert keys(sink, ".mm/by-sha256/") == []
    assert [entry.version for entry in manager.list_models(include_deleted=True)] == ["2"]
    assert keys(sink, ".mm/manifests/") == [
        f".mm/manifests/{manager.list_models()[0].manifest}.json"
    ]
    assert manager.verify().ok
    assert manager.plan_gc().is_empty


def test_a_dry_run_changes_nothing(manager, push, sink):
    """A plan is a value: not one object is written, changed or deleted by making it."""
    push("1")
    manager.remove("m@1")
    sink.put("models/other/9/stray", b"123")
    sink.pass_time(2 * DAY)
    before = dict(sink._store.objects)
    assert not manager.plan_gc().is_empty
    assert dict(sink._store.objects) == before


def test_a_failed_version_is_taken_up_again_until_the_grace_has_passed(manager, push, sink):
    """What an attempt left waits; then it goes, with the row."""
    claim = manager.registry().begin("m", "1")
    sink.put("models/m/1/part", b"123")
    manager.registry().abandon(claim, "test")
    sink.pass_time(HOUR)
    assert manager.plan_gc().is_empty
    assert manager.plan_gc().kept == 1
    sink.pass_time(DAY)
    assert [v.status for v in manager.gc().done.versions] == [ModelStatus.FAILED]
    assert keys(sink) == []
    assert push("1").status is ModelStatus.AVAILABLE


def test_a_complete_version_that_somebody_calls_failed_stays(manager, push, sink):
    """It was set aside by hand, and can be AVAILABLE again."""
    push("1")
    manager.registry().update_model_status("m", ModelStatus.FAILED, version="1")
    sink.pass_time(9 * DAY)
    assert manager.plan_gc().is_empty
    manager.registry().update_model_status("m", ModelStatus.AVAILABLE, version="1")
    assert manager.verify("m@1").ok


def test_a_version_that_is_pulled_again_is_left(manager, push, sink):
    """Between the plan and the run it was begun, or it is there again: nothing of it goes."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    push("1")
    collected = manager.gc(plan)
    assert (collected.done.versions, collected.left) == ((), 4)
    assert manager.verify("m@1").checked == 2
    manager.remove("m@1")
    assert manager.gc(plan).done.versions == ()  # removed again: it has not waited for the grace


def test_the_run_does_no_more_than_the_plan(manager, push, sink):
    """A file that comes after the plan stays, and goes with the next plan as an orphan."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    sink.put("models/m/1/late", b"123")
    manager.gc(plan)
    assert keys(sink) == ["models/m/1/late"]
    assert manager.plan_gc().is_empty
    sink.pass_time(2 * DAY)
    manager.gc()
    assert keys(sink) == []


def test_entries_whose_files_the_caller_looks_after_are_never_touched(manager, push, sink):
    """Neither by their rows nor below their paths, if those lie in this root."""
    sink.put("models/mine/file", b"1")
    sink.put("models/their/folder/file", b"1")
    registry = manager.registry()
    registry.add_model(ModelEntry(model_id="a", version="1", path=f"{sink.root}/models/mine/file"))
    registry.add_model(ModelEntry(model_id="b", version="1", path=f"{sink.root}/models/their/"))
    registry.remove("b", "1")
    sink.pass_time(9 * DAY)
    assert manager.plan_gc().is_empty
    assert manager.gc().done.is_empty
    assert keys(sink) == ["models/mine/file", "models/their/folder/file"]


def test_paths_in_and_around_a_root(tmp_path):
    """Below it, above it, beside it, through a link and as a URL."""
    root = tmp_path / "store"
    (root / "models/m").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root / "models")

    def holds(path, key="models/m/1/f", root=str(root)):
        entry = ModelEntry(model_id="x", version="1", path=path)
        registry = ModelRegistry(memory.MemorySink(memory.MemorySink.Config(root="memory://paths")))
        registry.add_model(entry)
        registered = Registered(root)
        registered.look(registry.state())
        found = registered.holds(key)
        registry.sink._store.objects.clear()
        return found

    assert holds(root / "models/m")
    assert holds(root)
    assert holds(tmp_path)
    assert holds(tmp_path / "link/m")
    assert holds((root / "models/m").as_uri())
    assert not holds(root / "models/m", "models/m2/1/f")
    assert not holds(tmp_path / "elsewhere")
    assert not holds("s3://bucket/models/m")
    assert holds("s3://bucket/p/models/m/1", root="s3://bucket/p")
    assert not holds("s3://bucket/p2/models/m/1", root="s3://bucket/p")
    assert holds("s3a://bucket/p/models/m/1/", root="s3://bucket/p")
    assert holds("GCS://bucket/models/m", root="gs://bucket")
    assert holds("sftp://me:secret@host/p/models/m/1", root="sftp://host/p")
    assert not holds("models/m/1", root="s3://bucket/p")


# -- collectors that die, and several at once -----------------------------------------------


def swept_half(sink, registry, monkeypatch):
    """A collector that dies after its first deletion. Its process is named in the log."""

    class DeadError(BaseException):
        pass

    delete = sink.delete

    def die(some):
        some = [*some]
        delete(some[:1])
        if any(key.startswith("models/") for key in some):
            raise DeadError

    from mm_core.collecting import make_gc_plan

    with monkeypatch.context() as patch:
        patch.setattr(sink, "delete", die)
        with pytest.raises(DeadError):
            collect(registry, make_gc_plan(registry, grace=DAY), jobs=1)


def test_who_dies_is_gone_on_with_at_once_where_that_is_known(manager, push, sink, monkeypatch):
    """Its process ran here and has ended: the next collection ends the sweep."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    swept_half(sink, manager.registry(), monkeypatch)
    assert manager.registry().get_model("m", "1").status is ModelStatus.SWEEPING
    assert manager.plan_gc().is_empty  # its process, which is ours, is alive
    monkeypatch.setattr(processes, "_started", lambda _: None)
    assert [v.status for v in manager.gc().done.versions] == [ModelStatus.SWEEPING]
    assert keys(sink) == []
    assert manager.list_models(include_deleted=True) == []


def test_who_dies_elsewhere_is_gone_on_with_after_an_hour(manager, push, sink, monkeypatch):
    """By the store's clock; the one who was thought dead can end nothing any more."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    swept_half(sink, manager.registry(), monkeypatch)
    row = manager.registry().state().row("m", "1")
    sink.pass_time(HOUR - 60)
    assert manager.plan_gc().is_empty
    sink.pass_time(120)
    manager.gc()
    assert manager.list_models(include_deleted=True) == []
    with pytest.raises(NotFoundError):
        manager.registry().commit([operation("swept", "m", version="1", sweeper=row["sweeper"])])


@pytest.mark.parametrize("how", ["its process has ended", "an hour has passed"])
def test_a_pull_waits_for_no_dead_collector(manager, push, sink, monkeypatch, how):
    """It takes the version over as another collector would, and whoever comes back is refused."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    swept_half(sink, manager.registry(), monkeypatch)
    sweeper = manager.registry().state().row("m", "1")["sweeper"]
    with pytest.raises(ConflictError, match="SWEEPING"):
        manager.registry().begin("m", "1", wait=False)
    if how == "an hour has passed":
        sink.pass_time(HOUR + 60)
    else:
        monkeypatch.setattr(processes, "_started", lambda _: None)
    push("1")
    with pytest.raises(ConflictError):
        swept = operation("swept", "m", version="1", sweeper=sweeper)
        manager.registry().commit([swept])
    assert manager.verify("m@1").checked == 2
    assert manager.verify().ok


def test_a_collector_that_slept_learns_that_it_is_not_wanted_any_more(
    manager, push, sink, monkeypatch
):
    """It asks again before it deletes: the version is swept, and pulled again, and stays whole."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    real, slept = sweeping.steady_seconds, []
    listing = sink.list

    def sleep_after(prefix):
        found = list(listing(prefix))
        if prefix == "models/m/1/" and not slept:
            slept.append(True)
            sink.pass_time(2 * HOUR)
            other = ModelManager(manager.settings, plugins=Plugins([memory, folder]))
            assert [v.name for v in other.gc().done.versions] == ["m@1"]
            push("1")
            monkeypatch.setattr(sweeping, "steady_seconds", lambda: real() + 2 * HOUR)
        return iter(found)

    monkeypatch.setattr(sink, "list", sleep_after)
    assert manager.gc(plan).done.versions == ()
    assert slept
    assert manager.verify("m@1").checked == 2
    assert manager.verify().ok


def test_four_collectors_with_one_plan(manager, push, sink):
    """Each version is swept by exactly one of them, and none of them fails."""
    for version in "123456789":
        push(version)
    for version in "12345678":
        manager.remove(f"m@{version}")
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: collect(ModelRegistry(sink), plan), range(4)))
    swept = sorted(version.name for run in runs for version in run.done.versions)
    assert swept == [f"m@{version}" for version in "12345678"]
    assert [entry.version for entry in manager.list_models(include_deleted=True)] == ["9"]
    assert manager.verify().ok


def test_a_puller_takes_over_no_sweep_that_goes_on(manager, push, sink, monkeypatch):
    """It judged the sweep to be nobody's; before its commit the collector says that it is at work."""
    push("1")
    manager.remove("m@1")
    registry, heir = manager.registry(), ModelRegistry(sink)
    registry.commit([operation("sweep", "m", version="1", sweeper="s", free=True)])
    real, said = heir._log.commit, []

    def commit(operations):
        if not said:
            said.append(operations)
            goes_on = operation(
                "sweep", "m", version="1", sweeper="s", owner=processes.this_process()
            )
            registry.commit([goes_on])
        return real(operations)

    monkeypatch.setattr(heir._log, "commit", commit)
    with pytest.raises(ConflictError):
        heir.begin("m", "1", wait=False)
    assert said
    row = registry.state().row("m", "1")
    assert (row["status"], row["sweeper"]) == ("SWEEPING", "s")


def test_a_long_sweep_says_that_it_is_still_at_work(manager, push, sink, monkeypatch):
    """Then nobody takes its place."""
    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    now = count()
    monkeypatch.setattr(sweeping, "steady_seconds", lambda: next(now) // 2 * HOUR / 4)
    assert len(manager.gc().done.versions) == 1
    operations = [o["op"] for record in manager.registry().history() for o in record.operations]
    assert operations.count("sweep") > 1
    assert operations[-1] == "swept"


def test_a_store_that_refuses_leaves_the_version_to_the_next(manager, push, sink, monkeypatch):
    """A final error is told, and the next collector need not wait for anybody."""
    from mm_core import AuthError

    push("1")
    manager.remove("m@1")
    sink.pass_time(2 * DAY)
    with monkeypatch.context() as patch:
        delete = sink.delete

        def refuse(some):
            some = [*some]
            if some[0].startswith("models/"):
                raise AuthError("no right to delete")
            delete(some)

        patch.setattr(sink, "delete", refuse)
        with pytest.raises(AuthError):
            manager.gc()
    assert manager.registry().get_model("m", "1").status is ModelStatus.SWEEPING
    assert len(manager.gc().done.versions) == 1
    assert keys(sink) == []


def test_lost_answers_stop_nothing_for_good(manager, push, sink):
    """With every fifth call cut or its answer lost, collections end, and never harm."""
    for version in "123456":
        push(version, aliases=("prod",))
        sink.put(f"models/m/{version}/stray", b"123")
    for version in "12345":
        manager.remove(f"m@{version}")
    sink.pass_time(2 * DAY)
    registry = ModelRegistry(FaultySink(sink, rate=0.2, seed=3))
    from mm_core.collecting import make_gc_plan

    for _ in range(200):
        with contextlib.suppress(TransientError):
            plan = make_gc_plan(registry, grace=DAY)
            if plan.is_empty and not plan.kept:
                break
            collect(registry, plan, jobs=1)
        sink.pass_time(2 * HOUR)  # whoever began a sweep is not waited for
    assert [entry.version for entry in manager.list_models(include_deleted=True)] == ["6"]
    assert keys(sink) == ["models/m/6/config.json", "models/m/6/model.bin"]
    assert manager.verify().ok


# -- orphans ---------------------------------------------------------------------------------


def test_what_no_version_names_goes(manager, push, sink):
    """Strays in a version's folder, folders of no version, and keys that no version could hold."""
    push("1")
    push("2", "org/name")
    strays = [
        "models/m/1/stray",
        "models/m/9/config.json",
        "models/org/name/3/deep/file",
        "models/org/other/1/file",
        "models/file",
        "models/m/file",
    ]
    for key in strays:
        sink.put(key, b"123")
    sink.pass_time(DAY - 60)
    assert manager.plan_gc().kept == len(strays)
    sink.pass_time(120)
    sink.put("models/m/9/young", b"123")
    plan = manager.plan_gc()
    assert {stored.key for stored in plan.objects} == set(strays)
    assert plan.kept == 1
    assert manager.gc(plan).done == plan
    assert set(keys(sink)) == {
        "models/m/9/young",
        *(f"models/{name}/{file}" for name in ("m/1", "org/name/2")
          for file in ("config.json", "model.bin")),
    }  # fmt: skip
    assert manager.verify().ok
    assert len(manager.list_models(include_deleted=True)) == 2


@pytest.mark.parametrize("left", ["models/", ".mm/format.json models/", ".mm/manifests/"])
def test_without_a_registry_nothing_is_anybodys_to_delete(push, sink, left):
    """Where it was lost, or was never there, all files and all lists of files look like nobody's."""
    push("1")
    sink.delete([key for key in keys(sink, "") if not key.startswith(tuple(left.split()))])
    before = keys(sink, "")
    with pytest.raises(NotFoundError, match="no registry"):
        make_gc_plan(ModelRegistry(sink), grace=0)
    assert keys(sink, "") == before != []


@pytest.mark.parametrize("lost", [".mm/", ".mm/log/"])
def test_what_is_older_than_the_registry_is_not_its_own_to_delete(manager, push, sink, lost):
    """A new one was begun in the place of one that was lost; what that had stored is all still there."""
    push("1")
    push("2", "org/other")
    mine = keys(sink), keys(sink, ".mm/manifests/") if lost == ".mm/log/" else []
    sink.delete(keys(sink, lost))
    sink.pass_time(HOUR)
    with ModelManager(manager.settings, plugins=manager.plugins) as fresh:
        fresh.registry().accept()
        fresh.registry().add_model(ModelEntry(model_id="new", version="1", path="s3://x/y"))
        sink.put("models/orphan/1/f", b"123")
        sink.pass_time(2 * DAY)
        plan = fresh.plan_gc()
        assert [stored.key for stored in plan.objects if "/probe/" not in stored.key] == [
            "models/orphan/1/f"
        ]
        assert plan.kept == len(mine[0]) + len(mine[1])
        fresh.gc(plan)
    assert {*mine[0]} <= {*keys(sink)}


def test_an_orphan_that_becomes_a_version_is_left(manager, push, sink):
    """Somebody begins to fill that very folder between the plan and the run."""
    push("2", "other")
    sink.put("models/m/1/old", b"123")
    sink.put("models/m/1/config.json", b"{}")
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    push("1")
    assert manager.gc(plan).done.is_empty
    assert manager.verify("m@1").checked == 2


def test_what_cannot_be_locked_is_left(manager, push, sink):
    """A key in a folder that holds another version's folder: no name would keep others out."""
    push("c", "a/b")
    sink.put("models/a/b/stray", b"123")
    sink.put("models/a/B/c/file", b"123")
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    assert (plan.is_empty, plan.kept) == (True, 2)


def test_a_file_list_that_was_never_committed_goes(manager, push, sink):
    """Left by a pull that died just before its commit; one of a version that is there stays."""
    from mm_core.schemas import Manifest, ModelType

    push("1")
    for version in ("1", "2"):
        manifest = Manifest(model_id="m", version=version, model_type=ModelType.OTHER, files=())
        manager.registry()._store_manifest(manifest)
    sink.pass_time(2 * DAY)
    plan = manager.plan_gc()
    assert [(sweep.name, len(sweep.manifests)) for sweep in plan.orphans] == [("m@2", 1)]
    manager.gc(plan)
    assert len(keys(sink, ".mm/manifests/")) == 2
    assert manager.plan_gc().is_empty


# -- claims, heartbeats, probes ----------------------------------------------------------------


def test_a_claim_whose_holder_died_long_ago_is_given_up(manager, sink, monkeypatch):
    """Killed on another machine: FAILED after the grace, and swept after another."""
    from mm_core.registry import begin

    monkeypatch.setattr(begin, "this_process", lambda: None)
    claim = ModelRegistry(sink).begin("m", "1")
    claim.close()
    sink.put("models/m/1/part", b"123")
    sink.pass_time(DAY - 60)
    assert manager.plan_gc().is_empty
    sink.pass_time(120)
    done = manager.gc().done
    assert [dead.claim for dead in done.claims] == [claim.id]
    assert manager.registry().get_model("m", "1").status is ModelStatus.FAILED
    assert keys(sink) == ["models/m/1/part"]
    sink.pass_time(DAY)
    manager.gc()
    assert [*keys(sink), *keys(sink, ".mm/claims/")] == []


def test_heartbeats_of_closed_claims_and_probes_go(manager, push, sink):
    """That of an open claim stays."""
    push("1")
    claim = manager.registry().begin("m", "2")
    for key in (".mm/claims/gone", ".mm/probe/left"):
        sink.put(key, b"")
    sink.pass_time(DAY - 60)
    assert manager.plan_gc().is_empty
    sink.pass_time(120)
    assert [s.key for s in manager.gc().done.litter] == [".mm/claims/gone", ".mm/probe/left"]
    assert keys(sink, ".mm/claims/") == [f".mm/claims/{claim.id}"]
    claim.close()


# -- unfinished uploads --------------------------------------------------------------------------


def test_only_uploads_older_than_the_grace_go(manager, sink):
    """By the store's own clock; outside models/ nothing is looked at."""
    sink.leave("models/m/v/old.bin", DAY + 60)
    sink.leave("models/m/v/young.bin", DAY - 60)
    sink.leave("elsewhere/old.bin", 9 * DAY)
    done = manager.gc().done
    assert [found.upload.key for found in done.uploads] == ["models/m/v/old.bin"]
    assert (done.total_bytes, done.kept) == (7, 1)
    assert [left.key for left in sink.left] == ["models/m/v/young.bin", "elsewhere/old.bin"]
    assert manager.gc(manager.plan_gc(grace=HOUR)).done.uploads != ()
    assert [left.key for left in sink.left] == ["elsewhere/old.bin"]
    assert list(sink.list("")) == []


def test_what_a_writer_holds_is_told_as_left(manager, sink):
    """A writer without a claim, or whose claim is over, but at work: the sink knows."""
    sink.leave("models/m/v/held.bin", 9 * DAY)
    sink.leave("models/m/v/old.bin", 9 * DAY)
    sink.locked.add("models/m/v/held.bin")
    collected = manager.gc()
    assert [found.upload.key for found in collected.done.uploads] == ["models/m/v/old.bin"]
    assert (collected.done.total_bytes, collected.left) == (7, 1)
    assert [left.key for left in sink.left] == ["models/m/v/held.bin"]


def test_a_sum_with_an_unknown_size_is_unknown(manager, sink, capfd):
    """Not the sum of those that are known."""
    sink.leave("models/m/v/one.bin", 2 * DAY)
    sink.leave("models/m/v/two.bin", 2 * DAY, None)
    plan = manager.plan_gc()
    assert plan.to_json()["bytes"] is None
    assert [found["bytes"] for found in plan.to_json()["uploads"]] == [7, None]
    assert main(["gc", "--backend", "memory://x", "-n"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "2 unfinished uploads, ?: nothing was done"


def test_uploads_of_a_version_that_is_being_pulled_are_left_alone(manager, sink):
    """However old; those of a version that only begins alike are not its."""
    sink.leave("models/m/v/old.bin", 9 * DAY)
    sink.leave("models/m/v2/old.bin", 9 * DAY)
    claim = ModelRegistry(sink).begin("m", "v")
    assert isinstance(claim, Claim)
    assert manager.gc().done.kept == 2
    assert [left.key for left in sink.left] == ["models/m/v/old.bin"]
    manager.registry().abandon(claim, "test")
    manager.gc()
    assert sink.left == []


def test_the_grace_of_the_settings_holds(make_manager, sink):
    """retention.grace, also of zero."""
    for grace, number in (("3h", 0), ("1h", 1), (0, 1)):
        sink.left.clear()
        sink.leave("models/m/v/old.bin", 2 * HOUR)
        with make_manager(grace=grace) as manager:
            assert len(manager.gc().done.uploads) == number


# -- retention --------------------------------------------------------------------------------


def retained(manager):
    return [entry.version for entry in manager.list_models()]


def test_surplus_versions_are_removed_only_when_that_is_asked_for(make_manager, push, sink):
    """The newest stay, and whatever an alias names; the others are removed, and wait as any."""
    for version in "12345":
        push(version)
        push(version, "other") if version < "3" else None
    with make_manager(keep_last=2) as manager:
        manager.registry().set_alias("m", "canary", "1")
        assert manager.plan_gc().is_empty
        plan = manager.plan_gc(retention=True)
        assert [(one.model_id, one.version) for one in plan.retired] == [("m", "2"), ("m", "3")]
        assert manager.gc(plan).done.retired == plan.retired
        assert retained(manager) == ["1", "4", "5", "1", "2"]
        assert len(keys(sink, "models/m/")) == 10
        last = [o for record in manager.registry().history() for o in record.operations][-1]
        assert (last["op"], last["version"], last["reason"]) == ("remove", "3", "retention")
        sink.pass_time(2 * DAY)
        manager.gc()
        assert len(keys(sink, "models/m/")) == 6


def test_only_the_aliases_that_are_named_keep(make_manager, push):
    """And latest, which is what a bare id means."""
    for version in "1234":
        push(version)
    with make_manager(keep_last=1, keep_aliases=["prod"]) as manager:
        for alias, version in (("prod", "1"), ("latest", "2"), ("canary", "3")):
            manager.registry().set_alias("m", alias, version)
        plan = manager.plan_gc(retention=True)
        assert [(one.version, one.aliases) for one in plan.retired] == [("3", ("canary",))]
        manager.gc(plan)
        assert retained(manager) == ["1", "2", "4"]


@pytest.mark.parametrize("moment", ["before the run", "in the last moment"])
def test_an_alias_that_is_set_meanwhile_keeps_its_version(make_manager, push, moment, monkeypatch):
    """The removal is refused in the log itself, so no moment is too late."""
    for version in "123":
        push(version)
    with make_manager(keep_last=1) as manager:
        registry = manager.registry()
        plan = manager.plan_gc(retention=True)
        if moment == "before the run":
            registry.set_alias("m", "prod", "1")
        else:
            surplus = type(plan.retention).surplus

            def late(self, state):
                found = list(surplus(self, state))
                registry.set_alias("m", "prod", "1")
                return iter(found)

            monkeypatch.setattr(type(plan.retention), "surplus", late)
        collected = manager.gc(plan)
        assert [one.version for one in collected.done.retired] == ["2"]
        assert collected.left == 1
        assert registry.resolve("m:prod").version == "1"


def test_retention_without_a_number_is_an_error(manager, push):
    """Nothing says what is surplus."""
    push("1")
    with pytest.raises(ConfigError, match=r"retention\.keep_last"):
        manager.plan_gc(retention=True)


# -- the command ---------------------------------------------------------------------------------


def test_a_store_with_nothing_has_nothing_to_do(capfd):
    """Exit 0, and it says so."""
    assert main(["gc", "--backend", "memory://none"]) == 0
    assert capfd.readouterr().out == "nothing to do\n"
    assert main(["gc", "--backend", "memory://none", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["versions"] == []


def test_a_grace_that_is_none(capfd):
    """Exit 2, and the flag is named."""
    assert main(["gc", "--backend", "memory://none", "--grace", "soon"]) == 2
    assert "--grace: a duration is" in capfd.readouterr().err


def test_what_is_printed(manager, push, sink, capfd):
    """A table for people, every key and its bytes for programs, keys alone for a pipe."""
    push("1")
    manager.remove("m@1")
    sink.put("models/x/1/stray", b"123")
    sink.pass_time(2 * DAY)
    words = ["gc", "--backend", "memory://x"]
    assert main([*words, "-n"]) == 0
    shown = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert shown[1] == ["deleted", "m@1", "2", "12", "B"]
    assert shown[2] == ["orphan", "models/x/1/stray", "1", "3", "B"]
    assert shown[3][:2] == ["4", "objects,"]
    assert shown[3][-3:] == ["nothing", "was", "done"]
    assert main([*words, "-n", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["dry_run"] is True
    (version,) = document["versions"]
    assert version["keys"][:2] == [
        {"key": "models/m/1/config.json", "bytes": 2},
        {"key": "models/m/1/model.bin", "bytes": 10},
    ]
    assert document["orphans"] == [{"key": "models/x/1/stray", "bytes": 3}]
    assert document["bytes"] == version["bytes"] + 3
    assert main([*words, "--format", "quiet"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "models/m/1/config.json"
    assert main(words) == 0
    assert capfd.readouterr().out == "nothing to do\n"


def test_long_work_says_how_far_it_is(manager, push, sink, capfd, monkeypatch):
    """On stderr, every few seconds; not where progress is not wanted."""
    from mm_core.cli import progress as command

    monkeypatch.setattr(command, "EVERY", 0.0)
    for version, words in (("1", []), ("2", ["--no-progress"]), ("3", ["--json"])):
        push(version)
        manager.remove(f"m@{version}")
        sink.pass_time(2 * DAY)
        assert main(["gc", "--backend", "memory://x", *words]) == 0
        said = capfd.readouterr().err
        assert said == ("" if words else "swept 1 of 1 versions\n")


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
    assert shown[1].split() == [
        "unfinished", "models/m/w/model.bin", "(2", "d)", "1", "4.0", "MiB",
    ]  # fmt: skip
    assert shown[2] == "1 unfinished upload, 4.0 MiB: nothing was done"
    assert (store / "models/m/w").exists()
    assert main([*words, "--format", "quiet"]) == 0
    assert capfd.readouterr().out == "models/m/w/model.bin\n"
    assert not (store / "models/m/w").exists()
    assert main(["verify", "--backend", str(store)]) == 0


def test_files_with_equal_bytes_on_a_local_disk(tmp_path, capfd):
    """Two versions share their bytes by links: one goes, and the other stays whole."""
    store, mine = tmp_path / "store", tmp_path / "mine"
    mine.mkdir()
    (mine / "model.bin").write_bytes(b"w" * 2 * MIB)
    for version in ("1", "2"):
        assert main(["push", str(mine), "m", "--version", version, "--to", str(store), "-q"]) == 0
    assert main(["rm", "m@1", "--backend", str(store), "--yes"]) == 0
    assert "mm gc" in capfd.readouterr().out
    assert main(["gc", "--grace", "0", "--backend", str(store), "--json"]) == 0
    assert [v["version"] for v in json.loads(capfd.readouterr().out)["versions"]] == ["1"]
    assert not (store / "models/m/1").exists()
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


# -- what a pull heeds ------------------------------------------------------------------------


def test_a_file_that_vanished_before_the_commit_is_no_version(tmp_path, manager, sink, monkeypatch):
    """Something took it away after it was verified: the pull says so instead of adding it."""
    from mm_core import street

    show = street.Street.show_stored

    def take_away(self, place, stored):
        show(self, place, stored)
        sink.delete([stored[0].key])

    (tmp_path / "file").write_bytes(b"123")
    monkeypatch.setattr(street.Street, "show_stored", take_away)
    with pytest.raises(TransientError, match="does not stand"):
        manager.push(tmp_path, "m", version="1")
    assert manager.registry().get_model("m", "1").status is ModelStatus.FAILED


def test_who_was_taken_over_deletes_nothing_of_his_heir(sink):
    """Its claim is not in the log any more, whatever its clock says."""
    from mm_core import CancelledError
    from mm_core.claiming import leave_only

    registry = ModelRegistry(sink)
    claim = registry.begin("m", "1")
    registry.abandon(claim, "taken over")
    fill(registry, "m", "1")
    sink.put("models/m/1/of-the-heir", b"1")
    with pytest.raises(CancelledError):
        leave_only(registry, claim, [])
    assert keys(sink) == ["models/m/1/of-the-heir"]


def test_who_mends_a_version_stops_when_it_is_removed(sink, monkeypatch):
    """What it knows of the version is never older than a few seconds."""
    from mm_core import claiming

    registry = ModelRegistry(sink)
    entry = fill(registry, "m", "1")
    changed = claiming.Changed(registry, entry)
    registry.remove("m", "1")
    assert not changed.is_set()
    real = claiming.steady_seconds
    monkeypatch.setattr(claiming, "steady_seconds", lambda: real() + 60)
    assert changed.is_set()
    with (
        pytest.raises(TransientError, match="removed"),
        claiming.as_long_as_it_stands(registry, entry) as changed,
    ):
        changed.set()
        raise claiming.CancelledError("stopped")
