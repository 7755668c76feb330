"""The nouns."""

import dataclasses
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core import (
    Action,
    IntegrityError,
    InvalidNameError,
    Manifest,
    ModelEntry,
    ModelStatus,
    ModelType,
    RemoteFile,
    Request,
    StoredFile,
    TransferEvent,
    UsageError,
)
from mm_core.schemas import canonical_json, parse_rfc3339, rfc3339

pytestmark = pytest.mark.unit

SHA = "ab" * 32


def entry(**changes):
    return ModelEntry(**{"model_id": "org/name", "version": "v1", "path": "s3://b/x", **changes})


def manifest(**changes):
    files = (
        StoredFile(path="b.txt", key="models/a/1/b.txt", size=1, sha256=SHA),
        StoredFile(path="a.txt", key="models/a/1/a.txt", size=2, sha256=SHA),
    )
    fields = {"model_id": "a", "version": "1", "model_type": ModelType.OTHER, "files": files}
    return Manifest(**{**fields, **changes})


def test_nouns_are_frozen_and_can_be_keys():
    """A value is never changed, and equal values are one key, mappings within them or not."""
    one, two = (RemoteFile(path="a", extra={"x": "y"}) for _ in range(2))
    assert len({one, two}) == 1
    assert len({entry(metadata={"a": [1]}, download_date=datetime.min)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.path = "b"


@pytest.mark.parametrize(
    "changes",
    [{"model_id": "../x"}, {"version": "a/b"}, {"size_bytes": -1}, {"model_type": "nope"}, {"status": "nope"}],
)  # fmt: skip
def test_an_entry_checks_what_it_is_given(changes):
    """Bad names, types and sizes are the caller's mistake."""
    with pytest.raises(UsageError):
        entry(**changes)


def test_an_entry_takes_words_for_types():
    """Words from JSON become members, and the JSON has them as words again."""
    made = entry(model_type="text-generation", status="FAILED", path=Path("/x"))
    assert (made.model_type, made.status) == (ModelType.TEXT_GENERATION, ModelStatus.FAILED)
    shown = json.loads(json.dumps(made.to_json()))
    assert (shown["model_type"], shown["status"], shown["path"]) == (
        "text-generation",
        "FAILED",
        "/x",
    )


def test_a_request_checks_names():
    """Ids, versions and aliases from the command line are checked at the border."""
    for wrong in ({"model_id": "/x"}, {"version": ".."}, {"aliases": ("a b",)}):
        with pytest.raises(InvalidNameError):
            Request(url="hf://a/b", **wrong)
    assert Request(url="x", include=["*.json"]).include == ("*.json",)


def test_unknown_tags_are_other():
    """The Hub's new tags are no error."""
    assert ModelType.from_tag("brand-new-task") is ModelType.OTHER
    assert ModelType.from_tag(None) is ModelType.OTHER
    assert ModelType.from_tag("fill-mask") is ModelType.FILL_MASK


def test_a_manifest_comes_back_as_it_was():
    """Equal manifests are equal bytes; reading and writing loses nothing, not even unknown fields."""
    one = manifest(facts={"tags": ["x"]}, license="mit", extra={"new_field": {"a": 1}})
    data = one.to_bytes()
    assert (
        data
        == manifest(
            files=one.files[::-1],
            facts={"tags": ["x"]},
            license="mit",
            extra={"new_field": {"a": 1}},
        ).to_bytes()
    )
    again = Manifest.from_bytes(data)
    assert again.to_bytes() == data
    assert again.extra == {"new_field": {"a": 1}}
    assert again.size_bytes == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("files"),
        lambda m: m.update(model_id="../x"),
        lambda m: m.update(version="a/b"),
        lambda m: m["files"][0].update(path="../../etc/passwd"),
        lambda m: m["files"][0].update(path="/etc/passwd"),
        lambda m: m["files"][0].update(path=7),
        lambda m: m["files"][0].update(size="1"),
        lambda m: m["files"][0].update(size=-1),
        lambda m: m["files"][0].update(sha256="x"),
        lambda m: m["files"][0].update(key=None),
        lambda m: m["files"].append("x"),
        lambda m: m.update(files=None),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(change):
    """Its paths name where bytes will go: nothing that leaves the folder is read from it."""
    raw = json.loads(manifest().to_bytes())
    change(raw)
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(json.dumps(raw).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b"\xff", b"1"])
def test_what_is_no_manifest(data):
    """Broken bytes are an integrity error, never another kind."""
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), json_values))
def test_canonical_json_depends_on_the_value_alone(value):
    """The order of keys makes no difference, and the value comes back."""
    backwards = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(backwards)


def test_times_are_utc_with_a_z():
    """A zone is converted; a naive time is taken as local time; microseconds survive."""
    east = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(east) == "2026-01-02T01:04:05.678901Z"
    assert parse_rfc3339(rfc3339(east)) == east
    naive = datetime(2026, 1, 2, 3, 4, 5)
    assert parse_rfc3339(rfc3339(naive)) == naive.astimezone(timezone.utc)


def test_events_and_files_are_json():
    """What is streamed and stored can be written as JSON."""
    event = TransferEvent(kind="progress", model_id="a", path="b", done=1, total=2)
    assert json.loads(json.dumps(event.to_json()))["done"] == 1
    stored = StoredFile(path="a", key="k", size=1, sha256=SHA, action=Action.COPY)
    assert set(stored.to_json()) == {"path", "size", "sha256", "key"}


def test_one_word_is_no_list_of_letters():
    """Where several are wanted, a caller may give one, as templates and settings do."""
    asked = Request(url="x", aliases="prod", include="*.bin", exclude="*.md")
    assert (asked.aliases, asked.include, asked.exclude) == (("prod",), ("*.bin",), ("*.md",))
