"""Files of a version that are missing or wrong come again, bit by bit the same, or are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_core import ModelManager, NotFoundError, Plugins, load_settings
from mm_core.cli import main
from mm_plugins.sinks import local, memory
from mm_plugins.sources import folder, url

pytestmark = pytest.mark.unit

LARGE = b"w" * 1_100_000


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine"
    (path / "deep").mkdir(parents=True)
    (path / "config.json").write_bytes(b"{}")
    (path / "model.bin").write_bytes(LARGE)
    (path / "deep" / "[a]?.txt".replace("?", "!")).write_bytes(b"odd")
    return path


@pytest.fixture
def manager(tmp_path):
    settings = load_settings(overrides={"defaults": {"backend": str(tmp_path / "store")}})
    with ModelManager(settings, plugins=Plugins([local, memory, folder, url])) as manager:
        yield manager


def hurt(path: Path, how: str) -> bytes | None:
    """Damage a file; what stands there then."""
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
        return None
    damaged = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "long": data + b"x"}[how]
    path.unlink()  # equal files of several versions may be one file of the disk
    path.write_bytes(damaged)
    return damaged


def quarantined(manager) -> list[bytes]:
    found = manager.sink().list(".mm/quarantine/models/")
    return [b"".join(manager.sink().read(stored.key)) for stored in found]


@pytest.mark.parametrize("how", ["flip", "cut", "long", "delete"])
@pytest.mark.parametrize("name", ["model.bin", "config.json", "deep/[a]!.txt"])
def test_a_damaged_file_comes_again_from_its_source(manager, mine, name, how):
    """It is whole again, what was wrong is kept, and no commit was needed."""
    manager.push(mine, "m", version="v")
    before = len(manager.registry().history())
    damaged = hurt(manager.get("m").path / name, how)
    report = manager.verify(repair=True)
    assert report.ok
    assert [(m.model_id, m.version, m.path) for m in report.mended] == [("m", "v", name)]
    assert (manager.get("m").path / name).read_bytes() == (mine / name).read_bytes()
    assert quarantined(manager) == ([] if damaged is None else [damaged])
    assert manager.verify().ok
    assert len(manager.registry().history()) == before


def test_equal_bytes_of_the_backend_are_used_first(manager, mine):
    """The source may be gone: a sibling of any size, and a large file of any model, will do."""
    manager.push(mine, "m", version="old")
    manager.push(mine, "m", version="new")
    (mine / "config.json").unlink()
    manager.push(mine, "other", version="v")
    for path in sorted(mine.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    mine.rmdir()
    root = manager.registry().resolve("m@new").path
    hurt(root / "config.json", "flip")
    hurt(root / "model.bin", "flip")
    report = manager.verify("m@new", repair=True)
    assert report.ok
    assert len(report.mended) == 2
    hurt(manager.registry().resolve("other").path / "model.bin", "delete")
    assert manager.verify("other", repair=True).ok


def test_a_damaged_sibling_is_no_source(manager, mine):
    """Equal bytes that are damaged, too, are not taken; the source has right ones."""
    manager.push(mine, "m", version="old")
    manager.push(mine, "m", version="new")
    for version in ("old", "new"):
        hurt(manager.registry().resolve(f"m@{version}").path / "config.json", "flip")
    assert manager.verify("m@new", repair=True).ok
    assert manager.verify(repair=True).ok
    for version in ("old", "new"):
        hurt(manager.registry().resolve(f"m@{version}").path / "config.json", "flip")
    (mine / "config.json").write_bytes(b"[]")
    assert {bad.path for bad in manager.verify(repair=True).bad} == {"config.json"}
    assert not (manager.registry().resolve("m@new").path / "config.json").exists()


def test_files_that_all_versions_lack_come_from_the_source(manager, mine):
    """As after a restore: a copy that finds nothing keeps no other file from being brought."""
    for version in ("old", "new"):
        manager.push(mine, "m", version=version)
    roots = [Path(manager.registry().resolve(f"m@{version}").path) for version in ("old", "new")]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    for path in files:
        path.unlink()
    report = manager.verify(repair=True)
    assert report.ok
    assert len(report.mended) == len(files) == 6
    assert all(path.is_file() for path in files)


def test_what_nobody_has_is_named_and_handed_out_no_more(manager, mine):
    """Wrong bytes are set aside all the same, and the reason says why nothing came."""
    manager.push(mine, "m", version="v")
    (mine / "model.bin").write_bytes(b"another")
    damaged = hurt(manager.get("m").path / "model.bin", "flip")
    report = manager.verify(repair=True)
    assert [(bad.path, report.mended) for bad in report.bad] == [("model.bin", ())]
    assert "cannot be brought" in report.bad[0].reason
    assert quarantined(manager) == [damaged]
    assert not (manager.registry().resolve("m").path / "model.bin").exists()


def test_a_version_that_was_removed_is_left_alone(manager, mine):
    """Nothing is mended of what is no longer AVAILABLE."""
    manager.push(mine, "m", version="v")
    hurt(manager.get("m").path / "model.bin", "flip")
    report = manager.verify()
    manager.remove("m")
    from mm_core.repairing import FileRepair

    place = manager._places.open(None)
    repair = FileRepair(street=manager._street, place=place, open_source=manager._source)
    assert repair.run(report).bad == ()
    assert quarantined(manager) == []


def test_without_repair_nothing_changes(manager, mine):
    """Looking is only looking."""
    manager.push(mine, "m", version="v")
    damaged = hurt(manager.get("m").path / "model.bin", "flip")
    assert not manager.verify().ok
    assert (manager.registry().resolve("m").path / "model.bin").read_bytes() == damaged
    with pytest.raises(NotFoundError):
        manager.verify("nobody", repair=True)


def test_the_command_line_tells_what_was_mended(manager, mine, tmp_path, capfd):
    """Exit 0 with what is mended; exit 6 with what is left."""
    manager.push(mine, "m", version="v")
    backend = ["--backend", str(tmp_path / "store"), "--json"]
    hurt(manager.get("m").path / "model.bin", "flip")
    assert main(["verify", *backend]) == 6
    assert "--repair" in json.loads(capfd.readouterr().out)["error"]["hint"]
    assert main(["verify", "--repair", *backend]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [one["path"] for one in document["mended"]] == ["model.bin"]
    (mine / "model.bin").unlink()
    hurt(manager.get("m").path / "model.bin", "flip")
    assert main(["verify", "--repair", *backend]) == 6
    assert json.loads(capfd.readouterr().out)["bad"][0]["path"] == "model.bin"
