"""HTTP/1.1 over kept connections, straight from the socket into the caller's memory.

The standard library's client reads through a buffer of its own and parses headers
as mail. Here a body goes from the kernel into the caller's buffer by one system
call per buffer where the system allows it, and out of the caller's memory
likewise. What to ask and what an answer means are the caller's.
"""

from __future__ import annotations

import ssl
import threading
import time
import weakref
from collections.abc import Mapping
from types import TracebackType

from mm_core import Buffer, MMError, StorageError, TransientError, redact, redact_url
from mm_plugins._connections import Route, connect, route_to, ssl_context
from mm_plugins._guard import Permit
from mm_plugins._line import (
    Chunks,
    Head,
    Line,
    MalformedError,
    content_length,
    is_chunked,
    is_kept,
    request_head,
)

IDLE_LIMIT = 64
IDLE_SECONDS = 60.0
TRY_AGAIN = "look at the connection and try again"

_SLICE = 1 << 18


class Wire:
    """Connections to any number of servers, shared by threads. Timeouts are in seconds.

    `read_timeout` is how long no byte may come, or none be taken, and how long headers
    may take that began to come; a stall is seen after one to two times as long. Idle
    connections are kept for a minute. `permit` refuses addresses, see `connect`.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        permit: Permit | None = None,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._permit = permit
        self._read_timeout = read_timeout
        self._lock = threading.Lock()
        self._context_lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._idle: list[Line] = []
        self._is_closed = False
        self._busy: weakref.WeakSet[Line] = weakref.WeakSet()

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        repeatable: bool = True,
    ) -> Response:
        """One request. Redirects are not followed and no status is an error.

        Nothing is tried twice, except that a `repeatable` request goes to a new
        connection where a kept one turns out to be dead before an answer began.
        The body is sent as it lies in memory. Raises `TransientError` for faults of
        the network, `StorageError` for a URL or header that cannot be sent, for a
        certificate that is not trusted and after `close`, `ConfigError` for a proxy or
        certificates of the environment that cannot be used.
        """
        try:
            route = route_to(url)
        except MMError:
            raise
        except ValueError:
            raise StorageError(f"{redact_url(url)} is no URL that can be read") from None
        data = None if body is None else memoryview(body).cast("B")
        head = request_head(method, url, route, headers, None if data is None else len(data))
        line = self._kept(route)
        if line is not None:
            try:
                return self._exchange(line, method, url, head, data)
            except _DeadError as error:
                if not repeatable:
                    raise _fault(error.reason, url, self._read_timeout) from error.reason
        line = self._connect(route, url)
        try:
            return self._exchange(line, method, url, head, data)
        except _DeadError as error:
            raise _fault(error.reason, url, self._read_timeout) from error.reason

    def close(self) -> None:
        """Close all connections for good; who still reads one gets a `TransientError`."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for line in self._busy:
                line.interrupt()
            self._busy.clear()  # they are not kept
        for line in idle:
            line.close()

    def give_back(self, line: Line, *, keep: bool) -> None:
        """Take a connection that was in use; `keep` if its answer was read to the end."""
        with self._lock:
            kept = keep and line in self._busy
            self._busy.discard(line)
            if kept:
                line.idle_since = time.monotonic()
                self._idle.append(line)
            dropped = [] if kept else [line]
            while self._idle and (
                len(self._idle) > IDLE_LIMIT
                or time.monotonic() - self._idle[0].idle_since > IDLE_SECONDS
            ):
                dropped.append(self._idle.pop(0))
        for each in dropped:
            each.close()

    def _exchange(
        self, line: Line, method: str, url: str, head: bytes, body: memoryview | None
    ) -> Response:
        done = False
        try:
            unsent = line.send(head, body)
            answer = line.read_head(unsent)
            response = Response(self, line, answer, method=method, url=url)
            done = True
            return response
        except (OSError, MalformedError) as error:
            if isinstance(error, MMError):
                raise
            if line.has_begun or isinstance(error, TimeoutError):
                raise _fault(error, url, self._read_timeout) from error
            raise _DeadError(error) from error
        finally:
            if not done:
                self.give_back(line, keep=False)

    def _kept(self, route: Route) -> Line | None:
        shared, limit = route.shared, time.monotonic() - IDLE_SECONDS
        while True:
            with self._lock:
                self._refuse_closed()
                found = [i for i, line in enumerate(self._idle) if line.route == shared]
                if not found:
                    return None
                line = self._idle.pop(found[-1])
                self._busy.add(line)
            if line.idle_since > limit and line.is_quiet():
                return line
            self.give_back(line, keep=False)

    def _connect(self, route: Route, url: str) -> Line:
        proxy = route.proxy
        encrypted = route.scheme == "https" or (proxy is not None and proxy.scheme == "https")
        context = self._trusted() if encrypted else None
        try:
            stream = connect(route, self._connect_timeout, context, self._permit)
        except UnicodeError:  # a host with an empty or overlong label
            raise StorageError(f"{redact_url(url)} is no URL that can be read") from None
        except OSError as error:
            if isinstance(error, MMError):
                raise
            raise _fault(error, url, self._connect_timeout, proxy=proxy) from error
        line = Line(stream, route.shared, self._read_timeout)
        try:
            with self._lock:
                self._refuse_closed()
                self._busy.add(line)
        except StorageError:
            line.close()
            raise
        return line

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise StorageError(
                "the connections were closed", hint="nothing can be asked after that"
            )

    def _trusted(self) -> ssl.SSLContext:
        with self._context_lock:
            if self._context is None:
                self._context = ssl_context()
            return self._context


