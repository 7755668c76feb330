"""mm as a process: streams, exit codes, signals, terminals, and the demo."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm_core.cli.tiny_model import tiny_model
from mm_core.testing.hub import Fault
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.integration

TOKEN = "hf_" + "q1w2e3r4t5" * 3
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "weights.bin": bytes(range(256)) * 12_000,
}


def start(*arguments: str, env: dict[str, str] | None = None, **streams) -> subprocess.Popen:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(
        [sys.executable, "-m", "mm_core", *arguments],
        stdin=subprocess.DEVNULL, text=True, env=os.environ | (env or {}), **streams,
    )  # fmt: skip


def mm(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    process = start(*arguments, env=env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    assert "Traceback" not in out + err
    assert TOKEN not in out + err
    return out, err


@pytest.fixture
def pulled(hub, local) -> str:
    """A backend with org/name in it, under the alias prod."""
    hub.add_repo("org/name", files=FILES, pipeline_tag="text-generation", license="mit")
    mm("pull", "hf://org/name", "--to", local, "--alias", "prod", "-q")
    return local


def test_stdout_is_data_and_stderr_is_all_else(hub, local):
    """Each format of one pull: what a script captures is the result and nothing else."""
    hub.add_repo("org/name", files=FILES)
    out, err = mm("pull", "hf://org/name", "--to", local)
    assert out.startswith("org/name@")
    assert "AVAILABLE" in out
    assert "stored weights.bin (2.9 MiB)" in err
    out, err = mm("pull", "hf://org/name", "--to", local, "--json")
    assert set(json.loads(out)) == {
        "schema_version",
        "entry",
        "fetched_bytes",
        "copied_bytes",
        "present_bytes",
    }
    assert err == ""
    out, err = mm("pull", "hf://org/name", "--to", local, "--format", "quiet")
    assert out.startswith("org/name@")
    assert len(out.splitlines()) == 1
    assert err == ""


def test_json_lines_of_a_pull(hub, local):
    """The events as they happen, and the result as the last line."""
    hub.add_repo("org/name", files=FILES)
    hub.faults.append(Fault("weights.bin", kind="cut", after_bytes=1_000_000))
    out, _ = mm("pull", "hf://org/name", "--to", local, "--format", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "planned"
    assert kinds[-2:] == ["committed", "result"]
    assert {line["path"] for line in lines if line["kind"] == "stored"} == set(FILES)
    (retry,) = [line for line in lines if line["kind"] == "retry"]
    assert (retry["path"], retry["done"]) == ("weights.bin", 1_000_000)
    assert lines[-1]["fetched_bytes"] == sum(map(len, FILES.values()))


def test_an_error_is_the_last_json_line(hub, local):
    """A pull that fails ends with a line of kind error."""
    out, err = mm("pull", "hf://org/unknown", "--to", local, "--format", "jsonl", code=3)
    last = json.loads(out.splitlines()[-1])
    assert (last["kind"], last["error"]["code"], err) == ("error", "not_found", "")


def test_a_retry_is_seen_in_every_format(hub, local):
    """A warning on stderr: a line for people, an object for programs."""
    hub.add_repo("org/name", files=FILES)
    hub.faults.append(Fault("weights.bin", kind="503"))
    _, err = mm("pull", "hf://org/name", "--to", local)
    assert "warning: Retrying weights.bin" in err
    hub.add_repo("org/other", files={"weights.bin": FILES["weights.bin"][::-1]})
    hub.faults.append(Fault("weights.bin", kind="503"))
    out, err = mm("pull", "hf://org/other", "--to", local, "--json")
    assert json.loads(out)["entry"]["model_id"] == "org/other"
    logged = [json.loads(line) for line in err.splitlines()]
    assert "Retrying weights.bin" in logged[0]["event"]


def test_several_backends(hub, tmp_path):
    """One after the other; one that fails is named, the others have it, and it is exit 10."""
    hub.add_repo("org/name", files=FILES)
    one, two, bad = str(tmp_path / "one"), str(tmp_path / "two"), "/dev/null/x"
    document = json.loads(mm("pull", "hf://org/name", "--to", one, "--to", two, "--json")[0])
    assert [result["backend"] for result in document["results"]] == [one, two]
    assert {result["entry"]["status"] for result in document["results"]} == {"AVAILABLE"}
    out, err = mm("pull", "hf://org/name", "--to", one, "--to", bad, "--json", code=10)
    document = json.loads(out)
    assert [result["backend"] for result in document["results"]] == [one]
    assert list(document["error"]["errors"]) == [bad]
    assert err == ""
    out, err = mm("pull", "hf://org/name", "--to", bad, "--to", two, code=10)
    assert "org/name@" in out
    assert f"  {bad}: " in err


def test_dry_run_shows_the_plan(hub, local):
    """Files with what would be done, totals, and no folder afterwards."""
    hub.add_repo("org/name", files=FILES)
    out, _ = mm("pull", "hf://org/name", "--to", local, "--dry-run")
    assert ["fetch", "2.9", "MiB", "weights.bin"] in [line.split() for line in out.splitlines()]
    assert "2.9 MiB to fetch, 0 B to copy, 0 B present; nothing was done" in out
    assert not Path(local).exists()


def test_dry_run_says_where_copies_come_from(hub, pulled):
    """Bytes that another model has: the table names the file, and the document its key."""
    hub.add_repo("org/other", files=FILES | {"config.json": b"{}"})
    words = ("pull", "hf://org/other", "--to", pulled, "-n")
    plan = json.loads(mm(*words, "--json")[0])["plan"]
    found = {file["path"]: (file["action"], file["copy_from"]) for file in plan["files"]}
    action, key = found["weights.bin"]
    assert (action, found["config.json"]) == ("copy", ("fetch", None))
    assert re.fullmatch("models/org/name/[0-9a-f]{40}/weights.bin", key)
    assert plan["copy_bytes"] == len(FILES["weights.bin"])
    out, _ = mm(*words)
    assert ["copy", "2.9", "MiB", "weights.bin", key] in [line.split() for line in out.splitlines()]
    assert "2 B to fetch, 2.9 MiB to copy, 0 B present" in out


def test_looking_at_a_model(pulled):
    """What each command prints: paths and URLs alone, tables with everything."""
    folder, _ = mm("get", "org/name:prod", "--backend", pulled)
    assert Path(folder.removesuffix("\n"), "weights.bin").read_bytes() == FILES["weights.bin"]
    assert mm("url", "org/name", "--backend", pulled)[0] == folder
    shown, _ = mm("show", "org/name:prod", "--backend", pulled)
    for words in ("text-generation", "mit", "weights.bin", "2.9 MiB", "prod", "from_pretrained"):
        assert words in shown
    model = json.loads(mm("show", "org/name", "--backend", pulled, "--json")[0])["model"]
    assert {file["path"]: file["size"] for file in model["files"]} == {
        p: len(d) for p, d in FILES.items()
    }
    files = mm("files", "org/name", "--backend", pulled, "--format", "jsonl")[0].splitlines()
    assert {json.loads(line)["sha256"] for line in files} == {
        file["sha256"] for file in model["files"]
    }
    assert "text-generation" in mm("list", "--backend", pulled)[0]
    commits = json.loads(mm("history", "org/name", "--backend", pulled, "--json")[0])["commits"]
    assert [operation["op"] for operation in commits[-1]["operations"]] == ["begin"]
    assert "began to pull org/name@" in mm("history", "--backend", pulled)[0]


def test_aliases(pulled):
    """Set by any reference, listed, used, and taken away."""
    mm("alias", "set", "org/name:prod", "stable", "--backend", pulled)
    rows = json.loads(mm("alias", "list", "--backend", pulled, "--json")[0])["aliases"]
    assert [row["alias"] for row in rows] == ["prod", "stable"]
    mm("url", "org/name:stable", "--backend", pulled)
    mm("alias", "rm", "org/name", "stable", "--backend", pulled)
    mm("url", "org/name:stable", "--backend", pulled, code=3)


def test_verify_names_the_bad_file(pulled):
    """Exit 6, the file on stdout, the error on stderr; sizes alone do not see it."""
    (path,) = Path(pulled).rglob("weights.bin")
    path.chmod(0o644)
    path.write_bytes(b"\xff" + FILES["weights.bin"][1:])
    out, err = mm("verify", "--backend", pulled, code=6)
    assert "weights.bin: its sha256 is" in out
    assert err.startswith("Error: 1 of 2 files")
    mm("verify", "--no-deep", "--backend", pulled)


def test_a_token_is_never_shown(hub, local):
    """Gated with the wrong token: exit 4 and a hint, also with -vv; the token stays secret."""
    hub.add_repo("org/gated", files=FILES, gated=True, token="hf_" + "x" * 30)
    for words in ([], ["--json"], ["-vv"]):
        mm("pull", "hf://org/gated", "--to", local, *words, code=4, env={"HF_TOKEN": TOKEN})


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_pull_and_it_goes_on_later(hub, local, sent, code):
    """Within two seconds: one line on how to go on, and the next pull needs no waiting."""
    hub.add_repo("org/name", files=FILES)
    hub.faults.append(Fault("weights.bin", kind="stall", after_bytes=2_000_000))
    process = start("pull", "hf://org/name", "--to", local)
    for line in process.stderr:
        if "stored config.json" in line:
            break
    process.send_signal(sent)
    sent_at = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent_at < 2
    assert process.returncode == code
    word = {130: "Interrupted", 143: "Terminated"}[code]
    last = f"{word}: 1 file is stored, 22 B of 2.9 MiB; run the same command again to go on"
    assert out == ""
    assert last in err.splitlines()
    assert "Hint" not in err
    (entry,) = json.loads(mm("list", "--backend", local, "--json")[0])["models"]
    assert entry["status"] == "FAILED"
    hub.faults.clear()
    mm("pull", "hf://org/name", "--to", local)


def test_kept_parts_are_told_of(hub, local):
    """By the line of an interrupted pull, and by the plan of the next one; the next pull keeps them."""
    weights = os.urandom(1 << 20) * 20
    hub.add_repo("org/name", files=FILES | {"large.bin": weights})
    words = ("pull", "hf://org/name", "--to", local, "--connections", "1")
    assert json.loads(mm(*words, "-n", "--json")[0])["plan"]["kept_bytes"] == 0
    hub.faults.append(Fault("large.bin", kind="stall", after_bytes=9 << 20, times=9))
    process = start(*words)
    sink = LocalSink(LocalSink.Config(root=local))
    waited = time.monotonic() + 30
    while sum(left.size or 0 for left in sink.unfinished("models/")) < 4 << 20:
        assert time.monotonic() < waited, "no part was stored"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert err.splitlines()[-1].startswith("Interrupted: ")
    assert "parts of 1 file are kept; run the same command again" in err.splitlines()[-1]
    hub.faults.clear()
    kept = sum(left.size or 0 for left in sink.unfinished("models/"))
    assert json.loads(mm(*words, "-n", "--json")[0])["plan"]["kept_bytes"] == kept > 0
    assert f"({kept >> 20}.0 MiB of it kept from an earlier attempt)" in mm(*words, "-n")[0]
    done = json.loads(mm(*words, "--json")[0])
    assert done["fetched_bytes"] <= 20 * (1 << 20) - kept + sum(map(len, FILES.values()))


SIGNALLED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))

from mm_core.cli import main
sys.meta_path.insert(0, Finder())
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["click", "mm_core.cli.app", "mm_core.cli.look", "pydantic"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_all_is_imported_is_one_line(tmp_path, module, sent, code):
    """At whichever import: no traceback, and the exit code of the signal."""
    words = "import sys; sys.argv[1:] = ['list', '--backend', './x']; "
    script = SIGNALLED.replace("sys.argv[1]", repr(module)).replace("sys.argv[2]", str(int(sent)))
    for options, stream in ((), 2), (("--json",), 1), (("--format", "jsonl"), 1):
        done = subprocess.run(
            [sys.executable, "-c", f"{words}sys.argv += {list(options)}; \n{script}"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        said = {130: "Interrupted.", 143: "Terminated."}[code]
        assert done.returncode == code, done.stderr
        if stream == 2:
            assert (done.stdout, done.stderr) == ("", f"{said}\n")
        else:
            assert json.loads(done.stdout)["error"]["message"] == said
            assert done.stderr == ""


def test_a_reader_that_goes_away_is_no_error(pulled):
    """`mm list | head -0`: no words, and the exit code of a broken pipe."""
    read, write = os.pipe()
    os.close(read)
    process = start("list", "--backend", pulled, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, "")


def on_a_terminal(*arguments: str, env: dict[str, str]) -> tuple[int, str]:
    """Run mm with a terminal as stderr: its exit code, and what the terminal got."""
    leader, follower = pty.openpty()
    process = start(*arguments, env=env, stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    os.close(leader)
    return process.wait(30), shown.decode()


def test_bars_on_a_terminal(hub, local):
    """A terminal sees bars, and what is logged stands above them; with --no-progress it does not."""
    hub.add_repo("org/name", files=FILES)
    hub.faults.append(Fault("weights.bin", kind="503"))
    env = {"CI": "", "TERM": "xterm-256color", "COLUMNS": "120"}
    code, shown = on_a_terminal("pull", "hf://org/name", "--to", local, env=env)
    assert code == 0
    assert "━" in shown
    assert "Retrying weights.bin" in shown
    hub.add_repo("org/other", files=FILES)
    code, shown = on_a_terminal("pull", "hf://org/other", "--to", local, "--no-progress", env=env)
    assert (code, shown) == (0, "")


def test_offline_asks_no_hub(hub, local):
    """--offline: exit 5, no request."""
    hub.add_repo("org/name", files=FILES)
    out, _ = mm("pull", "hf://org/name", "--to", local, "--offline", "--json", code=5)
    assert json.loads(out)["error"]["code"] == "offline"
    assert hub.requests == []


HOSTILE = {
    "HF_TOKEN": TOKEN,
    "HF_HUB_OFFLINE": "1",
    "MM_OFFLINE": "1",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "AWS_PROFILE": "no-such-profile",
    "MM_DEFAULTS__BACKEND": "elsewhere",
}


def test_the_demo_in_a_hostile_environment(tmp_path):
    """Proxies, offline switches, tokens and settings of the user do not reach into it."""
    folder = tmp_path / "demo"
    out, err = mm("demo", "--dir", str(folder), "--json", env=HOSTILE)
    document = json.loads(out)
    assert err == ""
    assert document["ok"]
    assert document["backends"] == ["local", "s3"]
    (entry,) = json.loads(mm("list", "--json", "--config", document["config"])[0])["models"]
    assert (entry["status"], entry["aliases"]) == ("AVAILABLE", ["prod"])
    verified = json.loads(mm("verify", "--json", "--config", document["config"])[0])
    assert verified["checked"] == len(tiny_model())
    shown = json.loads(mm("show", "demo/tiny-model", "--json", "--config", document["config"])[0])
    (header,) = [file["header"] for file in shown["model"]["files"] if "header" in file]
    assert header["parameters"] == 50_176  # those of a BertModel of its sizes
    mm("demo", "--dir", str(folder), code=8)


def test_the_demo_without_the_extras(tmp_path):
    """Without s3fs, moto and rich it tells its story all the same, and says what was left out."""
    absent = tmp_path / "site"
    absent.mkdir()
    (absent / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "gone = ('s3fs', 'moto', 'rich', 'gcsfs')\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in gone: raise ModuleNotFoundError(name)\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, p=None: None if n.split('.')[0] in gone else find(n, p)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    out, err = mm("demo", "--dir", str(tmp_path / "demo"), env={"PYTHONPATH": str(absent)})
    assert err == ""
    assert "every byte as on the hub" in out
    assert "Extras that are not installed: s3, gcs, cli" in out
    assert "The S3 part was left out" in out
    assert f"mm --config '{tmp_path / 'demo' / 'mm.yaml'}' list" in out
