"""Nobody gets out of a folder, out of memory, or at a secret: by names, by sizes, by errors."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mm_core import InvalidNameError, MMError, ModelManager, load_settings, redaction
from mm_core.cli import main
from mm_core.testing.material import noise
from mm_plugins.sources import huggingface

pytestmark = pytest.mark.integration

MIB = 1 << 20
PEAK = 700 * MIB
"""Bytes of address space beside what the interpreter maps: enough to work, and no more."""

EVIL_NAMES = [
    "../up", "a/../../up", "/etc/passwd", "a//b", "./a", "a/.", "..", "C:\\x", "C:/x", "..\\up", "a\\..\\up",
    "a\0b", "a\nb", "a\rb", "\x1b[2J", "a\x7fb", "\u202egnp.exe", "a\u2066b", "con", "aux.txt",
    "a/nul", "LPT1", "a./b", "a /b", "a.", "x" * 300, "\ud800", "",
]  # fmt: skip
ODD_NAMES = [
    "%2e%2e/up",
    "..%2fup",
    " a",
    ".mm/log/000000000001.json",
    ".mm/format.json",
    "d/" * 40 + "d",
]
"""Allowed, and kept as they are: below the version's own folder nothing means anything."""
CLASHES = [
    ("Model.bin", "model.bin"),
    ("caf\u00e9", "cafe\u0301"),
    ("a", "a/b"),
    ("ß", "SS"),
    ("x/y", "X/z"),
]


def mm(*words, env=None, limit=None):
    """mm as a process, in bounded memory where `limit` says so; its exit code and all that it said."""

    def bound():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "mm_core", *words],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        preexec_fn=bound if limit else None,
    )
    return done.returncode, done.stdout + done.stderr


# -- names -------------------------------------------------------------------------------


@pytest.fixture(params=["local", "memory", "s3", "gcs", "hfcache", "fsspec"])
def everywhere(request, tmp_path):
    """Each kind of backend."""
    plain = {
        "memory": f"memory://evil-{tmp_path.name}",
        "hfcache": f"hfcache://{tmp_path / 'hub'}",
    }
    if request.param in ("local", "s3", "gcs"):
        return request.getfixturevalue(request.param), {}
    if request.param == "fsspec":
        return "odd", {"odd": {"type": "fsspec", "root": f"file://{tmp_path / 'fs'}"}}
    return plain[request.param], {}


def test_evil_names_get_nowhere(hub, everywhere, monkeypatch, tmp_path):
    """From a hub that offers them, down the street: an error with the name, and nothing is stored."""
    backend, backends = everywhere
    told = huggingface._entry
    evil: list[str] = []
    monkeypatch.setattr(
        huggingface, "_entry", lambda repo, item: {**told(repo, item), "path": evil[0]}
    )
    hub.add_repo("org/evil", files={"weights.bin": noise(1000)})
    before = {path for path in tmp_path.rglob("*")}
    settings = load_settings(overrides={"backends": backends, "defaults": {"backend": backend}})
    with ModelManager(settings) as manager:
        for name in EVIL_NAMES:
            evil[:] = [name]
            with pytest.raises(InvalidNameError) as caught:
                manager.pull("hf://org/evil")
            assert "\x1b" not in str(caught.value)
        assert manager.list_models() == []
        assert [stored.key for stored in manager.sink().list("models/")] == []
    new = {path for path in tmp_path.rglob("*")} - before
    assert not [path for path in new if path.name in ("up", "passwd", "x")]


def test_odd_names_are_kept_as_they_are(hub, everywhere):
    """Nothing is decoded, and what looks like a part of the registry is none."""
    backend, backends = everywhere
    if backend == "odd":
        pytest.skip("a registry cannot live there: see the suite of fsspec's sink")
    files = {name: noise(50 + number) for number, name in enumerate(ODD_NAMES)}
    hub.add_repo("org/odd", files=files)
    settings = load_settings(overrides={"backends": backends, "defaults": {"backend": backend}})
    with ModelManager(settings) as manager:
        manager.pull("hf://org/odd")
        sink, manifest = manager.sink(), manager.show("org/odd").manifest
        assert {f.path: b"".join(map(bytes, sink.read(f.key))) for f in manifest.files} == files
        assert all(file.key.startswith("models/org/odd/") for file in manifest.files)
        assert len(manager.list_models()) == 1
        assert manager.verify().ok


