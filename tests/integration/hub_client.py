"""What clients of the Hub do, each by its name; run with any version of them: prints how each went.

It imports nothing but the client, so that it runs in an environment that has only that.
The hub has ``org/tiny``, with an older version that the alias ``old`` names, and
``org/more-0`` to ``org/more-6``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import huggingface_hub as hf

MODEL = "org/tiny"
CHECKS = {}
api = hf.HfApi()


def check(function):
    CHECKS[function.__name__] = function
    return function


@check
def hf_download(tmp):
    command = Path(sys.executable).parent / "hf"
    run = subprocess.run(
        [command, "download", MODEL, "--local-dir", tmp],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads((Path(tmp) / "config.json").read_bytes())["model_type"] == "bert"


@check
def snapshot_download(tmp):
    folder = hf.snapshot_download(MODEL, cache_dir=tmp)
    assert Path(folder).name == api.model_info(MODEL).sha
    assert (Path(folder) / "deep" / "er" / "notes.txt").read_text() == "deep\n"
    assert hf.snapshot_download(MODEL, cache_dir=tmp, local_files_only=True) == folder


@check
def snapshot_download_of_an_alias(tmp):
    folder = hf.snapshot_download(MODEL, revision="old", cache_dir=tmp, allow_patterns=["*.json"])
    assert Path(folder).name == api.model_info(MODEL, revision="old").sha
    assert Path(folder).name != api.model_info(MODEL).sha


@check
def hf_hub_download(tmp):
    path = hf.hf_hub_download(MODEL, "big.bin", cache_dir=tmp)
    assert os.path.getsize(path) == 12_000_001
    again = hf.hf_hub_download(MODEL, "big.bin", cache_dir=tmp)
    assert again == path


@check
def model_info(tmp):
    info = api.model_info(MODEL, files_metadata=True)
    assert info.id == MODEL
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes["big.bin"] == 12_000_001
    assert all(file.lfs["sha256"] for file in info.siblings)
    assert info.pipeline_tag == "feature-extraction"
    assert info.card_data["license"] == "mit"
    assert "license:mit" in info.tags


@check
def list_models(tmp):
    ids = [model.id for model in api.list_models(author="org")]
    assert len(ids) == len(set(ids)) == 8
    assert [model.id for model in api.list_models(search="tiny")] == [MODEL]
    assert len(list(api.list_models(limit=3))) == 3
    assert MODEL in [m.id for m in api.list_models(filter="feature-extraction")]
    assert not list(api.list_models(search="no such thing"))


@check
def list_models_in_pages(tmp):
    from huggingface_hub.utils import build_hf_headers

    paginate = importlib.import_module("huggingface_hub.utils._pagination").paginate
    found = [
        item["id"]
        for item in paginate(
            f"{api.endpoint}/api/models", params={"limit": 2}, headers=build_hf_headers()
        )
    ]
    assert len(found) == len(set(found)) == 8


@check
def list_repo_tree(tmp):
    names = {entry.path for entry in api.list_repo_tree(MODEL)}
    assert "deep" in names
    assert "deep/er/notes.txt" not in names
    every = {entry.path: entry for entry in api.list_repo_tree(MODEL, recursive=True, expand=True)}
    assert every["deep/er/notes.txt"].size == 5
    assert every["big.bin"].lfs.size == 12_000_001
    inner = [entry.path for entry in api.list_repo_tree(MODEL, "deep/er")]
    assert inner == ["deep/er/notes.txt"]


@check
def list_repo_files(tmp):
    assert "config.json" in api.list_repo_files(MODEL)


@check
def get_paths_info(tmp):
    found = api.get_paths_info(MODEL, ["config.json", "deep", "none"])
    assert sorted(entry.path for entry in found) == ["config.json", "deep"]


@check
def file_exists(tmp):
    assert api.file_exists(MODEL, "config.json")
    assert not api.file_exists(MODEL, "none.json")
    assert not api.file_exists("org/none", "config.json")


@check
def revision_exists(tmp):
    sha = api.model_info(MODEL).sha
    assert all(api.revision_exists(MODEL, name) for name in ("main", "old", sha))
    assert not api.revision_exists(MODEL, "none")
    assert api.repo_exists(MODEL)
    assert not api.repo_exists("org/none")


@check
def errors_of_what_is_not_there(tmp):
    from huggingface_hub.utils import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for error, arguments in (
        (EntryNotFoundError, (MODEL, "none")),
        (RepositoryNotFoundError, ("org/none", "config.json")),
    ):
        try:
            hf.hf_hub_download(*arguments, cache_dir=tmp)
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")
    try:
        api.model_info(MODEL, revision="none")
    except RevisionNotFoundError:
        return
    raise AssertionError("no RevisionNotFoundError")


@check
def list_repo_refs(tmp):
    refs = api.list_repo_refs(MODEL)
    assert {"main", "old"} <= {ref.name for ref in refs.branches}
    assert len(refs.tags) == 2


@check
def list_repo_commits(tmp):
    commits = api.list_repo_commits(MODEL)
    assert commits[0].commit_id == api.model_info(MODEL).sha
    assert len(commits) == 2


@check
def get_hf_file_metadata(tmp):
    found = hf.get_hf_file_metadata(hf.hf_hub_url(MODEL, "big.bin"))
    assert found.size == 12_000_001
    assert found.commit_hash == api.model_info(MODEL).sha
    assert len(found.etag) == 64


@check
def get_safetensors_metadata(tmp):
    found = api.get_safetensors_metadata(MODEL)
    assert sum(found.parameter_count.values()) > 0


@check
def auth_check(tmp):
    api.auth_check(MODEL)


@check
def HfFileSystem(tmp):
    from huggingface_hub import HfFileSystem as FileSystem

    files = FileSystem(endpoint=api.endpoint)
    assert f"{MODEL}/deep" in files.ls(MODEL, detail=False)
    assert f"{MODEL}/deep/er/notes.txt" in files.glob(f"{MODEL}/**/*.txt")
    with files.open(f"{MODEL}/big.bin") as file:
        file.seek(11_999_999)
        assert len(file.read()) == 2
        file.seek(0)
        assert len(file.read(1000)) == 1000
    assert files.cat_file(f"{MODEL}@old/config.json")


@check
def transformers_AutoModel(tmp):
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return "not installed"
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(MODEL, cache_dir=tmp)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, cache_dir=tmp)
    assert model(**tokenizer("a b", return_tensors="pt")).last_hidden_state.shape[0] == 1
    return None


def version() -> str:
    """Of the client, and of transformers where it is there to be tried."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return hf.__version__
    return f"{hf.__version__}, transformers {importlib.metadata.version('transformers')}"


def main() -> None:
    results = {}
    for name, function in CHECKS.items():
        with tempfile.TemporaryDirectory() as tmp:
            try:
                results[name] = function(tmp) or "ok"
            except Exception:
                results[name] = traceback.format_exc()[-3000:]
    print(json.dumps({"version": version(), "results": results}))


if __name__ == "__main__":
    main()
