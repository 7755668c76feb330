"""What is there already becomes entries: hashed where it stands, shared, or brought; never lost."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from mm_core import (
    ConflictError,
    IntegrityError,
    InvalidNameError,
    ModelManager,
    ModelStatus,
    NotFoundError,
    PartialError,
    Plugins,
    PolicyError,
    SourceChangedError,
    UsageError,
    hookimpl,
    load_settings,
)
from mm_core.sink import read_bytes
from mm_core.testing.material import noise, sha256
from mm_core.testing.sources import SourceTests
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder, hf_cache, registry
from mm_plugins.sources.hf_cache import HubCacheSource

pytestmark = pytest.mark.unit

BUILT_IN = (local, memory, folder, registry, hf_cache)
FILES = {"config.json": b"{}", "sub/model.bin": noise(2_000_001)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "f" * 40


def manager_of(tmp_path, *plugins, root=None):
    backend = {"type": "local", "root": str(tmp_path / "store"), "fsync": False}
    settings = load_settings(
        overrides={
            "defaults": {"backend": "b"},
            "backends": {"b": backend if root is None else {"type": "memory", "root": root}},
        }
    )
    return ModelManager(settings, plugins=Plugins([*BUILT_IN, *plugins]))


@pytest.fixture
def manager(tmp_path):
    with manager_of(tmp_path) as made:
        yield made


def make(path, files=FILES):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def one(adopted):
    (model,) = adopted.models
    if model.error is not None:
        raise model.error
    return model


def standing(path):
    """Every file below `path`, with its inode and content."""
    return {
        str(found.relative_to(path)): (found.stat().st_ino, found.read_bytes())
        for found in sorted(path.rglob("*"))
        if found.is_file() and ".mm" not in found.parts
    }


class TestInPlace:
    def test_a_folder_below_the_root_stays_where_it_is(self, manager, tmp_path):
        """No byte moves; the entry names that folder, and every use of a version works."""
        old = make(tmp_path / "store/old/bert")
        before = standing(tmp_path / "store")
        model = one(manager.adopt(str(old), model_id="org/bert", aliases=["prod"]))
        assert (model.how, model.in_place_bytes, model.copied_bytes) == ("in place", 2_000_003, 0)
        assert standing(tmp_path / "store") == before
        entry = manager.registry().resolve("org/bert:prod")
        assert entry.path == old
        assert entry.source == str(old)
        assert manager.get("org/bert").path == old
        assert manager.url("org/bert") == str(old)
        shown = manager.show("org/bert")
        assert {f.path: f.sha256 for f in shown.manifest.files} == {
            path: sha256(data) for path, data in FILES.items()
        }
        assert set(shown.urls.values()) == {str(old / path) for path in FILES}
        report = manager.verify()
        assert (report.ok, report.checked) == (True, 2)

    def test_it_outlives_the_process_that_adopted_it(self, manager, tmp_path):
        """Another client reads the same path out of the log, and out of a checkpoint."""
        old = make(tmp_path / "store/old/bert")
        manager.adopt(str(old))
        for number in range(33):
            manager.registry().set_alias("bert", f"a{number}", manager.list_models()[0].version)
        with manager_of(tmp_path) as other:
            assert other.registry().resolve("bert").path == old

    def test_removing_and_collecting_leave_the_files(self, manager, tmp_path):
        """What was not written by us is not deleted by us."""
        old = make(tmp_path / "store/old/bert")
        manager.adopt(str(old))
        version = manager.list_models()[0].version
        manager.remove("bert")
        place = manager.registry()
        place.sweep("bert", version)
        place.swept("bert", version)
        manager.gc()
        assert {p for p in standing(old)} == set(FILES)
        assert one(manager.adopt(str(old))).entry.status is ModelStatus.AVAILABLE

    def test_adopting_again_changes_nothing(self, manager, tmp_path):
        """The same content is the same version."""
        old = make(tmp_path / "store/old/bert")
        first = one(manager.adopt(str(old))).entry
        assert one(manager.adopt(str(old))).entry == first
        make(old, {"new": b"1"})
        assert one(manager.adopt(str(old))).entry.version != first.version
        with pytest.raises(ConflictError):
            one(manager.adopt(str(old), version=first.version))

    def test_its_content_names_it_as_pushing_would(self, manager, tmp_path):
        """One digest for one content, however it came."""
        adopted = one(manager.adopt(str(make(tmp_path / "store/old/m")))).entry
        assert manager.push(make(tmp_path / "m"), "m").entry == adopted

    def test_a_damaged_file_is_told_and_mended_where_it_stands(self, manager, tmp_path):
        """Verify sees it; the same content pushed again mends it under its own key."""
        old = make(tmp_path / "store/old/m")
        manager.adopt(str(old))
        (old / "config.json").unlink()
        assert not manager.verify().ok
        manager.push(make(tmp_path / "m"), "m")
        assert (old / "config.json").read_bytes() == b"{}"
        assert manager.verify().ok
        assert not (tmp_path / "store/models").exists()

    def test_a_copy_of_it_is_a_version_like_any(self, manager, tmp_path):
        """In its own folder below models/."""
        manager.adopt(str(make(tmp_path / "store/old/m")))
        copied = manager.copy("m", source="b", to=str(tmp_path / "dr"))
        assert not copied.failed
        assert manager.verify(backend=str(tmp_path / "dr")).ok
        assert len(list((tmp_path / "dr/models").rglob("model.bin"))) == 1

    def test_a_repair_finds_it_again_where_it_stands(self, manager, tmp_path):
        """Where the log has lost the commit that added it, its manifest tells the folder."""
        from mm_core.upkeep.check import check
        from mm_core.upkeep.repair import repair

        old = make(tmp_path / "store/old/m")
        entry = one(manager.adopt(str(old))).entry
        manager.push(make(tmp_path / "other", {"f": b"1"}), "other")
        sink = manager.sink()
        sink.delete([f".mm/log/{2:012}.json"])
        assert repair(sink).steps
        assert check(sink).ok
        with manager_of(tmp_path) as other:
            again = other.registry().resolve("m")
            assert (again.path, again.manifest) == (old, entry.manifest)
            assert other.verify().ok

    def test_many_at_once(self, manager, tmp_path):
        """Each folder at that depth is a model, named by its path; ours are none."""
        top = tmp_path / "store"
        for name in ("a/x", "a/y", "b/z"):
            make(top / name, {"f": name.encode()})
        make(top, {"loose": b"1", "a/loose": b"2"})
        manager.push(make(tmp_path / "own"), "own")
        adopted = manager.adopt(str(top), depth=2)
        assert [m.model_id for m in adopted.models] == ["a/x", "a/y", "b/z"]
        assert {e.model_id for e in manager.list_models()} == {"a/x", "a/y", "b/z", "own"}
        assert manager.verify().ok

    def test_a_bad_name_is_told_and_keeps_no_other(self, manager, tmp_path):
        """With the way out."""
        for name in ("good", "_bad"):
            make(tmp_path / "store/old" / name, {"f": b"1"})
        adopted = manager.adopt(str(tmp_path / "store/old"), depth=1)
        (error,) = adopted.failed.values()
        assert isinstance(error, InvalidNameError)
        assert "--as" in error.hint
        assert [e.model_id for e in manager.list_models()] == ["good"]

    def test_a_dry_run_reads_no_file_and_writes_nothing(self, manager, tmp_path):
        """It says what there is."""
        old = make(tmp_path / "store/old/m")
        before = standing(tmp_path)
        os.chmod(old / "config.json", 0)
        (model,) = manager.adopt(str(old), dry_run=True).models
        os.chmod(old / "config.json", 0o644)
        assert (model.model_id, model.how, model.entry) == ("m", "in place", None)
        assert standing(tmp_path) == before
        assert not (tmp_path / "store/.mm").exists()

    def test_a_folder_with_links_is_shared_instead(self, manager, tmp_path):
        """The backend follows no links: the files get names in a folder of the version's own."""
        old = make(tmp_path / "store/old/m")
        (old / "link.bin").symlink_to("sub/model.bin")
        model = one(manager.adopt(str(old)))
        assert (model.how, model.copied_bytes) == ("bring", 4_000_004)
        got = manager.get("m").path
        assert (got / "link.bin").samefile(old / "sub/model.bin")

    def test_the_backends_own_are_not_adopted(self, manager, tmp_path):
        """Neither the root itself, nor the registry, nor what stands under another name's version."""
        manager.push(make(tmp_path / "m"), "m")
        for wrong in ("store", "store/.mm", "store/models", "store/models/m"):
            with pytest.raises(UsageError):
                one(manager.adopt(str(tmp_path / wrong)))
        lost = make(tmp_path / "store/models/org/lost/v1")
        with pytest.raises(UsageError):
            one(manager.adopt(str(lost), model_id="another"))
        assert len(manager.list_models()) == 1

    @pytest.mark.parametrize("where", ["store/inner", "beside"])
    @pytest.mark.parametrize("depth", [0, 1])
    def test_another_backend_is_not_taken_for_a_model(self, manager, tmp_path, where, depth):
        """Its registry is no file of a model; that it is to be copied is said."""
        manager.push(make(tmp_path / "m"), "m", to=str(tmp_path / where))
        address = (tmp_path / where).parent if depth else tmp_path / where
        with pytest.raises(UsageError) as caught:
            manager.adopt(str(address), depth=depth)
        assert "mm copy" in caught.value.hint

    @pytest.mark.parametrize(
        "folder", ["shelf/inner/models/m/1", "shelf/inner/models", "shelf", "shelf/inner/own"]
    )
    def test_what_another_backend_keeps_is_not_adopted_in_place(self, manager, tmp_path, folder):
        """Its collections would delete what is offered here."""
        inner = str(tmp_path / "store/shelf/inner")
        manager.push(make(tmp_path / "m"), "m", version="1", to=inner)
        make(Path(inner) / "own")
        with pytest.raises(UsageError) as caught:
            manager.adopt(str(tmp_path / "store" / folder), model_id="mine")
        assert inner in str(caught.value)
        assert manager.list_models() == []

    def test_a_version_that_the_registry_lost_is_found_again(self, manager, tmp_path):
        """Its folder names it."""
        lost = make(tmp_path / "store/models/org/lost/v1")
        entry = one(manager.adopt(str(lost))).entry
        assert (entry.model_id, entry.version, entry.path) == ("org/lost", "v1", lost)
        assert manager.verify().ok

    def test_a_file_that_changes_meanwhile_is_refused(self, manager, tmp_path):
        """Between its hash and the commit; nothing becomes AVAILABLE."""
        old = make(tmp_path / "store/old/m")

        class Meddler:
            @hookimpl
            def mm_plan_made(self, plan):
                (old / "config.json").write_bytes(b"[]")
                os.utime(old / "config.json", (1, 1))

        with manager_of(tmp_path, Meddler()) as other, pytest.raises(SourceChangedError):
            one(other.adopt(str(old)))
        assert manager.list_models()[0].status is ModelStatus.FAILED

    def test_policies_and_scanners_are_asked(self, manager, tmp_path):
        """As for any pull."""
        seen = []

        class Guard:
            @hookimpl
            def mm_file_stored(self, file, sink):
                seen.append((file.path, len(read_bytes(sink, file.key))))
                if file.path.endswith(".pkl"):
                    raise PolicyError("no pickles")

        make(tmp_path / "store/old/good")
        make(tmp_path / "store/old/evil", {"x.pkl": b"1"})
        with manager_of(tmp_path, Guard()) as other:
            adopted = other.adopt(str(tmp_path / "store/old"), depth=1)
        assert [Path(name).name for name in adopted.failed] == ["evil"]
        assert {path for path, _ in seen} == {"config.json", "sub/model.bin", "x.pkl"}

    def test_a_prefix_of_any_store(self, tmp_path):
        """A URL below the root is found to be there, whatever the store."""
        name = f"memory://{tmp_path.name}"
        with manager_of(tmp_path, root=f"{name}/root") as manager:
            for path, data in FILES.items():
                manager.sink().put(f"old/m/{path}", data)
            model = one(manager.adopt(f"{name}/root/old/m"))
            assert (model.how, str(model.entry.path)) == ("in place", f"{name}/root/old/m")
            assert manager.verify().ok

    def test_another_root_of_the_same_store(self, tmp_path):
        """The store copies; from beside the root, whose name begins alike."""
        name = f"memory://{tmp_path.name}"
        with manager_of(tmp_path, root=f"{name}/root") as manager:
            other = memory.MemorySink(memory.MemorySink.Config(root=f"{name}/root2/old"))
            for path, data in FILES.items():
                other.put(f"m/{path}", data)
            adopted = manager.adopt(f"{name}/root2/old", depth=1)
            model = one(adopted)
            assert (model.how, model.model_id, model.copied_bytes) == ("copy", "m", 2_000_003)
            assert manager.verify().ok


