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
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from mm_core import StorageError, redact_url
from mm_plugins._connections import Route, Stream, TlsInTls, authority, end_stream

_HEAD_LIMIT = 1 << 16
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
                raise MalformedError("a line without an end")
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

    def _one_head(self) -> Head:
        while (end := _HEAD_END.search(self.ahead)) is None:
            if len(self.ahead) > _HEAD_LIMIT:
                raise MalformedError("headers without an end")
            self._read_ahead()
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

    def readinto(self, buffer: memoryview) -> int:
        count = 0
        while count < len(buffer) and not self.are_over:
            if self._left == 0:
                self._next()
                continue
            wanted = min(self._left, len(buffer) - count)
            if self._line.fill(buffer[count : count + wanted]) < wanted:
                raise MalformedError("the answer ended within a chunk")
            count += wanted
            self._left -= wanted
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
            while self._line.read_line():
                pass
            self.are_over = True


def request_head(
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
            raise MalformedError("a header without a colon")
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def content_length(headers: Mapping[str, str]) -> int | None:
    if "transfer-encoding" in headers or "content-length" not in headers:
        return None
    values = {value.strip() for value in headers["content-length"].split(",")}
    value = values.pop()
    if values or not _LENGTH.fullmatch(value):
        raise MalformedError("the length of the answer makes no sense")
    return int(value)


def is_chunked(headers: Mapping[str, str]) -> bool:
    coding = headers.get("transfer-encoding", "").lower().strip()
    if coding not in ("", "identity", "chunked"):
        raise MalformedError("a transfer coding that was not asked for")
    return coding == "chunked"


def is_kept(head: Head) -> bool:
    options = {option.strip() for option in head.headers.get("connection", "").lower().split(",")}
    return "close" not in options and (head.version >= 1 or "keep-alive" in options)
