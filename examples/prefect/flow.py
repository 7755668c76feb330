"""A Prefect flow whose tasks bring a model and use it.

``pip install model-manager prefect``. Runs without a network: the source and the backend are
folders. In a flow of yours, `source` is hf://org/model, and the backend one of your mm.yaml.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from prefect import flow, task

import mm_core as mm


@task(retries=2, retry_delay_seconds=5)
def pull(source: str, model_id: str, backend: str) -> str:
    """Bring it; a retry goes on where the last one stopped. Handed on is the exact version."""
    with mm.ModelManager(backend=backend) as manager:
        entry = manager.pull(source, model_id=model_id, version="1", aliases=["prod"]).entry
    return f"{entry.model_id}@{entry.version}"


@task
def use(reference: str, backend: str) -> int:
    """On any worker: a verified folder, brought once for each machine."""
    folder = mm.get(reference, backend=backend)
    return json.loads((folder / "config.json").read_text())["size"]


@flow(log_prints=True)
def bring_and_use(source: str, backend: str) -> int:
    size = use(pull(source, "embed/tiny", backend), backend)
    print("size:", size)
    return size


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "tiny")
        model.mkdir()
        (model / "config.json").write_text('{"size": 4}')
        assert bring_and_use(str(model), str(Path(scratch, "store"))) == 4
        print("done")
