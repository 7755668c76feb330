"""list, search, du, show and their kin: what is asked, what is printed, and of when."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mm_core import ModelRegistry, ModelType
from mm_core.cli import main
from mm_core.testing.registry import fill, registered
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit

CONFIG = """
defaults: {backend: lake}
backends:
  lake: {type: local, root: ./lake}
  dr: {type: local, root: ./dr}
"""


@pytest.fixture
def mm(capfd, tmp_path, monkeypatch):
    """Run mm in a folder with two backends: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("mm.yaml").write_text(CONFIG)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def lake(tmp_path):
    """Five versions of four models: 3 GB, 2 GB, 10 bytes twice, and one that was pulled."""
    registry = ModelRegistry(LocalSink(LocalSink.Config(root=str(tmp_path / "lake"))))
    for model_id, version, size, more in [
        ("meta/llama", "1", 3 * 10**9, {"source": "hf://meta/llama"}),
        ("meta/llama", "2", 2 * 10**9, {"model_type": ModelType.TEXT_GENERATION}),
        ("org/tiny", "1", 10, {"metadata": {"license": "Apache-2.0"}}),
        ("org/old", "1", 10, {}),
    ]:
        registry.add_model(registered(model_id, version, size_bytes=size, **more))
    fill(registry, "org/pulled", "1")
    registry.set_alias("meta/llama", "prod", "1")
    registry.remove("org/old", "1")
    return registry


def ids(mm, *words):
    code, out, err = mm(*words, "--json")
    assert (code, err) == (0, "")
    return [f"{m['model_id']}@{m['version']}" for m in json.loads(out)["models"]]


def test_list_filters_sorts_and_ends(mm, lake):
    """--filter by commas and again, --sort, --limit, --all."""
    assert ids(mm, "list", "--filter", "size>1GB") == ["meta/llama@1", "meta/llama@2"]
    assert ids(mm, "list", "--filter", "size>1GB,alias=prod") == ["meta/llama@1"]
    assert ids(mm, "list", "--filter", "size>1GB", "--filter", "alias!=prod") == ["meta/llama@2"]
    assert ids(mm, "list", "--filter", "license=apache-2.0") == ["org/tiny@1"]
    assert ids(mm, "list", "--filter", "source~=hf://meta") == ["meta/llama@1"]
    assert ids(mm, "list", "--filter", "type=text-generation") == ["meta/llama@2"]
    assert ids(mm, "list", "--filter", "status=DELETED") == ["org/old@1"]
    assert ids(mm, "list", "--sort", "size:desc,model", "--limit", "3") == [
        "meta/llama@1", "meta/llama@2", "org/tiny@1",
    ]  # fmt: skip
    assert len(ids(mm, "list", "--all")) == 5


def test_a_bad_filter_ends_with_2_and_says_what_is_allowed(mm, lake):
    """One line, and a hint."""
    code, out, err = mm("list", "--filter", "sise>1GB")
    assert (code, out) == (2, "")
    assert "did you mean 'size'?" in err
    assert "Hint: fields are model" in err


@pytest.mark.parametrize("words", [("list",), ("search", "org"), ("du",), ("history",)])
def test_a_limit_may_be_any_number(mm, lake, words):
    """More than there can be is all."""

    def told(*more: str) -> tuple[int, str, str]:
        code, out, err = mm("--backend", "lake", *words, *more)
        return code, re.sub(r"\d+ s$", "age", out, flags=re.MULTILINE), err

    assert told("--limit", "9" * 30) == told()


def test_words_that_are_no_text_are_found_nowhere(mm, lake):
    """Bytes on the command line that are no characters are no fault of mm."""
    assert mm("search", "--backend", "lake", "\udcff")[0] == 0


def test_nothing_found_is_said_on_stderr(mm, lake):
    """An empty result is no error, and stdout stays empty for people."""
    assert mm("list", "--filter", "size>9TB") == (0, "", "nothing fits the filter\n")
    assert mm("search", "no-such-word") == (0, "", "nothing holds all of these words\n")
    assert mm("history", "no/such") == (0, "", "no commit is about 'no/such'\n")
    assert mm("alias", "list", "no/such") == (0, "", "no aliases of 'no/such'\n")
    assert json.loads(mm("history", "no/such", "--json")[1])["commits"] == []


def test_an_entry_that_was_only_registered_is_shown(mm, lake):
    """What the registry knows of it; that its files were never listed is null, and said."""
    code, out, err = mm("show", "org/tiny")
    assert (code, err) == (0, "")
    assert "Apache-2.0" in out
    assert "only registered" in out
    assert json.loads(mm("show", "org/tiny", "--json")[1])["model"]["files"] is None


