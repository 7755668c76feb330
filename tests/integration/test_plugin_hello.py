"""A stranger's plugin, installed as a stranger would: `examples/plugin-hello`."""

import json
import subprocess
from pathlib import Path

import pytest
from fresh import HELLO

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_it_runs_what_was_installed_and_not_the_checkout(environment, tmp_path):
    """The proof would be worth nothing if it ran the sources beside it."""
    where = environment.run(
        "python", "-c", "import mm_core, mm_hello; print(mm_core.__file__)", cwd=tmp_path
    )
    assert str(environment.bin.parent) in where


def test_an_installed_plugin_is_listed_with_what_it_offers(environment):
    """Installing is all there is to it: no registration, no setting."""
    hello = environment.plugins()["hello"]
    assert (hello["distribution"], hello["version"], hello["error"]) == ("mm-hello", "1.0.0", None)
    assert hello["offers"] == {"sources": ["hello"], "sinks": ["hello"]}


def test_it_can_be_left_out(environment):
    """MM_DISABLE_PLUGINS leaves it out, and the others stay."""
    left = environment.plugins(MM_DISABLE_PLUGINS="hello")
    assert "hello" not in left
    assert left["local"]["error"] is None


def test_a_model_goes_down_the_whole_street(environment, tmp_path):
    """From the plugin's source into the plugin's sink, into the registry there, and out again."""
    (tmp_path / "mm.yaml").write_text(
        "backends:\n  box: {type: hello, root: 'hello://%s'}\n"
        "sources:\n  hello: {type: hello, greeting: Good day}\n" % (tmp_path / "box.sqlite")
    )

    def mm(*arguments: str) -> dict:
        return json.loads(environment.run("mm", *arguments, "--json", cwd=tmp_path))

    pulled = mm("pull", "hello://world", "--alias", "prod")
    assert pulled["entry"]["status"] == "AVAILABLE"
    again = mm("pull", "hello:world")
    assert (again["fetched_bytes"], again["entry"]["version"]) == (0, pulled["entry"]["version"])
    (listed,) = mm("list")["models"]
    assert (listed["model_id"], listed["aliases"]) == ("hello/world", ["prod"])
    assert mm("verify")["ok"] is True
    path = Path(mm("get", "hello/world:prod", "-o", "out")["path"])
    assert (tmp_path / path / "greeting.txt").read_text() == "Good day, world!\n"


def test_its_settings_are_checked_like_ours(environment, tmp_path):
    """A misspelt setting of the plugin is an error with its line; the schema knows the plugin."""
    (tmp_path / "mm.yaml").write_text("sources:\n  hello:\n    type: hello\n    greting: Hi\n")
    run = subprocess.run(
        [environment.bin / "mm", "config", "validate"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 2
    assert (
        "mm.yaml:4: sources.hello.greting is not a setting; did you mean 'greeting'?" in run.stderr
    )
    schema = environment.run("mm", "config", "schema", cwd=tmp_path)
    assert "What the model says before the name" in schema


def test_its_own_tests_pass(environment, tmp_path):
    """The suites that Model Manager ships for plugins run in a stranger's package."""
    ran = environment.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(HELLO), str(HELLO / "tests"), cwd=tmp_path,
    )  # fmt: skip
    assert " passed" in ran
    assert "failed" not in ran
