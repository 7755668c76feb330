"""`mm_core.get`: from a bucket to this machine once, for all who ask; ``mm_core.open`` and ``url``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import mm_core
from mm_core import ConflictError, ModelManager, NotFoundError, OfflineError, Stop, TransientError
from mm_core.cli import main
from mm_core.local_copies import LocalCopies
from mm_core.testing.material import noise

pytestmark = pytest.mark.integration

FILES = {"config.json": b'{"a": 1}', "deep/w.bin": noise(3_000_000), ".hidden": b"h", "e": b""}
ONE = "org/m@1"
GET = """
import sys, mm_core
for _ in range(int(sys.argv[3])):
    print(mm_core.get(sys.argv[1], backend=sys.argv[2]))
"""


def push(backend, folder: Path, files, version, *aliases):
    folder.mkdir()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    with ModelManager(backend=backend) as manager:
        return manager.push(folder, "org/m", version=version, aliases=aliases).entry


@pytest.fixture
def bucket(s3_root, tmp_path):
    """Two versions; the second has one file of the first, and one of its own."""
    push(s3_root, tmp_path / "one", FILES, "1", "prod")
    push(s3_root, tmp_path / "two", {**FILES, "config.json": b"{}"}, "2", "next")
    return s3_root


@pytest.fixture
def asked(s3_server):
    """The requests since they were counted last."""

    def since() -> list[tuple[str, str]]:
        made = list(s3_server.requests)
        s3_server.requests.clear()
        return made

    return since


def holds(folder: Path, files) -> bool:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return found == dict(files)


def test_a_version_that_is_here_needs_no_request(bucket, asked):
    """Nor does it need its files to be read again; an alias costs the look into the registry."""
    first = mm_core.get("org/m:prod", backend=bucket)
    assert holds(first, FILES)
    asked()
    os.chmod(first / "deep/w.bin", 0o200)  # who would read it again, fails (but for root)
    assert mm_core.get(ONE, backend=bucket) == first
    assert asked() == []
    assert mm_core.get("org/m:prod", backend=bucket) == first
    requests = asked()
    assert requests
    assert not [path for _, path in requests if "/models/" in path or "/manifests/" in path]


def test_equal_files_are_here_once(bucket, asked):
    """As hard links; the second version costs its own file alone."""
    one = mm_core.get(ONE, backend=bucket)
    asked()
    two = mm_core.get("org/m:next", backend=bucket)
    assert holds(two, {**FILES, "config.json": b"{}"})
    assert [Path(path).name for _, path in asked() if "/models/" in path] == ["config.json"]
    assert (one / "deep/w.bin").samefile(two / "deep/w.bin")
    assert not (one / "config.json").samefile(two / "config.json")


def test_many_processes_bring_it_once(bucket, asked):
    """All get the same folder, whole, and each file was read from the bucket once."""
    asked()
    command = [sys.executable, "-c", GET, ONE, bucket, "3"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    with ThreadPoolExecutor(4) as threads:
        here = list(threads.map(lambda _: mm_core.get(ONE, backend=bucket), range(4)))
    there = [line for one in running for line in one.communicate()[0].splitlines()]
    assert [one.returncode for one in running] == [0] * 5
    assert {str(path) for path in here} | set(there) == {str(here[0])}
    assert len(there) == 15
    assert holds(here[0], FILES)
    read = sorted(path.partition("/1/")[2] for verb, path in asked() if "/models/" in path)
    assert read == sorted(FILES)


def test_one_that_was_killed_is_gone_on_with(bucket, asked, monkeypatch):
    """Its lock is free at once, and what it had finished is not read again."""
    monkeypatch.setenv("MM_DEFAULTS__LIMIT_RATE", "500KB")
    running = subprocess.Popen([sys.executable, "-c", GET, ONE, bucket, "1"])
    cache = Path(os.environ["XDG_CACHE_HOME"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(
        list(cache.rglob(name)) for name in ("config.json", ".hidden", "e")
    ):
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    with pytest.raises(OfflineError):
        mm_core.get(ONE, backend=bucket, offline=True)
    monkeypatch.delenv("MM_DEFAULTS__LIMIT_RATE")
    asked()
    assert holds(mm_core.get(ONE, backend=bucket), FILES)
    assert {Path(path).name for _, path in asked() if "/models/" in path} == {"w.bin"}


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_what_was_harmed_here_is_mended(bucket, how):
    """It is noticed by size, time or absence, hashed, and fetched again, for both its names."""
    one, two = (mm_core.get(f"org/m@{version}", backend=bucket) for version in "12")
    path = one / "deep/w.bin"
    if how == "changed":
        with path.open("r+b") as file:
            file.write(b"!")
    elif how == "cut":
        os.truncate(path, 1000)
    else:
        path.unlink()
    assert holds(mm_core.get(ONE, backend=bucket), FILES)
    assert mm_core.get("org/m@2", backend=bucket) == two
    assert holds(two, {**FILES, "config.json": b"{}"})
    assert (one / "deep/w.bin").samefile(two / "deep/w.bin") or how != "gone"


def test_a_foreign_file_here_is_told_of(bucket):
    """No loader may take it for one of the version's."""
    folder = mm_core.get(ONE, backend=bucket)
    (folder / "model.safetensors.index.json").write_bytes(b"{}")
    with pytest.raises(ConflictError, match=r"index\.json"):
        mm_core.get(ONE, backend=bucket)


