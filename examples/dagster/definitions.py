"""A model as an asset of Dagster, and one that is made of it.

``pip install model-manager dagster``. As a script it materializes both, without a network: the
source and the backend are folders. In a project of yours, `source` is hf://org/model, and the
backend one of your mm.yaml.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import dagster as dg

import mm_core as mm


class Models(dg.ConfigurableResource):
    """Where models come from, and where they go."""

    source: str
    backend: str

    def pull(self, model_id: str) -> mm.Pulled:
        with mm.ModelManager(backend=self.backend) as manager:
            return manager.pull(self.source, model_id=model_id, version="1", aliases=["prod"])


@dg.asset
def encoder(models: Models) -> dg.MaterializeResult:
    """The version is the asset's data version: what depends on it runs anew when that changes."""
    pulled = models.pull("embed/tiny")
    entry = pulled.entry
    return dg.MaterializeResult(
        value=f"{entry.model_id}@{entry.version}",
        metadata={"version": entry.version, "size": entry.size_bytes, "path": str(entry.path)},
        data_version=dg.DataVersion(entry.version),
    )


@dg.asset
def report(models: Models, encoder: str) -> int:
    folder = mm.get(encoder, backend=models.backend)
    return json.loads((folder / "config.json").read_text())["size"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "tiny")
        model.mkdir()
        (model / "config.json").write_text('{"size": 4}')
        resources = {"models": Models(source=str(model), backend=str(Path(scratch, "store")))}
        done = dg.materialize([encoder, report], resources=resources)
        assert done.success
        assert done.output_for_node("report") == 4
        print("done")
