"""examples/kedro: a pipeline whose models come out of a backend and go into it, run as a reader would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

pytest.importorskip("kedro")
RUN = Path(__file__).parents[2] / "examples/kedro/run.py"


def test_the_example_runs(tmp_path):
    """Through Kedro's catalog and runner, from any folder."""
    run = subprocess.run(
        [sys.executable, str(RUN)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "DO_NOT_TRACK": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert "report: 4 weights" in run.stdout
    assert "candidate: " in run.stdout
    assert not list(tmp_path.iterdir())
