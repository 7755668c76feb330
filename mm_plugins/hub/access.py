"""Who asks, and what they may: bearer tokens, and patience that ends with who guesses them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mm_plugins.hub.config import HubConfig
from mm_plugins.hub.tokens import Token

WINDOW = 60.0
"""Seconds over which wrong tokens of one address are counted."""

_MOST_ADDRESSES = 100_000


class Failures:
    """Counts wrong tokens by address. Safe among threads.

    An address that gave `most` of them within a minute waits until the oldest of
    these is a minute old.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, address: str) -> float:
        """Seconds until `address` is listened to again; 0 where it need not wait."""
        with self._lock:
            times = self._recent(address)
            return times[0] + WINDOW - time.monotonic() if len(times) >= self._most else 0.0

    def note(self, address: str) -> None:
        """`address` gave a wrong token."""
        with self._lock:
            times = [*self._recent(address), time.monotonic()]
            self._times[address] = times[-self._most :]
            self._times.move_to_end(address)
            while len(self._times) > _MOST_ADDRESSES:
                self._times.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - WINDOW
        times = [moment for moment in self._times.get(address, ()) if moment > since]
        if not times:
            self._times.pop(address, None)
        return times


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks: with a token that was checked, or without one."""

    config: HubConfig
    token: Token | None = None

    @property
    def name(self) -> str | None:
        """What the token is called."""
        return None if self.token is None else self.token.name

    def sees(self, model_id: str) -> bool:
        """Whether they may know that there is a model of this id, and what it has."""
        if self.token is not None and self.token.allows("read", model_id):
            return True
        return self.config.anybody_reads and not _matches(model_id, self.config.private)

    def reads(self, model_id: str) -> bool:
        """Whether they may have the bytes of a model that they see."""
        if self.token is not None and self.token.allows("read", model_id):
            return True
        return self.sees(model_id) and not _matches(model_id, self.config.gated)

    def is_gated(self, model_id: str) -> bool:
        """Whether the files of a model are for some only."""
        return _matches(model_id, self.config.gated)

    def is_private(self, model_id: str) -> bool:
        """Whether a model is hidden from those without a token."""
        return not self.config.anybody_reads or _matches(model_id, self.config.private)


def _matches(model_id: str, globs: list[str]) -> bool:
    return any(fnmatchcase(model_id, glob) for glob in globs)