@pytest.mark.parametrize("pair", CLASHES, ids=repr)
def test_names_that_would_be_one_file_are_refused_where_they_would(hub, local, pair):
    """A file that is also a folder, everywhere; by case where the disk takes them for one."""
    files = {name: noise(10 + number) for number, name in enumerate(pair)}
    if pair == ("a", "a/b"):
        with pytest.raises((InvalidNameError, MMError)):
            hub.add_repo("org/clash", files=files)
            with ModelManager(backend=local) as manager:
                manager.pull("hf://org/clash")
        return
    hub.add_repo("org/clash", files=files)
    with ModelManager(backend=local) as manager:
        pulled = manager.pull("hf://org/clash")
        folder = Path(manager.get("org/clash").path)
        assert {n: (folder / n).read_bytes() for n in files} == files
        assert pulled.entry.size_bytes == 21


# -- sizes -------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """A server that answers all requests by a function of its own."""
    servers = []

    def serve(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def say(handler, body, **headers):
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_with(tree):
    """A hub whose list of files is what `tree` answers."""

    def answer(handler):
        if "/tree/" in handler.path:
            tree(handler)
        else:
            info = {"id": "org/big", "sha": COMMIT, "siblings": [], "tags": [], "private": False}
            say(handler, json.dumps(info).encode(), Content_Type="application/json")

    return answer


def test_a_tree_of_a_million_files_ends(answering, tmp_path):
    """With an error that says so, in bounded memory, and before all of it was read."""
    pages = []

    def tree(handler):
        start = 1000 * len(pages)
        pages.append(start)
        items = [
            {"type": "file", "path": f"f/{n:07d}", "size": 1, "oid": "0" * 40}
            for n in range(start, start + 1000)
        ]
        following = f'<{endpoint}{handler.path.split("?")[0]}?recursive=true&cursor={len(pages)}>; rel="next"'
        say(handler, json.dumps(items).encode(), Content_Type="application/json", Link=following)

    endpoint = answering(hub_with(tree))
    code, said = mm(
        "pull",
        "hf://org/big",
        "--to",
        str(tmp_path / "store"),
        env={"HF_ENDPOINT": endpoint},
        limit=2 * PEAK,
    )
    assert code == 1, said
    assert "more than 250,000 files" in said
    assert "Traceback" not in said
    assert len(pages) < 300


@pytest.mark.parametrize("encoded", [True, False])
def test_a_list_that_explodes_ends(answering, tmp_path, encoded):
    """A gzip bomb is not unpacked, and a page of gigabytes is not read."""
    bomb = gzip.compress(b"[" + b" " * (200 * MIB), 1)

    def tree(handler):
        if encoded:
            return say(handler, bomb, Content_Encoding="gzip", Content_Type="application/json")
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            for _ in range(2000):
                handler.wfile.write(b" " * MIB)
        except OSError:
            pass
        handler.close_connection = True

    endpoint = answering(hub_with(tree))
    code, said = mm(
        "pull",
        "hf://org/big",
        "--to",
        str(tmp_path / "store"),
        env={"HF_ENDPOINT": endpoint},
        limit=2 * PEAK,
    )
    assert code in (1, 6), said
    assert "Error:" in said
    assert "Traceback" not in said
    assert "MemoryError" not in said


# -- secrets -----------------------------------------------------------------------------

CANARIES = {
    "HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "AWS_SECRET_ACCESS_KEY": "canary/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB",
    "VENDOR_KEY": "canary-CCCCCCCCCCCCCCCC",
    "KEY_PASSWORD": "canary-DDDDDDDDDDDDDDDD",
    "AZURE_STORAGE_ACCOUNT_KEY": "Y2FuYXJ5RUVFRUVFRUVFRUVFRUVFRUVFRQ==",
}
IN_URL = "canary-FFFFFFFFFFFFFFFF"
CONFIG = """
version: 1
backends:
  here: {type: local, root: ./store, fsync: false}
  dead: {type: s3, root: s3://bucket/x, options: {endpoint_url: "http://127.0.0.1:9", key: AKIACANARY, secret: "${AWS_SECRET_ACCESS_KEY}"}}
  blue: {type: azure, root: "az://c/x", options: {account_name: none, endpoint_url: "http://127.0.0.1:9/none", account_key: "${AZURE_STORAGE_ACCOUNT_KEY}"}}
sources:
  hf: {type: huggingface, token: "${HF_TOKEN}"}
  vendor: {type: url, base_url: "http://127.0.0.1:9/", allow_private: true, headers: {Authorization: "Bearer ${VENDOR_KEY}"}}
defaults: {backend: here, retries: 0, commit_timeout: 1}
"""
COMMANDS = [
    ["config", "show", "--origin"], ["config", "validate"], ["config", "schema"], ["backends", "list"],
    ["backends", "test", "here"],  ["plugins", "list"], ["plugins", "info", "s3"],
    ["plugins", "check", "local"], ["doctor"], ["list"],  ["list", "--backend", "blue"],
    ["pull", "hf://org/name", "--alias", "prod"], ["pull", "hf://org/none"], ["pull", "vendor:lid.bin", "--version", "1"],
    ["pull", "hf://org/name", "--to", "dead"],  ["pull", "hf://org/name", "-n"],
    ["pull", f"https://me:{IN_URL}@127.0.0.1:9/x.bin?token={IN_URL}", "--version", "1"],
    ["pull", f"http://127.0.0.1:9/x.bin?X-Amz-Signature={IN_URL}", "--version", "1"],
    ["policy", "check", "hf://org/name"], ["policy", "list"], ["scan", "org/name"], ["scan", "hf://org/name"],
    ["push", "./model", "own/model"], ["get", "org/name"], ["show", "org/name"], ["files", "org/name"], ["url", "org/name"],
    ["history", "org/name"], ["diff", "org/name", "own/model"], ["du"], ["search", "name"], ["alias", "list"],
    ["alias", "set", "org/name", "prod", "none"], ["rollback", "org/name", "prod"], ["verify"], ["verify", "--signature"],
    ["sign", "org/name", "--key", "key.pem", "--password-env", "KEY_PASSWORD"], ["sbom", "org/name"],
    ["adopt", "./model", "--as", "x/y"], ["gc", "-n"],
    ["registry", "check"], ["registry", "repair", "-n"], ["registry", "backup", "x.mmbackup", "--force"],
    ["registry", "restore", "x.mmbackup", "--to", "./other"], ["registry", "export"], ["registry", "accept"],
    ["registry", "migrate", "none.json"], ["completion", "bash"], ["rm", "own/model", "--yes"],
]  # fmt: skip


def test_no_secret_is_ever_told(hub, tmp_path, monkeypatch, capfd):
    """Every command, where it works and where it fails, at its most talkative; and all that is on the disk after."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr(redaction, "_remembered", redaction._Remembered())
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mm.yaml").write_text(CONFIG)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.txt").write_text("a")
    hub.add_repo(
        "org/name", files={"config.json": b"{}", "w.bin": noise(1000)}, token=CANARIES["HF_TOKEN"]
    )
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    codes = {}
    for words in COMMANDS:
        codes[" ".join(words)] = main([*words, "-vv"])
        text = "".join(capfd.readouterr())
        for canary in (*CANARIES.values(), IN_URL):
            assert canary not in text, words
            assert canary.partition("canary")[2] not in text or "canary" not in canary, words
    assert codes["pull hf://org/name --alias prod"] == 0
    assert len({code for code in codes.values()}) > 4
    for path in {path for path in tmp_path.rglob("*") if path.is_file()} - before:
        content = path.read_bytes()
        for canary in (*CANARIES.values(), IN_URL):
            assert canary.encode() not in content, path


# -- what runs what it reads -------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "import torch", "import dill", "import marshal", "import shelve",
     "import joblib", "import yaml\n\nyaml.load('a', yaml.Loader)", "import yaml\n\nyaml.unsafe_load('a')"],
)  # fmt: skip
def test_the_rule_against_what_runs_data_bites(line, tmp_path):
    """In a file of the packages; what they have now passes."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251,S301,S506"]
    found = subprocess.run(
        [*command, "--stdin-filename", "mm_core/evil.py", "-"],
        input=f"{line}\n",
        cwd=root,
        text=True,
        capture_output=True,
    )
    assert found.returncode == 1, found.stdout
    if line == "import pickle":
        assert (
            subprocess.run(
                [*command, "mm_core", "mm_plugins"], cwd=root, capture_output=True
            ).returncode
            == 0
        )
