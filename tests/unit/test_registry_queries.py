"""Queries: one implementation, held against a plain predicate, cached and uncached."""

from __future__ import annotations

import operator
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.exceptions import MMError, UsageError
from mm_core.names import fold
from mm_core.registry import ModelRegistry
from mm_core.registry.operations import operation
from mm_core.registry.queries import Query, Usage, matching
from mm_core.registry.rows import Rows
from mm_core.registry.state import Record, State
from mm_core.schemas import ModelEntry, ModelStatus, ModelType
from mm_core.testing.registry import fill, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

NOW = datetime(2026, 6, 15, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SIGNS = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def memory_sink(name: str) -> MemorySink:
    return MemorySink(MemorySink.Config(root=f"memory://{name}"))


# -- against a plain predicate

IDS = st.sampled_from(["a", "Org/Model", "straße/ä"])
VERSIONS = st.sampled_from(["1", "V3"])
ALIASES = st.sampled_from(["prod", "Latest", "prod-eu"])
SOURCES = st.sampled_from([None, "hf://meta/Llama", "hf://org/x", "https://e.org/a,b"])
LICENCES = st.sampled_from([None, "mit", "Apache-2.0"])
SIZES = st.sampled_from([0, 1, 999, 1000, 1024, 2 * 10**9, 2**70])
DATES = st.builds(lambda n: NOW - n * DAY / 2, st.integers(0, 9))
STATUSES = st.sampled_from([s for s in ModelStatus if s is not ModelStatus.SWEEPING])

ENTRIES = st.builds(
    lambda id_, version, kind, status, size, date, source, licence: ModelEntry(
        model_id=id_,
        version=version,
        path="s3://b/x",
        model_type=kind,
        status=status,
        size_bytes=size,
        download_date=date,
        source=source,
        metadata={"license": licence, "tags": ["Tiny", 3]} if licence else {},
    ),
    IDS,
    VERSIONS,
    st.sampled_from([ModelType.OTHER, ModelType.TEXT_GENERATION]),
    STATUSES,
    SIZES,
    DATES,
    SOURCES,
    LICENCES,
)
STEPS = st.lists(
    st.one_of(
        ENTRIES.map(lambda entry: ("add", entry)),
        st.tuples(st.just("alias"), IDS, VERSIONS, ALIASES),
        st.tuples(st.just("unalias"), IDS, ALIASES),
        st.tuples(st.just("remove"), IDS, VERSIONS),
        st.tuples(st.just("sweep"), IDS, VERSIONS),
        st.tuples(st.just("swept"), IDS, VERSIONS),
        st.tuples(st.just("fill"), IDS, VERSIONS),
    ),
    max_size=10,
)
TEXT = st.tuples(
    st.sampled_from(["model", "version", "source", "licence", "license", "alias"]),
    st.sampled_from(["=", "!=", "~="]),
    st.sampled_from(
        [
            "",
            "a",
            "ORG/MODEL",
            "org",
            "STRASSE/ä",
            "v3",
            "prod",
            "hf://meta",
            "MIT",
            "a,b",
            "%",
            "_",
        ]
    ),
)
KINDS = st.tuples(
    st.just("type"),
    st.sampled_from(["=", "!=", "~="]),
    st.sampled_from(["other", "Text-Generation"]),
)
STATES = st.tuples(
    st.just("status"), st.sampled_from(["=", "!=", "~="]), st.sampled_from(["available", "DELETED"])
)
RANGES = st.one_of(
    st.tuples(
        st.just("size"), st.sampled_from([*SIGNS]), st.sampled_from(["0", "1kB", "1KiB", "1GB"])
    ),
    st.tuples(
        st.just("date"),
        st.sampled_from([*SIGNS]),
        st.sampled_from(["2026-06-14T12:00:00Z", "2026-06-15T00:00:00Z", "36h"]),
    ),
    st.tuples(
        st.just("age"), st.sampled_from([">", ">=", "<", "<="]), st.sampled_from(["24h", "2d"])
    ),
)
CONDITIONS = st.lists(st.one_of(TEXT, KINDS, STATES, RANGES), max_size=3)
SORTS = st.lists(
    st.tuples(
        st.sampled_from(["model", "size", "date", "age", "status", "version"]), st.booleans()
    ),
    max_size=2,
)
WORDS = st.sampled_from(["", "a", "ORG", "tiny mit", "prod", "strasse", "no such"])


def values_of(entry: ModelEntry, field: str) -> list[str]:
    """What a text field of an entry holds, folded."""
    licence = entry.metadata.get("license") or ""
    found = {
        "model": entry.model_id,
        "version": entry.version,
        "source": entry.source or "",
        "licence": licence,
        "license": licence,
        "type": entry.model_type.value,
        "status": entry.status.value,
    }
    return [fold(alias) for alias in entry.aliases] if field == "alias" else [fold(found[field])]


def holds(entry: ModelEntry, field: str, sign: str, value: str) -> bool:
    """The predicate, as the documents tell it."""
    if field == "size":
        return SIGNS[sign](
            entry.size_bytes, {"0": 0, "1kB": 1000, "1KiB": 1024, "1GB": 10**9}[value]
        )
    if field == "age":
        return SIGNS[sign](NOW - entry.download_date, {"24h": DAY, "2d": 2 * DAY}[value])
    if field == "date":
        moments = {"36h": NOW - 1.5 * DAY}
        moment = moments.get(value) or datetime.fromisoformat(value.replace("Z", "+00:00"))
        return SIGNS[sign](entry.download_date, moment)
    found, wanted = values_of(entry, field), fold(value)
    if sign == "~=":
        return any(wanted in each for each in found) or wanted == ""
    equal = wanted in found or (not found and wanted == "")
    return equal is (sign == "=")


def has_word(entry: ModelEntry, word: str) -> bool:
    text = [
        entry.model_id,
        entry.version,
        *entry.aliases,
        entry.model_type.value,
        entry.source or "",
        str(entry.metadata.get("license") or ""),
        *(["tiny", "3"] if "tags" in entry.metadata else []),
    ]
    return any(word in fold(each) for each in text)


def key_of(entry: ModelEntry, field: str):
    return {
        "size": entry.size_bytes,
        "date": entry.download_date,
        "age": NOW - entry.download_date,
        "status": entry.status.value,
        "model": fold(entry.model_id),
        "version": fold(entry.version),
    }[field]


def expected(entries, conditions, sorts, words) -> list[ModelEntry]:
    """What a query should find among all `entries`, which are in the default order."""
    hidden = {ModelStatus.DELETED, ModelStatus.SWEEPING}
    if any(field == "status" and sign != "!=" for field, sign, _ in conditions):
        hidden = set()
    found = [
        entry
        for entry in entries
        if entry.status not in hidden
        and all(holds(entry, *condition) for condition in conditions)
        and all(has_word(entry, word) for word in fold(words).split())
    ]
    if words and not sorts:
        found.sort(key=lambda e: -sum(word in fold(e.model_id) for word in fold(words).split()))
    for field, down in reversed(sorts):
        found.sort(key=lambda entry: key_of(entry, field), reverse=False)
        if down:  # equal ones stay in order
            found = [
                entry
                for key in sorted({key_of(e, field) for e in found}, reverse=True)
                for entry in found
                if key_of(entry, field) == key
            ]
    return found


def do(registry: ModelRegistry, step) -> None:
    """Take one step, if it is allowed."""
    name, *arguments = step
    try:
        if name == "add":
            registry.add_model(*arguments)
        elif name == "alias":
            registry.set_alias(arguments[0], arguments[2], arguments[1])
        elif name == "fill":
            if registry.get_model(*arguments) is None:
                fill(registry, *arguments)
        else:
            getattr(registry, {"unalias": "remove_alias"}.get(name, name))(*arguments)
    except MMError:
        pass


@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS,
    more=STEPS,
    conditions=CONDITIONS,
    sorts=SORTS,
    words=WORDS,
    limit=st.integers(1, 9),
)
def test_a_query_finds_what_a_plain_predicate_finds(steps, more, conditions, sorts, words, limit):
    """Filters, words, order and limit, cached and uncached, cold and brought forward."""
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder).name
        writer = ModelRegistry(memory_sink(name))
        plain = ModelRegistry(memory_sink(name))
        cached = ModelRegistry(memory_sink(name), cache=Path(folder))
        query = Query.parse(
            [
                f"{field}{sign}{value.replace(',', chr(92) + ',')}"
                for field, sign, value in conditions
            ],
            text=words,
            sort=",".join(field + (":desc" if down else "") for field, down in sorts),
            limit=limit,
            now=NOW,
        )
        for each in (steps, more):
            for step in each:
                do(writer, step)
            entries = writer.list_models(include_deleted=True)
            wanted = expected(entries, conditions, sorts, words)[:limit]
            assert plain.query(query) == wanted
            assert cached.query(query) == wanted
            assert cached.query(Query(removed=True)) == entries
            assert cached.aliases() == plain.aliases() == writer.aliases()
            assert cached.reading().usage(Query()) == plain.reading().usage(Query())


