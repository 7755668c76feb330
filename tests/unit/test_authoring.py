"""`mm plugins new` and `check`: what is refused, and what is found wrong."""

from __future__ import annotations

import json
import textwrap

import pytest

from mm_core import ConfigError, ConflictError, InvalidNameError, NotFoundError
from mm_core.authoring.check import examine, find
from mm_core.authoring.imports import strangers
from mm_core.authoring.new import named, write_project
from mm_core.cli import main

pytestmark = pytest.mark.unit

PROJECT = """
    [project]
    name = "mm-bad"
    [project.entry-points.model_manager]
    bad = "mm_bad"
"""
GOOD = """
    from pydantic import Field, SecretStr
    from mm_core import PluginConfig, Source, hookimpl

    class Greeting(Source):
        type = "greet"
        schemes = ("greet",)

        class Config(PluginConfig):
            token: SecretStr | None = Field(None, description="Who asks")

        def snapshot(self, request): ...
        def read(self, file, start=0, end=None): ...

    @hookimpl
    def mm_sources():
        return [Greeting]
"""


@pytest.fixture
def project(tmp_path):
    """Writes a project with that code, and tests if there are some."""

    def write(code: str, *, tests: str | None = None, toml: str = PROJECT):
        folder = tmp_path / "mm-bad"
        (folder / "src" / "mm_bad").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(textwrap.dedent(toml))
        (folder / "src" / "mm_bad" / "__init__.py").write_text(textwrap.dedent(code))
        if tests is not None:
            (folder / "test_bad.py").write_text(textwrap.dedent(tests))
        return folder

    return write


def checked(folder, *, tests: bool = False) -> dict[str, tuple[str, str]]:
    """State and detail of each check."""
    (plugin,) = find(str(folder))
    return {c.check: (c.state, c.detail) for c in examine(plugin, tests=tests)}


# -- new -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "My", "my_store", "-my", "my-", "my--store", "1st", "a b", "../x", "é", "x" * 41]
)
def test_a_name_that_could_not_stand_everywhere_is_refused(name):
    """In URLs, packages and mm.yaml."""
    with pytest.raises(InvalidNameError, match="no name for a plugin") as caught:
        named(name, "sink")
    assert "lower-case" in caught.value.hint


def test_a_name_means_the_same_with_its_prefix():
    """``mm-my-store`` and ``my-store`` are one."""
    assert named("mm-my-store", "sink") == named("my-store", "sink")
    assert named("my-store", "sink").package == "mm_my_store"


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    """So is a file; an empty folder is filled."""
    project = named("cellar", "sink")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(ConflictError, match="there already"):
            write_project(project, taken)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert "pyproject.toml" in write_project(project, tmp_path / "empty")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sink", "s3"), ("source", "url"), ("executor", "threads"), ("command", "pull")],
)
def test_a_word_that_is_taken_is_refused(capfd, tmp_path, monkeypatch, kind, name):
    """Two plugins of one type would both be unusable."""
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", name, "--kind", kind]) == 8
    assert f"there is a {kind} '{name}' already" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_new_says_what_it_wrote_and_what_is_next(capfd, tmp_path, monkeypatch):
    """For people the files and the next commands, for programs a document."""
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "cellar", "--kind", "policy", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["path"], told["name"], told["kind"]) == ("mm-cellar", "cellar", "policy")
    assert all((tmp_path / "mm-cellar" / file).is_file() for file in told["files"])
    assert main(["plugins", "new", "attic", "--kind", "policy", "-o", "here"]) == 0
    assert "next: cd here, pip install -e '.[test]', pytest" in capfd.readouterr().out


# -- check -----------------------------------------------------------------------------


def test_a_plugin_without_faults_has_none(project):
    """Tests are left out where they are not wanted, and that is said."""
    found = checked(project(GOOD))
    assert {state for state, _ in found.values()} == {"ok", "skipped"}
    assert found["types"] == ("ok", "sources: greet")
    assert found["settings"] == ("ok", "1 setting, described")
    assert found["tests"] == ("skipped", "left out by --no-tests")


