"""The whole street as a user walks it: the command line, a hub, and each kind of backend."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_core import ModelManager
from mm_core.sink import read_bytes
from mm_core.testing.hub import Fault

pytestmark = pytest.mark.integration

TOKEN = "hf_" + "s3cretT0kenThatMustNotShow"
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "README.md": b"---\nlicense: mit\n---\n# Tiny\n",
    "weights/model.bin": bytes(range(256)) * 40_000,
    "empty.txt": b"",
}


def mm(*arguments: str, check: int | None = 0, **environment: str) -> subprocess.CompletedProcess:
    """Run ``mm`` in a process of its own; `check` is the exit code that must come."""
    done = subprocess.run(
        [sys.executable, "-m", "mm_core", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert TOKEN not in said
    if check is not None:
        assert done.returncode == check, said
    return done


def mm_json(*arguments: str, check: int = 0, **environment: str) -> dict:
    document = json.loads(mm(*arguments, "--json", check=check, **environment).stdout)
    assert document["schema_version"] == 1
    return document


def stored_files(backend: str, prefix: str = "models/") -> dict[str, bytes]:
    from mm_core import Plugins
    from mm_core.backends import open_sink
    from mm_core.config import load_settings

    sink = open_sink(load_settings(), Plugins.discover(), backend)
    return {o.key: read_bytes(sink, o.key) for o in sink.list(prefix)}


def test_pull_then_list_from_another_process(hub, backend):
    """The files stand under their real names with the right bytes; another process sees the entry."""
    commit = hub.add_repo("org/name", files=FILES, pipeline_tag="text-generation", license="mit")
    pulled = mm_json("pull", "hf://org/name", "--to", backend, "--alias", "prod")
    assert pulled["entry"]["version"] == commit
    assert pulled["fetched_bytes"] == sum(map(len, FILES.values()))

    prefix = f"models/org/name/{commit}/"
    assert stored_files(backend) == {prefix + path: data for path, data in FILES.items()}

    (entry,) = mm_json("list", "--backend", backend)["models"]
    assert entry["model_id"] == "org/name"
    assert entry["status"] == "AVAILABLE"
    assert entry["version"] == entry["metadata"]["revision"] == commit
    assert entry["size_bytes"] == sum(map(len, FILES.values()))
    assert entry["source"] == f"hf://org/name@{commit}"
    assert entry["model_type"] == "text-generation"
    assert entry["aliases"] == ["prod"]


def test_the_way_back(hub, backend, tmp_path):
    """get, by alias, gives equal bytes; verify finds nothing; a damaged file is found and named."""
    commit = hub.add_repo("org/name", files=FILES)
    mm("pull", "hf://org/name", "--to", backend, "--alias", "prod")
    got = mm_json("get", "org/name:prod", "--backend", backend, "-o", str(tmp_path / "out"))
    assert {path: (Path(got["path"]) / path).read_bytes() for path in FILES} == FILES
    assert mm_json("verify", "--backend", backend) == {
        "schema_version": 1,
        "ok": True,
        "checked": len(FILES),
        "bad": [],
        "mended": [],
    }

    from mm_core import Plugins
    from mm_core.backends import open_sink
    from mm_core.config import load_settings

    sink = open_sink(load_settings(), Plugins.discover(), backend)
    sink.put(f"models/org/name/{commit}/config.json", b'{"model_type": "evil"}')
    report = mm_json("verify", "org/name", "--backend", backend, check=6)
    assert [bad["path"] for bad in report["bad"]] == ["config.json"]


def test_a_second_pull_fetches_nothing(hub, backend):
    """What is there is returned at once; a new commit copies the files that are equal."""
    hub.add_repo("org/name", files=FILES)
    mm("pull", "hf://org/name", "--to", backend)
    hub.requests.clear()
    again = mm_json("pull", "hf://org/name", "--to", backend)
    assert (again["fetched_bytes"], again["present_bytes"]) == (
        0,
        sum(map(len, FILES.values())),
    )
    assert not [r for r in hub.requests if r.method == "GET" and "/resolve/" in r.path]

    newer = FILES | {"config.json": b'{"model_type": "tiny", "v": 2}'}
    hub.add_repo("org/name", files=newer)
    second = mm_json("pull", "hf://org/name", "--to", backend)
    assert second["copied_bytes"] == len(FILES["weights/model.bin"])
    assert len(mm_json("list", "--backend", backend)["models"]) == 2


def test_dry_run_writes_nothing(hub, local):
    """-n prints the plan; the backend is as empty as before."""
    hub.add_repo("org/name", files=FILES)
    plan = mm_json("pull", "hf://org/name", "--to", local, "-n")
    assert plan["plan"]["fetch_bytes"] == sum(map(len, FILES.values()))
    assert stored_files(local, "") == {}


def test_patterns_choose_files(hub, local):
    """--include and --exclude are globs over whole paths; the same version whole is another."""
    commit = hub.add_repo("org/name", files=FILES)
    arguments = ("pull", "hf://org/name", "--to", local, "--include", "*.json")
    mm(*arguments, "--include", "*.md", "--exclude", "README*")
    assert list(stored_files(local)) == [f"models/org/name/{commit}/config.json"]
    error = mm_json("pull", "hf://org/name", "--to", local, check=8)["error"]
    assert error["code"] == "conflict"
    assert "--version" in error["hint"]
    mm("pull", "hf://org/name", "--to", local, "--version", "whole")


def test_wrong_bytes_are_never_offered(hub, backend):
    """The right size and wrong bytes: exit 6, nothing to get or list; a healthy hub mends it."""
    hub.add_repo("org/name", files=FILES)
    hub.faults.append(Fault("*model.bin", kind="corrupt", times=99))
    error = mm_json("pull", "hf://org/name", "--to", backend, check=6)["error"]
    assert "weights/model.bin" in error["message"]
    assert mm_json("get", "org/name", "--backend", backend, check=3)["error"]["code"] == "not_found"
    listed = mm_json("list", "--backend", backend)["models"]
    assert [entry for entry in listed if entry["status"] == "AVAILABLE"] == []
    assert not [key for key in stored_files(backend) if key.endswith("model.bin")]

    hub.faults.clear()
    mm("pull", "hf://org/name", "--to", backend)
    assert mm_json("verify", "--backend", backend)["ok"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("*model.bin", kind="cut", times=2, after_bytes=1_000_000), "at byte"),
        (Fault("*model.bin", kind="503", times=2), "503"),
        (Fault("*model.bin", kind="429", times=1, retry_after=1), "429"),
    ],
    ids=["cut", "503", "429"],
)
def test_passing_faults_are_passed(hub, local, fault, words):
    """A cut in mid-file, a 503 and a 429: the pull succeeds, and says what it retried."""
    hub.add_repo("org/name", files=FILES)
    hub.faults.append(fault)
    done = mm("pull", "hf://org/name", "--to", local, "--no-progress")
    assert "weights/model.bin" in done.stderr
    assert "etrying" in done.stderr
    assert words in done.stderr
    assert mm_json("verify", "--backend", local)["ok"]


@pytest.mark.parametrize("path", ["../escape.txt", "C:\\x", "/etc/evil", "a/../../b"])
def test_evil_paths_are_refused(hub, local, path):
    """A repository that lists such a path: an error that names it, and nothing written."""
    hub.add_repo("org/name", files=FILES, raw_tree_paths=(path,))
    error = mm_json("pull", "hf://org/name", "--to", local, check=2)["error"]
    assert repr(path)[1:-1] in error["message"]
    assert stored_files(local, "") == {}


def test_gated_and_private(hub, local):
    """Gated without a token: exit 4 and how to get in. With the token: it comes, and stays secret."""
    hub.add_repo("org/gated", files=FILES, gated=True, token=TOKEN)
    error = mm_json("pull", "hf://org/gated", "--to", local, check=4)["error"]
    assert error["code"] == "gated"
    assert "org/gated" in error["hint"]
    assert "HF_TOKEN" in error["hint"]
    mm("pull", "hf://org/gated", "--to", local, "-v", HF_TOKEN=TOKEN)
    mm("show", "org/gated", "--backend", local)
    for path in Path(local).rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("pull", "hf://org/unknown", "--to", "{local}"), 3),
        (("pull", "hf://org/name@no-such-rev", "--to", "{local}"), 3),
        (("pull", "hf://org/name", "--to", "no-such-backend"), 2),
        (("pull", "gopher://x/y", "--to", "{local}"), 2),
        (("show", "org/name", "--backend", "{local}"), 3),
        (("get", "org/name:prod", "--backend", "{local}"), 3),
        (("list", "--backend", "no-such-backend"), 2),
        (("pull", "hf://org/name", "--to", "{local}", "--as", "../x"), 2),
        (("pull", "hf://org/name", "--to", "{local}", "--alias", "a/b"), 2),
        (("push", "/no/such/folder", "x", "--to", "{local}"), 2),
        (("no-such-command",), 2),
    ],
)
def test_mistakes_have_exit_codes_and_hints(hub, local, arguments, code):
    """A user's mistake ends with its exit code and one clear error, never a traceback."""
    hub.add_repo("org/name", files=FILES)
    document = mm_json(*(a.format(local=local) for a in arguments), check=code)
    assert document["error"]["message"]


