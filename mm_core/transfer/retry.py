"""Try again where that may help: with jitter, obeying the other side, and never for ever."""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mm_core.exceptions import (
    CancelledError,
    IntegrityError,
    OfflineError,
    TransientError,
    UploadLostError,
)
from mm_core.schemas import RemoteFile
from mm_core.sink import Buffer
from mm_core.source import RangeReader, Source

_POLL = 0.2

OnRetry = Callable[[TransientError, int, float], None]
"""Called before each wait with the error, the offset in bytes, and the seconds to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and how long to wait. Delays are in seconds.

    The n-th delay is drawn from [0, base * 2**n], at most `cap`; `Retry-After`
    lengthens it, and one beyond `patience` ends the trying.
    """

    retries: int = 5
    base: float = 0.5
    cap: float = 30.0
    patience: float = 600.0
    draw: Callable[[], float] = field(default=random.random)

    def delay(self, error: TransientError, attempt: int) -> float:
        """Seconds to wait before try number `attempt` + 1; raises `error` if that is over."""
        if attempt >= self.retries or isinstance(error, OfflineError):
            raise error
        if error.retry_after is not None and error.retry_after > self.patience:
            raise error
        backoff = min(self.cap, self.base * 2.0**attempt) * self.draw()
        return max(backoff, error.retry_after or 0.0)


def pause(seconds: float, cancelled: threading.Event) -> None:
    """Wait, but no longer than until `cancelled`: then `CancelledError`."""
    if cancelled.wait(seconds):
        raise CancelledError("stopped")


def steadily(
    action: Callable[[], None],
    *,
    policy: RetryPolicy,
    cancelled: threading.Event,
    on_retry: Callable[[TransientError, float], None],
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Do `action`, again after each `TransientError`, until it is done or somebody has `given_up`.

    Not after an `UploadLostError`: the same again is lost as well.
    """
    attempt = 0
    while not given_up():
        try:
            action()
        except UploadLostError:
            raise
        except TransientError as error:
            delay = policy.delay(error, attempt)
            on_retry(error, delay)
        else:
            return
        pause(delay, cancelled)
        attempt += 1


class SteadyReader:
    """One file, read to its end through cuts and refusals.

    After an error the next read goes on where the last one stopped; the tries
    are counted anew whenever bytes came. `gave_up` holds the error that ended it.
    """

    def __init__(
        self,
        source: Source,
        file: RemoteFile,
        policy: RetryPolicy,
        cancelled: threading.Event,
        on_retry: OnRetry,
    ) -> None:
        self._source = source
        self._file = file
        self._policy = policy
        self._cancelled = cancelled
        self._on_retry = on_retry
        self.offset = 0
        self.gave_up: BaseException | None = None

    def __iter__(self) -> Iterator[Buffer]:
        try:
            yield from self._read()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.gave_up = error
            raise

    def _read(self) -> Iterator[Buffer]:
        attempt = 0
        while True:
            before = self.offset
            try:
                yield from self._once()
                self._check_end()
                return
            except TransientError as error:
                attempt = 0 if self.offset > before else attempt
                delay = self._policy.delay(error, attempt)
                self._on_retry(error, self.offset, delay)
            pause(delay, self._cancelled)
            attempt += 1

    def _once(self) -> Iterator[Buffer]:
        buffers = self._source.read(self._file, self.offset)
        try:
            for buffer in buffers:
                if self._cancelled.is_set():
                    raise CancelledError("stopped")
                self.offset += len(buffer)
                yield buffer
        finally:
            close = getattr(buffers, "close", None)
            if close is not None:
                close()

    def _check_end(self) -> None:
        size = self._file.size
        if size is None or self.offset == size:
            return
        if self.offset > size:
            raise IntegrityError(f"{self._file.path}: more than the {size} bytes that were stated")
        raise TransientError(f"{self._file.path}: ended after {self.offset} of {size} bytes")


class SteadyRange:
    """The bytes ``[start, end)`` of one file, read into buffers through cuts and refusals."""

    def __init__(
        self,
        source: Source,
        file: RemoteFile,
        start: int,
        end: int,
        *,
        policy: RetryPolicy,
        cancelled: threading.Event,
        on_retry: OnRetry,
    ) -> None:
        self._source = source
        self._file = file
        self._policy = policy
        self._cancelled = cancelled
        self._on_retry = on_retry
        self._reader: RangeReader | None = None
        self._ahead: _Ahead | None = None
        self._attempt = 0
        self.offset = start
        self.end = end
        self.waited = 0.0
        """Seconds from asking for the bytes to the answer, the last time that was awaited here."""

    def ask_ahead(self) -> None:
        """Ask for the bytes now, in a thread of its own, so that `readinto` finds them coming.

        What goes wrong is told by `readinto`.
        """
        self._ahead = _Ahead(self._open)

    def readinto(self, buffer: memoryview) -> int:
        """Put one byte or more into `buffer`, which must not reach beyond the range's end."""
        while True:
            try:
                count = self._once(buffer)
            except TransientError as error:
                self.close()
                delay = self._policy.delay(error, self._attempt)
                self._on_retry(error, self.offset, delay)
            else:
                self._attempt = 0
                self.offset += count
                return count
            pause(delay, self._cancelled)
            self._attempt += 1

    def close(self) -> None:
        """Free the connection."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.drop()
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.close()

    def _once(self, buffer: memoryview) -> int:
        if self._reader is None:
            self._reader = self._asked()
        count = self._reader.readinto(buffer)
        if count == 0:
            raise TransientError(
                f"{self._file.path}: ended after {self.offset} of {self._file.size} bytes"
            )
        return count

    def _asked(self) -> RangeReader:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead.take(self._cancelled)
        began = time.monotonic()
        reader = self._open()
        self.waited = time.monotonic() - began
        return reader

    def _open(self) -> RangeReader:
        return self._source.open(self._file, self.offset, self.end)


class _Ahead:
    """A range that is asked for in a thread, until somebody takes the reader or drops it."""

    def __init__(self, ask: Callable[[], RangeReader]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._dropped = False
        self._reader: RangeReader | None = None
        self._error: BaseException | None = None
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(self._run,), name="mm-ahead", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            self._run()

    def take(self, cancelled: threading.Event) -> RangeReader:
        """The reader; waits for it. Raises what asking raised, or `CancelledError`."""
        while not self._over.wait(_POLL):
            if cancelled.is_set():
                self.drop()
                raise CancelledError("stopped")
        if self._error is not None:
            raise self._error
        assert self._reader is not None
        return self._reader

    def drop(self) -> None:
        """Nobody wants the reader: close it now, or when it comes."""
        with self._lock:
            self._dropped, reader = True, self._reader
        if reader is not None:
            reader.close()

    def _run(self) -> None:
        try:
            reader = self._ask()
        except BaseException as error:  # noqa: BLE001  # `take` raises it
            self._error = error
        else:
            with self._lock:
                self._reader = reader
            if self._dropped:
                reader.close()
        finally:
            self._over.set()
