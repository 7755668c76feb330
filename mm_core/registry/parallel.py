"""Ask a store for several things at once: they take as long as one."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST = 64


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``[work(item) for item in items]``, each in a thread of its own, up to 64 at a time.

    The first failure is raised as soon as it is known. The threads are daemons:
    one that is stuck in a read keeps neither an interrupt nor the end of the
    process waiting.
    """
    if len(items) <= 1:
        return [work(item) for item in items]
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, list[R], BaseException | None]] = queue.SimpleQueue()
    for index in range(len(items)):
        todo.put(index)

    def run() -> None:
        while True:
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, [work(items[index])], None))
            except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
                done.put((index, [], error))

    for _ in range(min(len(items), _MOST)):
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(run,), name="mm-log", daemon=True).start()
    results: dict[int, R] = {}
    while len(results) < len(items):
        index, result, error = done.get()
        if error is not None:
            _empty(todo)
            raise error
        results[index] = result[0]
    return [results[index] for index in range(len(items))]


def _empty(todo: queue.SimpleQueue[int]) -> None:
    """Begin nothing more."""
    while True:
        try:
            todo.get_nowait()
        except queue.Empty:
            return