@pytest.mark.parametrize(
    "words",
    [("registry", "check"), ("registry", "repair"), ("registry", "backup", "b"), ("verify",)],
)
def test_what_is_not_there_is_not_well(mm, lake, words):
    """A path with a typing error, or a registry that is gone as a whole, is not found."""
    code, out, err = mm("--backend", "./lakke", *words)
    assert (code, out) == (3, "")
    assert "there is no registry at" in err
    shutil.rmtree("lake/.mm")
    code, out, err = mm(*words)
    assert (code, out) == (3, "")
    assert "there is no registry at" in err


def test_a_check_says_that_commits_are_gone_which_were_seen(mm, tmp_path):
    """The log is whole and an older one: only this machine's memory can tell."""
    registry = ModelRegistry(LocalSink(LocalSink.Config(root=str(tmp_path / "dr"))))
    for version in ("1", "2"):
        registry.add_model(registered("org/tiny", version))
    look = ("--backend", "dr", "registry", "check", "--json")
    assert mm("list", "--backend", "dr")[0] == mm(*look)[0] == 0
    Path("dr/.mm/log/000000000002.json").unlink()
    code, out, _ = mm(*look)
    (found,) = json.loads(out)["findings"]
    assert (code, found["code"], found["remedy"]) == (6, "not_as_seen", "mm registry accept")
    assert mm("registry", "accept", "--backend", "dr")[0] == mm(*look)[0] == 0


def test_gc_says_what_becomes_of_surplus_versions(mm, lake):
    """They are removed, and none of their files yet."""
    Path("mm.yaml").write_text(CONFIG + "retention: {keep_last: 1}\n")
    fill(lake, "org/pulled", "2")
    dry = mm("gc", "--retention", "-n", "--backend", "lake")[1]
    assert dry.splitlines()[-1].startswith("1 surplus version: nothing was done")
    done = mm("gc", "--retention", "--backend", "lake")[1]
    assert done.splitlines()[-1].startswith(
        "1 surplus version: removed; the files wait for the grace"
    )


def test_the_line_of_an_error_holds_what_was_found(mm, lake):
    """JSON lines tell as much as one document, where something is wrong, too."""
    whole = json.loads(mm("verify", "--json")[1])
    code, out, _ = mm("verify", "--format", "jsonl")
    (line,) = map(json.loads, out.splitlines())
    assert (code, line.pop("kind"), line) == (6, "error", whole)
    assert [bad["path"] for bad in line["bad"]] == ["model.bin"]
    findings = json.loads(mm("registry", "check", "--json")[1])["findings"]
    *lines, last = map(json.loads, mm("registry", "check", "--format", "jsonl")[1].splitlines())
    assert [line["code"] for line in lines] == [found["code"] for found in findings]
    assert (last["kind"], last["ok"], "findings" in last) == ("error", False, False)


def test_search_finds_words_anywhere(mm, lake):
    """In ids, aliases, licences and sources; all words must stand there."""
    assert ids(mm, "search", "LLAMA", "prod") == ["meta/llama@1"]
    assert ids(mm, "search", "apache-2.0 tiny") == ["org/tiny@1"]
    assert ids(mm, "search", "org", "--filter", "size<11", "--sort", "size") == [
        "org/pulled@1", "org/tiny@1",
    ]  # fmt: skip
    assert ids(mm, "search", "org", "--all", "--limit", "1") == ["org/old@1"]


def test_du_sums_up_by_model(mm, lake):
    """The largest first, what was removed apart, and the sums of all."""
    code, out, _ = mm("du", "--json")
    document = json.loads(out)
    assert code == 0
    assert [m["model_id"] for m in document["models"]][:2] == ["meta/llama", "org/old"]
    assert document["models"][1] == {
        "model_id": "org/old", "versions": 0, "bytes": 0, "removed_versions": 1, "removed_bytes": 10,
    }  # fmt: skip
    assert (document["bytes"], document["removed_bytes"]) == (5 * 10**9 + 15, 10)
    code, out, _ = mm("du", "--filter", "model~=org")
    assert "meta" not in out
    assert out.splitlines()[-1].split()[:2] == ["total", "2"]


def test_du_sums_up_by_backend(mm, lake, tmp_path):
    """Of several names, or of all in mm.yaml."""
    for words in (("du", "lake", "dr"), ("du", "--backends")):
        code, out, _ = mm(*words, "--json")
        rows = {row["backend"]: row for row in json.loads(out)["backends"]}
        assert code == 0
        assert (rows["lake"]["models"], rows["lake"]["bytes"]) == (4, 5 * 10**9 + 15)
        assert (rows["dr"]["models"], rows["dr"]["bytes"]) == (0, 0)
    code, out, _ = mm("du", "lake", "dr")
    assert [line.split()[0] for line in out.splitlines()] == ["BACKEND", "lake", "dr", "total"]


