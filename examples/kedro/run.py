"""A Kedro pipeline whose models come out of Model Manager, and go into it.

``pip install model-manager kedro``. Runs without a network: the backend is a folder. In a
project of yours, ``mm.yaml`` and the models are there already: begin with the catalog.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import yaml
from kedro.io import DataCatalog
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner

from mm_core import ModelManager

CATALOG = Path(__file__).resolve().with_name("catalog.yml")


def train(encoder: Path) -> Path:
    """A new model in a folder of its own, made with one that is fetched and verified."""
    size = json.loads((encoder / "config.json").read_text())["size"]
    folder = Path("trained")
    folder.mkdir()
    (folder / "classifier.json").write_text(json.dumps({"weights": [0.5] * size}))
    return folder


def evaluate(classifier: Path) -> str:
    weights = json.loads((classifier / "classifier.json").read_text())["weights"]
    return f"{len(weights)} weights"


def main() -> None:
    Path("mm.yaml").write_text("backends: {lake: {type: local, root: ./store}}\n")
    Path("tiny").mkdir()
    Path("tiny/config.json").write_text('{"size": 4}')
    with ModelManager() as manager:
        manager.push("tiny", "embed/tiny", aliases=["prod"])

    catalog = DataCatalog.from_config(yaml.safe_load(CATALOG.read_text()))
    steps = [
        node(train, inputs="encoder", outputs="classifier"),
        node(evaluate, inputs="classifier", outputs="report"),
    ]
    SequentialRunner().run(pipeline(steps), catalog)
    print("report:", catalog.load("report"))

    with ModelManager() as manager:
        print("candidate:", manager.show("team/classifier@candidate").entry.version)


if __name__ == "__main__":
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        main()
        os.chdir(before)
