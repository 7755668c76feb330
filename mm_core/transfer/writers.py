"""Threads that write parts while others read on."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable


class Writers:
    """Up to `count` daemon threads, started when there is work, ended by `close`.

    What is submitted handles its own errors. After `close` the threads end once
    the work before it is done; nobody waits for one that is stuck.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._pending = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Do `work` on one of the threads, in the order of submission."""
        with self._lock:
            self._pending += 1
            start = self._pending > self._started < self._count
            self._started += start
        self._work.put(work)
        if start:
            run = contextvars.copy_context().run
            threading.Thread(target=run, args=(self._run,), name="mm-write", daemon=True).start()

    def close(self) -> None:
        """Let the threads end."""
        with self._lock:
            for _ in range(self._started):
                self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            finally:
                with self._lock:
                    self._pending -= 1