# -- what is read


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        ("sise>1GB", "did you mean 'size'", "fields are model"),
        ("size>1GB,licens=mit", "did you mean 'licen", "fields are"),
        ("nothing", "'nothing' is not understood", "size>1GB"),
        ("size>1GB,,alias=x", "'' is not understood", "FIELD OPERATOR VALUE"),
        ("size~=1", "cannot be compared by ~=", "size takes ="),
        ("licence>mit", "cannot be compared by >", "licence takes ="),
        ("age=3d", "cannot be compared by =", "age takes >"),
        ("size>lots", "'lots' is no size", ""),
        ("date>yesterday", "'yesterday' is no date", ""),
        ("date>9999-12-31", "is no date", ""),
        ("age<soon", "'soon' is no age", ""),
        ("type=text-generaton", "did you mean 'text-generation'", "a type is"),
        ("status=AVAILABEL", "did you mean 'AVAILABLE'", "one of DOWNLOADING"),
    ],
)
def test_a_bad_filter_names_its_part_and_what_is_allowed(text, named, hint):
    """UsageError: exit 2, with the part that is wrong, and a near match."""
    with pytest.raises(UsageError) as caught:
        Query.parse(text)
    assert named in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["sise", "size:down", "size:desc,", ""])
def test_a_bad_order_is_refused(text):
    """UsageError for a key or a direction that is none; nothing means the default order."""
    if not text:
        assert Query.parse(sort=text).sort == ()
        return
    with pytest.raises(UsageError):
        Query.parse(sort=text)


