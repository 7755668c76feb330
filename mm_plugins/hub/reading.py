"""Bytes on their way to a client: in order, in bounded memory, as fast as they are taken."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from mm_core import Buffer, IntegrityError, StoredFile, TransientError

T = TypeVar("T")

CHUNK = 1 << 20
"""The most bytes that are handed on at once, and so that wait for a client."""

_TRIES = 4
_PAUSE = 0.25
_RANGE = re.compile(r"bytes=(?:(\d{1,20})-(\d{0,20})|-(\d{1,20}))")


class UnsatisfiableError(Exception):
    """The range that is asked for lies beyond the end of the file."""


class FileBytes(Protocol):
    """Where the bytes of a file come from."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    @property
    def path(self) -> Path | None:
        """Where it is on a disk of this machine, if it is."""

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes ``[start, end)``, in pieces of at most `CHUNK`."""


def parse_range(text: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for; None for the whole file.

    What is not understood, and several ranges at once, mean the whole file, as RFC
    9110 allows. `UnsatisfiableError` where none of what is asked for is there.
    """
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        if int(suffix) == 0 or size == 0:
            raise UnsatisfiableError
        return range(max(0, size - int(suffix)), size)
    start, end = int(first), min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableError
    return range(start, end)


@dataclass(frozen=True, slots=True)
class RangedBytes:
    """A file of a version, of which `fetch` reads ranges, by the threads of `pool`."""

    file: StoredFile
    fetch: Callable[[int, int], Iterator[Buffer]]
    pool: Executor
    hint: str = "`mm verify --repair` mends it"
    path: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.file.size

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes ``[start, end)``; faults that pass are tried again from where they struck."""
        failed = 0
        while start < end:
            buffers = self.fetch(start, end)
            try:
                while start < end:
                    piece = await self._in_thread(partial(_gather, buffers))
                    if not piece:
                        raise IntegrityError(
                            f"{self.file.path} ends after {start} of {self.file.size} bytes",
                            hint=self.hint,
                        )
                    start, failed = start + len(piece), 0
                    yield piece
            except TransientError:
                failed += 1
                if failed >= _TRIES:
                    raise
                await asyncio.sleep(_PAUSE * 2**failed)
            finally:
                close = getattr(buffers, "close", None)
                if close is not None:
                    with contextlib.suppress(Exception):  # what was read is good all the same
                        await self._in_thread(close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def _gather(buffers: Iterator[Buffer]) -> bytes:
    """The next buffers, put together up to about `CHUNK`; copied, since they are reused."""
    pieces: list[bytes] = []
    total = 0
    for buffer in buffers:
        pieces.append(bytes(buffer))
        total += len(pieces[-1])
        if total >= CHUNK // 2:
            break
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