def test_du_tells_of_a_backend_that_cannot_be_read(mm, lake, tmp_path):
    """Exit 10: the sums of the others are printed all the same."""
    (tmp_path / "dr" / ".mm").mkdir(parents=True)
    (tmp_path / "dr" / ".mm" / "format.json").write_text("something else")
    code, out, err = mm("du", "--backends")
    assert code == 10
    assert "lake" in out
    assert "dr:" in err


def test_du_of_all_takes_no_names(mm, lake):
    """--backends beside a name is a mistake."""
    assert mm("du", "lake", "--backends")[0] == 2


def test_as_of_answers_from_then(mm, lake):
    """By number; the document and a line on stderr say which commit it was."""
    code, out, err = mm("list", "--as-of", "2", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert [m["version"] for m in document["models"]] == ["1", "2"]
    assert document["as_of"]["commit"] == 2
    assert document["as_of"]["time"].endswith("Z")
    code, out, err = mm("search", "llama", "--as-of", "1")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "as of commit 1, noted 20" in err
    assert mm("list", "--as-of", "999")[0] == 3
    assert mm("list", "--as-of", "soon")[0] == 2


def test_show_as_of_tells_what_an_alias_named(mm, lake):
    """`prod` then, with its files; the version stays readable after it was removed."""
    fill(lake, "org/pulled", "2", aliases=("prod",))
    then = lake.state().seq
    fill(lake, "org/pulled", "3", aliases=("prod",))
    lake.remove("org/pulled", "2")
    code, out, _ = mm("show", "org/pulled:prod", "--as-of", str(then), "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["model"]["version"], document["as_of"]["commit"]) == ("2", then)
    assert [file["path"] for file in document["model"]["files"]] == ["model.bin"]


def test_offline_says_how_old_the_answer_is(mm, lake, tmp_path):
    """A folder that is not mounted: list, search, du, show, url and alias list from the cache."""
    assert mm("show", "org/pulled", "--json")[0] == 0
    assert mm("list")[0] == 0
    commit = lake.state().seq
    shutil.move(tmp_path / "lake", tmp_path / "elsewhere")
    for words in (
        ("list",),
        ("search", "llama"),
        ("du",),
        ("show", "org/pulled"),
        ("files", "org/pulled"),
        ("url", "org/pulled"),
        ("alias", "list"),
    ):
        code, out, err = mm(*words, "--offline", "--json")
        assert (code, err) == (0, ""), words
        document = json.loads(out)
        assert document["cache"]["commit"] == commit, words
        assert document["cache"]["age_seconds"] >= 0
        code, out, err = mm(*words, "--offline")
        assert code == 0
        assert "offline: as the registry was" in err
        assert mm(*words, "--offline", "-q")[2] == ""


def test_offline_a_version_that_was_never_shown_has_no_files(mm, lake, tmp_path):
    """What the registry itself says is there; the list of files is null."""
    assert mm("list")[0] == 0
    shutil.move(tmp_path / "lake", tmp_path / "elsewhere")
    code, out, _ = mm("show", "org/pulled", "--offline", "--json")
    model = json.loads(out)["model"]
    assert (code, model["files"], model["status"]) == (0, None, "AVAILABLE")
    code, out, _ = mm("show", "org/pulled", "--offline")
    assert (code, "not kept on this machine" in out) == (0, True)
    assert mm("files", "org/pulled", "--offline")[0] == 5


def test_offline_without_a_cache_is_an_error(mm, tmp_path, monkeypatch):
    """Exit 5, and what to do; a folder that is there is read."""
    code, _, err = mm("list", "--offline")
    assert code == 5
    assert "Hint: run `mm list` once without --offline" in err
    (tmp_path / "lake").mkdir()
    assert mm("list", "--offline")[0] == 0


def test_without_a_cache_nothing_is_kept(mm, lake, tmp_path, monkeypatch):
    """MM_CACHE=off: the same answers, and no file; MM_CACHE=FOLDER: there."""
    monkeypatch.setenv("MM_CACHE", "off")
    first = ids(mm, "list")
    monkeypatch.setenv("MM_CACHE", str(tmp_path / "kept"))
    assert ids(mm, "list") == first
    assert len(list((tmp_path / "kept").rglob("*.sqlite3"))) == 1
