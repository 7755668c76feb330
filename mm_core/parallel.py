"""Do a few things at once, stop all at the first failure, and never hang at the end."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mm_core.exceptions import CancelledError, UsageError

T = TypeVar("T")
R = TypeVar("R")

GRACE = 1.0
"""Seconds that running work has to clean up after it was told to stop."""

_POLL = 0.1


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
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()
    for index in range(len(items)):
        todo.put(index)

    def worker() -> None:
        while True:
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            try:
                if cancelled.is_set():
                    raise CancelledError("stopped")  # one way to report
                done.put((index, work(items[index]), None))
            except BaseException as error:  # noqa: BLE001  # handed to the caller's thread
                cancelled.set()
                done.put((index, None, error))

    threads = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(worker,), name="mm-transfer", daemon=True
        )
        for _ in range(min(jobs, len(items)))
    ]
    results: dict[int, R | None] = {}
    failure: BaseException | None = None
    stopping: float | None = None
    try:
        for thread in threads:
            thread.start()
        while len(results) < len(items):
            try:
                index, result, error = done.get(timeout=_POLL)
            except queue.Empty:
                if not cancelled.is_set():
                    continue
                stopping = stopping or time.monotonic()
                if time.monotonic() - stopping < GRACE:
                    continue
                failure = failure or CancelledError("stopped")
                break
            results[index] = result
            if error is not None and (failure is None or isinstance(failure, CancelledError)):
                failure = error
    except BaseException:
        cancelled.set()
        deadline = time.monotonic() + GRACE
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
    if failure is not None:
        raise failure
    return [results[index] for index in range(len(items))]  # type: ignore[misc]
