"""A cache of the Hugging Face Hub as a backend: its layout, and what its client finds in it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from mm_core import InvalidNameError, NotFoundError, StoredObject
from mm_core.registry import ModelRegistry
from mm_core.sink import ResumableSink, read_bytes
from mm_core.testing.registry import RegistryTests
from mm_core.testing.sinks import ResumableSinkTests, keys
from mm_plugins.sinks._hfcache_layout import place_of, snapshot_of
from mm_plugins.sinks.hfcache import HfCacheSink
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
LARGE = 5 << 20
SHA256 = "sha256:" + "a" * 64


def open_cache(folder) -> HfCacheSink:
    return HfCacheSink(HfCacheSink.Config(root=str(folder)))


class TestHfCache(ResumableSinkTests):
    """Keys of no version: the registry's, and those of versions that are no commits."""

    @pytest.fixture
    def sink(self, tmp_path):
        return open_cache(tmp_path / "hub")

    @pytest.fixture
    def other(self, sink):
        return open_cache(sink.root)

    @pytest.fixture
    def neighbour(self, tmp_path):
        return open_cache(tmp_path / "beside")


class Within(ResumableSink):
    """The keys below one prefix of a sink: a version's folder as a store of its own."""

    type = "within"

    def __init__(self, sink, prefix) -> None:
        super().__init__(sink.config)
        self.sink, self.prefix = sink, prefix

    def _key(self, key):
        if not key or key.startswith("/"):
            raise InvalidNameError(key)
        return self.prefix + key

    @property
    def root(self):
        return self.sink.url(self.prefix.rstrip("/"))

    def write(self, key, chunks, *, size):
        self.sink.write(self._key(key), chunks, size=size)

    def create(self, key, data):
        self.sink.create(self._key(key), data)

    def put(self, key, data):
        self.sink.put(self._key(key), data)

    def read(self, key, start=0, end=None):
        return self.sink.read(self._key(key), start, end)

    def stat(self, key):
        found = self.sink.stat(self._key(key))
        return (
            None
            if found is None
            else StoredObject(key=key, size=found.size, modified=found.modified)
        )

    def list(self, prefix):
        if prefix.startswith("/"):
            raise InvalidNameError(prefix)
        for found in self.sink.list(self.prefix + prefix):
            key = found.key.removeprefix(self.prefix)
            yield StoredObject(key=key, size=found.size, modified=found.modified)

    def copy(self, source_key, key):
        self.sink.copy(self._key(source_key), self._key(key))

    def copies_from(self, other):
        return isinstance(other, Within) and self.sink.copies_from(other.sink)

    def copy_from(self, other, source_key, key):
        if not isinstance(other, Within):
            return False
        return self.sink.copy_from(other.sink, other._key(source_key), self._key(key))

    def delete(self, keys):
        self.sink.delete(map(self._key, keys))

    def url(self, key):
        return self.sink.url(self._key(key))

    def begin_upload(self, key, *, size, identity):
        return self.sink.begin_upload(self._key(key), size=size, identity=identity)

    def unfinished(self, prefix):
        from dataclasses import replace

        for left in self.sink.unfinished(self.prefix + prefix):
            yield replace(left, key=left.key.removeprefix(self.prefix))

    def discard_unfinished(self, upload):
        from dataclasses import replace

        return self.sink.discard_unfinished(replace(upload, key=self._key(upload.key)))


class TestWithinASnapshot(ResumableSinkTests):
    """The same contract for the files of a version that is a commit."""

    prefix = f"models/org/model/{COMMIT}/"

    @pytest.fixture
    def sink(self, tmp_path):
        return Within(open_cache(tmp_path / "hub"), self.prefix)

    @pytest.fixture
    def other(self, sink):
        return Within(open_cache(sink.sink.root), self.prefix)

    @pytest.fixture
    def neighbour(self, sink):
        return Within(sink.sink, f"models/model/{OTHER}/")


class TestRegistryInACache(RegistryTests):
    @pytest.fixture
    def sink(self, tmp_path):
        return open_cache(tmp_path / "hub")


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path / "hub")


