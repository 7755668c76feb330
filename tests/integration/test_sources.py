"""Every built-in source against the suite that plugin authors get, and what is special to each."""

from __future__ import annotations

import hashlib
import os
import random
import re
import types
import zipfile
from pathlib import Path

import pytest

from mm_core import (
    AuthError,
    InvalidNameError,
    ModelManager,
    NotFoundError,
    Request,
    SourceChangedError,
    UsageError,
)
from mm_core.testing.sources import SourceTests
from mm_plugins.sources.folder import FolderSource

pytestmark = pytest.mark.integration

FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "empty.txt": b"",
    "model.safetensors": random.Random(7).randbytes(3_000_000),
    "onnx/a b/gewicht-ü.onnx": random.Random(8).randbytes(1_100_000),
    "onnx/model.onnx": b"onnx",
}


def read(source, file, start=0, end=None) -> bytes:
    return b"".join(bytes(buffer) for buffer in source.read(file, start, end))


def fill(folder, files=FILES):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def model(tmp_path):
    """A folder with the files of a model."""
    return fill(tmp_path / "model")


class TestFolder(SourceTests):
    @pytest.fixture
    def source(self):
        return FolderSource()

    @pytest.fixture
    def url(self, model):
        return str(model)

    @pytest.fixture
    def expected(self):
        return FILES


class TestFolderByUrl(TestFolder):
    @pytest.fixture
    def url(self, model):
        return model.rename(model.parent / "a model #1 of 50%").as_uri()


class TestHuggingFace(SourceTests):
    @pytest.fixture
    def source(self, hub):
        from mm_plugins.sources.huggingface import HuggingFaceSource

        made = HuggingFaceSource()
        yield made
        made.close()

    @pytest.fixture
    def url(self, hub):
        hub.add_repo("org/m", files=FILES)
        return "hf://org/m"

    @pytest.fixture
    def expected(self):
        return FILES


# -- folders ---------------------------------------------------------------------------


def folder_files(folder, **options):
    shot = FolderSource().snapshot(Request(url=str(folder), **options))
    return {file.path: file for file in shot.files}


def test_every_file_of_a_folder_is_hashed(model):
    """A folder states the sha256 of each file; the revision names exactly this content."""
    shot = FolderSource().snapshot(Request(url=str(model)))
    assert {f.path: f.sha256 for f in shot.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()
    }
    assert len(shot.revision) == 40
    assert (shot.source, shot.model_id) == (model.as_uri(), "model")
    os.utime(model / "config.json", (1, 1))
    assert FolderSource().snapshot(Request(url=str(model))).revision == shot.revision
    (model / "config.json").rename(model / "config2.json")
    assert FolderSource().snapshot(Request(url=str(model))).revision != shot.revision


def test_what_is_no_part_of_a_model_is_left_out(model):
    """Version control, the Hub client's cache and unfinished writes are not listed."""
    junk = {
        ".git/config": b"",
        "sub/.git/HEAD": b"",
        ".cache/huggingface/download/config.json.lock": b"",
        ".mm-staged-0123456789abcdef": b"half a file",
        "onnx/.mm-staged-fedcba9876543210": b"half a file",
    }
    kept = {".gitattributes": b"", "my.cache/huggingface/a": b"", ".cache/own": b""}
    fill(model, junk | kept)
    os.mkfifo(model / "pipe")
    assert set(folder_files(model)) == {*FILES, *kept}


def test_a_link_within_the_folder_is_the_file(model):
    """A link to a file of the folder counts as that file."""
    (model / "link.onnx").symlink_to("onnx/model.onnx")
    files = folder_files(model)
    assert read(FolderSource(), files["link.onnx"]) == b"onnx"


