"""A resumable upload to GCS, whose wrong bytes never become an object."""

from __future__ import annotations

import base64
import contextlib
from functools import partial
from typing import Any

from mm_core import MMError, NotFoundError, StorageError, TransientError
from mm_plugins.sinks._gcs_api import Answer, GcsApi
from mm_plugins.sinks._patience import ATTEMPTS, persist

_MORE = 308
_CLOSED = frozenset({404, 410, 499})


class ResumableUpload:
    """One upload session. Parts are appended in order; the last one makes the object.

    After a fault GCS is asked how much it has, and gets the rest, so that no
    byte is sent twice. Where the server is not Google's (`asks` is false), a
    fault ends the upload: known emulators make an object of what they have when
    they are asked, and append a second time what is sent again.
    """

    def __init__(self, api: GcsApi, url: str, *, name: str, asks: bool) -> None:
        self._api = api
        self._url = url
        self._name = name
        self._asks = asks
        self._end = 0
        self._kept = 0
        self._in_doubt = False

    def append(self, part: bytearray) -> None:
        """Send one part; its size is a multiple of 256 KiB."""
        self._send(part, None)

    def finish(self, part: bytearray, md5: Any) -> dict[str, Any]:
        """Send the last part, and what the md5 of all must be; GCS's record of the object.

        GCS refuses to make an object of bytes with another md5.
        """
        record = self._send(part, md5)
        if record is None:
            raise StorageError(f"{self._name}: GCS never ended the upload")
        return record

    def cancel(self) -> None:
        """Give it up; GCS forgets it by itself where this fails."""
        with contextlib.suppress(MMError):
            self._api.ask("DELETE", self._url, name=self._name, accept=_CLOSED, attempts=1)

    def _send(self, part: bytearray, md5: Any | None) -> dict[str, Any] | None:
        start, self._end = self._end, self._end + len(part)
        attempts = ATTEMPTS if self._asks else 1
        return persist(partial(self._try, part, start, md5), attempts=attempts)

    def _try(self, part: bytearray, start: int, md5: Any | None) -> dict[str, Any] | None:
        total = "*" if md5 is None else str(self._end)
        if self._in_doubt:
            record = self._note(self._put(f"*/{total}", md5=md5))
            if record is not None or (md5 is None and self._kept == self._end):
                return record
        self._in_doubt = True
        rest = memoryview(part)[self._kept - start :]
        span = f"{self._kept}-{self._end - 1}" if rest else "*"
        record = self._note(self._put(f"{span}/{total}", rest, md5))
        self._in_doubt = False
        if self._kept < self._end or (md5 is not None and record is None):
            raise TransientError(f"{self._name}: GCS has {self._kept} of {self._end} bytes")
        return record

    def _put(self, span: str, body: bytes | memoryview = b"", md5: Any | None = None) -> Answer:
        hashed = {} if md5 is None else {"X-Goog-Hash": f"md5={in_base64(md5)}"}
        try:
            return self._api.ask(
                "PUT",
                self._url,
                name=self._name,
                headers={"Content-Range": f"bytes {span}", **hashed},
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
        kept = answer.headers.get("Range", "")
        self._kept = int(kept.rpartition("-")[2]) + 1 if kept else 0
        return None


def in_base64(md5: Any) -> str:
    """A hash as GCS writes it."""
    return base64.b64encode(md5.digest()).decode()
