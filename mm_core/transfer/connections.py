"""How many reads may be under way at once, over all files of a transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mm_core.exceptions import CancelledError, UsageError

_POLL = 0.2


class Connections:
    """At most `count` reads at once: one for each file, and extra ones while no file lacks one."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UsageError(f"connections must be 1 or more, not {count}")
        self.count = count
        self._changed = threading.Condition()
        self._free = count
        self._files = 0
        self._waiting = 0

    @contextmanager
    def own(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """The one that every file has; waits for it. `CancelledError` once `stopped`."""
        with self._changed:
            self._waiting += 1
            try:
                while not self._free:
                    if stopped():
                        raise CancelledError("stopped")
                    self._changed.wait(_POLL)
                self._free -= 1
                self._files += 1
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._files -= 1
            self.give_back()

    def take_extra(self) -> bool:
        """Take one beyond the file's own, if that is to be had now; give it back afterwards."""
        with self._changed:
            free = self._free > self._waiting
            self._free -= free
            return free

    def give_back(self) -> None:
        """Give one back."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    @property
    def spare(self) -> int:
        """How many extra ones could be taken now."""
        with self._changed:
            return max(0, self._free - self._waiting)

    @property
    def wanted(self) -> bool:
        """Whether some file waits for its own."""
        with self._changed:
            return self._waiting > 0

    @property
    def crowded(self) -> bool:
        """Whether the files alone need all of them, so that none has an extra one for long."""
        with self._changed:
            return self._files + self._waiting >= self.count