class TestFolder:
    def test_a_folder_on_the_same_disk_is_shared(self, manager, tmp_path):
        """One copy of the bytes, under two names."""
        mine = make(tmp_path / "mine")
        model = one(manager.adopt(str(mine), model_id="org/mine"))
        assert (model.copied_bytes, model.fetched_bytes) == (2_000_003, 0)
        got = manager.get("org/mine").path
        assert (got / "sub/model.bin").samefile(mine / "sub/model.bin")
        assert manager.verify().ok
        (mine / "sub/model.bin").unlink()
        assert manager.verify().ok

    def test_a_copy_of_its_own_on_request_and_for_a_pull(self, manager, tmp_path):
        """Whoever goes on working in the folder changes nothing that is stored."""
        mine = make(tmp_path / "mine")
        model = one(manager.adopt(str(mine), share=False))
        assert (model.copied_bytes, model.fetched_bytes) == (0, 2_000_003)
        assert not (model.entry.path / "config.json").samefile(mine / "config.json")
        pulled = manager.pull(str(mine), model_id="other")
        assert not (pulled.entry.path / "config.json").samefile(mine / "config.json")

    def test_another_disk_shares_nothing(self, manager, tmp_path):
        """The bytes are streamed and checked, as by a pull."""
        shm = Path("/dev/shm")
        if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second disk")
        with tempfile.TemporaryDirectory(dir=shm) as elsewhere:
            model = one(manager.adopt(str(make(Path(elsewhere) / "m"))))
        assert (model.copied_bytes, model.fetched_bytes) == (0, 2_000_003)
        assert manager.verify().ok

    def test_what_is_not_there(self, manager, tmp_path):
        """Nor is an empty folder a model."""
        with pytest.raises(NotFoundError):
            manager.adopt(str(tmp_path / "none"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(NotFoundError):
            one(manager.adopt(str(tmp_path / "empty")))
        with pytest.raises(NotFoundError):
            manager.adopt(str(make(tmp_path / "flat", {"a": b""})), depth=3)

    def test_the_backend_among_the_folders_is_passed_over(self, manager, tmp_path):
        """Whoever adopts what stands beside it need not move it away first."""
        manager.push(make(tmp_path / "m"), "own")
        adopted = manager.adopt(str(tmp_path), depth=1)
        assert [model.model_id for model in adopted.models] == ["m"]
        assert not adopted.failed

    @pytest.mark.parametrize("address", ["", " ", "{}"])
    def test_a_backend_does_not_adopt_what_holds_it(self, manager, tmp_path, address):
        """Nor what a variable that is not set names: that would be the folder one is in."""
        make(tmp_path / "model")
        manager.push(tmp_path / "model", "m")
        before = standing(tmp_path)
        with pytest.raises(UsageError):
            manager.adopt(address.format(tmp_path))
        assert standing(tmp_path) == before

    def test_one_name_cannot_name_many(self, manager, tmp_path):
        """That is said before anything is done."""
        for name in ("a", "b"):
            make(tmp_path / "old" / name, {"f": name.encode()})
        with pytest.raises(UsageError):
            manager.adopt(str(tmp_path / "old"), depth=1, model_id="x")
        assert manager.list_models() == []


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def cache_of(root, model="models--org--name", files=FILES, commit=COMMIT, ref="main", links=True):
    """A cache as huggingface_hub lays it out: blobs by sha256 (large) or git sha1, and links."""
    top = root / model
    for path, data in files.items():
        name = sha256(data) if len(data) > 1000 else git_sha1(data)
        target = top / "snapshots" / commit / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not links:
            target.write_bytes(data)
            continue
        make(top / "blobs", {name: data})
        if not target.is_symlink():
            target.symlink_to(os.path.relpath(top / "blobs" / name, target.parent))
    if ref:
        make(top / "refs", {ref: commit.encode()})
    return top


class TestHubCache:
    def test_each_snapshot_becomes_a_version(self, manager, tmp_path):
        """Named by its commit, from the hub, sharing the blobs; refs are aliases on request."""
        hub = tmp_path / "hub"
        top = cache_of(hub)
        cache_of(hub, commit=OLDER, ref="v1.0", files={"config.json": b"[]"})
        cache_of(hub, "models--gpt2", files={"config.json": b"2"})
        make(hub, {"models--org--name/refs/pr/1": COMMIT.encode(), "version.txt": b"1"})
        (hub / ".locks").mkdir()
        adopted = manager.adopt(str(hub), with_aliases=True)
        assert not adopted.failed
        entries = {(e.model_id, e.version): e for e in manager.list_models()}
        assert set(entries) == {("gpt2", COMMIT), ("org/name", COMMIT), ("org/name", OLDER)}
        entry = entries["org/name", COMMIT]
        assert (entry.aliases, entry.source) == (("main",), f"hf://org/name@{COMMIT}")
        assert entries["org/name", OLDER].aliases == ("v1.0",)
        blob = top / "blobs" / sha256(FILES["sub/model.bin"])
        assert (entry.path / "sub/model.bin").samefile(blob)
        assert sum(model.fetched_bytes for model in adopted.models) == 0
        assert manager.verify().ok

    def test_one_model_and_no_aliases_by_default(self, manager, tmp_path):
        """The folder of a model alone; what HF_HOME names does as well."""
        top = cache_of(tmp_path / "home/hub")
        assert one(manager.adopt(str(top))).entry.aliases == ()
        assert one(manager.adopt(str(tmp_path / "home"))).entry.version == COMMIT

    def test_a_cache_without_links(self, manager, tmp_path):
        """As on Windows."""
        top = cache_of(tmp_path, links=False)
        assert one(manager.adopt(str(top))).entry.size_bytes == 2_000_003

    @pytest.mark.parametrize("path", FILES)
    def test_a_damaged_blob_is_refused(self, manager, tmp_path, path):
        """By sha256 or git sha1, whichever names it; other models come all the same."""
        top = cache_of(tmp_path / "hub")
        cache_of(tmp_path / "hub", "models--gpt2", files={"config.json": b"2"})
        blob = (top / "snapshots" / COMMIT / path).resolve()
        data = blob.read_bytes()
        blob.write_bytes(data[:-1] + b"!")
        (error,) = manager.adopt(str(tmp_path / "hub")).failed.values()
        assert isinstance(error, IntegrityError)
        assert blob.name in str(error)
        assert [e.model_id for e in manager.list_models()] == ["gpt2"]

    def test_a_blob_that_is_missing_or_elsewhere_is_refused(self, manager, tmp_path):
        """A link to nothing, or out of the cache, is no file of a model."""
        top = cache_of(tmp_path)
        (top / "snapshots" / COMMIT / "config.json").resolve().unlink()
        with pytest.raises(SourceChangedError):
            one(manager.adopt(str(top)))
        (top / "snapshots" / COMMIT / "config.json").unlink()
        make(tmp_path, {"secret": b"s"})
        (top / "snapshots" / COMMIT / "config.json").symlink_to(tmp_path / "secret")
        with pytest.raises(UsageError):
            one(manager.adopt(str(top)))

    def test_the_card_tells_type_and_licence(self, manager, tmp_path):
        """As far as its front matter can be read."""
        card = b"---\nlicense: apache-2.0\npipeline_tag: fill-mask\n---\n# Hello\n"
        cache_of(tmp_path / "a", files={"README.md": card})
        entry = one(manager.adopt(str(tmp_path / "a"))).entry
        assert (entry.model_type.value, entry.metadata["license"]) == ("fill-mask", "apache-2.0")
        for odd in (b"---\n: [\n---\n", b"no front matter", b"---\n- a\n---\n", b"\xff\xfe"):
            commit = hashlib.sha1(odd).hexdigest()
            cache_of(tmp_path / "b", files={"README.md": odd}, commit=commit)
        assert not manager.adopt(str(tmp_path / "b")).failed

    def test_pull_reads_it_too(self, manager, tmp_path):
        """By its own scheme, at a ref or a commit; copied then, not shared."""
        top = cache_of(tmp_path / "at@home")
        for address in (
            f"hf-cache://{top}",
            f"hf-cache://{top}@main",
            f"hf-cache://{top}@{COMMIT}",
        ):
            pulled = manager.pull(address)
            assert pulled.entry.version == COMMIT
        blob = top / "blobs" / sha256(FILES["sub/model.bin"])
        assert not (pulled.entry.path / "sub/model.bin").samefile(blob)
        with pytest.raises(NotFoundError):
            manager.pull(f"hf-cache://{top}@v9")
        with pytest.raises(NotFoundError):
            manager.pull(f"hf-cache://{tmp_path}/models--no--thing")


class TestHubCacheSource(SourceTests):
    """What any source must do."""

    @pytest.fixture
    def source(self):
        return HubCacheSource()

    @pytest.fixture
    def expected(self):
        return {"config.json": b"{}", "sub/model.bin": noise(2_000_001), "empty": b""}

    @pytest.fixture
    def url(self, tmp_path, expected):
        return f"hf-cache://{cache_of(tmp_path, files=expected)}"


def test_the_command_adopts_and_tells(tmp_path):
    """`mm adopt` prints a table; one that fails is its own error, some of many a partial one."""
    import json

    from click.testing import CliRunner

    from mm_core.cli.app import make_app

    for name in ("a", "_b"):
        make(tmp_path / "old" / name, {"f": name.encode()})
    (tmp_path / "mm.yaml").write_text("version: 1\n")

    def run(*words):
        options = ["--config", str(tmp_path / "mm.yaml"), "--to", str(tmp_path / "store")]
        return CliRunner().invoke(make_app(), ["adopt", *words, *options])

    assert "nothing was done" in run(str(tmp_path / "old/a"), "-n").stdout
    some = run(str(tmp_path / "old"), "--depth", "1")
    assert isinstance(some.exception, PartialError)
    assert "failed" in some.stdout
    single = run(str(tmp_path / "old/_b"))
    assert isinstance(single.exception, InvalidNameError)
    done = json.loads(run(str(tmp_path / "old/_b"), "--as", "b", "--json").stdout)
    assert [model["entry"]["model_id"] for model in done["models"]] == ["b"]
