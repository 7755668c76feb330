"""Copies between backends: all that is known goes along, and nothing is done twice."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_core import (
    CancelledError,
    ConflictError,
    IntegrityError,
    ModelEntry,
    ModelManager,
    ModelStatus,
    ModelType,
    NotFoundError,
    PartialError,
    Plugins,
    TransientError,
    UsageError,
    hookimpl,
    load_settings,
)
from mm_core.copies import Outcome
from mm_core.copying import AT_ONCE
from mm_core.schemas import Manifest, StoredFile
from mm_core.sink import Sink
from mm_core.testing.material import noise, sha256
from mm_core.testing.sources import SourceTests
from mm_core.upkeep.backup import backup, restore
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder, registry

pytestmark = pytest.mark.unit

BUILT_IN = (local, memory, folder, registry)
FILES = {"config.json": b"{}", "sub/model.bin": noise(3_000_001), "empty": b""}


class Stranger(memory.MemorySink):
    """Memory that copies from nobody, as a store of another vendor; what is read of it is noted."""

    type = "stranger"
    schemes = ("stranger",)
    reads: list[str] = []
    writes: list[str] = []
    calls: list[str] = []

    def copies_from(self, other):
        return False

    def read(self, key, start=0, end=None):
        self.reads.append(key)
        self.calls.append(f"read {key}")
        return super().read(key, start, end)

    def write(self, key, chunks, *, size):
        self.writes.append(key)
        super().write(key, chunks, size=size)

    def list(self, prefix):
        self.calls.append(f"list {prefix}")
        return super().list(prefix)

    def stat(self, key):
        self.calls.append(f"stat {key}")
        return super().stat(key)


class Offer:
    @hookimpl
    def mm_sinks(self) -> list[type[Sink]]:
        return [Stranger]


@pytest.fixture
def manager(tmp_path):
    name = tmp_path.name
    settings = load_settings(
        overrides={
            "defaults": {"backend": "lake"},
            "backends": {
                "lake": {"type": "local", "root": str(tmp_path / "lake"), "fsync": False},
                "dr": {"type": "local", "root": str(tmp_path / "dr"), "fsync": False},
                "far": {"type": "stranger", "root": f"stranger://{name}-far"},
                "away": {"type": "stranger", "root": f"stranger://{name}-away"},
            },
        }
    )
    for noted in (Stranger.reads, Stranger.writes, Stranger.calls):
        noted.clear()
    with ModelManager(settings, plugins=Plugins([*BUILT_IN, Offer()])) as made:
        yield made


def make(path, files=FILES):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def push(manager, tmp_path, model_id, version="1", *, to="lake", aliases=(), data=b"x"):
    content = make(tmp_path / f"src-{model_id.replace('/', '-')}-{version}", {"f": data})
    return manager.push(content, model_id, version=version, to=to, aliases=aliases).entry


@pytest.fixture
def entry(manager, tmp_path):
    """A version of the lake with all that a manifest may hold, also what is new to this release."""
    place = manager.registry("lake")
    claim = place.begin("org/m", "v1", source="hf://org/m@abc")
    stored = []
    for path, data in FILES.items():
        key = f"{claim.prefix}{path}"
        place.sink.write(key, [data], size=len(data))
        stored.append(
            StoredFile(
                path=path, key=key, size=len(data), sha256=sha256(data), extra={"scan": "clean"}
            )
        )
    manifest = Manifest(
        model_id="org/m",
        version="v1",
        model_type=ModelType.TEXT_GENERATION,
        files=tuple(stored),
        source="hf://org/m@abc",
        revision="abc",
        license="mit",
        facts={"tags": ["a"]},
        extra={"scans": {"engine": "x", "verdict": "ok"}},
    )
    return place.add(claim, manifest, aliases=["prod", "stable"])


def content(manager, backend, reference):
    sink, place = manager.sink(backend), manager.registry(backend)
    files = place.manifest(place.resolve(reference)).files
    return {f.path: b"".join(bytes(b) for b in sink.read(f.key)) for f in files}


class TestOne:
    @pytest.mark.parametrize("to", ["dr", "far"])
    def test_a_copy_has_all_that_is_known(self, manager, entry, to):
        """Source, revision, licence, facts and fields of a later release; and where it came from."""
        copies = manager.copy("org/m:prod", source="lake", to=to, with_aliases=True)
        assert not copies.failed
        there = manager.registry(to).resolve("org/m:stable")
        mine, copied = (
            manager.registry("lake").manifest(entry),
            manager.registry(to).manifest(there),
        )
        for name in ("source", "revision", "license", "model_type", "extra", "version"):
            assert getattr(copied, name) == getattr(mine, name)
        facts = dict(copied.facts)
        origin = facts.pop("replicated_from")
        assert facts == mine.facts
        assert origin["registry"] == manager.registry("lake").id
        assert (origin["version"], origin["manifest"]) == ("org/m@v1", entry.manifest)
        assert [f.extra for f in copied.files] == [{"scan": "clean"}] * 3
        assert (there.aliases, there.source) == (("prod", "stable"), "hf://org/m@abc")
        assert there.metadata["license"] == "mit"
        assert content(manager, to, "org/m") == FILES
        assert manager.verify(backend=to).ok

    def test_one_disk_copies_no_bytes(self, manager, entry, tmp_path):
        """Both folders hold the same files, under two names; and one may go without the other."""
        copies = manager.copy("org/m", source="lake", to="dr")
        assert (copies.versions[0].copied_bytes, copies.versions[0].fetched_bytes) == (3_000_003, 0)
        files = [tmp_path / where / "models/org/m/v1/sub/model.bin" for where in ("lake", "dr")]
        assert files[0].samefile(files[1])
        files[0].unlink()
        assert manager.verify(backend="dr").ok

    def test_what_a_store_copied_is_read_back_on_request(self, manager, entry, tmp_path):
        """A file that has rotted where it stood is refused then, and is not when nobody looks."""
        rotten = tmp_path / "lake/models/org/m/v1/sub/model.bin"
        rotten.write_bytes(noise(3_000_000) + b"!")
        copies = manager.copy("org/m", source="lake", to="dr", read_copies=True)
        assert isinstance(copies.failed["org/m@v1"], IntegrityError)
        assert manager.registry("dr").get_model("org/m").status is ModelStatus.FAILED

    def test_streamed_bytes_are_always_checked(self, manager, entry, tmp_path):
        """The manifest's sha256 is what must arrive."""
        rotten = tmp_path / "lake/models/org/m/v1/sub/model.bin"
        rotten.write_bytes(noise(3_000_000) + b"!")
        failed = manager.copy("org/m", source="lake", to="far").failed
        assert isinstance(failed["org/m@v1"], IntegrityError)
        assert manager.list_models(backend="far")[0].status is ModelStatus.FAILED

    def test_a_copy_again_moves_nothing(self, manager, entry):
        """The version that is there is the same one."""
        manager.copy("org/m", source="lake", to="far")
        before = manager.registry("far").resolve("org/m")
        again = manager.copy("org/m", source="lake", to="far").versions[0]
        assert (again.outcome, again.fetched_bytes) == (Outcome.PRESENT, 0)
        assert manager.registry("far").resolve("org/m") == before

    def test_another_version_of_that_name_is_left(self, manager, entry, tmp_path):
        """A conflict, and what stands there stands."""
        other = manager.push(make(tmp_path / "o", {"x": b"1"}), "org/m", version="v1", to="dr")
        failed = manager.copy("org/m", source="lake", to="dr").failed
        assert isinstance(failed["org/m@v1"], ConflictError)
        assert manager.registry("dr").resolve("org/m") == other.entry

    def test_under_another_id(self, manager, entry):
        """Also within one backend: the entry is new, the bytes are not copied."""
        manager.copy("org/m", source="lake", to="lake", model_id="mine/m", aliases=["new"])
        there = manager.registry("lake").resolve("mine/m:new")
        assert (there.source, there.size_bytes) == ("hf://org/m@abc", 3_000_003)
        assert manager.verify().ok

    def test_a_chain_of_copies_tells_each(self, manager, entry):
        """Where a copy came from says where that came from."""
        manager.copy("org/m", source="lake", to="dr")
        manager.copy("org/m", source="dr", to="far")
        place = manager.registry("far")
        origin = place.manifest(place.resolve("org/m")).facts["replicated_from"]
        assert origin["registry"] == manager.registry("dr").id
        assert origin["replicated_from"]["registry"] == manager.registry("lake").id

    def test_what_cannot_be_asked_for(self, manager, entry, tmp_path):
        """Names that mean nothing, or one name for several."""
        push(manager, tmp_path, "org/n")
        with pytest.raises(NotFoundError):
            manager.copy("org/x", source="lake", to="dr")
        for wrong in ({"model_id": "a/b"}, {"aliases": ["a"]}):
            with pytest.raises(UsageError):
                manager.copy("org/m", "org/n", source="lake", to="dr", **wrong)
        with pytest.raises(UsageError):
            manager.copy("org/m:prod", source="lake", to="dr", all_versions=True)

    def test_a_version_removed_meanwhile_is_no_source(self, manager, entry, monkeypatch):
        """What a store copied while its version went is not made AVAILABLE."""
        copy_from = local.LocalSink.copy_from

        def removing(self, other, source_key, key):
            if source_key.endswith("config.json"):
                manager.remove("org/m", backend="lake")
            return copy_from(self, other, source_key, key)

        monkeypatch.setattr(local.LocalSink, "copy_from", removing)
        failed = manager.copy("org/m", source="lake", to="dr").failed
        assert "removed" in str(failed["org/m@v1"])
        assert manager.registry("dr").get_model("org/m").status is ModelStatus.FAILED


