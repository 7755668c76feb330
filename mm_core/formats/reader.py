"""A file of strangers, read from its front: no more than there is, and nothing large at once."""

from __future__ import annotations

import io
from typing import BinaryIO

from mm_core.exceptions import IntegrityError

CHUNK = 16 << 10
MOST_AT_ONCE = 32 << 20
"""The longest piece that is held. What is longer is skipped, or refused."""
LONGEST_LINE = 64 << 20
FARTHEST = 1 << 62
"""No file has a byte there; more than that some files cannot even be asked for."""


class EndedError(IntegrityError):
    """More was wanted than the file has."""


class ShortError(IntegrityError):
    """The file itself has fewer bytes than whoever opened it was told."""


class TooMuchError(IntegrityError):
    """It would take more than anybody should spend on one file."""


class Allowance:
    """How much may still be used up; `TooMuchError` says `what` there is too much of."""

    def __init__(self, most: int, what: str) -> None:
        self._left = most
        self._what = what

    def use(self, count: int = 1) -> None:
        """Use up `count`."""
        self._left -= count
        if self._left < 0:
            raise TooMuchError(f"too much to look through: {self._what}")


class Reader:
    """Reads `file` from the byte `start` on; raises `EndedError` beyond its end.

    Errors of what `file` reads from pass.
    """

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        self._file = file
        self._chunk = b""
        self._at = 0
        self._file_at = file.seek(start)

    def tell(self) -> int:
        """The byte that is read next."""
        return self._file_at - len(self._chunk) + self._at

    def take(self, count: int) -> bytes:
        """`count` bytes."""
        end = self._at + count
        if end > len(self._chunk):
            self._fill(count)
            end = count
        piece = self._chunk[self._at : end]
        self._at = end
        return piece

    def number(self, width: int, *, big: bool = False) -> int:
        """An unsigned integer of `width` bytes, its lowest byte first unless `big`."""
        return int.from_bytes(self.take(width), "big" if big else "little")

    def skip(self, count: int) -> None:
        """Pass over `count` bytes, which are not read where the file can seek."""
        held = len(self._chunk) - self._at
        if count <= held:
            self._at += count
            return
        last = self._file_at + count - held - 1
        if last > FARTHEST:
            raise EndedError("it ends in the midst")
        self._chunk, self._at = b"", 0
        self._file_at = self._file.seek(last)
        self.take(1)  # a seek beyond the end tells nothing

    def line(self, *, ascii_only: bool = False) -> tuple[bytes, bool]:
        """All up to the next line feed, or to the end; only the front of one longer than `CHUNK`.

        And whether that is all of it. With `ascii_only` no more is read than it takes to
        see that it is not ASCII.
        """
        pieces, length = [], 0
        while True:
            end = self._chunk.find(b"\n", self._at)
            piece = self._chunk[self._at : len(self._chunk) if end < 0 else end]
            self._at += len(piece)
            length += len(piece)
            pieces += [piece] if length <= CHUNK else []
            if end >= 0:
                self._at += 1
                break
            if ascii_only and not piece.isascii():
                return piece, False
            if length > LONGEST_LINE:
                raise TooMuchError(f"a line of it has more than {LONGEST_LINE >> 20} MiB")
            if self.at_end():
                break
        return b"".join(pieces), length <= CHUNK

    def at_end(self) -> bool:
        """Whether nothing is left."""
        if self._at < len(self._chunk):
            return False
        self._more(CHUNK)
        return not self._chunk

    def _fill(self, count: int) -> None:
        if count > MOST_AT_ONCE:
            raise TooMuchError(f"a piece of it has more than {MOST_AT_ONCE >> 20} MiB")
        held = self._chunk[self._at :]
        self._more(max(CHUNK, count - len(held)))
        self._chunk = held + self._chunk
        if len(self._chunk) < count:
            raise EndedError("it ends in the midst")

    def _more(self, count: int) -> None:
        """The next `count` bytes of the file in the place of the chunk, fewer at its end."""
        pieces = []
        try:
            while count and (piece := self._file.read(count)):
                pieces.append(piece)
                count -= len(piece)
        except EOFError as error:
            raise ShortError(f"it is shorter than it should be: {error}") from error
        self._chunk, self._at = b"".join(pieces), 0
        self._file_at += len(self._chunk)


class Window(io.RawIOBase):
    """The bytes ``[start, start + size)`` of another file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """As far as the other one is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on from another byte."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def left(self) -> int:
        """How many bytes there are from here to the end."""
        return max(self._size - self._at, 0)

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end."""
        left = self.left()
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data
