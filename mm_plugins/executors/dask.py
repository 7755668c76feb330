"""The dask executor: jobs on the workers of a Dask cluster, which another may be watching."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from pydantic import Field

from mm_core import (
    CancelledError,
    ConfigError,
    Ended,
    Executor,
    Job,
    MissingExtraError,
    MMError,
    PluginConfig,
    Size,
    TransientError,
    heard_by,
    hookimpl,
)

_POLL = 0.05
_LOOK_FOR_STOP = 0.5


@hookimpl
def mm_executors() -> list[type[Executor]]:
    """Offer the dask executor."""
    return [DaskExecutor]


class DaskExecutor(Executor):
    """Each job is a task of dask.distributed, on any worker that has Model Manager installed.

    A job whose worker was lost is carried out again by another, as often as the scheduler
    allows (``distributed.scheduler.allowed-failures``). What jobs say on their way comes
    back by a topic of the scheduler's.
    """

    type = "dask"

    class Config(PluginConfig):
        """The settings of the executor."""

        scheduler: str | None = Field(
            default=None,
            description="Such as tcp://host:8786; DASK_SCHEDULER_ADDRESS if it is not given",
        )
        split: Size | None = Field(
            default=1 << 30,
            description="Files of so many bytes and more come in ranges by several workers, where "
            "the store takes them; null for none",
        )
        timeout: float = Field(default=10.0, gt=0, description="Seconds to reach the scheduler")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._connected: Any = None

    @property
    def split_bytes(self) -> int | None:
        """What the settings say."""
        split: int | None = self.config.split
        return split

    def run(
        self, jobs: Sequence[Job], *, cancelled: threading.Event
    ) -> Generator[Ended, None, None]:
        """Send all jobs to the scheduler, and hand on what comes of them."""
        if not jobs or cancelled.is_set():
            yield from (_stopped(index) for index in range(len(jobs)))
            return
        client, name = self._client(), f"mm-{uuid.uuid4().hex}"
        with self._lost_is_told(), self._listening(client, name, jobs):
            futures = {}
            for index, job in enumerate(jobs):  # in their order: Dask itself promises none
                ways = {"key": f"{name}-{index}", "pure": False, "priority": -index}
                futures[client.submit(_carry_out, job, index, name, **ways)] = index
            try:
                while futures and not cancelled.is_set():
                    for future in [one for one in futures if one.done()]:
                        yield _ended(futures.pop(future), future, asked=cancelled.is_set())
                    time.sleep(_POLL)
                left = sorted(futures.values())
            finally:
                if futures:
                    self._stop(client, name, list(futures))
        yield from map(_stopped, left)

    def close(self) -> None:
        """Leave the cluster."""
        with self._lock:
            client, self._connected = self._connected, None
        if client is not None:
            client.close()

    def _client(self) -> Any:
        with self._lock:
            if self._connected is not None and self._connected.status != "running":
                gone, self._connected = self._connected, None  # there may be another by now
                with contextlib.suppress(OSError, TimeoutError):
                    gone.close(timeout=0)
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    def _connect(self) -> Any:
        try:
            import distributed
        except ImportError as error:
            raise MissingExtraError(
                "the executor dask needs dask.distributed",
                hint="pip install 'model-manager[dask]'",
            ) from error
        address = self.config.scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS")
        if not address:
            raise ConfigError(
                "it is not said where the Dask scheduler is",
                hint="give --scheduler tcp://HOST:8786, or set DASK_SCHEDULER_ADDRESS",
            )
        make: Any = distributed.Client
        try:
            return make(address, timeout=self.config.timeout, set_as_default=False)
        except (OSError, ValueError) as error:
            raise TransientError(
                f"the Dask scheduler at {address} does not answer: {error}",
                hint="look whether it runs, and whether its version is the one here",
            ) from error

    @staticmethod
    @contextlib.contextmanager
    def _lost_is_told() -> Iterator[None]:
        """Let what Dask raises where the scheduler is gone be an error that may pass."""
        from distributed.client import ClosedClientError

        try:
            yield
        except (ClosedClientError, OSError) as error:
            if isinstance(error, MMError):
                raise
            raise _lost(f"the connection to the Dask scheduler: {error}") from error

    @staticmethod
    @contextlib.contextmanager
    def _listening(client: Any, name: str, jobs: Sequence[Job]) -> Iterator[None]:
        """Hand on to each job here what it says there."""

        def hear(event: tuple[float, Any]) -> None:
            index, said = event[1]
            heard = getattr(jobs[index], "heard", None)
            if heard is not None:
                heard(said)

        client.subscribe_topic(name, hear)
        try:
            yield
        finally:
            if client.status == "running":
                with contextlib.suppress(ValueError, OSError):
                    client.unsubscribe_topic(name)

    @staticmethod
    def _stop(client: Any, name: str, futures: Sequence[Any]) -> None:
        """Tell those that run, and take back those that do not."""
        if client.status != "running":
            return
        with contextlib.suppress(OSError, TimeoutError):
            _event(name, client=client).set()
            client.cancel(list(futures))


def _carry_out(job: Job, index: int, name: str) -> tuple[Any, BaseException | None]:
    """On the worker: do the job, and return how it ended; what it says goes to the topic."""
    from distributed import get_client, get_worker

    worker, stop, over = get_worker(), threading.Event(), threading.Event()
    asked = _event(name, client=get_client())  # which another thread could not look up

    def say(said: Any) -> None:
        worker.log_event(name, (index, said))

    def look() -> None:
        while not over.wait(_LOOK_FOR_STOP):
            with contextlib.suppress(Exception):
                if asked.is_set():
                    stop.set()
                    return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        with heard_by(say):
            return job(stop), None
    except Exception as error:  # noqa: BLE001  # it is told where it is asked for
        return None, error
    finally:
        over.set()


def _event(name: str, **options: Any) -> Any:
    """An event of the scheduler's, which all see."""
    import distributed

    made: Any = distributed.Event
    return made(name, **options)


def _ended(index: int, future: Any, *, asked: bool) -> Ended:
    if future.status == "finished":
        result, error = future.result()
        return Ended(index=index, result=result, error=error)
    if future.status == "cancelled" and asked:
        return _stopped(index)
    found = future.exception() if future.status == "error" else None
    lost = _lost(f"the workers that had it, or their scheduler: {found or future.status}")
    return Ended(index=index, error=found if isinstance(found, MMError) else lost)


def _lost(what: str) -> TransientError:
    return TransientError(f"lost: {what}", hint="the same again goes on with what is stored")


def _stopped(index: int) -> Ended:
    return Ended(index=index, error=CancelledError("stopped"))