def test_a_day_is_a_whole_day():
    """date=2026-06-14 holds from midnight to midnight, local time; > is after it, < before it."""
    registry = ModelRegistry(memory_sink("days"))
    for day in (13, 14, 15):
        for hour in (0, 12):
            moment = datetime(2026, 6, day, hour).astimezone()
            entry = registered("m", f"{day}-{hour}")
            registry.add_model(
                ModelEntry(
                    model_id="m", version=entry.version, path=entry.path, download_date=moment
                )
            )

    def versions(text):
        return [e.version for e in registry.query(Query.parse(text))]

    assert versions("date=2026-06-14") == ["14-0", "14-12"]
    assert versions("date>2026-06-14") == ["15-0", "15-12"]
    assert versions("date>=2026-06-14") == ["14-0", "14-12", "15-0", "15-12"]
    assert versions("date<2026-06-14") == ["13-0", "13-12"]
    assert versions("date<=2026-06-14") == ["13-0", "13-12", "14-0", "14-12"]


def test_values_are_never_sql():
    """Quotes, wildcards and statements in a value are text."""
    registry = ModelRegistry(memory_sink("quotes"))
    registry.add_model(registered("m", "1"))
    for value in ("'", '" OR 1=1 --', "%", "m'; DROP TABLE versions; --"):
        assert registry.query(Query.parse([f"source~={value}"])) == []
        assert registry.query(Query.parse(text=value)) == []
    assert len(registry.query(Query())) == 1


def test_usage_counts_what_stays_until_it_is_swept():
    """Removed versions keep their bytes, told apart; the largest model comes first."""
    registry = ModelRegistry(memory_sink("usage"))
    for model_id, version, size in [("a", "1", 10), ("a", "2", 5), ("b", "1", 100), ("c", "1", 1)]:
        registry.add_model(
            ModelEntry(model_id=model_id, version=version, path="s3://b/x", size_bytes=size)
        )
    registry.remove("a", "1")
    registry.remove("b", "1")
    assert registry.reading().usage(Query()) == [
        Usage("b", 0, 0, 1, 100),
        Usage("a", 1, 5, 1, 10),
        Usage("c", 1, 1, 0, 0),
    ]
    assert registry.reading().usage(Query.parse("size<50", limit=1)) == [Usage("a", 1, 5, 1, 10)]


@pytest.mark.parametrize(
    "row",
    [
        {"size_bytes": 2**80},
        {"metadata": {"license": ["mit"], "deep": {"x": [1, None, True]}}},
        {"model_type": "from-the-future"},
        {"new_field": {"kept": 1}},
    ],
)
def test_rows_of_later_releases_and_strange_ones_are_taken(row, tmp_path):
    """What another writer put into the log is listed, cached or not, and never an error."""
    name = tmp_path.name
    registry = ModelRegistry(memory_sink(name), cache=tmp_path)
    fields = {"status": "AVAILABLE", "path": "/x", "path_is": "path"} | row
    raw = operation("register", "m", version="1", **fields)
    registry._commit([raw])
    [entry] = registry.query(Query())
    assert entry == ModelRegistry(memory_sink(name)).list_models()[0]


@pytest.mark.parametrize(
    "row",
    [
        {"date": 5},
        {"date": "0001-01-01T00:00:00"},
        {"size_bytes": "many"},
        {"size_bytes": -(2**80)},
        {"metadata": 5},
        {"model_type": ["x"]},
        {"source": {"a": 1}},
    ],
)
def test_a_row_that_makes_no_sense_keeps_nobody_from_the_others(row, tmp_path):
    """Only who asks for that entry is told."""
    registry = ModelRegistry(memory_sink(tmp_path.name), cache=tmp_path)
    fields = {"status": "AVAILABLE", "path": "/x", "path_is": "path"}
    registry._commit([operation("register", "strange", version="1", **fields | row)])
    registry._commit([operation("register", "m", version="1", **fields)])
    assert [entry.model_id for entry in registry.query(Query.parse("model=m"))] == ["m"]
    assert registry.resolve("m").version == "1"


def test_text_that_is_no_unicode_comes_back_as_it_was():
    """A lone surrogate in another writer's commit is found, and shown, all the same."""
    row = {"version": "1", "status": "AVAILABLE", "added": [1, 0], "source": "hf://\ud800"}
    rows = Rows.in_memory(State(models={"m": Record("m", {"1": row}, {})}))
    [id_] = matching(rows, Query.parse("source~=hf://"))
    assert [found["source"] for _, found in rows.versions([id_])] == ["hf://\ud800"]