@pytest.mark.parametrize(
    ("check", "code", "told"),
    [
        ("entry point", "import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("entry point", "import os; os._exit(3)", "it ended the interpreter (exit code 3)"),
        ("import", "import yaml\n" + textwrap.dedent(GOOD), "it imports yaml ("),
        ("hooks", GOOD.replace("def mm_sources", "def mm_source"), "did you mean mm_sources?"),
        ("hooks", "x = 1", "it has no hook"),
        ("types", GOOD.replace('"greet"\n', '"url"\n'), "url is also offered by url"),
        ("types", GOOD.replace('("greet",)', '("hf",)'), "hf:// is also offered by huggingface"),
        ("settings", GOOD.replace("SecretStr | None", "str | None"), "greet.token sounds secret"),
        ("settings", GOOD.replace('Field(None, description="Who asks")', "None"), "has no descr"),
    ],
)
def test_what_is_wrong_is_told(project, check, code, told):
    """Each fault by the check that is about it, and no other is blamed."""
    found = checked(project(code))
    state, detail = found[check]
    assert state == "failed"
    assert told in detail
    assert [name for name, (state, _) in found.items() if state == "failed"] == [check]


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        ("def test_it(): assert False", "test_bad.py::test_it failed"),
        ("def test_it(): pass", "no test is one of SourceTests"),
        ("x = 1", "no test is one of SourceTests"),
        ("def broken(:", "pytest did not get to run them"),
    ],
)
def test_tests_that_do_not_prove_it_are_found(project, tests, told):
    """A failure, and a suite that nobody subclassed."""
    state, detail = checked(project(GOOD, tests=tests), tests=True)["tests"]
    assert state == "failed"
    assert told in detail


def test_skipped_tests_are_told_with_their_reasons(project):
    """What a plugin does not declare is seen in the check, too."""
    tests = """
        import pytest
        from mm_core.testing import SourceTests

        class TestIt(SourceTests):
            @pytest.fixture
            def expected(self):
                return {"a": b"", "b": b""}

        @pytest.mark.skip("it is not written yet")
        def later(self):
            pass

        for name in dir(SourceTests):
            if name.startswith("test_") and name != "test_there_are_enough_files":
                setattr(TestIt, name, later)
    """
    state, detail = checked(project(GOOD, tests=tests), tests=True)["tests"]
    assert (state, detail) == ("ok", "1 passed; skipped: it is not written yet")


def test_an_installed_plugin_is_checked_by_its_name(capfd):
    """Its tests are not at hand; exit code 0 where nothing is wrong."""
    assert main(["plugins", "check", "local", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["ok"] is True
    assert [c["state"] for c in told["checks"]] == ["ok"] * 5 + ["skipped"]


def test_the_report_is_marked_and_exit_code_1_says_that_something_is_wrong(capfd, project):
    """A tick, a cross or a dash before each line, and what to do below a cross."""
    folder = project(GOOD.replace("SecretStr | None", "str | None"))
    assert main(["plugins", "check", str(folder), "--no-tests"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("\N{CHECK MARK} bad  entry point")
    assert lines[4].startswith("\N{BALLOT X} bad  settings")
    assert lines[5].startswith("  -> write Field(description=")
    assert lines[6].startswith("- bad  tests")


def test_what_is_no_plugin_is_told(project, tmp_path):
    """Neither a name that is not installed, nor a folder without a project, nor one without hooks."""
    with pytest.raises(NotFoundError, match="no plugin 'nobody'"):
        find("nobody")
    with pytest.raises(ConfigError, match=r"no pyproject\.toml"):
        find(str(tmp_path))
    with pytest.raises(ConfigError, match="names no plugin"):
        find(str(project("", toml='[project]\nname = "x"')))


def test_broken_toml_is_told(project):
    """With the file's name, and no traceback."""
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read"):
        find(str(project("", toml="[project")))


def test_what_others_import_is_not_the_plugins_fault():
    """Only what it imports itself, at any depth of its own modules, counts."""
    printed = """
import time:       100 |        100 |       yaml
import time:        10 |        110 |     mm_core.config
import time:        20 |         20 |         numpy
import time:        30 |         50 |       pandas
import time:         5 |         55 |     mm_bad.deep
import time:         7 |          7 |     json
import time:        40 |        212 |   mm_bad
import time:         1 |          1 | requests
"""
    assert strangers(printed, "mm_bad") == (212, {"pandas": 50})
    assert strangers(printed, "nothing") == (0, {})
