"""Executor: the port to where independent jobs run."""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

from mm_core.configured import Configured

Job = Callable[[threading.Event], Any]
"""One piece of work: a value that can be pickled, called with the event that asks it to stop.

It holds all that it needs, and no secret: where it is called, it makes what cannot be
carried. What it returns and raises can be pickled, too.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one job ended: with a `result`, or with an `error`. `index` is its place among all."""

    index: int
    result: Any = None
    error: BaseException | None = None


class Executor(Configured):
    """Where independent jobs run: in threads of this process, or on other machines.

    It knows nothing of models. One instance serves many threads at once, and any
    number of `run`.
    """

    type: ClassVar[str]
    """The word for it in ``mm pull --executor``."""

    @property
    def split_bytes(self) -> int | None:
        """Files of so many bytes and more are brought in ranges, by several jobs at once.

        That is worth it where jobs run on machines with lines of their own. None: each
        file by one job. Only some stores take parts of one file from several machines.
        """
        return None

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], *, cancelled: threading.Event
    ) -> Generator[Ended, None, None]:
        """Carry out each of `jobs`; yield how each ended, as soon as it did, in any order.

        There is one `Ended` for each job. A job that raises has ended with that error,
        and keeps no other from running. A job may be carried out again where its
        machine was lost: each is made so that twice is once.

        Once `cancelled` is set no more jobs begin; those that did not begin, and those
        that stopped, ended with `CancelledError`. A job that runs in this process is
        called with an event that hears `cancelled`; one that runs elsewhere is told
        where there is a way, and else left to itself. Closing the iterator early has
        the same effect, on these jobs alone. Neither waits long for a job that is stuck.
        """

    def close(self) -> None:
        """Give back what was opened. Called once, when nothing runs any more."""


_listener: ContextVar[Callable[[Any], None] | None] = ContextVar("mm_job_listener", default=None)


@contextlib.contextmanager
def heard_by(listener: Callable[[Any], None]) -> Iterator[None]:
    """Let `listener` hear what is said within, by `say`. For executors, where a job runs.

    What is said is JSON data; the executor hands it to the method ``heard`` of the job
    where it came from, if that has one.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def say(told: Any) -> None:
    """Say something on the way, to whoever has sent the job; nobody may be listening."""
    listener = _listener.get()
    if listener is not None:
        listener(told)
