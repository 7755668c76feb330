"""One memory budget for all that is on its way: buffers that are used again and again."""

from __future__ import annotations

import mmap as memory_map
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from mmap import mmap

from mm_core.exceptions import CancelledError, StorageError

_POLL = 0.2
_HUGE_PAGES: int | None = getattr(memory_map, "MADV_HUGEPAGE", None)


class Buffers:
    """Buffers of no more than `budget` bytes in all.

    A part that is read ahead of its turn keeps its buffer until all parts before
    it were hashed. So that those always find one, the last buffer is given only
    to a part whose turn it is: nobody waits for ever. A single part larger than
    the budget is still let through, alone.

    They are mappings of their own: from the heaps of so many threads the system
    would not get all of their memory back.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._changed = threading.Condition()
        self._used = 0
        self._largest = 0
        self._idle: dict[int, list[mmap]] = {}

    def take(self, size: int, *, its_turn: Callable[[], bool], stopped: Callable[[], bool]) -> mmap:
        """A buffer of `size` bytes, when there is one; `CancelledError` once `stopped`."""
        with self._changed:
            self._largest = max(self._largest, size)
            while not self._fits(size, its_turn=its_turn()):
                if stopped():
                    raise CancelledError("stopped")
                self._changed.wait(_POLL)
            self._used += size
            idle = self._idle.get(size)
            if idle:
                return idle.pop()
            self._make_room(size)
        try:
            return _mapping(size)
        except OSError as error:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
            raise StorageError(
                f"the system has no {size} bytes of memory to give: {error.strerror}",
                hint="use a smaller --memory",
            ) from error

    @contextmanager
    def reserved(self, size: int, *, stopped: Callable[[], bool]) -> Iterator[None]:
        """Count `size` bytes that somebody else holds; waits for them to fit as for a buffer."""
        with self._changed:
            while not self._fits(size, its_turn=True):
                if stopped():
                    raise CancelledError("stopped")
                self._changed.wait(_POLL)
            self._used += size
            self._make_room(size)
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def give(self, buffer: mmap) -> None:
        """Give a buffer back. Nobody may look at it any more."""
        with self._changed:
            self._used -= len(buffer)
            self._idle.setdefault(len(buffer), []).append(buffer)
            self._changed.notify_all()

    def turn(self) -> None:
        """Somebody's turn may have come: let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def _fits(self, size: int, *, its_turn: bool) -> bool:
        if its_turn:
            return self._used == 0 or self._used + size <= self.budget
        return self._used + size + self._largest <= self.budget

    def _make_room(self, size: int) -> None:
        """Let idle buffers go as far as the budget needs it, those of `size` last."""
        idle = sum(length * len(buffers) for length, buffers in self._idle.items())
        for length in sorted(self._idle, key=lambda length: length == size):
            buffers = self._idle[length]
            while buffers and self._used + idle > self.budget:
                buffers.pop()
                idle -= length


def _mapping(size: int) -> mmap:
    """Memory of its own, in large pages where the system has them."""
    mapping = mmap(-1, size)
    if _HUGE_PAGES is not None:
        with suppress(OSError):
            mapping.madvise(_HUGE_PAGES)
    return mapping