@pytest.fixture
def hub(cache) -> Path:
    """The folder of the cache."""
    return Path(cache.root)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (f"models/org/name/{COMMIT}/a/b", f"models--org--name/snapshots/{COMMIT}/a/b"),
        (f"models/name/{COMMIT}/a", f"models--name/snapshots/{COMMIT}/a"),
        (f"models/org/name/{COMMIT}", f"models--org--name/snapshots/{COMMIT}"),
        (f"models/a/{COMMIT}/{OTHER}/x", f"models--a/snapshots/{COMMIT}/{OTHER}/x"),
        *(
            (key, key)
            for key in (
                "models/org/name/1.0/a",
                f"models/org/sub/name/{COMMIT}/a",
                f"models/a--b/c/{COMMIT}/x",
                f"models/a-/b/{COMMIT}/x",
                f"models/{COMMIT}/x",
                ".mm/log/000000000001.json",
                "a/b",
            )
        ),
    ],
)
def test_a_key_has_one_place(key, place):
    """Versions that are commits are snapshots; all else stands under its own name."""
    assert place_of(key) == place
    found = snapshot_of(key)
    assert (found is None) == (place == key)


@pytest.mark.parametrize(
    "key", ["models--a--b/refs/main", "datasets--x/y", ".locks/x", "blobs/aa/x", "version.txt"]
)
def test_what_is_the_hubs_is_no_key(cache, key):
    """Nobody writes over the client's own files by a key."""
    with pytest.raises(InvalidNameError):
        cache.put(key, b"x")


def test_what_the_client_has_written_is_no_object(cache, hub):
    """Neither links nor plain files of other programs are listed, read or deleted."""
    theirs = hub / "models--org--theirs"
    blob, linked = theirs / "blobs" / "aa", theirs / "snapshots" / COMMIT / "config.json"
    plain = theirs / "snapshots" / OTHER / "config.json"
    for path in (blob, linked, plain, hub / "models--org--ours" / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"theirs")
    plain.write_bytes(b"theirs")
    linked.symlink_to("../../blobs/aa")
    key = f"models/org/theirs/{OTHER}/config.json"
    cache.put(f"models/org/ours/{COMMIT}/config.json", b"ours")
    assert keys(cache) == [f"models/org/ours/{COMMIT}/config.json"]
    assert keys(cache, "models/org/theirs/") == []
    assert cache.stat(key) is None
    with pytest.raises(NotFoundError):
        read_bytes(cache, key)
    cache.delete([key, f"models/org/theirs/{COMMIT}/config.json"])
    assert plain.read_bytes() == linked.read_bytes() == b"theirs"


def test_nothing_is_left_of_a_version_that_was_deleted(cache, hub):
    """Marks, blobs and folders go with the last file."""
    key = f"models/org/name/{COMMIT}/model.bin"
    store(cache, key, bytes(LARGE))
    cache.put(f"models/org/name/{COMMIT}/config.json", b"{}")
    cache.delete([f"models/org/name/{COMMIT}/config.json"])
    assert keys(cache) == [key]
    cache.delete([key])
    assert [path.name for path in hub.iterdir()] == [".locks"]


def store(cache, key, data, identity=SHA256) -> None:
    upload = cache.begin_upload(key, size=len(data), identity=identity)
    for number, start in enumerate(range(0, len(data), upload.part_size)):
        upload.write_part(number, memoryview(data)[start : start + upload.part_size])
    upload.commit()


def test_a_large_file_is_a_blob_for_the_client(cache, hub):
    """The blob has the name that the Hub states, and the bytes are there once."""
    key = f"models/org/name/{COMMIT}/model.bin"
    store(cache, key, bytes(LARGE))
    blob = hub / "models--org--name" / "blobs" / ("a" * 64)
    assert os.path.samefile(blob, cache.url(key))


def test_a_blob_goes_only_when_no_snapshot_uses_it(cache, hub):
    """A link of the client's, or a second version of ours, keeps it."""
    first, second = (f"models/org/name/{commit}/model.bin" for commit in (COMMIT, OTHER))
    store(cache, first, bytes(LARGE))
    blob = hub / "models--org--name" / "blobs" / ("a" * 64)
    cache.copy(first, second)
    link = hub / "models--org--name" / "snapshots" / ("b" * 40) / "model.bin"
    link.parent.mkdir()
    link.symlink_to(f"../../blobs/{'a' * 64}")
    cache.delete([first])
    assert blob.exists()
    cache.delete([second])
    assert link.read_bytes() == bytes(LARGE)
    link.unlink()
    store(cache, first, bytes(LARGE))
    cache.delete([first])
    assert blob.exists(), "it was there before, and is not ours"