class TestAll:
    def test_the_whole_registry_and_then_only_what_is_new(self, manager, tmp_path):
        """States are compared; a second run asks each registry once, and reads no file list."""
        for number in range(6):
            push(manager, tmp_path, f"org/m{number % 3}", f"{number}", aliases=[f"a{number}"],
                 data=b"%d" % number)  # fmt: skip
        first = manager.replicate(source="lake", to="far", with_aliases=True)
        assert first.count(Outcome.COPIED) == 6
        assert manager.registry("far").aliases() == manager.registry("lake").aliases()
        Stranger.calls.clear()
        again = manager.replicate(source="lake", to="far", with_aliases=True)
        assert (again.count(Outcome.PRESENT), again.aliases) == (6, ())
        assert len(Stranger.calls) <= 2, Stranger.calls
        assert all(".mm/log/" in call for call in Stranger.calls)
        push(manager, tmp_path, "org/new", "7")
        third = manager.replicate(source="lake", to="far")
        assert [v.reference for v in third.versions if v.outcome is Outcome.COPIED] == ["org/new@7"]

    def test_the_newest_version_is_the_newest_there(self, manager, tmp_path):
        """Versions are copied in the order in which they came."""
        for version in ("b", "c", "a"):
            push(manager, tmp_path, "m", version, data=version.encode())
        manager.replicate(source="lake", to="dr")
        assert manager.registry("dr").resolve("m").version == "a"

    def test_a_failure_keeps_no_other_from_its_copy(self, manager, tmp_path, entry):
        """Each failure is told; run again when its cause is gone, only that is copied."""
        push(manager, tmp_path, "org/a")
        push(manager, tmp_path, "org/z")
        bad = tmp_path / "lake/models/org/m/v1/config.json"
        bad.unlink()
        copies = manager.replicate(source="lake", to="far")
        assert list(copies.failed) == ["org/m@v1"]
        assert copies.count(Outcome.COPIED) == 2
        bad.write_bytes(b"{}")
        again = manager.replicate(source="lake", to="far")
        assert (again.count(Outcome.COPIED), again.count(Outcome.PRESENT)) == (1, 2)

    def test_another_content_of_the_same_name_is_a_conflict_each_time(self, manager, tmp_path):
        """Even of the same size: the copy knows of which file list it was made."""
        push(manager, tmp_path, "m", "1", data=b"old")
        manager.replicate(source="lake", to="dr")
        manager.remove("m@1", backend="lake")
        (tmp_path / "src-m-1/f").write_bytes(b"new")
        push(manager, tmp_path, "m", "1", data=b"new")
        for _ in range(2):
            assert isinstance(
                manager.replicate(source="lake", to="dr").failed["m@1"], ConflictError
            )

    def test_the_same_pulled_in_both_places_is_the_same(self, manager, tmp_path):
        """Whoever pulled both from one hub copies nothing."""
        for to in ("lake", "dr"):
            push(manager, tmp_path, "m", "1", to=to)
        assert manager.replicate(source="lake", to="dr").count(Outcome.PRESENT) == 1

    def test_there_and_back_again(self, manager, tmp_path):
        """A copy is known as such in both directions."""
        push(manager, tmp_path, "m", "1")
        manager.replicate(source="lake", to="dr")
        assert manager.replicate(source="dr", to="lake").count(Outcome.PRESENT) == 1
        manager.replicate(source="dr", to="far")
        assert manager.replicate(source="lake", to="far").count(Outcome.PRESENT) == 1

    def test_aliases_that_differ_move_on_request_only(self, manager, tmp_path):
        """What somebody pointed elsewhere stays, is told, and moves with move_aliases."""
        push(manager, tmp_path, "m", "1", aliases=["prod"], data=b"1")
        manager.replicate(source="lake", to="dr", with_aliases=True)
        push(manager, tmp_path, "m", "2", aliases=["prod"], data=b"2")
        left = manager.replicate(source="lake", to="dr", with_aliases=True)
        assert [(a.outcome, a.before, a.version) for a in left.aliases] == [("differs", "1", "2")]
        assert manager.registry("dr").aliases() == {"m": {"prod": "1"}}
        manager.replicate(source="lake", to="dr", move_aliases=True)
        assert manager.registry("dr").aliases() == {"m": {"prod": "2"}}

    def test_an_alias_that_moves_meanwhile_is_not_overwritten(self, manager, tmp_path, monkeypatch):
        """It moves only from what it was seen to name."""
        push(manager, tmp_path, "m", "1", aliases=["prod"], data=b"1")
        push(manager, tmp_path, "m", "2", data=b"2")
        push(manager, tmp_path, "m", "3", data=b"3")
        manager.replicate(source="lake", to="dr", with_aliases=True)
        manager.registry("lake").set_alias("m", "prod", "2")
        place = manager.registry("dr")
        set_alias = place.set_alias

        def raced(*args, **named):
            set_alias("m", "prod", "3")
            return set_alias(*args, **named)

        monkeypatch.setattr(place, "set_alias", raced)
        copies = manager.replicate(source="lake", to="dr", move_aliases=True)
        assert isinstance(copies.failed["m:prod"], ConflictError)
        assert place.aliases() == {"m": {"prod": "3"}}

    def test_pruning_removes_what_came_from_there_and_is_gone_there(self, manager, tmp_path):
        """And nothing else: neither models of the target's own, nor what came from elsewhere."""
        for model in ("gone", "stays"):
            push(manager, tmp_path, model)
        push(manager, tmp_path, "own", to="dr")
        push(manager, tmp_path, "third", to="far")
        manager.replicate(source="far", to="dr")
        manager.replicate(source="lake", to="dr")
        manager.remove("gone", backend="lake")
        assert manager.replicate(source="lake", to="dr").count(Outcome.REMOVED) == 0
        plan = manager.replicate(source="lake", to="dr", prune=True, dry_run=True)
        assert plan.count(Outcome.REMOVED) == 1
        assert len(manager.list_models(backend="dr")) == 4
        manager.replicate(source="lake", to="dr", prune=True)
        names = [entry.model_id for entry in manager.list_models(backend="dr")]
        assert names == ["own", "stays", "third"]

    def test_a_copy_under_another_id_is_not_pruned(self, manager, tmp_path):
        """It is the target's own: the source never had one of that name."""
        push(manager, tmp_path, "m")
        manager.copy("m", source="lake", to="dr", model_id="other/name")
        copies = manager.replicate(source="lake", to="dr", prune=True)
        assert copies.count(Outcome.REMOVED) == 0
        manager.remove("m", backend="lake")
        manager.replicate(source="lake", to="dr", prune=True)
        assert [entry.model_id for entry in manager.list_models(backend="dr")] == ["other/name"]

    def test_what_was_swept_in_the_source_is_pruned(self, manager, tmp_path):
        """Its row is gone, and the log still tells of its end."""
        push(manager, tmp_path, "m")
        manager.replicate(source="lake", to="dr")
        manager.remove("m", backend="lake")
        manager.gc(manager.plan_gc(backend="lake", grace=0), backend="lake")
        assert manager.list_models(backend="lake", include_deleted=True) == []
        assert manager.replicate(source="lake", to="dr", prune=True).count(Outcome.REMOVED) == 1

    def test_what_a_source_has_lost_is_not_pruned(self, manager, tmp_path):
        """One that was restored from an older backup has removed nothing."""
        push(manager, tmp_path, "old")
        backup(manager.sink("lake"), tmp_path / "b")
        push(manager, tmp_path, "new")
        manager.replicate(source="lake", to="dr")
        shutil.rmtree(tmp_path / "lake/.mm")
        restore(manager.sink("lake"), tmp_path / "b")
        with ModelManager(manager.settings, plugins=manager.plugins) as fresh:
            fresh.registry("lake").accept()
            copies = fresh.replicate(source="lake", to="dr", prune=True)
            assert copies.count(Outcome.REMOVED) == 0
            assert [entry.model_id for entry in fresh.list_models(backend="dr")] == ["new", "old"]

    def test_an_empty_source_prunes_nothing(self, manager, tmp_path):
        """A root that was mistyped is another registry, or none."""
        push(manager, tmp_path, "m")
        manager.replicate(source="lake", to="dr")
        copies = manager.replicate(source="far", to="dr", prune=True)
        assert copies.versions == ()
        assert len(manager.list_models(backend="dr")) == 1

    def test_a_version_on_its_way_is_not_pruned(self, manager, tmp_path):
        """What is being pulled again in the source is not gone."""
        push(manager, tmp_path, "m")
        manager.replicate(source="lake", to="dr")
        manager.remove("m", backend="lake")
        claim = manager.registry("lake").begin("m", "1")
        copies = manager.replicate(source="lake", to="dr", prune=True)
        claim.close()
        assert copies.count(Outcome.REMOVED) == 0

    def test_what_was_only_registered_is_passed_over(self, manager, tmp_path):
        """Its files are not the backend's to copy; that is said."""
        manager.registry("lake").add_model(ModelEntry(model_id="m", version="1", path="s3://x/y"))
        copies = manager.replicate(source="lake", to="dr")
        assert [(v.outcome, bool(v.reason)) for v in copies.versions] == [(Outcome.SKIPPED, True)]

    def test_a_dry_run_writes_nothing(self, manager, tmp_path):
        """Not even the target's registry comes into being."""
        push(manager, tmp_path, "m", aliases=["prod"])
        copies = manager.replicate(source="lake", to="dr", with_aliases=True, dry_run=True)
        assert (copies.count(Outcome.COPIED), len(copies.aliases)) == (1, 1)
        assert not (tmp_path / "dr").exists()

    def test_a_stop_is_heard_and_the_rest_is_copied_later(self, manager, tmp_path):
        """What was copied by then stays."""
        for number in range(3 * AT_ONCE):
            push(manager, tmp_path, f"m{number}")
        stop = threading.Event()
        original = Stranger.write

        def stopping(self, key, chunks, *, size):
            original(self, key, chunks, size=size)
            if len([key for key in self.writes if key.startswith("models/")]) > AT_ONCE:
                stop.set()  # so one was committed, and not all were begun

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stranger, "write", stopping)
            with pytest.raises(CancelledError):
                manager.replicate(source="lake", to="far", cancelled=stop)
        again = manager.replicate(source="lake", to="far")
        assert again.count(Outcome.COPIED) + again.count(Outcome.PRESENT) == 3 * AT_ONCE
        assert again.count(Outcome.PRESENT) >= 1

    def test_two_at_once_copy_each_version_once(self, manager, tmp_path):
        """Each version is claimed: whoever comes second waits, and finds it there."""
        for number in range(8):
            push(manager, tmp_path, f"m{number % 4}", str(number), data=b"%d" % number)
        with ModelManager(manager.settings, plugins=manager.plugins) as other:
            with ThreadPoolExecutor(2) as pool:
                runs = [
                    pool.submit(one.replicate, source="lake", to="far") for one in (manager, other)
                ]
                results = [run.result() for run in runs]
        assert not any(result.failed for result in results)
        assert sum(v.fetched_bytes for result in results for v in result.versions) == 8
        assert len([key for key in Stranger.writes if key.startswith("models/")]) == 8
        assert manager.verify(backend="far").ok


