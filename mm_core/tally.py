"""Telling how far long work is, in words."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mm_core.sizes import size_in_words

Tell = Callable[[str], None]
"""Hears in words, and often, how far the work is. Called by one thread at a time."""


def say_nothing(_: str) -> None:
    """The `Tell` of whoever does not want to know."""


class Tally:
    """Adds up what is done of `total`, from many threads: ``read 3.0 GiB of 20.0 GiB``.

    `verb` and `noun` are the words around the numbers; without a `noun` they are bytes.
    """

    def __init__(self, tell: Tell, verb: str, total: int | None, noun: str = "") -> None:
        self._tell = tell
        self._verb = verb
        self._total = total
        self._noun = noun
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        """Take `count` more into account, and tell where it stands."""
        with self._lock:
            self._done += count
            self._tell(str(self))

    def __str__(self) -> str:
        done, *total = (self._in_words(n) for n in (self._done, self._total) if n is not None)
        return " ".join([self._verb, " of ".join([done, *total]), self._noun]).rstrip()

    def _in_words(self, count: int) -> str:
        return f"{count:,}" if self._noun else size_in_words(count)
