"""The fsspec source: against S3 on loopback, and against fsspec's memory store, which knows no ETag."""

from __future__ import annotations

import random
import sys
import uuid

import pytest

from mm_core import (
    InvalidNameError,
    MissingExtraError,
    ModelManager,
    NotFoundError,
    RemoteFile,
    Request,
    SourceChangedError,
    StorageError,
    TransientError,
    UsageError,
)
from mm_core.testing.sources import SourceTests
from mm_plugins.sources.fsspec import FsspecSource

pytestmark = pytest.mark.integration

FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "empty.txt": b"",
    "model.safetensors": random.Random(7).randbytes(3_000_000),
    "onnx/a b/gewicht-ü+%20#1.onnx": random.Random(8).randbytes(1_100_000),
}


OPTIONS = {"key": "test", "secret": "test", "client_kwargs": {"region_name": "us-east-1"}}


@pytest.fixture(scope="module")
def options(s3_server):
    """What fsspec needs to reach the S3 server."""
    return OPTIONS | {"endpoint_url": s3_server.endpoint_url}


@pytest.fixture(scope="module")
def system(options):
    """A file system of the test's own, to put objects there."""
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **options)


@pytest.fixture(scope="module")
def shared_source(options):
    made = FsspecSource(FsspecSource.Config(options=options))
    yield made
    made.close()


@pytest.fixture(scope="module")
def fill(s3_server, system):
    """Put files below a prefix of a fresh bucket; gives the prefix's URL."""

    def put(files=FILES) -> str:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        s3_server.make_bucket(bucket)
        for path, data in files.items():
            system.pipe_file(f"s3://{bucket}/models/one/{path}", data)
        return f"s3://{bucket}/models/one"

    return put


@pytest.fixture(scope="module")
def model(fill):
    """The URL of a prefix with FILES, which no test changes."""
    return fill()


@pytest.fixture
def source(shared_source):
    return shared_source


@pytest.fixture
def snapshot(source):
    return lambda url, **asked: source.snapshot(Request(url=url, **asked))


@pytest.fixture
def put_raw(system):
    """Put an object under a key as it stands, which fsspec would tidy."""

    def put(url, key, data=b"") -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        system.call_s3("put_object", Bucket=bucket, Key=prefix + key, Body=data)

    return put


def read(source, file, start=0, end=None) -> bytes:
    return b"".join(bytes(buffer) for buffer in source.read(file, start, end))


class TestS3(SourceTests):
    @pytest.fixture
    def source(self, shared_source):
        return shared_source

    @pytest.fixture
    def url(self, model):
        return model

    @pytest.fixture
    def expected(self):
        return FILES


class TestOneObject(SourceTests):
    many_files = False

    @pytest.fixture
    def source(self, shared_source):
        return shared_source

    @pytest.fixture
    def url(self, model):
        return f"{model}/model.safetensors"

    @pytest.fixture
    def expected(self):
        return {"model.safetensors": FILES["model.safetensors"]}


class TestMemory(SourceTests):
    has_revision = False

    @pytest.fixture
    def source(self):
        return FsspecSource()

    @pytest.fixture
    def url(self):
        import fsspec

        url = f"memory://{uuid.uuid4().hex}/model"
        for path, data in FILES.items():
            fsspec.filesystem("memory").pipe_file(f"{url}/{path}", data)
        return url

    @pytest.fixture
    def expected(self):
        return FILES


def test_the_revision_names_the_content_of_the_prefix(fill, system, snapshot):
    """Another object, or another state of one, is another revision; a neighbour's is not ours."""
    url = fill()
    first = snapshot(url)
    assert len(first.revision) == 40
    system.pipe_file(f"{url}-2/neighbour.bin", b"not ours")
    assert snapshot(url) == first
    system.pipe_file(f"{url}/config.json", b'{"model_type": "tinY"}')
    second = snapshot(url)
    assert second.revision != first.revision
    with pytest.raises(NotFoundError, match=first.revision):
        snapshot(url, revision=first.revision)


def test_a_listing_is_never_old(fill, system, snapshot):
    """The same source sees what came since it last looked."""
    url = fill()
    before = snapshot(url)
    system.pipe_file(f"{url}/new.txt", b"new")
    assert {f.path for f in snapshot(url).files} - {f.path for f in before.files} == {"new.txt"}


def test_folder_markers_are_no_files(fill, put_raw, snapshot):
    """Empty objects that end in a slash, which consoles leave behind, are left out."""
    url = fill()
    put_raw(url, "/")
    put_raw(url, "/onnx/")
    assert {f.path for f in snapshot(url).files} == set(FILES)


