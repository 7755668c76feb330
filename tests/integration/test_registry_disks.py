"""A disk that is full, or read-only, or not ours: a clear error, nothing half visible, and it is read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from mm_core.exceptions import StorageError
from mm_core.registry import ModelRegistry
from mm_core.testing.plain import rows_of
from mm_core.testing.registry import fill, registered
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.integration

FIRST = ("org/model", "1", "AVAILABLE", ("prod",))
CHANGES = (["rm", "org/model@1", "--yes"], ["alias", "set", "org/model@1", "next"])


def open_store(root):
    return LocalSink(LocalSink.Config(root=str(root)))


def mm(*arguments, prefix=()):
    command = [*prefix, sys.executable, "-m", "mm_core", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


def mount(*arguments):
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk")


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB with one version in its store."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    fill(ModelRegistry(open_store(folder / "store")), "org/model", "1", aliases=("prod",))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave(folder, blocks):
    """Let a file fill the disk up to so many blocks of 4 KiB."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - blocks * 4096))
    return filler


def test_a_disk_that_is_full_at_any_step(disk):
    """With room for none, one, two… of the objects of a pull: it is done, or told why not and not half
    done; and it is done as soon as there is room."""
    outcomes = []
    for blocks in range(8):
        root = disk / "store"
        registry = ModelRegistry(open_store(root), claim_timeout=0.2)
        filler = leave(disk, blocks)
        version, told = f"2.{blocks}", None
        try:
            fill(registry, "org/model", version)
        except StorageError as error:
            told = error
        assert told is None or ("space" in told.message and told.hint)
        outcomes.append("done" if told is None else "told")
        found = {row[1]: row[2] for row in rows_of(ModelRegistry(open_store(root)))}
        assert found["1"] == "AVAILABLE"
        assert found.get(version) in (
            (None, "DOWNLOADING") if outcomes[-1] == "told" else ("AVAILABLE",)
        )
        assert ModelRegistry(open_store(root)).resolve("org/model:prod").version == "1"
        filler.unlink()
        assert registry.add_model(registered("org/other", version))
    assert outcomes[0] == "told"
    assert outcomes[-1] == "done"
    assert len(ModelRegistry(open_store(disk / "store")).history()) > 8


def test_a_disk_that_is_mounted_read_only(disk):
    """It is read; each command that would change it ends with 1 and says what to do."""
    mount("-o", "remount,ro", str(disk))
    root = str(disk / "store")
    registry = ModelRegistry(open_store(root))
    assert rows_of(registry) == [FIRST]
    with pytest.raises(StorageError, match="[Rr]ead-only"):
        registry.remove("org/model", "1")
    listed = mm("list", "--backend", root, "--json")
    assert [model["version"] for model in json.loads(listed.stdout)["models"]] == ["1"]
    for command in CHANGES:
        done = mm(*command, "--backend", root)
        assert done.returncode == 1, done.stderr
        assert "read-only" in done.stderr.lower()
    assert rows_of(ModelRegistry(open_store(root))) == [FIRST]


@pytest.fixture
def sealed(tmp_path):
    """A store that may be read and not changed; what to run a command with, so that this holds."""
    root = tmp_path / "store"
    fill(ModelRegistry(open_store(root)), "org/model", "1", aliases=("prod",))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    powers = "-dac_override,-dac_read_search"
    prefix = ["setpriv", "--bounding-set", powers] if os.getuid() == 0 else []
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, since modes do not hold for root")
    yield str(root), prefix
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_folder_that_may_not_be_changed(sealed):
    """It is read; each command that would change it ends with 4 and says what to look at."""
    root, prefix = sealed
    listed = mm("list", "--backend", root, "--json", prefix=prefix)
    assert [model["version"] for model in json.loads(listed.stdout)["models"]] == ["1"]
    assert mm("history", "org/model", "--backend", root, prefix=prefix).returncode == 0
    for command in CHANGES:
        done = mm(*command, "--backend", root, prefix=prefix)
        assert done.returncode == 4, done.stderr
        assert "mode of the folder" in done.stderr
    assert rows_of(ModelRegistry(open_store(root))) == [FIRST]