@pytest.mark.parametrize("target", ["../secret.txt", "/etc/hostname", "../outside", "onnx", "."])
def test_links_that_leave_the_folder_are_refused(model, target):
    """A link out of the folder, or to a folder, is an error that names it, unless excluded."""
    (model.parent / "secret.txt").write_text("secret")
    fill(model.parent / "outside", {"a": b"a"})
    (model / "sub").mkdir()
    (model / "sub" / "link").symlink_to(target if target[0] == "/" else f"../{target}")
    with pytest.raises(UsageError, match="sub/link"):
        folder_files(model)
    assert set(folder_files(model, exclude=["sub/*"])) == set(FILES)


def test_a_link_to_nothing_is_an_error(model):
    """A file that cannot be had is never left out in silence."""
    (model / "link").symlink_to("nothing")
    with pytest.raises(SourceChangedError, match="link"):
        folder_files(model)


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"\xff.bin", b"what?"])
def test_names_that_cannot_be_kept_are_refused(model, name):
    """A name that could not stand elsewhere is an error, before a byte is read."""
    with open(os.path.join(os.fsencode(model), name), "wb"):
        pass
    with pytest.raises(InvalidNameError):
        folder_files(model)


@pytest.mark.parametrize("change", ["longer", "same size", "shorter", "gone"])
def test_a_file_that_changes_is_never_mixed(model, change):
    """Changed since the snapshot, also during a read: `SourceChangedError`."""
    path = model / "model.safetensors"
    file = folder_files(model)["model.safetensors"]
    reading = FolderSource().read(file)
    next(reading)
    if change == "gone":
        path.unlink()
        list(reading)
    else:
        data = {"longer": b"x" * 3_000_001, "same size": b"x" * 3_000_000, "shorter": b""}[change]
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceChangedError):
            list(reading)
    with pytest.raises(SourceChangedError):
        read(FolderSource(), file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(model):
    """A folder or file without the right to read is an error, not an absence."""
    (model / "onnx").chmod(0)
    try:
        with pytest.raises(AuthError, match="onnx"):
            folder_files(model)
    finally:
        (model / "onnx").chmod(0o755)


def test_an_old_revision_of_a_folder_is_gone(model):
    """A folder has its present content only, and says so."""
    old = FolderSource().snapshot(Request(url=str(model))).revision
    (model / "config.json").write_bytes(b"{}")
    with pytest.raises(NotFoundError, match=old):
        FolderSource().snapshot(Request(url=str(model), revision=old))


def test_hosts_in_file_urls(model):
    """``file://host/path`` is refused; the host would be dropped in silence otherwise."""
    with pytest.raises(UsageError):
        FolderSource().snapshot(Request(url=f"file://server{model}"))
    assert FolderSource().snapshot(Request(url=f"file://localhost{model}")).files


def test_a_folder_down_the_street(model, local):
    """Pushing a folder stores its files under their own names; twice changes nothing."""
    with ModelManager(backend=local) as manager:
        first = manager.push(model, "team/model")
        again = manager.push(model, "team/model")
        stored = manager.get("team/model").path
        assert {p: (stored / p).read_bytes() for p in FILES} == FILES
        assert first.entry.version == again.entry.version
        assert manager.list_models() == [again.entry]


# -- the documented source ---------------------------------------------------------------


def documented() -> dict:
    page = Path(__file__).parents[2] / "docs" / "write-a-source.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    names: dict = {"__name__": "documented"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return names


DOCUMENTED = documented()


class TestDocumented(DOCUMENTED["TestZip"]):
    """The source that docs/write-a-source.md shows, and its tests, as they stand there."""


def test_the_documented_source_down_the_street(tmp_path, local):
    """A stranger's source, offered by its hook, pulls into a backend like a built-in one."""
    from mm_core import Plugins

    archive = tmp_path / "tiny.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path, data in FILES.items():
            opened.writestr(path, data)
    plugin = types.SimpleNamespace(mm_sources=DOCUMENTED["mm_sources"])
    with ModelManager(backend=local, plugins=Plugins.discover(extra=[plugin])) as manager:
        manager.pull(f"zip://{archive}")
        stored = manager.get("tiny").path
        assert {p: (stored / p).read_bytes() for p in FILES} == FILES