@pytest.mark.parametrize("name", ["a//b", "../up", "a\\b", "tab\tin", "full/"])
def test_names_that_no_disk_can_hold_are_refused(fill, put_raw, snapshot, name):
    """A bucket may hold any name: one that is unsafe elsewhere is an error that names it."""
    url = fill({"a.txt": b"a"})
    put_raw(url, f"/{name}", b"x")
    with pytest.raises(InvalidNameError) as caught:
        snapshot(url, exclude=["*"])
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("size", [10, 9 << 20])
def test_an_object_that_changed_is_never_mixed(fill, system, source, snapshot, size):
    """Changed since it was listed, before or during the read: `SourceChangedError`."""
    url = fill({"w.bin": b"a" * size})
    (file,) = snapshot(url).files
    reading = source.read(file)
    assert bytes(next(reading)) == b"a" * min(size, 8 << 20)
    system.pipe_file(f"{url}/w.bin", b"b" * size)
    with pytest.raises(SourceChangedError):
        list(reading)
    with pytest.raises(SourceChangedError):
        read(source, file)
    if size > 8 << 20:  # a large one is looked at before its first byte is fetched, too
        with pytest.raises(SourceChangedError):
            next(source.read(file))


def test_a_file_of_unknown_size_is_read_to_its_end(fill, source, snapshot):
    """Where a store states no size, the end is where the bytes end."""
    data = b"ab" * (5 << 20)
    (file,) = snapshot(fill({"w.bin": data})).files
    unknown = RemoteFile(path="w.bin", extra=file.extra)
    assert read(source, unknown) == data
    assert read(source, unknown, 9 << 20, 20 << 20) == data[9 << 20 :]


def test_a_range_costs_one_request_and_one_look(fill, s3_server, source, snapshot):
    """Nobody fetches a large object for a small range of it."""
    (file,) = snapshot(fill({"w.bin": b"a" * (10 << 20)})).files
    s3_server.requests.clear()
    assert read(source, file, 1000, 2000) == b"a" * 1000
    assert sorted(method for method, _ in s3_server.requests) == ["GET", "HEAD"]


def test_the_protocol_may_be_upper_case(fill, snapshot):
    """URL schemes know no case."""
    url = fill({"a.txt": b"a"})
    assert snapshot(url.replace("s3://", "S3://")) == snapshot(url)


def test_what_is_not_there(fill, snapshot):
    """No bucket and no such prefix are not found; half a name is no match."""
    url = fill({"config.json": b"{}"})
    for wrong in ("s3://no-such-bucket-here/x", f"{url}/nope", url[:-1], f"{url}/config.js"):
        with pytest.raises(NotFoundError):
            snapshot(wrong)


def test_a_store_that_is_not_there(monkeypatch, tmp_path):
    """No connection is a passing fault."""
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "key": "k",
        "secret": "verySecretKey",
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1},
    }
    source = FsspecSource(FsspecSource.Config(options=options))
    assert "verySecretKey" not in repr(source.config)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(TransientError) as caught:
        source.snapshot(Request(url="s3://bucket/x"))
    assert "verySecretKey" not in str(caught.value)


def test_a_bucket_name_that_cannot_be_is_final(snapshot):
    """What the client refuses to ask is no passing fault."""
    with pytest.raises((StorageError, UsageError)):
        snapshot("s3://x y/z")


def test_passwords_and_chains_in_urls_are_refused(snapshot):
    """A URL is written down; a password belongs into the options. Chains are no stores."""
    with pytest.raises(UsageError, match="password") as caught:
        snapshot("sftp://me:sesame@host/x")
    assert "sesame" not in str(caught.value)
    with pytest.raises(UsageError, match="chain"):
        snapshot("simplecache::s3://bucket/x")


@pytest.mark.parametrize(("library", "url"), [("s3fs", "s3://b/x"), ("gcsfs", "gs://b/x")])
def test_a_missing_library_is_named(monkeypatch, library, url):
    """Without s3fs or gcsfs the error says what to install."""
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(_registry, url[:2], raising=False)
    with pytest.raises(MissingExtraError) as caught:
        FsspecSource().snapshot(Request(url=url))
    extra = {"s3fs": "s3", "gcsfs": "gcs"}[library]
    assert caught.value.hint == f"pip install 'model-manager[{extra}]'"


def test_gcs_down_the_street(gcs, local):
    """From GCS into a folder, with the generation or ETag of each object as the revision's base."""
    import gcsfs

    system = gcsfs.GCSFileSystem(skip_instance_cache=True, token="anon")
    for path, data in FILES.items():
        if "#" not in path:
            system.pipe_file(f"{gcs}/model/{path}", data)
    with ModelManager(backend=local) as manager:
        entry = manager.pull(f"{gcs}/model", model_id="from/gcs").entry
        stored = manager.get("from/gcs").path
        assert entry.version == entry.metadata["revision"]
        assert (stored / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_store_without_etags_needs_a_version(local):
    """A time is no revision: without --version the pull says what to name."""
    import fsspec

    url = f"memory://{uuid.uuid4().hex}/m"
    fsspec.filesystem("memory").pipe_file(f"{url}/a.txt", b"a")
    with ModelManager(backend=local) as manager:
        with pytest.raises(UsageError) as caught:
            manager.pull(url, model_id="m")
        assert "--version" in f"{caught.value} {caught.value.hint}"
        assert manager.pull(url, model_id="m", version="1").entry.version == "1"
