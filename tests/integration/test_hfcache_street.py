"""What was pulled into a cache of the Hub is found there offline, by the Hub's own clients."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from mm_core import ModelManager
from mm_core.cli.tiny_model import tiny_model

pytestmark = pytest.mark.integration

MODEL = "org/tiny"
LOOK = """
import json, os
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
found = {}
for revision in json.loads(os.environ["REVISIONS"]):
    bare = revision is not None and len(revision) == 40  # 1.x would ask for the list of files
    folder = snapshot_download("org/tiny", revision=revision, local_files_only=bare)
    file = hf_hub_download("org/tiny", "config.json", revision=revision)
    assert os.path.samefile(os.path.join(folder, "config.json"), file)
    found[str(revision)] = folder
repos = {repo.repo_id: repo.nb_files for repo in scan_cache_dir().repos}
print(json.dumps({"found": found, "repos": repos}))
"""
FETCH = """
from huggingface_hub import snapshot_download
print(snapshot_download("org/tiny", revision="next"))
"""


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def manager(cache):
    with ModelManager(backend=f"hfcache://{cache}") as made:
        yield made


def run(python, script, cache, **variables) -> str:
    """What a script prints, in a process that has the cache and no network."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(
        [str(python), "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_clients_find_what_was_pulled(hub, manager, cache):
    """Offline, by its branch, an alias and the commit."""
    commit = hub.add_repo(MODEL, files=tiny_model())
    manager.pull(f"hf://{MODEL}", aliases=["prod"])
    told = json.loads(
        run(sys.executable, LOOK, cache, REVISIONS=json.dumps([None, "main", "prod", commit]))
    )
    assert {Path(folder).name for folder in told["found"].values()} == {commit}
    assert told["repos"] == {MODEL: len(tiny_model())}
    assert manager.get(MODEL).path == cache / "models--org--tiny" / "snapshots" / commit
    assert manager.verify(deep=True).ok


def test_the_client_and_a_pull_share_a_cache(hub, manager, cache):
    """Nothing that is there under its hash is fetched twice, and a collection leaves the client's."""
    large = {**tiny_model(), "model.bin": bytes(6 << 20)}
    first = hub.add_repo(MODEL, files=large)
    manager.pull(f"hf://{MODEL}")
    second = hub.add_repo(MODEL, files={**large, "new.txt": b"new"}, revision="next")
    hub.requests.clear()
    run(sys.executable, FETCH, cache, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.endpoint)
    fetched = {
        entry.path.rpartition("/")[2]
        for entry in hub.requests
        if entry.method == "GET" and "/resolve/" in entry.path
    }
    assert "new.txt" in fetched
    assert "model.bin" not in fetched
    manager.remove(f"{MODEL}@{first}")
    plan = manager.plan_gc(grace=0)
    manager.gc(plan)
    theirs = cache / "models--org--tiny" / "snapshots" / second
    assert (theirs / "model.bin").read_bytes() == bytes(6 << 20)
    assert not (cache / "models--org--tiny" / "snapshots" / first).exists()


def test_a_moved_alias_is_another_snapshot_to_the_client(hub, manager, cache):
    """A roll-out and its roll-back reach the loaders that name the alias."""
    old = hub.add_repo(MODEL, files=tiny_model())
    manager.pull(f"hf://{MODEL}", aliases=["prod"])
    new = hub.add_repo(MODEL, files={**tiny_model(), "config.json": b'{"model_type": "bert"}'})
    manager.pull(f"hf://{MODEL}", aliases=["prod"])

    def prod() -> str:
        told = json.loads(run(sys.executable, LOOK, cache, REVISIONS='["prod"]'))
        return Path(told["found"]["prod"]).name

    assert prod() == new
    manager.registry().rollback(MODEL, "prod")
    assert prod() == old


@pytest.mark.slow
@pytest.mark.skipif("MM_LOADERS" not in os.environ, reason="installs clients: nox -s loaders")
@pytest.mark.parametrize(
    "client", ["huggingface_hub==1.31.*", "huggingface_hub==1.33.*", "huggingface_hub"]
)
def test_each_client_finds_what_was_pulled(hub, manager, cache, tmp_path, client):
    """The oldest that is supported, the one that most have, and the newest."""
    commit = hub.add_repo(MODEL, files=tiny_model())
    manager.pull(f"hf://{MODEL}", aliases=["prod"])
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", client], check=True)
    told = json.loads(run(python, LOOK, cache, REVISIONS=json.dumps([None, "prod", commit])))
    assert {Path(folder).name for folder in told["found"].values()} == {commit}


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="needs torch and transformers: nox -s loaders",
)
def test_transformers_loads_what_was_pulled(hub, manager, cache, tmp_path):
    """``AutoModel.from_pretrained("org/name")``, offline, with no other file than those."""
    make = """
import sys
from transformers import BertConfig, BertModel
config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
BertModel(config).save_pretrained(sys.argv[1])
"""
    folder = tmp_path / "made"
    subprocess.run([sys.executable, "-c", make, str(folder)], check=True, capture_output=True)
    hub.add_repo(MODEL, folder=folder)
    manager.pull(f"hf://{MODEL}", aliases=["prod"])
    load = """
from transformers import AutoModel
for revision in (None, "prod"):
    options = {} if revision is None else {"revision": revision}
    print(sum(p.numel() for p in AutoModel.from_pretrained("org/tiny", **options).parameters()))
"""
    first, second = run(sys.executable, load, cache).split()
    assert first == second
    assert int(first) > 1000
