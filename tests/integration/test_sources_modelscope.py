"""ModelScope as a source, on a loopback server that its own client downloads from, too."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import venv

import pytest

from mm_core import (
    AuthError,
    IntegrityError,
    ModelManager,
    NotFoundError,
    Request,
    StorageError,
    TransientError,
    UsageError,
)
from mm_core.testing.modelscope import ModelScopeServer, Refusal
from mm_core.testing.sources import SourceTests
from mm_plugins.sinks import _patience
from mm_plugins.sources import modelscope
from mm_plugins.sources.modelscope import ModelScopeSource

pytestmark = pytest.mark.integration

FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "empty.txt": b"",
    "model.safetensors": random.Random(7).randbytes(3_000_000),
    "onnx/a b/gewicht-ü+1&2.onnx": random.Random(8).randbytes(1_100_000),
    "onnx/model.onnx": b"onnx",
}
TOKEN = "ms-0f1e2d3c-canary-token"


@pytest.fixture
def scope(monkeypatch):
    with ModelScopeServer() as server:
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.endpoint)
        monkeypatch.setattr(_patience.time, "sleep", lambda _: None)
        yield server


def snapshot(url, **options):
    return ModelScopeSource().snapshot(Request(url=url, **options))


def read(file, source=None) -> bytes:
    return b"".join(map(bytes, (source or ModelScopeSource()).read(file)))


class TestModelScope(SourceTests):
    @pytest.fixture
    def source(self, scope):
        made = ModelScopeSource()
        yield made
        made.close()

    @pytest.fixture
    def url(self, scope):
        scope.add_repo("org/m", FILES)
        return "ms://org/m"

    @pytest.fixture
    def expected(self):
        return FILES


def test_every_file_states_its_sha256_and_the_commit_is_fixed(scope):
    """What a branch names is asked for once; from then on it is that commit."""
    commit = scope.add_repo(
        "org/m", FILES, License="Apache License 2.0", Tasks=[{"Name": "fill-mask"}], Tags=["a", 1]
    )
    shot = snapshot("ms://org/m")
    scope.add_repo("org/m", {"config.json": b"changed"})
    assert (shot.revision, shot.source) == (commit, f"ms://org/m@{commit}")
    assert {f.path: f.sha256 for f in shot.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()
    }
    assert {file.path: read(file) for file in shot.files} == FILES
    assert shot.model_type.value == "fill-mask"
    assert shot.license == "Apache License 2.0"
    assert shot.facts == {"requested_revision": "master", "tags": ["a"]}


@pytest.mark.parametrize("revision", ["v1", "dev", "commit"])
def test_branches_tags_and_commits_are_revisions(scope, revision):
    """In the URL, or asked for beside it."""
    old = scope.add_repo("org/m", {"a": b"old"}, tags=("v1",), branch="dev")
    scope.add_repo("org/m", {"a": b"new"})
    named = old if revision == "commit" else revision
    assert snapshot(f"ms://org/m@{named}").revision == old
    assert snapshot("modelscope://org/m", revision=named).revision == old


def test_a_list_that_is_cut_off_is_read_by_folders(monkeypatch):
    """No file is missed where the hub lists a part only; where that does not help, it is an error."""
    monkeypatch.setattr(modelscope, "MAX_LISTED", 6)
    files = {f"{folder}/{name}": b"x" for folder in ("a", "b/c") for name in "123"}
    with ModelScopeServer(listed=6) as server:
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.endpoint)
        server.add_repo("org/m", files)
        assert {file.path for file in snapshot("ms://org/m").files} == set(files)
        server.add_repo("org/flat", {str(number): b"" for number in range(9)})
        with pytest.raises(StorageError, match="part only"):
            snapshot("ms://org/flat")


def test_a_private_model_needs_the_token(scope, monkeypatch):
    """Without it the model is not found, as with others' tokens; no error shows one."""
    scope.add_repo("org/m", FILES, token=TOKEN)
    with pytest.raises(NotFoundError, match="credentials"):
        snapshot("ms://org/m")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", f"{TOKEN}-wrong")
    with pytest.raises(AuthError) as caught:
        snapshot("ms://org/m")
    assert TOKEN not in str(caught.value)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    shot = snapshot("ms://org/m")
    assert read(shot.files[0]) == FILES[shot.files[0].path]


