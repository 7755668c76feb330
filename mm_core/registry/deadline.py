"""Patience with an end: jittered back-off until a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from mm_core.exceptions import OfflineError, TransientError

T = TypeVar("T")

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 2.0


class Deadline:
    """`seconds` from now. Each `pause` is longer than the last, at random.

    Not for several threads at once.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._ceiling = _FIRST_PAUSE

    @property
    def passed(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._end

    def pause(self, at_least: float | None = None) -> bool:
        """Sleep a little, `at_least` seconds where that is given; False, at once, if it is over."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        wanted = max(random.uniform(0, self._ceiling), at_least or 0)  # noqa: S311  # jitter
        time.sleep(min(wanted, left))
        self._ceiling = min(self._ceiling * 2, _LONGEST_PAUSE)
        return True

    def persist(self, action: Callable[[], T]) -> T:
        """What `action` returns; a `TransientError` is met by trying again until the deadline."""
        while True:
            try:
                return action()
            except OfflineError:
                raise
            except TransientError as error:
                if not self.pause(error.retry_after):
                    raise
