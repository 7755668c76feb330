"""A stream cut into the parts of an upload, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mm_core import Buffer

MIN_PART = 8 << 20
MAX_PARTS = 9_000


def part_size(size: int | None) -> int:
    """Bytes in a part, so that `size` bytes fit into the 10,000 parts that S3 allows.

    An unknown size gets larger parts: they suffice for 280 GB.
    """
    if size is None:
        return 4 * MIN_PART
    needed = -(-size // MAX_PARTS)
    return max(MIN_PART, -(-needed // (1 << 20)) << 20)


class Parts(Iterator[bytearray]):
    """Parts of exactly `size` bytes, and a last one with the rest; one empty part for no bytes.

    `ended` says whether the last part was given, `count` how many bytes were given.
    A part is the taker's own; besides it, no more than one buffer of the stream
    is held, and that without a copy.
    """

    def __init__(self, chunks: Iterable[Buffer], size: int) -> None:
        self._chunks = iter(chunks)
        self._size = size
        self._rest = memoryview(b"")
        self.count = 0
        self.ended = False

    def __next__(self) -> bytearray:
        if self.ended:
            raise StopIteration
        part = bytearray()
        while self._refill() and len(part) < self._size:
            taken = self._rest[: self._size - len(part)]
            part += taken
            self._rest = self._rest[len(taken) :]
        self.ended = not self._rest
        self.count += len(part)
        return part

    def _refill(self) -> bool:
        """Ask for a buffer where none is held; whether there is one."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._rest = memoryview(chunk).cast("B")
        return True
