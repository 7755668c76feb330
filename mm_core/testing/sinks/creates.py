"""Tests of `Sink.create` and `Sink.put`: exclusive, and atomic."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from mm_core.exceptions import AlreadyExistsError, StorageError
from mm_core.sink import Sink, read_bytes
from mm_core.testing.material import noise, race
from mm_core.testing.sinks.base import MIB, SinkFixtures, keys

REFUSES = "this sink declares that it refuses create: `creates` is False"


class CreateTests(SinkFixtures):
    """What `create` and `put` promise."""

    def test_create_stores_what_was_not_there(self, sink: Sink, other: Sink) -> None:
        """Created once, a key is taken for every instance until it is deleted."""
        if not self.creates:
            with pytest.raises(StorageError):
                sink.create("a/key", b"one")
            return
        sink.create("a/key", b"one")
        for again in (sink, other):
            with pytest.raises(AlreadyExistsError):
                again.create("a/key", b"two")
        assert read_bytes(other, "a/key") == b"one"
        sink.delete(["a/key"])
        other.create("a/key", b"three")
        assert read_bytes(sink, "a/key") == b"three"

    def test_create_is_refused_where_a_file_was_written(self, sink: Sink) -> None:
        """However it came there: what stands is never replaced by create."""
        if not self.creates:
            pytest.skip(REFUSES)
        sink.write("written", [noise(9 * MIB)], size=9 * MIB)
        sink.put("put", b"")
        for key in ("written", "put"):
            with pytest.raises(AlreadyExistsError):
                sink.create(key, b"x")

    def test_of_many_creators_exactly_one_wins(self, sink: Sink, other: Sink) -> None:
        """Create is exclusive: of 8 threads on two instances one returns, in each of 20 rounds."""
        if not self.creates:
            pytest.skip(REFUSES)
        for number in range(20):
            key = f"round/{number:03}"
            winners = race(
                [
                    partial(_created, (sink, other)[writer % 2], key, b"writer %d" % writer)
                    for writer in range(8)
                ]
            )
            assert winners.count(True) == 1
            assert read_bytes(sink, key) == b"writer %d" % winners.index(True)

    def test_put_replaces(self, sink: Sink, other: Sink) -> None:
        """The last put wins, also over a longer one."""
        sink.put("hint", b"a long one")
        other.put("hint", b"short")
        assert read_bytes(sink, "hint") == b"short"
        assert keys(sink) == ["hint"]

    def test_a_reader_sees_one_put_or_the_other(self, sink: Sink, other: Sink) -> None:
        """Put is atomic: a reader never finds a mixture, a part, or nothing."""
        versions = [bytes([65 + i]) * (50_000 + i * 1000) for i in range(4)]
        sink.put("hint", versions[0])
        done = threading.Event()

        def write() -> bool:
            for number in range(24):
                sink.put("hint", versions[number % 4])
            done.set()
            return True

        def read() -> bool:
            while not done.is_set():
                assert read_bytes(other, "hint") in versions
            return True

        assert race([write, read, read]) == [True] * 3


def _created(sink: Sink, key: str, data: bytes) -> bool:
    try:
        sink.create(key, data)
    except AlreadyExistsError:
        return False
    return True