def test_broken_yaml_names_the_line(tmp_path, monkeypatch):
    """A mistake in mm.yaml: exit 2, with file and line."""
    (tmp_path / "mm.yaml").write_text("version: 1\nbackends:\n  lake: {type: s3, roott: x}\n")
    monkeypatch.chdir(tmp_path)
    error = mm_json("list", "--backend", "lake", check=2)["error"]
    assert "mm.yaml:3" in error["message"]
    (tmp_path / "mm.yaml").write_text("version: 1\nbackends: {a: [\n")
    assert "mm.yaml:" in mm_json("list", check=2)["error"]["message"]


def test_offline_asks_nobody(hub, local):
    """HF_HUB_OFFLINE: exit 5 at once, and no request."""
    hub.add_repo("org/name", files=FILES)
    error = mm_json("pull", "hf://org/name", "--to", local, check=5, HF_HUB_OFFLINE="1")["error"]
    assert error["code"] == "offline"
    assert len(hub.requests) == 0


def test_push_twice_and_change(local, tmp_path):
    """A pushed folder is named by its content; a version never changes under its name."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"1234")
    first = mm_json("push", str(folder), "team/mine", "--to", local)
    again = mm_json("push", str(folder), "team/mine", "--to", local)
    assert first["entry"]["version"] == again["entry"]["version"]
    assert again["fetched_bytes"] == 0
    mm("push", str(folder), "team/mine", "--to", local, "--version", "1.0")
    (folder / "w.bin").write_bytes(b"5678")
    mm("push", str(folder), "team/mine", "--to", local, "--version", "1.0", check=8)
    mm("push", str(folder), "team/mine", "--to", local)
    assert len(mm_json("list", "--backend", local)["models"]) == 3


def test_removed_is_not_offered_and_can_come_back(hub, local):
    """rm takes a version out of use; pulling it again makes it AVAILABLE from the files there."""
    hub.add_repo("org/name", files=FILES)
    mm("pull", "hf://org/name", "--to", local, "--alias", "prod")
    mm("rm", "org/name", "--backend", local, "--yes")
    assert mm_json("list", "--backend", local)["models"] == []
    mm("get", "org/name:prod", "--backend", local, check=3)
    back = mm_json("pull", "hf://org/name", "--to", local)
    assert back["fetched_bytes"] == 0
    assert back["present_bytes"] == sum(map(len, FILES.values()))


def test_one_of_two_backends_fails(hub, local, tmp_path):
    """Two targets, one broken: exit 10, and the good one has the model."""
    hub.add_repo("org/name", files=FILES)
    file = tmp_path / "a-file"
    file.write_text("in the way")
    mm("pull", "hf://org/name", "--to", local, "--to", str(file / "x"), check=10)
    assert len(mm_json("list", "--backend", local)["models"]) == 1


@pytest.mark.parametrize("backend", ["local", "s3"], indirect=True)
def test_mending_takes_up_no_parts_of_others(hub, backend):
    """A version that is AVAILABLE gets verified bytes only: nobody has a claim on it."""
    content = os.urandom(1 << 20) * 20
    hub.add_repo("org/m", files={"w.safetensors": content})
    with ModelManager(backend=backend) as manager:
        manager.pull("hf://org/m")
        sink = manager.sink()
        (key,) = [found.key for found in sink.list("models/")]
        sink.delete([key])
        identity = f"sha256:{hashlib.sha256(content).hexdigest()}"
        upload = sink.begin_upload(key, size=len(content), identity=identity)
        upload.write_part(0, memoryview(bytes(upload.part_size)))
        upload.keep()
        mended = manager.pull("hf://org/m")
        assert (mended.fetched_bytes, mended.present_bytes) == (len(content), 0)
        assert manager.verify("org/m").ok
        assert [left.key for left in sink.unfinished("models/")] == [key]
