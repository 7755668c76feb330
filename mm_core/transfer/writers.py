"""Threads that write parts while others read on."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable

_POLL = 0.2


class Writers:
    """Up to `count` daemon threads, started when there is work, ended by `close`.

    What is submitted handles its own errors. Where no thread is to be had, and
    after `close`, it is done on the caller's. Nobody waits for a thread that is stuck.

    What is read and not yet written is lost where the process dies: whoever reads
    waits in `wait_for_room` while each thread has a work of its own to do.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._threads = 0
        self._pending = 0
        self._closed = False

    def submit(self, work: Callable[[], None]) -> None:
        """Do `work` on one of the threads, in the order of submission."""
        with self._changed:
            if not self._closed and self._pending >= self._threads < self._count:
                self._threads += self._start()
            queued = not self._closed and self._threads > 0
            if queued:
                self._pending += 1
                self._work.put(work)
        if not queued:
            work()

    def wait_for_room(self, stopped: Callable[[], bool]) -> None:
        """Wait until fewer works than `count` are unfinished, or `stopped` says so."""
        with self._changed:
            while self._pending >= self._count and not stopped():
                self._changed.wait(_POLL)

    def close(self) -> None:
        """Let the threads end once the work before is done."""
        with self._changed:
            self._closed = True
            for _ in range(self._threads):
                self._work.put(None)

    def _start(self) -> bool:
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(self._run,), name="mm-write", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            finally:
                with self._changed:
                    self._pending -= 1
                    self._changed.notify_all()