def test_the_name_of_a_backend_has_no_password(manager, tmp_path):
    """An address that was given with one is told without it: to people, hooks and records."""
    push(manager, tmp_path, "m", aliases=["prod"])
    copies = manager.copy("m", source="lake", to="stranger://me:hunter2-hunter2@host/p")
    assert copies.failed == {}
    assert "hunter2" not in json.dumps(copies.to_json())
    assert copies.target.endswith("@host/p")


class TestResume:
    def test_parts_of_a_file_are_taken_up(self, manager, tmp_path):
        """A copy that broke off goes on: the parts that are there are not read again."""
        data = noise(40 << 20)
        push(manager, tmp_path, "m", data=data)
        limit = 6
        original = memory.MemoryUpload.write_part
        done, lock = [], threading.Lock()

        def failing(self, number, part):
            with lock:
                if len(done) >= limit:
                    raise ConflictError("gone")
                original(self, number, part)
                done.append(number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory.MemoryUpload, "write_part", failing)

            assert manager.copy("m", source="lake", to="far").failed
        assert len(done) == limit
        copied = manager.copy("m", source="lake", to="far").versions[0]
        assert copied.outcome is Outcome.COPIED
        assert 0 < copied.fetched_bytes < len(data)
        assert content(manager, "far", "m") == {"f": data}

    def test_a_fault_on_the_way_is_tried_again(self, manager, entry):
        """As in any pull."""
        original, faults = Stranger.write, []

        def shaky(self, key, chunks, *, size):
            if len(faults) < 2 and key.endswith("config.json"):
                faults.append(key)
                raise TransientError("try again")
            original(self, key, chunks, size=size)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stranger, "write", shaky)
            assert not manager.copy("org/m", source="lake", to="far").failed
        assert len(faults) == 2


