"""HTTP/1.1 as it is spoken over one connection: heads, chunks, and waiting.

https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from mm_core import StorageError, redact_url
from mm_plugins._connections import Route, Stream, TlsInTls, authority, end_stream

_HEAD_LIMIT = 1 << 16
_INTERIM_LIMIT = 16
_READ_AHEAD = 1 << 14
_SMALL_BODY = 1 << 14
_SLICE = 1 << 18

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(rb"HTTP/1\.(\d) (\d{3})(?: .*)?")
_LINE_END = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_IN_URL = "%/:=&?~!$'()*+,;@[]#"
_OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "connection"})

_KERNEL_WAITS = sys.platform == "linux" and sys.maxsize > 1 << 32
"""Whether the kernel can keep the time of a wait; Python polls before each read otherwise."""


class Head(NamedTuple):
    """What stands before a body. `version` is what follows ``HTTP/1.``."""

    status: int
    version: int
    headers: Mapping[str, str]


class MalformedError(Exception):
    """What came is not HTTP/1.1."""


class Line:
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

    def read_head(self, unsent: OSError | None = None) -> Head:
        """What stands before the body, past the interim answers; `unsent` is as `send` told."""
        try:
            head = self._final_head()
        except OSError:
            if unsent is not None:
                raise unsent from None
            raise
        if unsent is not None:
            return head._replace(headers={**head.headers, "connection": "close"})
        return head

    def read_line(self, began: float | None = None) -> bytes:
        """The bytes before the next line break, which is read over.

        `began` is when the lines began to come that must all come in time.
        """
        while b"\n" not in self.ahead:
            began = self._read_on(began)
        line, _, self.ahead = self.ahead.partition(b"\n")
        return line.removesuffix(b"\r")

    def read_over_trailers(self) -> None:
        """Read over what may stand behind a body in chunks, and the empty line after it."""
        began, size = time.monotonic(), 0
        while line := self.read_line(began):
            size += len(line)
            if size > _HEAD_LIMIT:
                raise MalformedError("trailers without an end")

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
        if isinstance(self._stream, (ssl.SSLSocket, TlsInTls)) and self._stream.pending():
            return False
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

    def _read_on(self, began: float | None) -> float:
        """Read more of what began to come at `began`; None where nothing came yet.

        Who sends a byte now and then is never silent; so the whole has its time, too.
        """
        if len(self.ahead) > _HEAD_LIMIT:
            raise MalformedError("headers without an end")
        if began is not None and time.monotonic() - began > self.read_timeout:
            raise ConnectionError(f"the headers took more than {self.read_timeout:g} s")
        self._read_ahead()
        return time.monotonic() if began is None else began

    def _final_head(self) -> Head:
        for _ in range(_INTERIM_LIMIT + 1):
            head = self._one_head()
            if not 100 <= head.status < 200 or head.status == 101:
                return head
        raise MalformedError("interim answers without an end")

    def _one_head(self) -> Head:
        began = None
        while (end := _HEAD_END.search(self.ahead)) is None:
            began = self._read_on(began)
        first, *lines = _LINE_END.split(self.ahead[: end.start()])
        self.ahead = self.ahead[end.end() :]
        match = _STATUS.fullmatch(first)
        if match is None:
            raise MalformedError("no answer in HTTP/1.1")
        return Head(int(match[2]), int(match[1]), _parse_headers(lines))


class Chunks:
    """A body in chunks.

    https://www.rfc-editor.org/rfc/rfc9112#section-7.1
    """

    def __init__(self, line: Line) -> None:
        self.are_over = False
        self._line = line
        self._left = 0
        self._is_first = True
        self._fault: OSError | MalformedError | None = None

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer`; fewer bytes at the end of the body, and before a fault.

        The call after it raises the fault: `OSError`, or `MalformedError` also for a
        body that ends without its last chunk.
        """
        if self._fault is not None:
            raise self._fault
        count = 0
        try:
            while count < len(buffer) and not self.are_over:
                if self._left == 0:
                    self._next()
                    continue
                wanted = min(self._left, len(buffer) - count)
                came = self._line.fill(buffer[count : count + wanted])
                count += came
                self._left -= came
                if came < wanted:
                    raise self._line.fault or MalformedError("the answer ended within a chunk")
        except (OSError, MalformedError) as error:
            if not count:
                raise
            self._fault = error
        return count

    def _next(self) -> None:
        if not self._is_first and self._line.read_line():
            raise MalformedError("a chunk is longer than it says")
        self._is_first = False
        match = _CHUNK.fullmatch(self._line.read_line())
        if match is None:
            raise MalformedError("a chunk without its size")
        self._left = int(match[1], 16)
        if self._left == 0:
            self._line.read_over_trailers()
            self.are_over = True


def request_head(
    method: str, url: str, route: Route, headers: Mapping[str, str], length: int | None
) -> bytes:
    """The bytes of a request before its body of `length` bytes; None where it has none.

    `url` is escaped as far as it is not, and made absolute for a proxy that is asked
    itself. Host, Content-Length and the proxy's credentials are added. Raises
    `StorageError`, which quotes nothing, for a header that is malformed.
    """
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
            )
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
            raise MalformedError("a header without a colon")
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def content_length(headers: Mapping[str, str]) -> int | None:
    """How many bytes the body has; None where its end alone tells.

    A Transfer-Encoding overrides the length. The same length may be stated twice.
    Raises `MalformedError` for any other.
    """
    if "transfer-encoding" in headers or "content-length" not in headers:
        return None
    values = {value.strip() for value in headers["content-length"].split(",")}
    value = values.pop()
    if values or not _LENGTH.fullmatch(value):
        raise MalformedError("the length of the answer makes no sense")
    return int(value)


def is_chunked(headers: Mapping[str, str]) -> bool:
    """Whether the body comes in chunks. Raises `MalformedError` for other transfer codings."""
    coding = headers.get("transfer-encoding", "").lower().strip()
    if coding not in ("", "identity", "chunked"):
        raise MalformedError("a transfer coding that was not asked for")
    return coding == "chunked"


def is_kept(head: Head) -> bool:
    """Whether the server takes another request when this answer was read to its end."""
    options = {option.strip() for option in head.headers.get("connection", "").lower().split(",")}
    return "close" not in options and (head.version >= 1 or "keep-alive" in options)
