"""The schedules in examples/sync: each runs a command that there is, in as many parts as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mm_core.cli import main

pytestmark = pytest.mark.unit

SYNC = Path(__file__).parents[2] / "examples" / "sync"


def test_each_schedule_runs_a_command_that_there_is(tmp_path, monkeypatch, capsys):
    """As `mm` itself reads it."""
    monkeypatch.chdir(tmp_path)
    lines = {
        "crontab": re.search(r"&& (mm .*?) >>", (SYNC / "crontab").read_text())[1],
        "systemd": re.search(r"ExecStart=(.*)", (SYNC / "mm-sync.service").read_text())[1],
        "kubernetes": yaml.safe_load((SYNC / "cronjob.yaml").read_text())["spec"]["jobTemplate"][
            "spec"
        ]["template"]["spec"]["containers"][0]["args"][0].replace(
            "$((JOB_COMPLETION_INDEX + 1))", "1"
        ),
    }
    for line in lines.values():
        program, *words = line.split()
        assert program == "mm"
        assert main(words) == 2
        assert "mm.yaml names no models" in capsys.readouterr().err


def test_the_parts_are_as_many_as_the_pods():
    """Each index of the job is a shard."""
    job = yaml.safe_load((SYNC / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]
    args = job["template"]["spec"]["containers"][0]["args"][0]
    assert args.endswith(f"/{job['completions']}")
    assert job["parallelism"] == job["completions"]
