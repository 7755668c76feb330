"""HTTP/1.1 over kept connections, straight from the socket into the caller's memory.

The standard library's client reads through a buffer of its own and parses headers
as mail. Here a body goes from the kernel into the caller's buffer by one system
call per buffer where the system allows it, and out of the caller's memory
likewise. What to ask and what an answer means are the caller's.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from mm_core import Buffer, MMError, StorageError, TransientError, redact, redact_url
from mm_plugins._connections import (
    Route,
    Stream,
    authority,
    connect,
    end_stream,
    route_to,
    ssl_context,
)

IDLE_LIMIT = 64
IDLE_SECONDS = 60.0

_HEAD_LIMIT = 1 << 16
_READ_AHEAD = 1 << 14
_SMALL_BODY = 1 << 14
_SLICE = 1 << 18
_HINT = "look at the connection and try again"

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(rb"HTTP/1\.(\d) (\d{3})(?: .*)?")
_LINE_END = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_IN_URL = "%/:=&?~!$'()*+,;@[]#"
_OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "connection"})

_KERNEL_WAITS = sys.platform == "linux" and sys.maxsize > 1 << 32
"""Whether the kernel can keep the time of a wait; Python polls before each read otherwise."""


class Wire:
    """Connections to any number of servers, shared by threads. Timeouts are in seconds.

    `read_timeout` is how long no byte may come, or none be taken; a stall is seen
    after one to two times as long. Idle connections are kept for a minute.
    """

    def __init__(self, *, connect_timeout: float = 10.0, read_timeout: float = 60.0) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._lock = threading.Lock()
        self._context_lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._idle: list[_Line] = []
        self._busy: weakref.WeakSet[_Line] = weakref.WeakSet()

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
        the network, `StorageError` for a URL or header that cannot be sent and for a
        certificate that is not trusted, `ConfigError` for a proxy or certificates of
        the environment that cannot be used.
        """
        try:
            route = route_to(url)
        except MMError:
            raise
        except ValueError:
            raise StorageError(f"{redact_url(url)} is no URL that can be read") from None
        data = None if body is None else memoryview(body).cast("B")
        head = _request_head(method, url, route, headers, None if data is None else len(data))
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
        """Close all connections; who still reads one gets a `TransientError`."""
        with self._lock:
            idle, self._idle = self._idle, []
            for line in self._busy:
                line.interrupt()
            self._busy.clear()  # they are not kept
        for line in idle:
            line.close()

    def give_back(self, line: _Line, *, keep: bool) -> None:
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
        self, line: _Line, method: str, url: str, head: bytes, body: memoryview | None
    ) -> Response:
        done = False
        try:
            unsent = line.send(head, body)
            answer = line.read_head(unsent)
            response = Response(self, line, answer, method=method, url=url)
            done = True
            return response
        except (OSError, _MalformedError) as error:
            if isinstance(error, MMError):
                raise
            if line.has_begun or isinstance(error, TimeoutError):
                raise _fault(error, url, self._read_timeout) from error
            raise _DeadError(error) from error
        finally:
            if not done:
                self.give_back(line, keep=False)

    def _kept(self, route: Route) -> _Line | None:
        shared, limit = route.shared, time.monotonic() - IDLE_SECONDS
        while True:
            with self._lock:
                found = [i for i, line in enumerate(self._idle) if line.route == shared]
                if not found:
                    return None
                line = self._idle.pop(found[-1])
                self._busy.add(line)
            if line.idle_since > limit and line.is_quiet():
                return line
            self.give_back(line, keep=False)

    def _connect(self, route: Route, url: str) -> _Line:
        proxy = route.proxy
        encrypted = route.scheme == "https" or (proxy is not None and proxy.scheme == "https")
        context = self._trusted() if encrypted else None
        try:
            stream = connect(route, self._connect_timeout, context)
        except UnicodeError:  # a host with an empty or overlong label
            raise StorageError(f"{redact_url(url)} is no URL that can be read") from None
        except OSError as error:
            if isinstance(error, MMError):
                raise
            raise _fault(error, url, self._connect_timeout, proxy=proxy) from error
        line = _Line(stream, route.shared, self._read_timeout)
        with self._lock:
            self._busy.add(line)
        return line

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

    def __init__(self, wire: Wire, line: _Line, head: _Head, *, method: str, url: str) -> None:
        self.status = head.status
        self.headers = headers = head.headers
        self.url = url
        has_body = method != "HEAD" and head.status not in (204, 304)
        self.length: int | None = _content_length(headers) if has_body else 0
        self._chunks = _Chunks(line) if has_body and _is_chunked(headers) else None
        self._wire = wire
        self._line: _Line | None = line
        self._is_over = False
        self._keep = _is_kept(head) and (self.length is not None or self._chunks is not None)
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
                raise TransientError(f"{redact_url(self.url)} was closed before its end")
            return 0
        whole = False
        try:
            count = self._fill(line, buffer)
            whole = True
            return count
        except (OSError, _MalformedError) as error:
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

    def _fill(self, line: _Line, buffer: memoryview) -> int:
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
            raise TransientError(f"{redact_url(self.url)} ended {self.length} bytes too early")
        if self.length == 0:
            self._finish()
        return count

    def _finish(self) -> None:
        self._is_over = True
        line, self._line = self._line, None
        if line is not None:
            self._wire.give_back(line, keep=self._keep and not line.ahead)


