"""`mm plugins new` writes a project of each kind that works, and the walk in the docs is one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import ROOT

from mm_core.authoring import KINDS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SUITES = {
    "source": {"SourceTests"},
    "sink": {"SinkTests", "RegistryTests"},
    "policy": {"PolicyTests"},
    "executor": {"ExecutorTests"},
    "command": {"CommandTests"},
}


@pytest.fixture(scope="module")
def projects(environment, tmp_path_factory):
    """One of each kind, written and installed by a Model Manager that came as a wheel."""
    folder = tmp_path_factory.mktemp("projects")
    for kind in KINDS:
        environment.run("mm", "plugins", "new", f"my-{kind}", "--kind", kind, cwd=folder)
    environment.install(*(str(folder / f"mm-my-{kind}") for kind in KINDS))
    return folder


def test_they_are_plugins_at_once(environment, projects):
    """Installed, each is there with what it offers, and nothing is broken."""
    found = environment.plugins()
    offers = {kind: found[f"my-{kind}"]["offers"] for kind in KINDS}
    assert offers == {
        "source": {"sources": ["my-source"]},
        "sink": {"sinks": ["my-sink"]},
        "policy": {"policies": ["my_policy"]},
        "executor": {"executors": ["my-executor"]},
        "command": {},
    }
    assert {found[f"my-{kind}"]["error"] for kind in KINDS} == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_passes_its_own_tests_and_the_check(environment, projects, kind):
    """The suite for its kind is among them, and nothing that it could be is left out unseen."""
    project = projects / f"mm-my-{kind}"
    told = json.loads(environment.run("mm", "plugins", "check", str(project), "--json"))
    states = {check["check"]: check["state"] for check in told["checks"]}
    assert set(states.values()) == {"ok"}
    assert set(states) == {"entry point", "import", "hooks", "types", "settings", "tests"}
    tests = (project / "tests" / f"test_mm_my_{kind}.py").read_text()
    assert all(suite in tests for suite in SUITES[kind])
    assert int(re.match(r"(\d+) passed", told["checks"][-1]["detail"])[1]) > 5


def test_what_is_written_is_clean(projects):
    """Formatted, linted and strictly typed, as the projects' own settings ask."""
    folders = [str(projects / f"mm-my-{kind}") for kind in KINDS]
    packages = [word for kind in KINDS for word in ("-p", f"mm_my_{kind}")]
    path = {"MYPYPATH": ":".join(f"{folder}/src" for folder in folders)}
    for command in (
        ["ruff", "format", "--check", *folders],
        ["ruff", "check", *folders],
        ["mypy", "--strict", "--cache-dir", str(projects / "cache"), *packages],
    ):
        run = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            cwd=projects,
            env=os.environ | path,
        )
        assert run.returncode == 0, run.stdout + run.stderr


NOT_WRITTEN = {"__pycache__", "build", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
"""Left by what was run in a project."""


def test_what_a_project_holds(projects):
    """A package with types, tests, a workflow; and no word of a template that was not replaced."""
    files = {
        str(path.relative_to(projects / "mm-my-sink")): path.read_text()
        for path in (projects / "mm-my-sink").rglob("*")
        if path.is_file() and not any(part in NOT_WRITTEN for part in path.parts)
    }
    assert set(files) >= {
        ".github/workflows/test.yml", ".gitignore", "README.md", "pyproject.toml",
        "src/mm_my_sink/__init__.py", "src/mm_my_sink/py.typed", "src/mm_my_sink/sink.py",
        "tests/test_mm_my_sink.py",
    }  # fmt: skip
    assert not any(re.search(r"@(\w+)@", text) for text in files.values())
    assert "license" in files["pyproject.toml"]


def test_the_walk_in_the_docs(environment, tmp_path):
    """From nothing to a model in a new sink, word for word as docs/write-a-sink.md has it."""
    page = (ROOT / "docs" / "write-a-sink.md").read_text()
    walk = re.search(r"<!-- walk -->\n```bash\n(.*?)```", page, re.DOTALL)[1]
    commands = walk.strip().splitlines()
    assert len(commands) < 10
    try:
        environment.shell(walk, cwd=tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.stdout}\n{error.stderr}")
    got = Path(tmp_path / "mm-cellar" / "first" / "mm_cellar" / "sink.py")
    assert got.read_text() == (tmp_path / "mm-cellar/src/mm_cellar/sink.py").read_text()
