"""Patience with an end: jittered back-off until a deadline."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from mm_core.exceptions import OfflineError, TransientError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 2.0
_RIVALS = 16
_SILENCE = 3.0
"""Seconds of faults after which somebody who waits is told why."""


class Deadline:
    """`seconds` from now. Pauses grow, at random, while faults go on.

    Threads that share one share the growth of its pauses, too.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._told_at = min(time.monotonic() + _SILENCE, self._end)
        self._ceiling = _FIRST_PAUSE

    @property
    def passed(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._end

    def pause(self, at_least: float | None = None) -> bool:
        """Sleep after a fault, `at_least` seconds where that is given; False, at once, if over."""
        wanted = max(random.uniform(0, self._ceiling), at_least or 0)  # noqa: S311  # jitter
        self._ceiling = min(self._ceiling * 2, _LONGEST_PAUSE)
        return self._sleep(wanted)

    def give_way(self, losses: int, took: float) -> bool:
        """Sleep after another was first for the nth time; False, at once, if over.

        `took` is how long the lost try lasted: the more rivals, the more such
        times are waited, at random, so that one of them gets through.
        """
        tries = min(2**losses, _RIVALS)
        return self._sleep(random.uniform(0, took * tries))  # noqa: S311  # jitter

    def persist(self, action: Callable[[], T]) -> T:
        """What `action` returns; a `TransientError` is met by trying again until the deadline.

        Where that takes long, a warning says so once.
        """
        while True:
            try:
                result = action()
                self._ceiling = _FIRST_PAUSE
                return result
            except OfflineError:
                raise
            except TransientError as error:
                self._tell(error)
                if not self.pause(error.retry_after):
                    raise

    def _tell(self, error: TransientError) -> None:
        now = time.monotonic()
        if self._told_at <= now < self._end:
            self._told_at = self._end
            left = round(self._end - now)
            logger.warning("the store does not answer; trying for %d s more: %s", left, error)

    def _sleep(self, wanted: float) -> bool:
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(wanted, left))
        return True
