"""Trying again where a store is known to be only briefly unwilling."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mm_core import Buffer, OfflineError, TransientError

_log = logging.getLogger(__name__)
_LONGEST = 5.0

ATTEMPTS = 5
"""How often something is tried that may be done twice without harm: a few seconds in all."""

T = TypeVar("T")


def persist(action: Callable[[], T], *, attempts: int = ATTEMPTS) -> T:
    """The result of `action`, tried again after a `TransientError`, with jitter."""
    for attempt in range(1, attempts):
        try:
            return action()
        except OfflineError:
            raise
        except TransientError as error:
            _pause(error, attempt)
    return action()


def read_on(open_at: Callable[[int], Iterator[bytes]], start: int) -> Iterator[Buffer]:
    """All that `open_at` yields from `start`; after a cut it is asked for the rest.

    Attempts count anew when something came.
    """
    position, attempt = start, 0
    while True:
        try:
            for block in open_at(position):
                position += len(block)
                attempt = 0
                yield block
            return
        except TransientError as error:
            attempt += 1
            if attempt >= ATTEMPTS:
                raise
            _pause(error, attempt)


def _pause(error: TransientError, attempt: int) -> None:
    delay = min(error.retry_after or 0.1 * 2**attempt, _LONGEST) * random.uniform(0.5, 1)  # noqa: S311  # jitter
    _log.debug("the store is asked again", extra={"reason": str(error), "delay_seconds": delay})
    time.sleep(delay)
