"""examples/mlflow, run as a reader would; and a version in S3, by MLflow's own calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mm_core import ModelManager
from mm_core.testing.material import noise

pytestmark = [pytest.mark.integration, pytest.mark.slow]

artifacts = pytest.importorskip("mlflow.artifacts")
RUN = Path(__file__).parents[2] / "examples/mlflow/run.py"


def test_the_example_runs(tmp_path):
    """From any folder, and leaves nothing there."""
    run = subprocess.run(
        [sys.executable, str(RUN)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "tiny@prod/config.json 11",
        "tiny@prod/vocab.txt 4",
        "size: 4",
        "files: config.json vocab.txt",
    ]
    assert not list(tmp_path.iterdir())


def test_from_a_store(s3, tmp_path, monkeypatch):
    """A whole version is kept in the cache, so that a second time brings the same folder."""
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", s3)
    (tmp_path / "one/deep").mkdir(parents=True)
    (tmp_path / "one/deep/w.bin").write_bytes(noise(3_000_000))
    with ModelManager() as manager:
        manager.push(tmp_path / "one", "embed/minilm", aliases=["prod"])
    first = artifacts.download_artifacts("mm://embed/minilm@prod")
    assert Path(first, "deep/w.bin").read_bytes() == noise(3_000_000)
    assert artifacts.download_artifacts("mm://embed/minilm@prod") == first
    alone = artifacts.download_artifacts(
        "mm://embed/minilm@prod/deep/w.bin", dst_path=str(tmp_path / "out")
    )
    assert Path(alone).read_bytes() == noise(3_000_000)
