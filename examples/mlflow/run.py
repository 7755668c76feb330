"""Models of Model Manager by MLflow's own calls: list, download, read a file.

``pip install model-manager mlflow-skinny``. Runs without a network: the backend is a folder. In a
project of yours, ``mm.yaml`` and the models are there already: begin with `use`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import mlflow.artifacts

from mm_core import ModelManager


def use() -> None:
    for artifact in mlflow.artifacts.list_artifacts("mm://embed/tiny@prod"):
        print(artifact.path, artifact.file_size)
    config = mlflow.artifacts.load_dict("mm://embed/tiny@prod/config.json")
    print("size:", config["size"])
    folder = Path(mlflow.artifacts.download_artifacts("mm://embed/tiny@prod"))
    print("files:", *sorted(path.name for path in folder.iterdir()))


def main() -> None:
    Path("mm.yaml").write_text("backends: {lake: {type: local, root: ./store}}\n")
    Path("tiny").mkdir()
    Path("tiny/config.json").write_text('{"size": 4}')
    Path("tiny/vocab.txt").write_text("a\nb\n")
    with ModelManager() as manager:
        manager.push("tiny", "embed/tiny", aliases=["prod"])
    use()


if __name__ == "__main__":
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        main()
        os.chdir(before)
