"""``mm://`` by fsspec: what its own tests ask of a file system that only reads, and what users do."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests

from mm_core import ModelManager
from mm_core.testing.material import noise
from mm_plugins.filesystem import MMFileSystem

pytestmark = pytest.mark.integration

FILES = {"config.json": b'{"a": 1}', "deep/er/w.bin": noise(3_000_000), "deep/x": b"x", "e": b""}


def push(backend, folder: Path, files, model_id="embed/minilm", **options):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    with ModelManager(backend=backend) as manager:
        return manager.push(folder, model_id, **options).entry


@pytest.fixture
def filled(tmp_path, backend):
    """Each kind of backend with two versions of a model, and another."""
    push(backend, tmp_path / "one", {"config.json": b"old"}, version="1", aliases=["old"])
    push(backend, tmp_path / "two", FILES, version="2", aliases=["prod", "latest"])
    push(backend, tmp_path / "three", {"a": b"a"}, "other", version="1")
    return backend


@pytest.fixture
def fs(filled):
    return MMFileSystem(backend=filled, skip_instance_cache=True)


def test_paths(fs, filled):
    """By alias, by version, and by nothing; each in its folder."""
    read = fs.cat_file
    assert read("mm://embed/minilm@prod/config.json") == FILES["config.json"]
    assert read("embed/minilm/config.json") == FILES["config.json"]
    assert read("embed/minilm@1/config.json") == read("embed/minilm@old/config.json") == b"old"
    assert fs.ls("", detail=False) == fs.ls("mm://", detail=False) == ["embed", "other"]
    assert fs.ls("embed", detail=False) == ["embed/minilm"]
    assert fs.ls("embed/minilm@prod", detail=False) == [
        f"embed/minilm@prod/{name}" for name in ("config.json", "deep", "e")
    ]
    assert fs.find("embed/minilm@2") == sorted(f"embed/minilm@2/{name}" for name in FILES)
    assert fs.glob("embed/minilm@prod/**/*.bin") == ["embed/minilm@prod/deep/er/w.bin"]
    assert fs.isdir("embed/minilm@prod/deep")
    assert fs.isfile("embed/minilm@prod/deep/x")
    info = fs.info("embed/minilm@prod/deep/er/w.bin")
    assert (info["size"], info["type"], info["version"]) == (3_000_000, "file", "2")
    with fsspec.open("mm://embed/minilm@prod/deep/er/w.bin", backend=filled) as file:
        file.seek(1_000_000)
        assert file.read(10) == FILES["deep/er/w.bin"][1_000_000:1_000_010]


def test_what_is_not_there(fs):
    """Is told as a disk tells it."""
    for path in (
        "none",
        "embed/none",
        "embed/minilm@9/x",
        "embed/minilm@prod/none",
        "embed/minilm@",
    ):
        assert not fs.exists(path)
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)
        with pytest.raises(FileNotFoundError):
            fs.ls(path)
    with pytest.raises(IsADirectoryError):
        fs.cat_file("embed/minilm@prod/deep")


def test_ranges(fs):
    """From both ends, and several at once."""
    path, data = "embed/minilm@prod/deep/er/w.bin", FILES["deep/er/w.bin"]
    spans = [
        (0, 10),
        (5, None),
        (-7, None),
        (None, -2_999_990),
        (99, 99),
        (10**9, None),
        (3, 10**9),
    ]
    for start, end in spans:
        assert fs.cat_file(path, start, end) == data[start:end]
    assert fs.cat_ranges([path] * 3, [0, 100, 2_999_990], [10, 200, 3_000_000]) == [
        data[:10], data[100:200], data[2_999_990:]
    ]  # fmt: skip
    assert fs.cat("embed/minilm@prod/deep", recursive=True, on_error="omit").keys() == {
        "embed/minilm@prod/deep/er/w.bin", "embed/minilm@prod/deep/x"
    }  # fmt: skip


def test_nothing_is_written(fs):
    """Whatever is tried; and why is said."""
    path = "embed/minilm@prod/config.json"
    for attempt in (
        lambda: fs.open(path, "wb"),
        lambda: fs.pipe(path, b""),
        lambda: fs.rm(path),
        lambda: fs.touch("x"),
        lambda: fs.mkdir("x"),
        lambda: fs.mv(path, "x"),
        lambda: fs.put_file(os.devnull, "x"),
    ):
        with pytest.raises(PermissionError, match="only reads"):
            attempt()


def test_it_travels_and_serves_many_threads(filled):
    """As Dask sends it to workers."""
    fs = MMFileSystem(backend=filled)
    there = pickle.loads(pickle.dumps(fs))
    path = "embed/minilm@prod/deep/er/w.bin"
    assert there == fs
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: there.cat_file(path, n, n + 5), range(100)))
    assert found == [FILES["deep/er/w.bin"][n : n + 5] for n in range(100)]


def test_an_alias_is_followed(tmp_path, local):
    """After `refresh` seconds; a version stays what it is."""
    push(local, tmp_path / "one", {"a": b"1"}, version="1", aliases=["prod"])
    fs = MMFileSystem(backend=local, refresh=0, skip_instance_cache=True)
    assert fs.cat_file("embed/minilm@prod/a") == b"1"
    push(local, tmp_path / "two", {"a": b"2"}, version="2", aliases=["prod"])
    assert fs.cat_file("embed/minilm@prod/a") == b"2"
    assert fs.cat_file("embed/minilm@1/a") == b"1"


class TestGet(AbstractFixtures, AbstractGetTests):
    """fsspec's own tests of `get`. What they would write there, a push brings."""

    @pytest.fixture
    def fs(self, tmp_path):
        return _Filled(tmp_path)

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self):
        return "t/tree@all"

    @pytest.fixture
    def supports_empty_directories(self):
        return False


class _Filled(MMFileSystem):
    """Takes what a test writes into a folder, and shows it as a model."""

    cachable = False

    def __init__(self, folder: Path) -> None:
        self.staged, self.store = folder / "staged", str(folder / "store")
        super().__init__(backend=self.store, refresh=0)

    def _place(self, path: str) -> Path:
        return self.staged / path.partition("@all")[2].strip("/")

    def _push(self) -> None:
        with ModelManager(backend=self.store) as manager:
            manager.push(self.staged, "t/tree", aliases=["all"])

    def touch(self, path, truncate=True, **options):
        self.pipe_file(path, b"")

    def pipe_file(self, path, value, **options):
        self._place(path).parent.mkdir(parents=True, exist_ok=True)
        self._place(path).write_bytes(value)
        self._push()

    def mkdir(self, path, **options):
        """Folders come with their files."""

    def makedirs(self, path, exist_ok=False):
        """Likewise."""

    def rm(self, path, recursive=False, maxdepth=None):
        LocalFileSystem().rm(make_path_posix(str(self._place(path))), recursive=recursive)