def test_a_blob_that_another_process_is_at_stays(cache, hub):
    """The lock of the client is honoured."""
    import fcntl

    key, lock = f"models/org/name/{COMMIT}/model.bin", hub / ".locks/models--org--name"
    store(cache, key, bytes(LARGE))
    lock.mkdir(parents=True)
    with (lock / f"{'a' * 64}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cache.delete([key])
    assert (hub / "models--org--name" / "blobs" / ("a" * 64)).exists()


def test_a_file_that_is_mended_takes_the_damaged_blob_away(cache, hub):
    """The blob never keeps bytes that its file has not any more."""
    key = f"models/org/name/{COMMIT}/model.bin"
    store(cache, key, bytes(LARGE))
    with open(cache.url(key), "r+b") as damaged:
        damaged.write(b"damage")
    store(cache, key, bytes(LARGE))
    blob = hub / "models--org--name" / "blobs" / ("a" * 64)
    assert blob.read_bytes() == bytes(LARGE)


# -- names -----------------------------------------------------------------------------


def version(cache, commit, *, asked=None, model="org/name") -> None:
    """A version with one file, as a pull leaves it."""
    from mm_core import Manifest, ModelType, StoredFile

    registry = ModelRegistry(cache)
    claim = registry.begin(model, commit)
    key = f"models/{model}/{commit}/config.json"
    cache.put(key, b"{}")
    stored = StoredFile(path="config.json", key=key, size=2, sha256="0" * 64)
    facts = {} if asked is None else {"requested_revision": asked}
    manifest = Manifest(
        model_id=model, version=commit, model_type=ModelType.OTHER, files=(stored,), facts=facts
    )
    registry.add(claim, manifest)


def refs(hub, model="org/name") -> dict[str, str]:
    folder = hub / f"models--{model.replace('/', '--')}" / "refs"
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_names_follow_the_registry(cache, hub):
    """Branches, aliases and ``main`` are there after each commit, and go with their version."""
    registry = ModelRegistry(cache)
    version(cache, COMMIT, asked="refs/pr/1")
    assert refs(hub) == {"refs/pr/1": COMMIT, "main": COMMIT}
    version(cache, OTHER, asked="main")
    registry.set_alias("org/name", "prod", COMMIT)
    assert refs(hub) == {"refs/pr/1": COMMIT, "main": OTHER, "prod": COMMIT}
    registry.set_alias("org/name", "prod", OTHER)
    registry.remove("org/name", COMMIT)
    assert refs(hub) == {"main": OTHER, "prod": OTHER}
    registry.remove_alias("org/name", "prod")
    registry.remove("org/name", OTHER)
    assert refs(hub) == {}


def test_a_ref_of_the_clients_own_stays(cache, hub):
    """What the client has written since, to a snapshot of its own, is left alone."""
    version(cache, COMMIT, asked="main")
    main = hub / "models--org--name" / "refs" / "main"
    main.write_text("b" * 40)
    os.utime(main, (main.stat().st_atime + 5, main.stat().st_mtime + 5))
    ModelRegistry(cache).set_alias("org/name", "prod", COMMIT)
    assert refs(hub) == {"main": "b" * 40, "prod": COMMIT}
    ModelRegistry(cache).remove("org/name", COMMIT)
    assert refs(hub) == {"main": "b" * 40}


def test_what_cannot_be_shown_stops_no_commit(cache, hub):
    """A refs folder that is a file is a warning; the alias stands in the registry."""
    version(cache, COMMIT)
    folder = hub / "models--org--name" / "refs"
    (folder / "main").unlink()
    folder.rmdir()
    folder.write_bytes(b"")
    ModelRegistry(cache).set_alias("org/name", "prod", COMMIT)
    assert ModelRegistry(cache).resolve("org/name:prod").version == COMMIT


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "/h"},
        {"HF_HUB_CACHE": "/c"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"XDG_CACHE_HOME": "/x"},
        {"HF_HOME": "~/h", "HF_HUB_CACHE": "$HF_HOME/c"},
    ],
)
def test_the_folder_is_where_the_client_keeps_it(variables, monkeypatch):
    """Without a root, the variables mean what they mean to huggingface_hub."""
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    script = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    ours = HfCacheSink(HfCacheSink.Config())
    assert ours.root == os.path.realpath(os.path.expanduser(told.stdout.strip()))


def test_a_plain_backend_and_a_cache_copy_by_second_names(cache, tmp_path):
    """From a folder on the same disk nothing is moved."""
    local = LocalSink(LocalSink.Config(root=str(tmp_path / "plain")))
    local.put("models/a/1/file", b"data")
    key = f"models/a/{COMMIT}/file"
    assert cache.copy_from(local, "models/a/1/file", key)
    assert os.path.samefile(cache.url(key), local.url("models/a/1/file"))


def test_an_address_names_a_cache(tmp_path):
    """``hfcache:///folder`` is such a backend."""
    sink = open_cache(f"hfcache://{tmp_path}/{uuid.uuid4().hex}")
    assert "hfcache" not in sink.root
    assert "hfcache" in HfCacheSink.schemes