class Response:
    """An answer whose body is still to be read, by one thread.

    Its connection goes back by itself when the body was read to its end. `close`
    gives it up before that; leaving the context does the same.
    """

    def __init__(self, wire: Wire, line: Line, head: Head, *, method: str, url: str) -> None:
        self.status = head.status
        self.headers = headers = head.headers
        self.url = url
        has_body = method != "HEAD" and head.status not in (204, 304)
        self.length: int | None = content_length(headers) if has_body else 0
        self._chunks = Chunks(line) if has_body and is_chunked(headers) else None
        self._wire = wire
        self._line: Line | None = line
        self._is_over = False
        self._keep = is_kept(head) and (self.length is not None or self._chunks is not None)
        if self.length == 0:
            self._finish()

    def __enter__(self) -> Response:  # noqa: PYI034  # Self is younger than Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def readinto(self, buffer: memoryview) -> int:
        """Fill as much of `buffer` as comes before the end; 0 at the end.

        Raises `TransientError` if the body is cut, or if no byte comes in time. What
        came before is given first: then the call after it raises.
        """
        line = self._line
        if line is None:
            if not self._is_over:
                what = f"{redact_url(self.url)} was closed before its end"
                raise TransientError(what, hint=TRY_AGAIN)
            return 0
        whole = False
        try:
            count = self._fill(line, buffer)
            whole = True
            return count
        except (OSError, MalformedError) as error:
            if isinstance(error, MMError):
                raise
            raise _fault(error, self.url, line.read_timeout) from error
        finally:
            if not whole:
                self.close()

    def read(self, limit: int) -> bytes:
        """The whole small body. Raises `StorageError` for one of more than `limit` bytes."""
        body = bytearray()
        while self._line is not None and len(body) <= limit and (self.length or 0) <= limit:
            more = limit + 1 - len(body) if self.length is None else self.length
            buffer = memoryview(bytearray(min(more, _SLICE)))
            body += buffer[: self.readinto(buffer)]
        if self._line is not None or len(body) > limit:
            self.close()
            raise StorageError(f"{redact_url(self.url)} answered more than {limit} bytes")
        return bytes(body)

    def close(self) -> None:
        """Give up what was not read, and with it the connection. Twice does no harm."""
        line, self._line = self._line, None
        if line is not None:
            self._wire.give_back(line, keep=False)

    def _fill(self, line: Line, buffer: memoryview) -> int:
        if self._chunks is not None:
            count = self._chunks.readinto(buffer)
            if self._chunks.are_over:
                self._finish()
            return count
        if self.length is None:
            count = line.fill(buffer)
            if count < len(buffer) and line.fault is None:
                self._finish()
            return count
        wanted = min(len(buffer), self.length)
        count = line.fill(buffer[:wanted])
        self.length -= count
        if wanted and not count:
            what = f"{redact_url(self.url)} ended {self.length} bytes too early"
            raise TransientError(what, hint=TRY_AGAIN)
        if self.length == 0:
            self._finish()
        return count

    def _finish(self) -> None:
        self._is_over = True
        line, self._line = self._line, None
        if line is not None:
            self._wire.give_back(line, keep=self._keep and not line.ahead)


class _DeadError(Exception):
    """The connection was at its end before an answer began."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _fault(error: Exception, url: str, seconds: float, *, proxy: object = None) -> MMError:
    way = "" if proxy is None else f" through the proxy {proxy}"
    reason = str(error)
    if isinstance(error, TimeoutError) and error.errno is None:
        reason = f"nothing came for {seconds:g} s"
    elif isinstance(error, ssl.SSLEOFError):
        reason = "the connection was cut"
    return TransientError(f"{redact_url(url)}{way}: {redact(reason)}", hint=TRY_AGAIN)