def test_the_token_goes_to_the_hub_alone(monkeypatch):
    """Where the hub sends its readers for the bytes, no credentials arrive."""
    with ModelScopeServer(elsewhere=True) as server:
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.endpoint)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        server.add_repo("org/m", FILES, token=TOKEN)
        assert {f.path: read(f) for f in snapshot("ms://org/m").files} == FILES
        tokens = {seen.origin: seen.token for seen in server.requests}
        assert tokens == {"hub": TOKEN, "other": None}


def test_damaged_bytes_are_never_kept(scope, local, monkeypatch):
    """What does not have the sha256 that the hub states is an error, and no version is made."""
    scope.add_repo("org/m", FILES)
    told = modelscope._described

    def lie(repo, commit, entry):
        return told(repo, commit, {**entry, "Sha256": "0" * 64})

    monkeypatch.setattr(modelscope, "_described", lie)
    with ModelManager(backend=local) as manager:
        with pytest.raises(IntegrityError):
            manager.pull("ms://org/m")
        assert [entry.status.value for entry in manager.list_models()] == ["FAILED"]


def test_a_model_walks_the_street(scope, local):
    """Pulled, verified; a cut on the way is gone on from."""
    commit = scope.add_repo("org/m", FILES)
    scope.refusals.append(Refusal("*/repo", 0, times=2))
    with ModelManager(backend=local) as manager:
        pulled = manager.pull("ms://org/m")
        assert (pulled.entry.version, pulled.entry.model_id) == (commit, "org/m")
        assert manager.verify(deep=True).ok


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, AuthError),
        (403, AuthError),
        (404, NotFoundError),
        (429, TransientError),
        (503, TransientError),
    ],
)
def test_each_refusal_is_one_of_our_errors(scope, status, expected):
    """Of the model, and of a file."""
    scope.add_repo("org/m", FILES)
    file = snapshot("ms://org/m").files[0]
    scope.refusals.append(Refusal("*", status, times=99))
    with pytest.raises(expected):
        snapshot("ms://org/m")
    with pytest.raises(expected):
        read(file)


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(scope):
    """As long as it says, within bounds."""
    scope.add_repo("org/m", FILES)
    scope.refusals.append(Refusal("*/repo/files", 429, headers={"Retry-After": "1"}))
    assert snapshot("ms://org/m").files


@pytest.mark.parametrize(
    "url", ["ms://org", "ms://", "ms://a/b/c", "ms://u:p@org/m", "ms://org:1/m"]
)
def test_addresses_that_name_no_model_are_refused(url):
    """With a word on how to write one."""
    with pytest.raises(UsageError) as caught:
        snapshot(url)
    assert "ms://owner/name" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.skipif("MM_LOADERS" not in os.environ, reason="installs its client: nox -s loaders")
def test_its_own_client_downloads_from_the_server(scope, tmp_path):
    """The server is faithful: the official client takes it for ModelScope."""
    scope.add_repo("org/m", FILES, tags=("v1",))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "modelscope"], check=True)
    script = """
import importlib, sys
import modelscope.hub.constants as constants
constants.MODELSCOPE_URL_SCHEME = "http://"
importlib.import_module("modelscope.hub.api")
module = importlib.import_module("modelscope.hub.snapshot_download")
for found in list(sys.modules.values()):
    if getattr(found, "MODELSCOPE_URL_SCHEME", None) == "https://":
        found.MODELSCOPE_URL_SCHEME = "http://"
print("folder:" + module.snapshot_download("org/m", revision="v1"))
"""
    environment = {
        **os.environ,
        "MODELSCOPE_DOMAIN": scope.endpoint.removeprefix("http://"),
        "MODELSCOPE_ENDPOINT": scope.endpoint,
        "MODELSCOPE_CACHE": str(tmp_path / "cache"),
        "MODELSCOPE_CREDENTIALS_PATH": str(tmp_path / "credentials"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [python, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:] + json.dumps([s.path for s in scope.requests])
    folder = done.stdout.rpartition("folder:")[2].strip()
    for path, data in FILES.items():
        with open(os.path.join(folder, path), "rb") as stream:
            assert stream.read() == data