class TestAddress:
    def test_pull_takes_an_address_of_a_backend(self, manager, entry):
        """From Python and in plans, as any other source."""
        plan = manager.plan("mm://lake/org/m:prod", to="far")
        assert (plan.version, plan.snapshot.revision, plan.model_id) == ("v1", "abc", "org/m")
        pulled = manager.pull("mm://lake/org/m@v1", to="far", aliases=["new"])
        assert pulled.fetched_bytes == 3_000_003
        assert content(manager, "far", "org/m:new") == FILES

    def test_a_plan_says_what_the_store_copies(self, manager, entry):
        """On one disk nothing is fetched."""
        plan = manager.plan("mm://lake/org/m", to="dr")
        assert {file.action.value for file in plan.files} == {"copy"}
        assert manager.pull("mm://lake/org/m", to="dr").copied_bytes == 3_000_003

    def test_patterns_choose_files(self, manager, entry):
        """As of any other source; and such a part does not count as the copy of the whole."""
        manager.pull("mm://lake/org/m", to="dr", include=["*.json"])
        assert content(manager, "dr", "org/m") == {"config.json": b"{}"}
        failed = manager.replicate(source="lake", to="dr").failed
        assert isinstance(failed["org/m@v1"], ConflictError)

    @pytest.mark.parametrize(
        ("address", "error"),
        [
            ("mm://lake/org/none", NotFoundError),
            ("mm://lake/org/m@v9", NotFoundError),
            ("mm://nowhere/org/m", UsageError),
            ("mm://lake", UsageError),
            ("mm://lake/", UsageError),
            ("mm://lake/@v", UsageError),
        ],
    )
    def test_what_is_not_there(self, manager, entry, address, error):
        """An error that says so."""
        with pytest.raises(error):
            manager.plan(address, to="dr")

    def test_a_revision_of_the_first_source_names_it_too(self, manager, entry):
        """Where it is no version's name."""
        plan = manager.plan("mm://lake/org/m", to="dr", revision="abc")
        assert plan.version == "v1"
        with pytest.raises(UsageError):
            manager.plan("mm://lake/org/m@v1", to="dr", revision="abc")


