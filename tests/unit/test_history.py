"""Looking back: who did what, what an alias named before, and how two versions differ."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core import (
    AlreadyExistsError,
    CommitUnknownError,
    ConflictError,
    IntegrityError,
    Manifest,
    ModelEntry,
    ModelRegistry,
    ModelType,
    NotFoundError,
    StoredFile,
    TransientError,
    UsageError,
)
from mm_core.cli import main
from mm_core.comparing import compare
from mm_core.registry import history
from mm_core.units import parse_moment
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


class CountingSink(MemorySink):
    """Counts the reads of commits."""

    def __init__(self, config):
        super().__init__(config)
        self.reads = 0

    def read(self, key, start=0, end=None):
        self.reads += key.startswith(".mm/log/")
        return super().read(key, start, end)


@pytest.fixture
def sink(tmp_path):
    return CountingSink(CountingSink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def registry(sink):
    made = ModelRegistry(sink, writer="tester")
    for version in "12345":
        made.add_model(entry(version))
    return made


@pytest.fixture
def mm(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def store(tmp_path):
    """A local backend with two versions of a model, and its path."""
    folder = str(tmp_path / "store")
    made = ModelRegistry(LocalSink(LocalSink.Config(root=folder)), writer="tester")
    for version, files in (("1", {"a": b"1", "b": b"22"}), ("2", {"a": b"333", "c": b"22"})):
        claim = made.begin("org/m", version, source="hf://org/m")
        made.add(claim, manifest("org/m", version, files), aliases=["prod"])
    return folder


def entry(version: str, model_id: str = "m") -> ModelEntry:
    return ModelEntry(model_id=model_id, version=version, path=f"/files/{version}")


def manifest(model_id: str, version: str, files: dict[str, bytes], **facts) -> Manifest:
    from mm_core.schemas import sha256_hex

    return Manifest(
        model_id=model_id,
        version=version,
        model_type=ModelType.OTHER,
        files=tuple(
            StoredFile(
                path=path,
                key=f"models/{model_id}/{version}/{path}",
                size=len(data),
                sha256=sha256_hex(data),
            )
            for path, data in files.items()
        ),
        **facts,
    )


def named(registry: ModelRegistry, alias: str = "prod") -> str | None:
    return registry.aliases("m").get("m", {}).get(alias)


def point(registry: ModelRegistry, *versions: str) -> None:
    for version in versions:
        registry.set_alias("m", "prod", version)


# -- history -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 8, 9, 30, 40])
def test_a_limited_history_is_the_end_of_the_whole(registry, limit):
    """The newest commits, oldest first, are the very records that the whole history ends with."""
    for number in range(30):
        registry.add_model(entry(str(number), "other"))
    assert registry.history(limit=limit) == registry.history()[-limit:]
    assert registry.history("m", limit=limit) == registry.history("m")[-limit:]


def test_a_limited_history_reads_no_further_than_it_must(registry, sink):
    """The newest commit of a long log costs a few reads, not one for each commit."""
    for number in range(60):
        registry.add_model(entry(str(number), "other"))
    sink.reads = 0
    assert len(registry.history(limit=1)) == 1
    assert sink.reads <= 1 + 8


def test_a_limited_history_finds_what_was_changed(registry, sink):
    """A commit that is not the one that its follower names is an error, never a record."""
    key = ".mm/log/000000000004.json"
    sink.put(key, b"".join(map(bytes, sink.read(key))).replace(b"tester", b"hacker"))
    assert len(registry.history(limit=1)) == 1
    with pytest.raises(IntegrityError, match="commit 4 .* was changed"):
        registry.history(limit=5)
    sink.delete([key])
    with pytest.raises(IntegrityError, match="commit 4 is missing"):
        registry.history(limit=5)


def test_history_since(registry):
    """A moment leaves out what writers noted as older, and keeps the rest."""
    now = datetime.now(timezone.utc)
    assert len(registry.history(since=now - timedelta(hours=1))) == 5
    assert registry.history(since=now + timedelta(hours=1)) == []
    assert registry.history(since=now + timedelta(hours=1), limit=3) == []


def test_a_commit_whose_time_cannot_be_read_is_shown(registry):
    """Nobody hides a commit by writing nonsense for its time."""
    records = registry.history()
    from dataclasses import replace

    odd = replace(records[0], time="yesterday")
    assert list(history.since([odd], datetime.now(timezone.utc))) == [odd]


def test_the_writer_is_somebody(sink, monkeypatch):
    """By default user, host and process; else what was set, without secrets and on one line."""
    monkeypatch.setenv("LOGNAME", "ada")
    ModelRegistry(sink).add_model(entry("1"))
    ModelRegistry(sink, writer="ci\nhf_abcdefghijklmnop" + "x" * 500).add_model(entry("2"))
    first, second = (record.writer for record in ModelRegistry(sink).history())
    assert first.startswith("ada@")
    assert first.rpartition("/")[2].isdigit()
    assert second.startswith("ci ")
    assert "abcdefgh" not in second
    assert len(second) <= 200


def test_a_user_without_a_name_is_a_number(sink, monkeypatch):
    """In a container no variable and no account may name the user: that is no error."""
    for name in ("LOGNAME", "USER", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 123454321)
    ModelRegistry(sink).add_model(entry("1"))
    assert ModelRegistry(sink).history()[0].writer.startswith("123454321@")


def test_mm_history(mm, store):
    """Newest first, in words; JSON has the operations; --limit and --since cut."""
    _, out, _ = mm("history", "--backend", store)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["4", "3", "2", "1"]
    assert "tester" in lines[1]
    assert "made org/m@2 available (5 B); pointed org/m:prod at 2" in lines[1]
    assert "began to pull org/m@1 from hf://org/m" in lines[4]
    commits = json.loads(mm("history", "--backend", store, "--limit", "2", "--json")[1])["commits"]
    assert [commit["seq"] for commit in commits] == [4, 3]
    assert mm("history", "--backend", store, "--since", "1h", "-q")[1].split() == list("4321")
    assert mm("history", "--backend", store, "--since", "2999-01-01", "-q")[1] == ""
    code, _, err = mm("history", "--backend", store, "--since", "soon")
    assert (code, "'soon'" in err, "7d" in err) == (2, True, True)


def test_every_operation_has_words():
    """No kind of operation is shown by its bare name, and an unknown one is shown all the same."""
    from mm_core.cli.history import in_words
    from mm_core.registry.operations import RULES

    for op in RULES:
        words = in_words({"op": op, "model_id": "m", "version": "1", "alias": "prod"})
        assert "m" in words
        assert not words.startswith(f"{op} ")
    assert in_words({"op": "later", "model_id": "m"}) == "later m@?"
    back = in_words({"op": "alias", "model_id": "m", "version": "1", "alias": "p", "back": 1})
    assert back == "rolled m:p back to 1"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
        ("2026-01-31T12:00:00+01:00", datetime(2026, 1, 31, 11, tzinfo=timezone.utc)),
        ("3d", datetime(2026, 1, 1, tzinfo=timezone.utc)),
        ("90m", datetime(2026, 1, 3, 22, 30, tzinfo=timezone.utc)),
    ],
)
def test_moments(text, moment):
    """A time, or an age before now."""
    assert parse_moment(text, now=datetime(2026, 1, 4, tzinfo=timezone.utc)) == moment


@pytest.mark.parametrize("text", ["", "3", "soon", "2026-13-01", "99999999999w"])
def test_no_moments(text):
    """What is neither a time nor an age is an error."""
    with pytest.raises(ValueError, match="a time is such as"):
        parse_moment(text)


# -- rollback ------------------------------------------------------------------------


def test_a_rollback_goes_back_one_version(registry):
    """The alias names what it named before, and who looks sees where it was."""
    point(registry, "1", "2", "2", "3")
    moved = registry.rollback("m", "prod")
    assert moved.to_json() == {"model_id": "m", "alias": "prod", "version": "2", "former": "3"}
    assert named(registry) == "2"


def test_two_rollbacks_are_one_of_two_steps(registry):
    """What a rollback left behind does not count, also when another move came in between."""
    point(registry, "1", "2", "3")
    registry.rollback("m", "prod")
    registry.rollback("m", "prod")
    assert named(registry) == "1"
    point(registry, "4", "5")
    assert registry.rollback("m", "prod", steps=2).version == "1"


def test_an_alias_that_is_gone_comes_back(registry):
    """The first step brings back what it named last, whether the alias or the version went."""
    point(registry, "1", "2")
    registry.remove_alias("m", "prod")
    assert registry.rollback("m", "prod").former is None
    assert named(registry) == "2"
    registry.remove("m", "2")
    with pytest.raises(NotFoundError, match="m@2.*is DELETED") as refused:
        registry.rollback("m", "prod")
    assert "nearest that is available is 1: --steps 2" in refused.value.hint
    assert registry.rollback("m", "prod", steps=2).version == "1"


def test_a_rollback_to_what_is_gone_is_refused_and_the_nearest_named(registry):
    """Nothing moves, and the hint leads to an available version, or says that there is none."""
    point(registry, "1", "2", "3", "4")
    registry.remove("m", "3")
    registry.remove("m", "2")
    registry.sweep("m", "2")
    registry.swept("m", "2")
    with pytest.raises(NotFoundError, match="m@3, .* is DELETED") as refused:
        registry.rollback("m", "prod")
    assert "1: --steps 3" in refused.value.hint
    with pytest.raises(NotFoundError, match="m@2, .* is there no more"):
        registry.rollback("m", "prod", steps=2)
    registry.remove("m", "1")
    with pytest.raises(NotFoundError) as refused:
        registry.rollback("m", "prod")
    assert "nothing that it named before is available" in refused.value.hint
    assert named(registry) == "4"


def test_a_rollback_too_far_is_refused(registry):
    """An alias that never named so many versions stays where it is; the hint says how many."""
    with pytest.raises(NotFoundError, match="m:prod never named a version"):
        registry.rollback("m", "prod")
    point(registry, "1")
    with pytest.raises(NotFoundError, match="m:prod names 1, the first that it ever named"):
        registry.rollback("m", "prod")
    point(registry, "2", "3")
    with pytest.raises(NotFoundError, match="no more than 2 versions before") as refused:
        registry.rollback("m", "prod", steps=3)
    assert refused.value.hint == "the earliest is 1: --steps 2"
    with pytest.raises(NotFoundError, match="no more than 2 versions before"):
        registry.rollback("m", "prod", steps=10**30)
    with pytest.raises(UsageError, match="one step or more"):
        registry.rollback("m", "prod", steps=0)
    assert named(registry) == "3"


def test_a_rollback_loses_against_who_was_first(registry, sink, monkeypatch):
    """If somebody moves the alias between the look and the move, nothing is changed."""
    point(registry, "1", "2")
    plan = history.plan_rollback

    def overtaken(*arguments, **options):
        made = plan(*arguments, **options)
        ModelRegistry(sink).set_alias("m", "prod", "5")
        return made

    monkeypatch.setattr(history, "plan_rollback", overtaken)
    with pytest.raises(ConflictError, match="names 5, not 2 as expected"):
        registry.rollback("m", "prod")
    assert named(registry) == "5"


def test_a_rollback_in_doubt_does_not_say_try_again(registry, sink, monkeypatch):
    """Doing it again would go back further, so the hint says to look first."""
    point(registry, "1", "2")

    def lost(key, data):
        raise TransientError("no answer")

    made = ModelRegistry(sink, commit_timeout=0.2)
    made.refresh()
    monkeypatch.setattr(sink, "create", lost)
    with pytest.raises(CommitUnknownError) as unknown:
        made.rollback("m", "prod")
    assert "mm alias list m" in unknown.value.hint


def test_a_lost_answer_moves_an_alias_once(registry, sink, monkeypatch):
    """The commit landed and its answer was lost: one step back, not two."""
    point(registry, "1", "2", "3")
    create, lost = sink.create, []

    def loses(key, data):
        create(key, data)
        if not lost:
            lost.append(key)
            raise AlreadyExistsError(key)

    monkeypatch.setattr(sink, "create", loses)
    registry.rollback("m", "prod")
    assert lost
    assert named(registry) == "2"


def test_a_rollback_near_the_end_of_a_long_log_reads_little_of_it(registry, sink):
    """Only as much of the log is read as tells what the alias named before."""
    for number in range(80):
        registry.add_model(entry(str(number), "other"))
    point(registry, "1", "2")
    sink.reads = 0
    registry.rollback("m", "prod")
    assert sink.reads <= 1 + 8 + 2


MOVES = st.lists(
    st.one_of(
        st.sampled_from("12345").map(lambda v: ("set", v)),
        st.integers(1, 4).map(lambda n: ("back", n)),
        st.just(("unset", 0)),
    ),
    max_size=25,
)


@given(moves=MOVES)
@settings(max_examples=60, deadline=None)
def test_rollbacks_agree_with_a_pile(moves):
    """Any row of moves, rollbacks and removals ends where a pile of versions says."""
    sink = MemorySink(MemorySink.Config(root="memory:/pile"))
    sink.delete([stored.key for stored in sink.list("")])
    registry = ModelRegistry(sink)
    for version in "12345":
        registry.add_model(entry(version))
    pile: list[str] = []
    shown = False
    for kind, value in moves:
        if kind == "set":
            registry.set_alias("m", "prod", value)
            pile, shown = ([*pile, value] if pile[-1:] != [value] else pile), True
        elif kind == "unset" and shown:
            registry.remove_alias("m", "prod")
            shown = False
        elif kind == "back":
            down = value - (not shown)
            if len(pile) > down:
                assert registry.rollback("m", "prod", steps=value).version == pile[-1 - down]
                pile, shown = pile[: len(pile) - down], True
            else:
                with pytest.raises(NotFoundError):
                    registry.rollback("m", "prod", steps=value)
        assert named(registry) == (pile[-1] if shown else None)


def test_mm_rollback(mm, store):
    """The command says where the alias went; what cannot be is exit code 3."""
    assert mm("rollback", "org/m", "prod", "--backend", store)[:2] == (
        0,
        "org/m:prod -> 1, no more at 2\n",
    )
    code, out, _ = mm("rollback", "org/m", "prod", "--backend", store, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (3, "not_found")
    assert "rolled org/m:prod back to 1" in mm("history", "--backend", store)[1]


# -- alias set -----------------------------------------------------------------------


def test_alias_set_by_id_alias_and_version(mm, store):
    """The version may be another alias; a reference with a version does as well, but not both."""
    for words in (["org/m", "a", "1"], ["org/m@1", "b"], ["org/m", "c", "a"]):
        assert mm("alias", "set", *words, "--backend", store)[0] == 0
    rows = json.loads(mm("alias", "list", "--backend", store, "--json")[1])["aliases"]
    assert {row["alias"]: row["version"] for row in rows} == {
        "a": "1", "b": "1", "c": "1", "prod": "2",
    }  # fmt: skip
    assert mm("alias", "set", "org/m@2", "a", "1", "--backend", store)[0] == 2


def test_alias_set_expects(mm, store):
    """With --expect the alias moves only from there: else exit code 8, and it stays."""
    assert mm("alias", "set", "org/m", "prod", "1", "--expect", "1", "--backend", store)[0] == 8
    assert mm("alias", "set", "org/m", "prod", "1", "--expect-none", "--backend", store)[0] == 8
    assert mm("alias", "set", "org/m", "new", "1", "--expect", "1", "--backend", store)[0] == 8
    assert mm("alias", "set", "org/m", "prod", "1", "--expect", "2", "--backend", store)[0] == 0
    assert mm("alias", "set", "org/m", "new", "1", "--expect-none", "--backend", store)[0] == 0
    words = ["alias", "set", "org/m", "prod", "1", "--expect", "2", "--expect-none"]
    assert mm(*words, "--backend", store)[0] == 2


# -- diff ----------------------------------------------------------------------------


def test_a_comparison_has_every_path_once():
    """Each file of either version is added, removed, changed or the same, with both sides."""
    old = manifest("m", "1", {"a": b"1", "b": b"2", "c": b"3"}, license="mit", source="hf://m")
    new = manifest("m", "2", {"b": b"2", "c": b"44", "d": b"5"}, license="gpl", source="hf://m")
    found = compare(old, new)
    assert {file.path: file.change for file in found.files} == {
        "a": "removed", "b": "same", "c": "changed", "d": "added",
    }  # fmt: skip
    assert found.facts == {"license": ("mit", "gpl")}
    document = found.to_json()
    assert document["totals"]["changed"] == {"files": 1, "bytes": 2}
    assert document["totals"]["removed"] == {"files": 1, "bytes": 1}
    assert document["files"][0]["to"] is None
    assert compare(old, old).same_files
    assert not found.same_files


def test_bytes_of_the_same_size_are_a_change():
    """Not the sizes tell, but the hashes."""
    found = compare(manifest("m", "1", {"a": b"1"}), manifest("m", "2", {"a": b"2"}))
    assert [file.change for file in found.files] == ["changed"]


def test_mm_diff(mm, store):
    """What was added, removed and changed; the exit code is 0 unless it is asked for."""
    code, out, _ = mm("diff", "org/m@1", "org/m@2", "--backend", store)
    assert code == 0
    assert out.splitlines()[:4] == [
        "~ a  1 B -> 3 B",
        "- b  2 B",
        "+ c  2 B",
        "1 added (2 B), 1 removed (2 B), 1 changed (3 B), 0 same",
    ]
    words = ["diff", "org/m:prod", "org/m@1", "--exit-code", "--backend", store]
    code, out, _ = mm(*words, "--json")
    assert (code, json.loads(out)["same_files"]) == (1, False)
    assert mm("diff", "org/m", "org/m:prod", "--exit-code", "--backend", store)[0] == 0


def test_mm_diff_against_another_backend(mm, store, tmp_path):
    """--against looks the second version up elsewhere: do two backends hold the same?"""
    other = str(tmp_path / "other")
    made = ModelRegistry(LocalSink(LocalSink.Config(root=other)))
    made.add(made.begin("org/m", "1"), manifest("org/m", "1", {"a": b"1", "b": b"22"}))
    words = ["diff", "org/m@1", "org/m@1", "--against", other, "--backend", store, "--exit-code"]
    assert mm(*words)[0] == 0
    assert mm("diff", "org/m@2", "org/m@2", "--against", other, "--backend", store)[0] == 3