class _Head(NamedTuple):
    """What stands before a body. `version` is what follows ``HTTP/1.``."""

    status: int
    version: int
    headers: Mapping[str, str]


class _MalformedError(Exception):
    """What came is not HTTP/1.1."""


class _DeadError(Exception):
    """The connection was at its end before an answer began."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Line:
    """One connection, and what was read ahead of it."""

    def __init__(self, stream: Stream, route: Route, read_timeout: float) -> None:
        self.route = route
        self.read_timeout = read_timeout
        self.idle_since = 0.0
        self.has_begun = False
        self.ahead = b""
        self.fault: OSError | None = None
        self._stream = stream
        self._plain: socket.socket | None = None
        self._flags = 0
        self._is_over = False
        if isinstance(stream, socket.socket) and not isinstance(stream, ssl.SSLSocket):
            self._plain = stream
        if self._plain is not None and _KERNEL_WAITS:
            self._let_the_kernel_wait(self._plain)
        else:
            stream.settimeout(read_timeout)

    def send(self, head: bytes, body: memoryview | None) -> OSError | None:
        """Send a request; what kept a part of the body from being sent is returned.

        For the server may have answered before it had read all.
        """
        self.has_begun = False
        if body is None or len(body) <= _SMALL_BODY:
            self._send(head if body is None else b"".join((head, body)))
            return None
        self._send(head, more=True)
        # in slices where the time-out is one for the whole call
        size = len(body) if self._flags else _SLICE
        try:
            for start in range(0, len(body), size):
                self._send(body[start : start + size])
        except TimeoutError:
            raise
        except OSError as error:
            return error
        return None

    def read_head(self, unsent: OSError | None = None) -> _Head:
        """What stands before the body, past all interim answers; `unsent` is as `send` told."""
        try:
            head = self._one_head()
            while 100 <= head.status < 200 and head.status != 101:
                head = self._one_head()
        except OSError:
            if unsent is not None:
                raise unsent from None
            raise
        if unsent is not None:
            return head._replace(headers={**head.headers, "connection": "close"})
        return head

    def read_line(self) -> bytes:
        """The bytes before the next line break, which is read over."""
        while b"\n" not in self.ahead:
            if len(self.ahead) > _HEAD_LIMIT:
                raise _MalformedError("a line without an end")
            self._read_ahead()
        line, _, self.ahead = self.ahead.partition(b"\n")
        return line.removesuffix(b"\r")

    def fill(self, buffer: memoryview) -> int:
        """Fill `buffer`; fewer bytes at the end of the connection, and before a fault."""
        if self.fault is not None:
            raise self.fault
        count = min(len(self.ahead), len(buffer))
        if count:
            buffer[:count] = self.ahead[:count]
            self.ahead = self.ahead[count:]
        while count < len(buffer):
            try:
                came = self._receive(buffer[count:] if count else buffer)
            except OSError as error:
                if not count:
                    raise
                self.fault = error
                break
            if not came:
                break
            count += came
        return count

    def is_quiet(self) -> bool:
        """Whether nothing has come unasked, such as its end."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLIN)
            return not poll.poll(0)
        return not select.select([self._stream.fileno()], [], [], 0)[0]

    def interrupt(self) -> None:
        """End the connection, also under a thread that waits for it."""
        with contextlib.suppress(OSError):
            end_stream(self._stream)

    def close(self) -> None:
        """Close the connection, likewise."""
        self.interrupt()
        with contextlib.suppress(OSError):
            self._stream.close()

    def _let_the_kernel_wait(self, plain: socket.socket) -> None:
        seconds = struct.pack("@ll", int(self.read_timeout), int(self.read_timeout % 1 * 1e6) or 1)
        plain.settimeout(None)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        self._flags = socket.MSG_WAITALL

    def _send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        try:
            if self._plain is not None and more:
                self._plain.sendall(data, getattr(socket, "MSG_MORE", 0))
            else:
                self._stream.sendall(data)
        except BlockingIOError as error:
            raise TimeoutError from error

    def _receive(self, buffer: memoryview) -> int:
        try:
            if self._plain is not None:
                return self._plain.recv_into(buffer, 0, self._flags)
            return self._stream.recv_into(buffer)
        except BlockingIOError as error:  # how the kernel says that the time is over
            raise TimeoutError from error

    def _read_ahead(self) -> None:
        try:
            data = self._stream.recv(_READ_AHEAD)
        except BlockingIOError as error:
            raise TimeoutError from error
        if not data:
            raise ConnectionError("the connection was closed too early")
        self.has_begun = True
        self.ahead = self.ahead + data if self.ahead else data

    def _one_head(self) -> _Head:
        while (end := _HEAD_END.search(self.ahead)) is None:
            if len(self.ahead) > _HEAD_LIMIT:
                raise _MalformedError("headers without an end")
            self._read_ahead()
        first, *lines = _LINE_END.split(self.ahead[: end.start()])
        self.ahead = self.ahead[end.end() :]
        match = _STATUS.fullmatch(first)
        if match is None:
            raise _MalformedError("no answer in HTTP/1.1")
        return _Head(int(match[2]), int(match[1]), _parse_headers(lines))


