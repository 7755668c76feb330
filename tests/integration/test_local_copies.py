"""`mm_core.get`: from a bucket to this machine once, for all who ask; ``mm_core.open`` and ``url``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import until

import mm_core
from mm_core import ModelManager, NotFoundError, OfflineError, Stop, StorageError, TransientError
from mm_core.cli import main
from mm_core.local_copies import LocalCopies
from mm_core.testing.material import noise
from mm_core.testing.s3 import MinistackServer

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
    small = ("config.json", ".hidden", "e")
    until(lambda: all(list(cache.rglob(name)) for name in small), 60)
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


def test_what_is_not_of_the_version_goes(bucket, asked, tmp_path):
    """The folder is ours: no loader meets another file, a link, or a folder in a file's place."""
    folder = mm_core.get(ONE, backend=bucket)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/w.bin").write_bytes(b"other")

    def harm_with_files():
        (folder / "model.safetensors.index.json").write_bytes(b"{}")
        (folder / "more/deep").mkdir(parents=True)
        (folder / "more/deep/x").write_bytes(b"x")

    def harm_with_links():
        (folder / "etc").symlink_to("/etc")
        shutil.rmtree(folder / "deep")
        (folder / "deep").symlink_to(tmp_path / "elsewhere")

    def harm_with_kinds():
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        (folder / "config.json/x").write_bytes(b"x")
        shutil.rmtree(folder / "deep")
        (folder / "deep").write_bytes(b"no folder")

    for harm in (harm_with_files, harm_with_links, harm_with_kinds):
        harm()
        with pytest.raises(OfflineError):
            mm_core.get(ONE, backend=bucket, offline=True)
        asked()
        assert mm_core.get(ONE, backend=bucket) == folder
        assert holds(folder, FILES)
        assert not (folder / "deep").is_symlink()
        assert not [path for _, path in asked() if "/models/" in path], "all of it was here"
        assert mm_core.get(ONE, backend=bucket, offline=True) == folder
    assert (tmp_path / "elsewhere/w.bin").read_bytes() == b"other"


def test_a_module_of_the_model_may_be_imported(s3_root, tmp_path):
    """Python's bytecode beside it makes the copy no other, for all that come after."""
    push(s3_root, tmp_path / "m", {"modeling_own.py": b"x = 1"}, "1", "prod")
    program = "import os, sys; sys.path.insert(0, os.environ['MM_MODEL']); import modeling_own"
    words = ["run", "org/m:prod", "--backend", s3_root, "--", sys.executable, "-c", program]
    environ = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-m", "mm_core", *words], env=environ, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
    folder = mm_core.get(ONE, backend=s3_root, offline=True)
    assert (folder / "__pycache__").is_dir()


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
        copies = LocalCopies(bucket, manager.registry())
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


DAMAGED = ("", "[]", "5", '{"reference": 1}', '{"a\\u0000b": 1}', '{"x": [1]}', "[" * 100_000)


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_records_are_as_none(bucket, content):
    """Whatever is in the cache, the right files come, and the record is mended."""
    folder = mm_core.get("org/m:prod", backend=bucket)
    cache = Path(os.environ["XDG_CACHE_HOME"])
    for records in (".named", ".verified"):
        (record_folder,) = cache.rglob(records)
        for record in record_folder.iterdir():
            record.write_text(content)
    for blob in (path for path in cache.rglob(".blobs/*/*") if path.is_file()):
        blob.unlink()
        blob.write_bytes(b"?" * 8)
    assert mm_core.get(ONE, backend=bucket) == folder
    assert holds(folder, FILES)
    assert mm_core.get(ONE, backend=bucket, offline=True) == folder
    assert holds(mm_core.get("org/m@2", backend=bucket), {**FILES, "config.json": b"{}"})


def test_a_cache_that_cannot_be_written_is_told(bucket, tmp_path, monkeypatch, capfd):
    """With what to do, by a get and by a run; no traceback."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MM_CACHE", str(tmp_path / "file/x"))
    with pytest.raises(StorageError, match="cannot be written") as told:
        mm_core.get(ONE, backend=bucket)
    assert "MM_CACHE" in told.value.hint
    push(str(tmp_path / "store"), tmp_path / "mine", {"config.json": b"{}"}, "1")
    assert main(["run", ONE, "--backend", str(tmp_path / "store"), "--", "true"]) == 1
    assert "MM_CACHE" in capfd.readouterr().err


def test_stores_that_differ_only_in_hidden_settings(tmp_path, monkeypatch):
    """One name of a bucket, two servers behind it: neither the files nor the registry are mixed."""
    with MinistackServer() as one, MinistackServer() as two:
        for name, value in one.environment.items():
            if name != "AWS_ENDPOINT_URL":
                monkeypatch.setenv(name, value)
        backends = {}
        for name, server in (("a", one), ("b", two)):
            server.make_bucket("models")
            hidden = {"client_kwargs": {"endpoint_url": server.endpoint_url}}
            backends[name] = {"type": "s3", "root": "s3://models/x", "options": hidden}
        (tmp_path / "mm.yaml").write_text(json.dumps({"version": 1, "backends": backends}))
        monkeypatch.chdir(tmp_path)
        for name in backends:
            push(name, tmp_path / name, {"config.json": f"from {name}".encode()}, "1", "prod")
        for reference in (ONE, "org/m:prod"):
            for offline in (None, False, True):
                for name in backends:
                    folder = mm_core.get(reference, backend=name, offline=offline)
                    assert holds(folder, {"config.json": f"from {name}".encode()})


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
