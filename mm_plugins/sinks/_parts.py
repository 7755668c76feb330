"""A stream cut into the parts of an upload, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mm_core import Buffer

MIN_PART = 16 << 20
MAX_PARTS = 9_000


def part_size(size: int | None) -> int:
    """Bytes in a part, so that `size` bytes fit into the 10,000 parts that S3 allows."""
    if size is None:
        return 4 * MIN_PART
    needed = -(-size // MAX_PARTS)
    return max(MIN_PART, -(-needed // (1 << 20)) << 20)


class Parts(Iterator[bytearray]):
    """Parts of exactly `size` bytes, and a last one with the rest; one empty part for no bytes.

    `count` is the number of bytes so far, `ended` whether the last part was given.
    Holds no more than one part and one buffer.
    """

    def __init__(self, chunks: Iterable[Buffer], size: int) -> None:
        self._chunks = iter(chunks)
        self._size = size
        self._held = bytearray()
        self.count = 0
        self.ended = False

    def __next__(self) -> bytearray:
        if self.ended:
            raise StopIteration
        while len(self._held) <= self._size:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.ended = True
                return self._held
            self._held += chunk
            self.count += len(chunk)
        part, self._held = self._held[: self._size], self._held[self._size :]
        return part
