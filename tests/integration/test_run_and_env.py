"""``mm run`` and ``mm env``: the clients that people have find the models, by what is set."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mm_core import ModelManager, hookimpl
from mm_core.cli import main
from mm_core.plugins import Plugins

pytestmark = pytest.mark.integration

BY_HUB = """
import sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download

for revision in sys.argv[2:]:
    folder = Path(snapshot_download(sys.argv[1], revision=None if revision == "-" else revision))
    file = hf_hub_download(sys.argv[1], "config.json", revision=None if revision == "-" else revision)
    print(Path(file).read_text(), sorted(p.name for p in folder.iterdir()))
"""
BY_S3FS = """
import os, fsspec
with fsspec.open(os.environ["MM_MODEL"] + "/config.json") as file:
    print(file.read().decode())
"""


def push(backend, folder: Path, config: str, version: str, *aliases: str, model_id="org/m"):
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "w.bin").write_bytes(b"w" * 1000)
    with ModelManager(backend=backend) as manager:
        manager.push(folder, model_id, version=version, aliases=aliases)


@pytest.fixture
def two(backend, tmp_path):
    """Two versions of a model in each kind of backend."""
    push(backend, tmp_path / "one", "one", "1", "prod")
    push(backend, tmp_path / "two", "two", "b" * 40, "next")
    return backend


def mm(*words: str, **options):
    return subprocess.run(
        [sys.executable, "-m", "mm_core", *words], capture_output=True, text=True, **options
    )


def test_clients_of_the_hub_find_what_was_named(two):
    """Without a revision, by alias and by version, with no network; and nothing else."""
    files = "['config.json', 'w.bin']"
    program = (sys.executable, "-c", BY_HUB, "org/m")
    ran = mm("run", "org/m:prod", "--backend", two, "--", *program, "-", "prod", "1", "main")
    assert ran.stdout == f"one {files}\n" * 4, ran.stderr
    ran = mm(
        "run", "org/m:next", "org/m:prod", "--backend", two, "--", *program, "-", "b" * 40, "1"
    )
    assert ran.stdout == f"two {files}\ntwo {files}\none {files}\n", ran.stderr
    ran = mm("run", "org/m:prod", "--backend", two, "--", *program, "next")
    assert ran.returncode == 1
    assert "LocalEntryNotFoundError" in ran.stderr


def test_the_command_is_itself(two):
    """Its words are passed to the letter; its exit code and its death by a signal are its own."""
    echo = (sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)")
    words = ["--json", "--backend", "-q", "--", "a b", "*"]
    ran = mm("run", "org/m", "--backend", two, "--", *echo, *words)
    assert (ran.returncode, ran.stdout) == (7, f"{words}\n")
    killed = "import os; os.kill(os.getpid(), 9)"
    ran = mm("run", "org/m", "--backend", two, "--", sys.executable, "-c", killed)
    assert ran.returncode == -signal.SIGKILL


def test_signals_are_as_a_shell_leaves_them(two):
    """What Python ignores for itself ends the command, as it would without mm."""
    script = "yes | head -1; grep SigIgn /proc/self/status"
    plain = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    ran = mm("run", "-q", "org/m", "--backend", two, "--", "sh", "-c", script)
    assert (ran.stdout, ran.stderr) == (plain.stdout, plain.stderr)
    assert ran.stdout.startswith("y\nSigIgn:")


def test_an_id_that_would_be_another_on_the_hub_is_left_out(tmp_path):
    """`a--b` and `a/b` would be one folder there: nobody gets another model by its name."""
    store = str(tmp_path / "store")
    push(store, tmp_path / "one", "a--b", "1", model_id="a--b")
    push(store, tmp_path / "two", "a/b", "1", model_id="a/b")
    program = (sys.executable, "-c", BY_HUB, "a/b")
    ran = mm("run", "a--b", "a/b", "--backend", store, "--", *program, "-")
    assert ran.stdout.startswith("a/b "), ran.stderr
    assert "a--b is no name on the Hub" in ran.stderr


def test_env_is_what_run_sets(two, capfd):
    """For a shell, for an env file, and as JSON; where the models are is told as well."""
    assert main(["env", "org/m:next", "org/m@1", "--backend", two, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    variables, models = told["variables"], told["models"]
    assert list(models) == ["org/m:next", "org/m@1"]
    assert Path(models["org/m@1"], "config.json").read_text() == "one"
    assert variables["MM_MODEL"] == models["org/m:next"]
    assert json.loads(variables["MM_MODELS"]) == models
    show = [sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))"]
    ran = mm("run", "org/m:next", "org/m@1", "--backend", two, "--", *show)
    assert variables.items() <= json.loads(ran.stdout).items()
    assert main(["env", "org/m:next", "org/m@1", "--backend", two]) == 0
    printed = capfd.readouterr().out
    shell = subprocess.run(
        ["sh", "-c", f"{printed}exec {shlex.join(show)}"], capture_output=True, text=True
    )
    assert variables.items() <= json.loads(shell.stdout).items()
    assert main(["env", "org/m:next", "org/m@1", "--backend", two, "-q"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert dict(line.split("=", 1) for line in lines) == variables


def test_a_model_may_stay_in_its_bucket(s3_root, s3_server, tmp_path, monkeypatch, capfd):
    """The program reads the store by the settings of the backend; nothing is brought here, and no
    secret told."""
    push(s3_root, tmp_path / "one", "one", "1", "prod")
    options = {**s3_server.options, "anon": False}
    settings = {"version": 1, "backends": {"lake": {"type": "s3", "root": s3_root}}}
    settings["backends"]["lake"]["options"] = options
    Path(tmp_path / "mm.yaml").write_text(json.dumps(settings))
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    where = ("--stream", "org/m:prod", "--backend", "lake")
    ran = mm("run", *where, "--", sys.executable, "-c", BY_S3FS, cwd=tmp_path)
    assert ran.stdout == "one\n", ran.stderr
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("w.bin"))
    monkeypatch.chdir(tmp_path)
    assert main(["env", *where, "--json"]) == 0
    told = capfd.readouterr().out
    assert json.loads(told)["variables"] == {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
        "AWS_REGION": "us-east-1",
        "MM_MODEL": f"{s3_root}/models/org/m/1",
        "MM_MODELS": json.dumps({"org/m:prod": f"{s3_root}/models/org/m/1"}),
        "RUNAI_STREAMER_S3_ENDPOINT": s3_server.endpoint_url,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }


def test_no_password_is_told(s3_root, s3_server, tmp_path, monkeypatch, capfd):
    """Not even one that stands in the address of a server."""
    address = s3_server.endpoint_url.replace("http://", "http://user:hunter2@")
    for options in ({"endpoint_url": address}, {"client_kwargs": {"endpoint_url": address}}):
        lake = {"type": "s3", "root": s3_root, "options": options}
        (tmp_path / "mm.yaml").write_text(json.dumps({"version": 1, "backends": {"lake": lake}}))
        monkeypatch.chdir(tmp_path)
        for form in ("--json", "-q", "--format=human"):
            assert main(["env", "--stream", "--backend", "lake", form]) == 0
            out, err = capfd.readouterr()
            assert s3_server.endpoint_url in out
            assert "hunter2" not in out + err


def test_a_hub_may_be_asked(capfd):
    """Then nobody is asked here, and no backend is needed."""
    assert main(["env", "--hub", "http://127.0.0.1:8080/", "-q"]) == 0
    assert capfd.readouterr().out == "HF_ENDPOINT=http://127.0.0.1:8080\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "org/m"], "after --"),
        (["run", "org/m", "--"], "after --"),
        (["run", "--", "true"], "no model is named"),
        (["env"], "no model is named"),
        (["env", "x", "--hub", "http://h", "--stream"], "not both"),
        (["run", "org/m:prod", "--", "no-such-command-here"], "no-such-command-here"),
        (["run", "org/m:prod", "--json", "--", "true"], "no JSON"),
    ],
)
def test_what_cannot_be_run(words, told, tmp_path, capfd):
    """Is told, with exit code 2, and nothing runs."""
    push(str(tmp_path / "store"), tmp_path / "one", "one", "1", "prod")
    assert main([*words[: words.index("--")], "--backend", str(tmp_path / "store"),
                 *words[words.index("--") :]] if "--" in words
                else [*words, "--backend", str(tmp_path / "store")]) == 2  # fmt: skip
    out, err = capfd.readouterr()
    assert told in (err or out)


def test_a_model_that_is_not_there_runs_nothing(tmp_path, capfd):
    """With the exit code of what was not found."""
    push(str(tmp_path / "store"), tmp_path / "one", "one", "1")
    flag = tmp_path / "ran"
    told = ["run", "org/none", "--backend", str(tmp_path / "store"), "--", "touch", str(flag)]
    assert main(told) == 3
    assert not flag.exists()


def test_a_plugin_may_say_more(tmp_path):
    """But MM_MODEL is always where the model is."""

    class Mine:
        @hookimpl
        def mm_environment(self, context):
            names = [got.entry.model_id for got in context.models]
            return {"MINE": " ".join(names), "MM_MODEL": "not for a plugin to say"}

    push(str(tmp_path / "store"), tmp_path / "one", "one", "1")
    plugins = Plugins.discover(extra=[Mine()])
    with ModelManager(backend=str(tmp_path / "store"), plugins=plugins) as manager:
        variables = manager.environment(["org/m"]).variables
        assert variables["MM_MODEL"] == str(manager.get("org/m").path)
    assert (variables["MINE"], variables["HF_HUB_OFFLINE"]) == ("org/m", "1")
