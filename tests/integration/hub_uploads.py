"""What a client of the Hub uploads to HF_ENDPOINT, and reads back; prints what it saw, as JSON.

Run by the Python of whichever client is tried: ``python hub_uploads.py ID FOLDER``. It
imports nothing but the client.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

REPO, FOLDER = sys.argv[1], Path(sys.argv[2])
results = {}
api = HfApi()


def note(name, holds):
    results[name] = "not installed" if holds is None else "ok" if holds else "fails"


def version():
    """Of the client, and of transformers where it is there to be tried."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return huggingface_hub.__version__
    found = importlib.metadata.version("transformers")
    return f"{huggingface_hub.__version__}, transformers {found}"


def files(revision=None):
    """Every file of a revision, as it is downloaded."""
    folder = Path(huggingface_hub.snapshot_download(REPO, revision=revision))
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items())}


def refused(work):
    """The status that `work` fails with."""
    try:
        work()
    except HfHubHTTPError as error:
        return error.response.status_code
    return None


sent = {p.relative_to(FOLDER).as_posix(): p.read_bytes() for p in FOLDER.rglob("*") if p.is_file()}

api.create_repo(REPO)
note("create_repo", refused(lambda: api.create_repo(REPO)) == 409)
empty = api.repo_exists(REPO) and not api.file_exists(REPO, "config.json")
note("a_repo_without_a_commit", empty and api.list_repo_files(REPO) == [])
first = api.upload_folder(repo_id=REPO, folder_path=FOLDER, commit_message="the first")
note("create_repo_of_what_is_there", refused(lambda: api.create_repo(REPO)) == 409)
api.create_repo(REPO, exist_ok=True)
note("upload_folder", files() == sent)
note("commit_is_told", api.model_info(REPO).sha == first.oid)
again = api.upload_folder(repo_id=REPO, folder_path=FOLDER)
note("no_commit_of_nothing_new", again.oid == first.oid)

api.upload_file(path_or_fileobj=b"more\n", path_in_repo="notes/more.txt", repo_id=REPO)
note("upload_file", files() == {**sent, "notes/more.txt": b"more\n"})
note("former_commits_stay", files(first.oid) == sent)
api.create_commit(
    repo_id=REPO,
    commit_message="three at once",
    operations=[
        CommitOperationDelete("notes/", is_folder=True),
        CommitOperationCopy("weights.bin", "copy/weights.bin"),
        CommitOperationAdd("config.json", b'{"model_type": "bert", "new": 1}'),
    ],
)
changed = {**sent, "config.json": b'{"model_type": "bert", "new": 1}'}
note("create_commit", files() == {**changed, "copy/weights.bin": sent["weights.bin"]})
api.delete_file("copy/weights.bin", REPO)
note("delete_file", files() == changed)
missing = refused(lambda: api.delete_file("none", REPO))
note("delete_file_that_is_not_there", missing == 404)
late = refused(
    lambda: api.upload_file(
        path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, parent_commit=first.oid
    )
)
note("parent_commit", late == 412)

api.create_branch(REPO, branch="dev", revision=first.oid)
note("create_branch", files("dev") == sent)
api.upload_file(path_or_fileobj=b"dev", path_in_repo="dev.txt", repo_id=REPO, revision="dev")
note("upload_to_a_branch", (files("dev"), files()) == ({**sent, "dev.txt": b"dev"}, changed))
api.create_tag(REPO, tag="v1", revision=first.oid)
note("create_tag", files("v1") == sent)
api.delete_tag(REPO, tag="v1")
api.delete_branch(REPO, branch="dev")
note("refs", [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"])

hf = Path(sys.executable).with_name("hf")
run = subprocess.run(
    [hf, "upload", REPO, str(FOLDER / "config.json"), "config.json"],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ,
)
note("hf_upload", run.returncode == 0 and files() == sent)
if run.returncode:
    print(run.stdout, run.stderr, file=sys.stderr)

try:
    import torch  # noqa: F401
    from transformers import AutoModel

    AutoModel.from_pretrained(REPO).push_to_hub(f"{REPO}-pushed")
    note("push_to_hub", AutoModel.from_pretrained(f"{REPO}-pushed") is not None)
except ImportError:
    note("push_to_hub", None)

print(json.dumps({"version": version(), "results": results}))