class _Chunks:
    """A body in chunks.

    https://www.rfc-editor.org/rfc/rfc9112#section-7.1
    """

    def __init__(self, line: _Line) -> None:
        self.are_over = False
        self._line = line
        self._left = 0
        self._is_first = True

    def readinto(self, buffer: memoryview) -> int:
        count = 0
        while count < len(buffer) and not self.are_over:
            if self._left == 0:
                self._next()
                continue
            wanted = min(self._left, len(buffer) - count)
            if self._line.fill(buffer[count : count + wanted]) < wanted:
                raise _MalformedError("the answer ended within a chunk")
            count += wanted
            self._left -= wanted
        return count

    def _next(self) -> None:
        if not self._is_first and self._line.read_line():
            raise _MalformedError("a chunk is longer than it says")
        self._is_first = False
        match = _CHUNK.fullmatch(self._line.read_line())
        if match is None:
            raise _MalformedError("a chunk without its size")
        self._left = int(match[1], 16)
        if self._left == 0:
            while self._line.read_line():
                pass
            self.are_over = True


def _request_head(
    method: str, url: str, route: Route, headers: Mapping[str, str], length: int | None
) -> bytes:
    place = authority(route.host, route.port, route.scheme)
    parts = urlsplit(url)
    target = quote(parts.path or "/", safe=_IN_URL) + (
        f"?{quote(parts.query, safe=_IN_URL)}" if parts.query else ""
    )
    lines = []
    if route.proxy is not None and not route.is_tunnel:
        target = f"http://{place}{target}"
        if route.proxy.authorization:
            lines.append(f"Proxy-Authorization: {route.proxy.authorization}")
    if not any(name.lower() == "host" for name in headers):
        lines.insert(0, f"Host: {place}")
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise StorageError(  # which does not quote it: it may be a secret
                f"{redact_url(url)}: a header is malformed",
                hint="check the headers and the token of this source for line breaks",
            ) from None
        if name.lower() not in _OWN_HEADERS:
            lines.append(f"{name}: {value}")
    if length is not None or method in ("PUT", "POST", "PATCH"):
        lines.append(f"Content-Length: {length or 0}")
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.decode("latin-1")
        if text[:1] in " \t" and name:  # an old way to go on
            headers[name] += f" {text.strip()}"
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower()
        if not colon:
            raise _MalformedError("a header without a colon")
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def _content_length(headers: Mapping[str, str]) -> int | None:
    if "transfer-encoding" in headers or "content-length" not in headers:
        return None
    values = {value.strip() for value in headers["content-length"].split(",")}
    value = values.pop()
    if values or not (value.isascii() and value.isdigit()):
        raise _MalformedError("the length of the answer makes no sense")
    return int(value)


def _is_chunked(headers: Mapping[str, str]) -> bool:
    coding = headers.get("transfer-encoding", "").lower().strip()
    if coding not in ("", "identity", "chunked"):
        raise _MalformedError("a transfer coding that was not asked for")
    return coding == "chunked"


def _is_kept(head: _Head) -> bool:
    options = {option.strip() for option in head.headers.get("connection", "").lower().split(",")}
    return "close" not in options and (head.version >= 1 or "keep-alive" in options)


def _fault(error: Exception, url: str, seconds: float, *, proxy: object = None) -> MMError:
    way = "" if proxy is None else f" through the proxy {proxy}"
    reason = str(error)
    if isinstance(error, TimeoutError) and error.errno is None:
        reason = f"nothing came for {seconds:g} s"
    return TransientError(f"{redact_url(url)}{way}: {redact(reason)}", hint=_HINT)
