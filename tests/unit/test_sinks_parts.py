"""Cutting a stream into parts, trying again, and reading times."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_core import AuthError, OfflineError, TransientError
from mm_plugins.sinks import _patience
from mm_plugins.sinks._parts import MIN_PART, Parts, part_size
from mm_plugins.sinks._time import parse_time

pytestmark = pytest.mark.unit


@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_parts_are_full_but_the_last(chunks, size):
    """Joined they are the stream; `ended` is true with the last one and never before."""
    data, parts, found = b"".join(chunks), Parts(chunks, size), []
    while not parts.ended:
        found.append(bytes(next(parts)))
    assert b"".join(found) == data
    assert [len(part) for part in found[:-1]] == [size] * (len(found) - 1)
    assert len(found[-1]) <= size
    assert bool(found[-1]) == bool(data)
    assert parts.count == len(data)
    assert next(parts, None) is None


@pytest.mark.parametrize("size", [0, 1, 10**9, 72 * 10**9, 10**12, 5 * 2**40])
def test_ten_thousand_parts_suffice(size):
    """For the largest object that S3 allows, with parts that S3 allows."""
    part = part_size(size)
    assert MIN_PART <= part <= 5 << 30
    assert -(-size // part) <= 10_000


def test_patience_ends(monkeypatch):
    """Five attempts for what may pass, one for all else; a wait that was asked for is kept."""
    waits: list[float] = []
    monkeypatch.setattr(_patience.time, "sleep", waits.append)
    for error, expected in (
        (TransientError("x", retry_after=3), 5),
        (OfflineError("x"), 1),
        (AuthError("x"), 1),
    ):
        calls: list[int] = []

        def fail(error=error, calls=calls):
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            _patience.persist(fail)
        assert len(calls) == expected
    assert len(waits) == 4
    assert all(1.5 <= wait <= 3 for wait in waits)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T22:56:08.5Z",
        "2026-11-24T22:56:08.500Z",
        "2026-11-24T22:56:08.50000Z",
        "2026-11-24T22:56:08.500000123z",
        "2026-11-24T23:56:08.5+01:00",
        "2026-11-24T22:56:08.5",
    ],
)
def test_times_of_any_precision_are_read(text):
    """Go trims zeros, Google gives three digits, others nine."""
    assert parse_time(text) == datetime(2026, 11, 24, 22, 56, 8, 500_000, tzinfo=timezone.utc)
    assert parse_time("2026-11-24T22:56:08Z").microsecond == 0
