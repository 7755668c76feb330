"""``mm-storage-initializer URI DIR``, as KServe calls it."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from mm_core import ModelManager

pytestmark = pytest.mark.integration

FILES = {"config.json": b"{}", "deep/w.bin": b"w" * 100_000, "deep/x": b"x", "e": b""}
EXAMPLE = Path(__file__).parents[2] / "examples/kserve"


@pytest.fixture
def filled(tmp_path, backend, monkeypatch):
    """A version in each kind of backend, which is the default one."""
    for path, data in FILES.items():
        (tmp_path / "m" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / path).write_bytes(data)
    with ModelManager(backend=backend) as manager:
        manager.push(tmp_path / "m", "org/m", version="1", aliases=["prod"])
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", str(backend))
    return backend


def initialize(*words) -> subprocess.CompletedProcess[str]:
    command = Path(sysconfig.get_path("scripts")) / "mm-storage-initializer"
    return subprocess.run([command, *map(str, words)], capture_output=True, text=True)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_models_land_in_the_folders(filled, tmp_path):
    """A version, a part of one, and a file, each in the folder that was named."""
    places = [tmp_path / "a" / "b", tmp_path / "c", tmp_path / "d"]
    uris = ["mm://org/m@prod", "mm://org/m@1/deep", "mm://org/m/config.json"]
    words = [word for pair in zip(uris, places, strict=True) for word in pair]
    done = initialize(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert files(places[0]) == FILES
    assert files(places[1]) == {"w.bin": FILES["deep/w.bin"], "x": b"x"}
    assert files(places[2]) == {"config.json": b"{}"}
    places[1].joinpath("w.bin").write_bytes(b"cut")  # and once more, after a kill
    places[0].joinpath("deep/w.bin").unlink()
    assert initialize(*words).returncode == 0
    assert files(places[0]) == FILES
    assert files(places[1])["w.bin"] == FILES["deep/w.bin"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "in pairs"),
        (["mm://org/m@prod"], 2, "in pairs"),
        (["s3://bucket/x", "{}"], 2, "no mm:// URI"),
        (["mm://", "{}"], 2, "no mm:// URI"),
        (["mm://org/m@1", "{}", "mm://org/m@prod", "{}/two"], 2, "is within"),
        (["mm://org/m@1", "{}/x/..", "mm://org/m@prod", "{}"], 2, "is within"),
        (["mm://org/none", "{}"], 3, "org/none"),
        (["mm://org/m@next", "{}"], 3, "org/m@next"),
        (["mm://org/m@prod/none", "{}"], 3, "none"),
    ],
)
def test_what_cannot_be_done_is_told(words, code, told, tmp_path, local, monkeypatch):
    """In a line, with the exit code of mm, and nothing lands."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_bytes(b"{}")
    with ModelManager(backend=local) as manager:
        manager.push(tmp_path / "m", "org/m", version="1", aliases=["prod"])
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", str(local))
    done = initialize(*(word.format(tmp_path / "out") for word in words))
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_damage_in_the_store_is_found(local, tmp_path, monkeypatch):
    """No changed byte comes to the model server."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_bytes(b"{}")
    with ModelManager(backend=local) as manager:
        manager.push(tmp_path / "m", "org/m", version="1")
    Path(local, "models/org/m/1/config.json").write_bytes(b"[]")
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", str(local))
    for uri in ("mm://org/m@1", "mm://org/m@1/config.json"):
        done = initialize(uri, tmp_path / "out")
        assert done.returncode == 6, done.stderr
        assert files(tmp_path / "out") == {}


def test_the_examples_are_what_kserve_takes():
    """The container has the name that KServe looks for, and takes the URI of the service."""
    container = yaml.safe_load((EXAMPLE / "storage-container.yaml").read_text())
    service = yaml.safe_load((EXAMPLE / "inference-service.yaml").read_text())
    assert container["kind"] == "ClusterStorageContainer"
    assert container["spec"]["container"]["name"] == "storage-initializer"
    (taken,) = container["spec"]["supportedUriFormats"]
    assert service["spec"]["predictor"]["model"]["storageUri"].startswith(taken["prefix"])
    assert '"mm-storage-initializer"' in (EXAMPLE / "Dockerfile").read_text()


def test_help():
    """What it is for, and how its backend is named."""
    told = initialize("--help")
    assert told.returncode == 0
    assert "MM_DEFAULTS__BACKEND" in told.stdout