class TestSource(SourceTests):
    """What any source must do."""

    @pytest.fixture
    def expected(self):
        return {"config.json": b"{}", "sub/weights.bin": noise(2_000_003), "empty": b""}

    @pytest.fixture
    def source(self, manager, tmp_path, expected):
        manager.push(make(tmp_path / "mine", expected), "org/mine", to="lake")
        made = registry.RegistrySource()
        made.bind(manager._places)
        return made

    @pytest.fixture
    def url(self):
        return "mm://lake/org/mine"


def test_the_command_copies_and_tells(manager, tmp_path, entry, monkeypatch):
    """`mm copy` prints a table, a document in JSON, and ends with 10 where some failed."""
    from click.testing import CliRunner

    from mm_core.cli import app

    config = tmp_path / "mm.yaml"
    config.write_text(
        json.dumps(
            {
                "version": 1,
                "backends": {
                    name: {"type": "local", "root": str(tmp_path / name)} for name in ("lake", "dr")
                },
            }
        )
    )
    push(manager, tmp_path, "org/z")

    def run(*words):
        return CliRunner().invoke(app.make_app(), ["--config", str(config), *words])

    done = run("copy", "--all", "--from", "lake", "--to", "dr", "--with-aliases", "--json")
    document = json.loads(done.stdout)
    assert (document["copied"], document["failed"]) == (2, 0)
    assert {alias["alias"] for alias in document["aliases"]} == {"prod", "stable"}
    again = run("copy", "--all", "--from", "lake", "--to", "dr")
    assert "2 present" in again.stdout
    for version in ("1", "2"):
        push(manager, tmp_path, "org/bad", version)
        (tmp_path / f"lake/models/org/bad/{version}/f").unlink()
    some = run("copy", "--all", "--from", "lake", "--to", "dr")
    assert isinstance(some.exception, PartialError)
    assert set(some.exception.errors) == {"org/bad@1", "org/bad@2"}
    assert "failed" in some.stdout
    single = run("copy", "org/bad@1", "--from", "lake", "--to", "dr")
    assert not isinstance(single.exception, (PartialError, type(None)))
    for wrong in (("copy", "--to", "dr"), ("copy", "x", "--all", "--from", "lake", "--to", "dr"),
                  ("copy", "org/z", "--prune", "--from", "lake", "--to", "dr")):  # fmt: skip
        assert run(*wrong).exception is not None


def test_show_tells_where_a_copy_came_from(manager, tmp_path, entry):
    """The first source stays the source; the registry that it was copied from is told beside it."""
    from click.testing import CliRunner

    from mm_core.cli.app import make_app

    manager.copy("org/m", source="lake", to="dr")
    config = tmp_path / "mm.yaml"
    config.write_text("version: 1\n")
    words = ["--config", str(config), "--backend", str(tmp_path / "dr"), "show", "org/m"]
    lines = CliRunner().invoke(make_app(), words).stdout.splitlines()
    told = {line.partition("  ")[0].strip(): line.partition("  ")[2].strip() for line in lines}
    assert told["source"] == "hf://org/m@abc"
    assert told["copied from"] == f"org/m@v1 in {tmp_path / 'lake'}"
