"""Do a few things at once, in threads that nobody has to wait for at the end."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mm_core.exceptions import CancelledError, UsageError

T = TypeVar("T")
R = TypeVar("R")

GRACE = 1.0
"""Seconds that running work has to clean up after it was told to stop."""

_POLL = 0.1
_MOST = 64


def run_parallel(
    work: Callable[[T], R], items: Sequence[T], *, jobs: int, cancelled: threading.Event
) -> list[R]:
    """``[work(item) for item in items]``, on up to `jobs` threads.

    The first failure (or an interrupt in the caller) sets `cancelled`, starts
    nothing more, gives what runs `GRACE` seconds to clean up, and is raised. The
    threads are daemons: one that is stuck in a read keeps nobody waiting, and ends
    at the next byte it reads.
    """
    if jobs < 1:
        raise UsageError(f"jobs must be 1 or more, not {jobs}")

    def stoppable(item: T) -> R:
        try:
            if cancelled.is_set():
                raise CancelledError("stopped")  # one way to report
            return work(item)
        except BaseException:
            cancelled.set()
            raise

    crew = _Crew(stoppable, items, count=jobs, name="mm-transfer")
    try:
        crew.start()
        failure = _first_failure(crew, cancelled)
    except BaseException:
        cancelled.set()
        crew.join(GRACE)
        raise
    if failure is not None:
        raise failure
    return crew.results()


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``[work(item) for item in items]``, each in a thread of its own, up to 64 at a time.

    The first failure is raised as soon as it is known. The threads are daemons:
    one that is stuck in a read keeps neither an interrupt nor the end of the
    process waiting.
    """
    if len(items) <= 1:
        return [work(item) for item in items]
    crew = _Crew(work, items, count=_MOST, name="mm-log")
    crew.start()
    while not crew.is_done:
        error = crew.take()
        if error is not None:
            crew.begin_nothing_more()
            raise error
    return crew.results()


def _first_failure(crew: _Crew[T, R], cancelled: threading.Event) -> BaseException | None:
    """Wait for all, or after a stop for as long as `GRACE`; what went wrong first, if anything."""
    failure: BaseException | None = None
    stopping: float | None = None
    while not crew.is_done:
        try:
            error = crew.take(timeout=_POLL)
        except queue.Empty:
            if not cancelled.is_set():
                continue
            stopping = stopping or time.monotonic()
            if time.monotonic() - stopping < GRACE:
                continue
            return failure or CancelledError("stopped")
        if error is not None and (failure is None or isinstance(failure, CancelledError)):
            failure = error
    return failure


class _Crew(Generic[T, R]):
    """Daemon threads that work off items, in the context of whoever made them."""

    def __init__(
        self, work: Callable[[T], R], items: Sequence[T], *, count: int, name: str
    ) -> None:
        self._work = work
        self._items = items
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, list[R], BaseException | None]]
        self._done = queue.SimpleQueue()
        self._taken: dict[int, list[R]] = {}
        for index in range(len(items)):
            self._todo.put(index)
        self._threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True
            )
            for _ in range(min(count, len(items)))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Whether it is known of each item how it ended."""
        return len(self._taken) == len(self._items)

    def take(self, timeout: float | None = None) -> BaseException | None:
        """Hear how one more item ended: with an error, or None. `queue.Empty` after `timeout`."""
        index, result, error = self._done.get(timeout=timeout)
        self._taken[index] = result
        return error

    def results(self) -> list[R]:
        """What came of each item; all ended well."""
        return [self._taken[index][0] for index in range(len(self._items))]

    def begin_nothing_more(self) -> None:
        """Leave what nobody has begun."""
        while True:
            try:
                self._todo.get_nowait()
            except queue.Empty:
                return

    def join(self, seconds: float) -> None:
        """Give those that run so many seconds to end."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            try:
                index = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._done.put((index, [self._work(self._items[index])], None))
            except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
                self._done.put((index, [], error))
