"""mm policy check and list: what is printed, for people and for programs, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_core.cli import main

pytestmark = pytest.mark.unit

CONFIG = """\
defaults: {backend: lake}
backends:
  lake: {type: local, root: ./lake}
  dr: {type: local, root: ./dr}
policies:
  default: {}
  small:
    limits:
      max_file_size: 10
      max_files: 2
  far: {backends: [dr], sources: {deny: ["file:*"]}}
"""


@pytest.fixture
def mm(capfd, tmp_path, monkeypatch):
    """Run mm in a folder with two backends and a model: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("mm.yaml").write_text(CONFIG)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_what_may_enter_is_said(mm):
    """Exit 0, and no folder was made."""
    code, out, _ = mm("policy", "check", "./model")
    assert (code, out.splitlines()[-1]) == (0, "it may enter")
    assert not Path("lake").exists()


def test_what_may_not_is_told_with_its_rule(mm):
    """Exit 7; every finding in a row, with the line of mm.yaml and what would allow it."""
    Path("model/model.bin").write_text("w" * 11)
    code, out, err = mm("policy", "check", "./model")
    (row,) = [line for line in out.splitlines() if line.startswith("refused")]
    assert code == 7
    for words in (
        "policies.small.limits.max_file_size",
        "mm.yaml:9",
        "model.bin",
        "raise max_file_size",
    ):
        assert words in row
    assert out.splitlines()[-1] == "it may not enter"
    assert "Error: model may not enter lake" in err


def test_as_a_document(mm):
    """The verdict and the error in one, with every finding as data."""
    Path("model/model.bin").write_text("w" * 11)
    code, out, err = mm("policy", "check", "./model", "--json")
    document = json.loads(out)
    assert (code, err) == (7, "")
    assert (document["schema_version"], document["ok"], document["backend"]) == (1, False, "lake")
    (found,) = document["findings"]
    assert found == document["error"]["findings"][0]
    assert (found["path"], found["where"], found["refused"]) == ("model.bin", "mm.yaml:9", True)
    assert document["error"]["code"] == "policy"


def test_each_backend_has_its_own_verdict(mm):
    """One refuses what the other lets in."""
    code, out, _ = mm("policy", "check", "./model", "--to", "lake", "--to", "dr", "--json")
    document = json.loads(out)
    assert code == 7
    assert [(r["backend"], r["ok"]) for r in document["results"]] == [("lake", True), ("dr", False)]
    assert document["error"]["message"] == "model may not enter dr"


def test_files_can_be_left_out(mm):
    """The patterns are those of a pull."""
    Path("model/model.bin").write_text("w" * 11)
    assert mm("policy", "check", "./model", "--exclude", "*.bin")[0] == 0


def test_the_rules_are_listed_for_a_backend(mm):
    """Each with its settings and its place."""
    code, out, _ = mm("policy", "list", "--json")
    assert code == 0
    assert [(r["set"], r["policy"], r["where"]) for r in json.loads(out)["policies"]] == [
        ("small", "limits", "mm.yaml:8")
    ]
    code, out, _ = mm("policy", "list", "--backend", "dr")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["SET", "POLICY"],
        ["small", "limits"],
        ["far", "sources"],
    ]


def test_where_nothing_holds_that_is_said(mm):
    """On stderr: there are no rows."""
    Path("mm.yaml").write_text(
        "policies: {default: {}}\nbackends: {lake: {type: local, root: ./lake}}\n"
    )
    code, out, err = mm("policy", "list")
    assert (code, out) == (0, "")
    assert "everything may enter" in err


def test_a_refused_push_ends_with_7(mm):
    """The same words, and a hint; the error of a program has the findings."""
    Path("model/model.bin").write_text("w" * 11)
    code, out, err = mm("push", "./model", "m", "--no-progress")
    assert code == 7
    assert "model.bin: it has 11 B, and 10 B is the most of one file" in err
    assert "policies.small.limits.max_file_size, mm.yaml:9" in err
    code, out, _ = mm("push", "./model", "m", "--json")
    assert [found["path"] for found in json.loads(out)["error"]["findings"]] == ["model.bin"]
    assert not Path("lake/models").exists()


def test_settings_of_policies_are_validated_with_their_lines(mm):
    """`mm config validate` knows what each policy takes."""
    Path("mm.yaml").write_text(
        "policies:\n  ours:\n    limits: {max_sise: 1}\n    licences: {allow: [mit]}\n    age: {max: soon}\n"
    )
    code, out, _ = mm("config", "validate", "--json")
    problems = "\n".join(json.loads(out)["problems"])
    assert code == 2
    assert (
        "mm.yaml:3: policies.ours.limits.max_sise is not a setting; did you mean 'max_size'?"
        in problems
    )
    assert (
        "mm.yaml:4: policies.ours.licences: no plugin offers policies of type 'licences'"
        in problems
    )
    assert "did you mean 'licenses'?" in problems
    assert "mm.yaml:5: policies.ours.age.max: a duration is" in problems
