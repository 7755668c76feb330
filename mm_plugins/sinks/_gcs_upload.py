"""A resumable upload to GCS, whose wrong bytes never become an object."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any, TypeVar

from mm_core import CancelledError, MMError, NotFoundError, StorageError, TransientError
from mm_plugins.sinks._gcs_api import Answer, GcsApi
from mm_plugins.sinks._gcs_checksums import begin_checksum
from mm_plugins.sinks._patience import ATTEMPTS, persist

_MORE = 308
_CLOSED = frozenset({404, 410, 499})

T = TypeVar("T")


class ResumableUpload:
    """One upload session. Parts are appended in order; the last one makes the object.

    A part is sent while the caller makes the next one. After a fault GCS is asked
    how much it has, and gets the rest, so that no byte is sent twice. Where the
    server is not Google's (`asks` is false), a fault ends the upload: known
    emulators make an object of what they have when they are asked, and append a
    second time what is sent again.
    """

    def __init__(self, api: GcsApi, url: str, *, name: str, asks: bool) -> None:
        self.checksum = begin_checksum()
        self._api = api
        self._url = url
        self._name = name
        self._asks = asks
        self._end = 0
        self._kept = 0
        self._in_doubt = False
        self._cancelled = threading.Event()
        self._under_way: Future[Any] | None = None

    def append(self, part: bytearray) -> None:
        """Begin to send a part, of a multiple of 256 KiB, once the one before has arrived.

        What keeps it from arriving is raised by the next call. It is not to be changed.
        """
        self._settle()
        self._under_way = _started(partial(self._send, part, last=False))

    def finish(self, part: bytearray) -> dict[str, Any]:
        """Send the last part, and what the checksum of all must be; GCS's record of the object.

        GCS refuses to make an object of bytes with another checksum.
        """
        self._settle()
        record = self._send(part, last=True)
        if record is None:
            raise StorageError(f"{self._name}: GCS never ended the upload")
        return record

    def cancel(self) -> None:
        """Give it up, once nothing is on its way; GCS forgets it by itself where this fails."""
        self._cancelled.set()
        if self._under_way is not None:
            wait_for([self._under_way])
        with contextlib.suppress(MMError):
            self._api.ask("DELETE", self._url, name=self._name, accept=_CLOSED, attempts=1)

    def _settle(self) -> None:
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _send(self, part: bytearray, *, last: bool) -> dict[str, Any] | None:
        self.checksum.update(part)
        start, self._end = self._end, self._end + len(part)
        attempts = ATTEMPTS if self._asks else 1
        return persist(partial(self._try, part, start, last=last), attempts=attempts)

    def _try(self, part: bytearray, start: int, *, last: bool) -> dict[str, Any] | None:
        if self._cancelled.is_set():
            raise CancelledError(f"{self._name}: the upload was given up")
        total = str(self._end) if last else "*"
        if self._in_doubt:
            record = self._note(self._put(f"*/{total}", last=last))
            if record is not None or (not last and self._kept == self._end):
                return record
        self._in_doubt = True
        rest = memoryview(part)[self._kept - start :]
        span = f"{self._kept}-{self._end - 1}" if rest else "*"
        record = self._note(self._put(f"{span}/{total}", rest, last=last))
        self._in_doubt = False
        if self._kept < self._end or (last and record is None):
            raise TransientError(f"{self._name}: GCS has {self._kept} of {self._end} bytes")
        return record

    def _put(self, span: str, body: bytes | memoryview = b"", *, last: bool) -> Answer:
        sums = {"X-Goog-Hash": f"{self.checksum.word}={self.checksum.encoded()}"} if last else {}
        try:
            return self._api.send(
                "PUT",
                self._url,
                name=self._name,
                headers={"Content-Range": f"bytes {span}", **sums},
                body=body,
                accept=frozenset({_MORE}),
                attempts=1,
            )
        except NotFoundError as error:
            raise TransientError(f"{self._name}: GCS gave the upload up") from error

    def _note(self, answer: Answer) -> dict[str, Any] | None:
        """Take in how much GCS has; its record of the object, where that is made."""
        if answer.status != _MORE:
            self._kept = self._end
            record: dict[str, Any] = answer.json()
            return record
        kept = answer.headers.get("range", "")
        self._kept = int(kept.rpartition("-")[2]) + 1 if kept else 0
        return None


def _started(work: Callable[[], T]) -> Future[T]:
    """`work` under way on a daemon thread: one that is stuck keeps no process from its end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # handed to who asks for the result
            future.set_exception(error)

    inside = contextvars.copy_context().run
    threading.Thread(target=inside, args=(run,), name="mm-gcs", daemon=True).start()
    return future
