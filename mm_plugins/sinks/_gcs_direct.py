"""Requests to GCS over connections of our own, from and into the caller's memory.

aiohttp copies a body several times on gcsfs's one event loop; here it goes from
memory into the socket, and back likewise.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from mm_core import Buffer, MMError, redact_url

_BLOCK = 1 << 20
_ANSWER_LIMIT = 1 << 20


class Direct:
    """Kept connections, made when they are first needed. `name` tells the object in errors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Any = None

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Buffer,
        *,
        name: str,
        repeatable: bool,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request: its status, headers (in small letters) and whole small answer."""
        with _about(name, url):
            answer = self._wire.request(method, url, headers, body, repeatable=repeatable)
            with closing(answer):
                return answer.status, answer.headers, answer.read(_ANSWER_LIMIT)

    def open(self, url: str, headers: Mapping[str, str], *, name: str) -> DirectBody:
        """One GET, whose body is still to be read."""
        with _about(name, url):
            return DirectBody(self._wire.request("GET", url, headers), name)

    def close(self) -> None:
        """Let the connections go; the next call opens new ones."""
        with self._lock:
            wire, self._made = self._made, None
        if wire is not None:
            wire.close()

    @property
    def _wire(self) -> Any:
        with self._lock:
            if self._made is None:
                from mm_plugins._wire import Wire

                self._made = Wire()
            return self._made


class DirectBody:
    """An answer whose body is still to be read."""

    def __init__(self, response: Any, name: str) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._name = name

    def blocks(self) -> Iterator[memoryview]:
        """The body in one buffer, filled anew each time."""
        buffer = memoryview(bytearray(_BLOCK))
        with _about(self._name, self._response.url):
            while count := self._response.readinto(buffer):
                yield buffer[:count]

    def read(self) -> bytes:
        """The whole small body."""
        with _about(self._name, self._response.url):
            body: bytes = self._response.read(_ANSWER_LIMIT)
            return body

    def close(self) -> None:
        """Give up what was not read."""
        self._response.close()


@contextmanager
def _about(name: str, url: str) -> Iterator[None]:
    """Name the object in errors in the place of a URL: that of an upload is a secret itself."""
    try:
        yield
    except MMError as error:
        message = error.message.replace(redact_url(url), name)
        raise type(error)(message, hint=error.hint) from error.__cause__