def test_without_a_connection(bucket, s3_server, fault_proxy, monkeypatch, caplog, capfd):
    """A version that is here comes; an alias names what it named last, and that is said."""
    proxy = fault_proxy(s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
    monkeypatch.setenv("MM_DEFAULTS__RETRIES", "0")
    monkeypatch.setenv("MM_DEFAULTS__COMMIT_TIMEOUT", "1")
    folder = mm_core.get("org/m:prod", backend=bucket)
    proxy.inject("cut_before", times=100_000)
    before = proxy.count()
    assert mm_core.get(ONE, backend=bucket) == folder
    assert mm_core.get("org/m:prod", backend=bucket, offline=True) == folder
    assert main(["--offline", "get", "org/m:prod", "--backend", bucket]) == 0
    assert capfd.readouterr().out == f"{folder}\n"
    assert proxy.count() == before
    for reference in ("org/m:next", "org/m@2", "none"):
        with pytest.raises(OfflineError, match="not on this machine"):
            mm_core.get(reference, backend=bucket, offline=True)
    assert proxy.count() == before
    assert mm_core.get("org/m:prod", backend=bucket) == folder
    assert "1 when it was asked last" in caplog.text
    for reference in (ONE, "org/m:prod"):
        with pytest.raises(TransientError):
            mm_core.get(reference, backend=bucket, offline=False)
    with pytest.raises(TransientError):
        mm_core.get("org/m:next", backend=bucket)


def test_an_alias_is_followed(bucket):
    """Where the registry answers, it is what counts."""
    one = mm_core.get("org/m:prod", backend=bucket)
    with ModelManager(backend=bucket) as manager:
        manager.registry().set_alias("org/m", "prod", "2")
    two = mm_core.get("org/m:prod", backend=bucket)
    assert two != one
    assert mm_core.get("org/m:prod", backend=bucket, offline=True) == two
    assert mm_core.get(ONE, backend=bucket) == one


def test_two_stores_share_no_names(bucket, tmp_path, s3_server):
    """The same version in another bucket may hold other files."""
    s3_server.make_bucket("another-bucket")
    other = "s3://another-bucket/x"
    push(other, tmp_path / "other", {"config.json": b"other"}, "1", "prod")
    assert holds(mm_core.get(ONE, backend=bucket), FILES)
    assert holds(mm_core.get(ONE, backend=other), {"config.json": b"other"})
    with pytest.raises(NotFoundError):
        mm_core.get("org/m@2", backend=other)


def test_doctor_says_what_the_copies_take(bucket, capfd):
    """On the disk: what two versions share counts once."""
    mm_core.get(ONE, backend=bucket)
    mm_core.get("org/m@2", backend=bucket)
    main(["doctor", "--json"])
    (told,) = [one for one in json.loads(capfd.readouterr().out)["checks"]
               if one["check"] == "copies here"]  # fmt: skip
    assert "2.9 MiB" in told["detail"]
    assert os.environ["XDG_CACHE_HOME"] in told["detail"]


def test_a_registry_that_lies_leads_nowhere_else(bucket):
    """What it says of a manifest is no path on this machine: no file elsewhere is touched."""
    with ModelManager(backend=bucket) as manager:
        copies = LocalCopies(manager.registry())
        entry = manager.registry().resolve(ONE)
        cache = Path(os.environ["XDG_CACHE_HOME"]).resolve()
        victim = cache / "mine.txt"
        victim.write_text("mine")
        for lie in ("../../../../mine.txt", str(victim), "..", "", None):
            liar = replace(entry, manifest=lie)
            assert not copies.whole(liar)
            with copies.alone_with(liar, Stop()):
                pass
            assert (cache / "model-manager/models") in copies.folder(liar).resolve().parents
    assert victim.read_text() == "mine"


def test_damaged_records_are_as_none(bucket):
    """Whatever is in the cache, the right files come."""
    folder = mm_core.get("org/m:prod", backend=bucket)
    cache = Path(os.environ["XDG_CACHE_HOME"])
    for records in (".named", ".verified"):
        (record_folder,) = cache.rglob(records)
        for number, record in enumerate(sorted(record_folder.iterdir())):
            record.write_bytes((b"", b"[]", b'{"reference": 1}')[number % 3])
    for blob in (path for path in cache.rglob(".blobs/*/*") if path.is_file()):
        blob.unlink()
        blob.write_bytes(b"?" * 8)
    assert mm_core.get(ONE, backend=bucket) == folder
    assert holds(folder, FILES)
    assert holds(mm_core.get("org/m@2", backend=bucket), {**FILES, "config.json": b"{}"})


def test_open_and_url(bucket, tmp_path, monkeypatch):
    """A file is read where it stands; the backend comes from mm.yaml where none is named."""
    monkeypatch.chdir(tmp_path)
    settings = {"version": 1, "defaults": {"backend": "lake"}}
    settings["backends"] = {"lake": {"type": "s3", "root": bucket}}
    Path("mm.yaml").write_text(json.dumps(settings))
    with mm_core.open("org/m@prod/deep/w.bin") as file:
        file.seek(1_000_000)
        assert file.read(100) == FILES["deep/w.bin"][1_000_000:1_000_100]
    with mm_core.open("mm://org/m@next/config.json", "r", encoding="utf-8") as file:
        assert json.load(file) == {}
    assert mm_core.url("org/m:prod") == f"{bucket}/models/org/m/1"
    with pytest.raises(FileNotFoundError):
        mm_core.open("org/m@prod/none")
    with pytest.raises(PermissionError):
        mm_core.open("org/m@prod/config.json", "wb")
    assert "open" in dir(mm_core)
    assert "open" not in mm_core.__all__
