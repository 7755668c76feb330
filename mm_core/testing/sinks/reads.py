"""Tests of `Sink.read` and `Sink.stat`, and of what happens where the store does not answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

import pytest

from mm_core.exceptions import MMError, NotFoundError
from mm_core.sink import Sink, read_bytes
from mm_core.testing.material import cut, digest, noise, sha256
from mm_core.testing.sinks.base import MIB, TEXT, SinkFixtures, keys


class ReadTests(SinkFixtures):
    """What `read` and `stat` promise."""

    def test_ranges_are_half_open_and_end_with_the_object(self, sink: Sink) -> None:
        """[start, end) of what there is; beyond the end there is nothing."""
        sink.put("text", TEXT)
        sink.put("empty", b"")
        for start in (0, 3, 9, 10, 99):
            for end in (None, 0, 1, 4, 9, 10, 20, 200):
                found = b"".join(bytes(buffer) for buffer in sink.read("text", start, end))
                assert found == TEXT[start:end], (start, end)
                assert b"".join(bytes(b) for b in sink.read("empty", start, end)) == b""

    def test_ranges_of_a_large_file(self, sink: Sink) -> None:
        """Ranges that begin and end anywhere, also across the parts it was stored in."""
        data = noise(17 * MIB)
        sink.write("file", cut(data), size=len(data))
        for start, end in [(0, 1), (8 * MIB - 1, 8 * MIB + 1), (5 * MIB + 3, 16 * MIB + 9)]:
            assert digest(sink.read("file", start, end)) == sha256(data[start:end])

    def test_a_reader_may_stop_early(self, sink: Sink) -> None:
        """Closing the iterator is fine, and the sink goes on working."""
        sink.write("file", [noise(9 * MIB)], size=9 * MIB)
        for _ in range(5):
            reader = sink.read("file")
            assert next(iter(reader))
            reader.close()  # type: ignore[attr-defined]  # an Iterator need not have it; ours do
        assert len(read_bytes(sink, "file")) == 9 * MIB

    def test_what_is_not_there_is_not_found(self, sink: Sink) -> None:
        """NotFoundError from read and copy, None from stat, nothing from list."""
        sink.put("a/file", b"x")
        for absent in ("absent", "a", "a/file2", "a/fil", "a/file/below"):
            with pytest.raises(NotFoundError):
                list(sink.read(absent))
            with pytest.raises(NotFoundError):
                list(sink.read(absent, 1, 2))
            with pytest.raises(NotFoundError):
                sink.copy(absent, "copied")
            assert sink.stat(absent) is None
        assert keys(sink) == ["a/file"]

    def test_stat_and_list_tell_size_and_time_in_utc(self, sink: Sink) -> None:
        """Both say the same; times have a zone, UTC, and are of today by any clock."""
        sink.put("file", TEXT)
        stored = sink.stat("file")
        listed = list(sink.list("file"))
        assert stored is not None
        assert [(o.key, o.size) for o in (stored, *listed)] == [("file", 10)] * 2
        for found in (stored, *listed):
            assert found.modified.utcoffset() == timedelta(0)
            assert abs(datetime.now(timezone.utc) - found.modified) < timedelta(days=1)

    def test_errors_of_the_store_are_translated(
        self, unreachable: Sink | None, secrets: Sequence[str]
    ) -> None:
        """Where the store does not answer, each method raises an `MMError` that tells no secret."""
        if unreachable is None:
            pytest.skip("the suite was given no sink whose store does not answer: `unreachable`")
        sink = unreachable
        attempts: list[Callable[[], object]] = [
            lambda: sink.write("key", [b"x"], size=1),
            lambda: sink.put("key", b"x"),
            lambda: list(sink.read("key")),
            lambda: sink.stat("key"),
            lambda: list(sink.list("")),
            lambda: sink.copy("key", "copy"),
        ]
        if self.creates:
            attempts.append(lambda: sink.create("key", b"x"))
        for attempt in attempts:
            with pytest.raises(MMError) as caught:
                attempt()
            told = f"{caught.value} {caught.value.hint}"
            assert not [secret for secret in secrets if secret in told]
