"""A cap on bandwidth, shared by all that one process transfers."""

from __future__ import annotations

import threading
import time

from mm_core.exceptions import UsageError

_SLICES_A_SECOND = 8


class RateLimit:
    """No more than `bytes_per_second`, over any number of threads and transfers.

    Nothing is saved up while nobody reads, so that there are no bursts later.
    """

    def __init__(self, bytes_per_second: float) -> None:
        if not bytes_per_second > 0:
            raise UsageError(f"a rate limit must be above 0 bytes a second, not {bytes_per_second}")
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def slice(self) -> int:
        """How many bytes to ask for at once, so that the waits stay short."""
        return max(1024, int(self._rate / _SLICES_A_SECOND))

    def spend(self, count: int) -> float:
        """Note that `count` bytes came; the seconds to wait before asking for more."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + count / self._rate
            return self._free_at - now
