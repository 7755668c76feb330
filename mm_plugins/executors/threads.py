"""The threads executor: jobs in threads of this process. It is the default."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence

from pydantic import Field

from mm_core import CancelledError, Ended, Executor, Job, PluginConfig, Stop, hookimpl

_POLL = 0.1
_GRACE = 1.0
"""Seconds that running jobs have to clean up after they were asked to stop."""


@hookimpl
def mm_executors() -> list[type[Executor]]:
    """Offer the threads executor."""
    return [ThreadsExecutor]


class ThreadsExecutor(Executor):
    """Jobs in daemon threads: one that is stuck in a read keeps nobody waiting at the end."""

    type = "threads"

    class Config(PluginConfig):
        """The settings of the executor."""

        workers: int = Field(2, ge=1, le=64, description="Jobs at once")

    def run(
        self, jobs: Sequence[Job], *, cancelled: threading.Event
    ) -> Generator[Ended, None, None]:
        """Start the threads, and hand on what comes from them."""
        work = _Work(jobs, Stop(cancelled))
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(work.go_on,),
                name="mm-job",
                daemon=True,
            )
            for _ in range(min(self.config.workers, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from work.ended()
        finally:
            work.stop.set()
            deadline = time.monotonic() + _GRACE
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))


class _Work:
    """The jobs of one run, and what came of them."""

    def __init__(self, jobs: Sequence[Job], stop: Stop) -> None:
        self.stop = stop
        self._open = dict.fromkeys(range(len(jobs)))
        self._todo: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        for numbered in enumerate(jobs):
            self._todo.put(numbered)

    def go_on(self) -> None:
        """Carry out one job after the other, until none is left."""
        while True:
            try:
                index, job = self._todo.get_nowait()
            except queue.Empty:
                return
            self._ended.put(self._carried_out(index, job))

    def ended(self) -> Iterator[Ended]:
        """How each job ended; once it was stopped, without waiting for those that are stuck."""
        stopped: float | None = None
        while self._open:
            try:
                one = self._ended.get(timeout=_POLL)
            except queue.Empty:
                if stopped is None and self.stop.is_set():
                    stopped = time.monotonic()
                if stopped is None or time.monotonic() - stopped < _GRACE:
                    continue
                one = Ended(index=next(iter(self._open)), error=_stopped())
            if one.index in self._open:  # one that was given up may end after all
                del self._open[one.index]
                yield one

    def _carried_out(self, index: int, job: Job) -> Ended:
        try:
            if self.stop.is_set():
                raise _stopped()
            return Ended(index=index, result=job(self.stop))
        except BaseException as error:  # noqa: BLE001  # it is how the job ended
            return Ended(index=index, error=error)


def _stopped() -> CancelledError:
    return CancelledError("stopped")
