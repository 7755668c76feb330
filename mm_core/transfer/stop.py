"""When to stop: one event that also hears others."""

from __future__ import annotations

import threading


class Stop(threading.Event):
    """Set when it is set, or when any of `others` is. Setting it sets no other."""

    def __init__(self, *others: threading.Event | None) -> None:
        super().__init__()
        self._others = [other for other in others if other is not None]

    def is_set(self) -> bool:
        """Whether this or another of them is set."""
        return super().is_set() or any(other.is_set() for other in self._others)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait in short steps, so that the others are heard."""
        step = 0.1
        left = timeout
        while not self.is_set() and (left is None or left > 0):
            super().wait(step if left is None else min(step, left))
            left = None if left is None else left - step
        return self.is_set()
