"""Tests of `Sink.write`: all or nothing, whatever comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_core.exceptions import IntegrityError
from mm_core.sink import Buffer, Sink, read_bytes, read_if_exists
from mm_core.testing.material import cut, digest, noise, sha256
from mm_core.testing.sinks.base import MIB, SinkFixtures, keys

ODD_CONTENTS = (
    b"",
    b"\0",
    b"\r\n--==0==\r\n",
    b"before\r\n--==0==--\r\nafter",
    b"--boundary--\r\n\r\n",
    b"0\r\n\r\n",
    b"\xff\xfe\x1f\x8b",
    bytes(range(256)),
)


class WriteTests(SinkFixtures):
    """What `write` promises."""

    def test_a_written_file_is_read_back_byte_for_byte(self, sink: Sink) -> None:
        """What was written is what is read, be it empty, small, or of several parts."""
        for size in (0, 1, 1000, 8 * MIB, 8 * MIB + 1, 9 * MIB, 16 * MIB):
            data = noise(size)
            sink.write("a/file", cut(data), size=size)
            assert digest(sink.read("a/file")) == sha256(data)
            stored = sink.stat("a/file")
            assert stored is not None
            assert stored.size == size

    def test_a_file_of_unknown_size_is_stored(self, sink: Sink) -> None:
        """`size` may be None."""
        sink.write("small", iter([b"a", b"", b"b"]), size=None)
        sink.write("none", iter([]), size=None)
        assert read_bytes(sink, "small") == b"ab"
        assert read_bytes(sink, "none") == b""

    def test_a_reused_buffer_is_stored_as_it_was_when_it_was_given(self, sink: Sink) -> None:
        """A buffer is valid only until the next one is asked for."""
        data = noise(9 * MIB + 17)

        def chunks() -> Iterator[Buffer]:
            buffer = bytearray(700_001)
            for start in range(0, len(data), len(buffer)):
                piece = data[start : start + len(buffer)]
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
                buffer[:] = bytes(len(buffer))

        sink.write("file", chunks(), size=len(data))
        assert digest(sink.read("file")) == sha256(data)

    def test_one_huge_buffer_is_stored(self, sink: Sink) -> None:
        """Buffers may be of any size."""
        data = noise(20 * MIB + 3)
        sink.write("file", [memoryview(bytearray(data))], size=len(data))
        assert digest(sink.read("file")) == sha256(data)

    @pytest.mark.parametrize("before", [None, b"what stood before"])
    @pytest.mark.parametrize(
        ("passed", "error"), [(0, ValueError), (9 * MIB, OSError), (9 * MIB, KeyboardInterrupt)]
    )
    def test_a_write_whose_chunks_raise_changes_nothing(
        self, sink: Sink, passed: int, before: bytes | None, error: type[BaseException]
    ) -> None:
        """All or nothing: the error passes unchanged, what stood before stands, nothing is left."""
        if before is not None:
            sink.put("a/file", before)
        there = keys(sink)
        raised = error("the source broke")

        def chunks() -> Iterator[Buffer]:
            yield from cut(noise(passed))
            raise raised

        with pytest.raises(error) as caught:
            sink.write("a/file", chunks(), size=passed + 5)
        assert caught.value is raised
        assert read_if_exists(sink, "a/file") == before
        assert keys(sink) == there

    def test_a_write_of_another_size_than_promised_changes_nothing(self, sink: Sink) -> None:
        """Too few or too many bytes are an IntegrityError, and nothing is left."""
        sink.put("old", b"what stood before")
        for size, promised in [(5, 4), (5, 6), (5, 9 * MIB), (9 * MIB, 5), (9 * MIB, 10 * MIB)]:
            for key in ("new", "old"):
                with pytest.raises(IntegrityError):
                    sink.write(key, cut(noise(size)), size=promised)
        assert read_bytes(sink, "old") == b"what stood before"
        assert keys(sink) == ["old"]

    def test_an_unfinished_write_is_never_listed(self, sink: Sink, other: Sink) -> None:
        """Nobody sees a file that is still being written."""
        seen: list[list[str]] = []

        def chunks() -> Iterator[Buffer]:
            yield noise(9 * MIB)
            seen.append(keys(other))
            assert other.stat("a/file") is None
            yield b"end"

        sink.write("a/file", chunks(), size=9 * MIB + 3)
        assert seen == [[]]
        assert keys(other) == ["a/file"]

    def test_a_write_replaces_what_was_there(self, sink: Sink, other: Sink) -> None:
        """The last write wins, and every instance sees it at once."""
        sink.write("file", [noise(9 * MIB)], size=9 * MIB)
        assert other.stat("file") is not None
        sink.write("file", [b"new"], size=3)
        assert read_bytes(other, "file") == b"new"

    def test_many_threads_share_one_instance(self, sink: Sink) -> None:
        """One instance serves many threads at once."""

        def work(number: int) -> None:
            data = noise(100_000 + number)
            sink.write(f"t{number}/file", cut(data), size=len(data))
            assert digest(sink.read(f"t{number}/file")) == sha256(data)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(16)))
        assert len(keys(sink)) == 16

    def test_content_is_never_interpreted(self, sink: Sink) -> None:
        """Bytes that look like a boundary, a header or a compressed file are just bytes."""
        for number, content in enumerate(ODD_CONTENTS):
            sink.write(f"written/{number}", [content], size=len(content))
            sink.put(f"put/{number}", content)
            assert read_bytes(sink, f"written/{number}") == content
            assert read_bytes(sink, f"put/{number}") == content
            if self.creates:
                sink.create(f"created/{number}", content)
                assert read_bytes(sink, f"created/{number}") == content

    def test_a_write_that_failed_leaves_nothing_in_the_store(
        self, sink: Sink, everything: Callable[[], Iterable[str]] | None
    ) -> None:
        """Also not where no listing of the sink shows it."""
        if everything is None:
            pytest.skip("the suite was not told how to look into the store: no `everything`")
        sink.put("a/file", b"what stood before")
        there = sorted(everything())

        def chunks() -> Iterator[Buffer]:
            yield from cut(noise(9 * MIB))
            raise OSError("the source broke")

        for key in ("a/file", "a/new", "b"):
            with pytest.raises(OSError, match="the source broke"):
                sink.write(key, chunks(), size=None)
        assert sorted(everything()) == there
