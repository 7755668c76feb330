"""Clients of the Hub upload into one's own storage: into the registry, each commit a version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import mm, serving

from mm_core import ModelManager
from mm_core.cli.tiny_model import tiny_model
from mm_core.testing.material import noise

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).with_name("hub_uploads.py")
CONFIG = "{uploads: true}"
CARD = b"---\nlicense: mit\npipeline_tag: text-generation\ntags: [tiny]\n---\n# A model\n"


def token_of(served, *flags) -> str:
    return mm(served.folder, "token", "create", "somebody", *flags)["token"]["text"]


def writer(served) -> str:
    return token_of(served, "--scope", "write")


def model_folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    files = {**tiny_model(), "weights.bin": noise(3_000_001), "README.md": CARD, "empty": b""}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def uploaded(python, served, token, folder, cache, **variables) -> dict:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "PYTEST"))
    }
    environment |= {
        "HF_ENDPOINT": served.url,
        "HF_HOME": str(cache),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        **variables,
    }
    run = subprocess.run(
        [str(python), str(SCRIPT), "team/mine", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def uploads_in(backend) -> list[str]:
    with ModelManager(backend=backend) as manager:
        return [stored.key for stored in manager.sink().list(".mm/uploads/")]


@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "inline"])
def test_a_client_uploads(tmp_path, backend, lfs):
    """Unmodified: folders, files, deletions, copies, branches, tags, and reads all of it back."""
    variables = {"HF_HUB_DISABLE_XET": "1"} if lfs else {}
    with serving(tmp_path / "hub", backend, config=CONFIG) as served:
        seen = uploaded(
            sys.executable, served, writer(served), model_folder(tmp_path), tmp_path / "c",
            **variables,
        )  # fmt: skip
    assert {name: ok for name, ok in seen.items() if ok not in (True, None)} == {
        "huggingface_hub": seen["huggingface_hub"]
    }
    with ModelManager(backend=backend) as manager:
        entry = manager.registry().resolve("team/mine:main")
        manifest = manager.registry().manifest(entry)
        assert (manifest.license, entry.model_type.value) == ("mit", "text-generation")
        assert manifest.facts["commit"]["by"] == "somebody"
        assert manager.verify().ok
    assert uploads_in(backend) == []
