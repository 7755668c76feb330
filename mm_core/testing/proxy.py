"""A proxy on loopback that breaks HTTP on purpose: before and after the server has acted.

The worst fault of a network is not the request that never arrives but the
answer that is lost: the caller cannot know whether it was done. Both can be told
apart here, and told in advance::

    with FaultProxy(server.endpoint_url) as proxy:
        proxy.inject("cut_after", method="PUT")      # the next PUT is done, its answer lost
        ...
    with FaultProxy(server.endpoint_url, rate=0.2, seed=7) as proxy:   # one in five, seeded
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

FAULTS = (
    "cut_before",
    "cut_after",
    "500_before",
    "500_after",
    "503_before",
    "503_after",
    "429_before",
    "truncate",
)
"""Each is what `rate` chooses from. ``before`` and ``after``: the server never got the request, or
has carried it out. ``truncate``: the connection is cut in the middle of the answer's body."""

MORE_FAULTS = (
    "409_before",
    "409_after",
    "429_after",
    "flip_request",
    "flip_answer",
    "hang_before",
    "hang",
)
"""To be injected by name, or given as `faults`. ``flip``: one bit of the body is turned. ``hang``:
no answer, after the server has carried it out, until the proxy is closed or `patience` is over;
then the connection is cut."""

ALL_FAULTS = (*FAULTS, *MORE_FAULTS)

_REASONS = {
    "409": "Conflict",
    "429": "Too Many Requests",
    "500": "Internal Server Error",
    "503": "Slow Down",
}
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and the fault that it met, if any."""

    method: str
    path: str
    fault: str | None


@dataclass(slots=True)
class _Injected:
    fault: str
    method: str | None
    path: str
    skip: int
    times: int


@dataclass(frozen=True, slots=True)
class _Message:
    """A request or an answer: its first line, headers and body."""

    first: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str | None:
        return next((v for n, v in self.headers if n.lower() == name), None)

    def encoded(self, *, body: bytes | None = None) -> bytes:
        lines = [self.first, *(f"{n}: {v}" for n, v in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (
            self.body if body is None else body
        )


class FaultProxy:
    """Between a client and the HTTP server at `upstream`, on a port of its own.

    With `rate` each request meets one of `faults` with that probability. Faults
    that were injected come first. `requests` is what came, in order. `hanging` is
    set as soon as a request hangs, which it does for `patience` seconds. A server that
    checks signatures wants to see the name that was signed: `keep_host`.
    """

    def __init__(
        self,
        upstream: str,
        *,
        rate: float = 0.0,
        faults: Sequence[str] = FAULTS,
        seed: int = 0,
        patience: float | None = None,
        keep_host: bool = False,
    ) -> None:
        self.upstream = upstream.rstrip("/")
        self.rate = rate
        self.requests: list[Exchange] = []
        self.endpoint_url = ""
        self.hanging = threading.Event()
        self._faults = faults
        self._patience = patience
        self._keep_host = keep_host
        self._random = random.Random(seed)
        self._injected: list[_Injected] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)
        self._closing: asyncio.Event | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def inject(
        self,
        fault: str,
        *,
        method: str | None = None,
        path: str = "",
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Let the next `times` requests meet `fault`, of those with `method` and `path` in them.

        `path` is any part of the target, query included. The first `skip` pass.
        """
        if fault not in ALL_FAULTS:
            raise ValueError(f"no such fault: {fault}")
        self._injected.append(_Injected(fault, method, path, skip, times))

    def clear(self) -> None:
        """Forget what was injected and has not been met."""
        self._injected.clear()

    def count(self, method: str | None = None, path: str = "") -> int:
        """How many requests with `method` and `path` came."""
        return sum(method in (None, r.method) and path in r.path for r in self.requests)

    @property
    def faults(self) -> list[Exchange]:
        """The requests that met a fault."""
        return [request for request in self.requests if request.fault is not None]

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._closing is not None
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._until_closed())
        self._loop.close()

    async def _until_closed(self) -> None:
        self._closing = asyncio.Event()
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=_LIMIT)
        self.endpoint_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._closing.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await _read(reader, writer)
            if request is not None:
                method, path, _ = request.first.split(" ", 2)
                fault = self._choose(method, path)
                self.requests.append(Exchange(method, path, fault))
                await self._answer(request, method, fault, writer)
        self._writers.discard(writer)
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    async def _answer(
        self, request: _Message, method: str, fault: str | None, writer: asyncio.StreamWriter
    ) -> None:
        kind, _, moment = (fault or "").partition("_")
        body = self._flipped(request.body) if fault == "flip_request" else request.body
        answer = b""
        if moment != "before":
            answer = await self._forward(request, body, method)
        if kind == "hang":
            await self._hang()
        if kind in ("cut", "hang"):
            writer.transport.abort()
            return
        if kind in _REASONS:
            answer = f"HTTP/1.1 {kind} {_REASONS[kind]}\r\nContent-Length: 0\r\n".encode()
            answer += b"Connection: close\r\n\r\n"
        head, separator, content = answer.partition(b"\r\n\r\n")
        if fault == "flip_answer":
            content = self._flipped(content)
        if fault == "truncate":
            content = content[: len(content) // 2]
        writer.write(head + separator + content)
        await writer.drain()
        if fault == "truncate":
            writer.transport.abort()

    async def _hang(self) -> None:
        assert self._closing is not None
        self.hanging.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), self._patience)

    async def _forward(self, request: _Message, body: bytes, method: str) -> bytes:
        """Send on with the server's own name, and let links in the answer lead back here."""
        parts = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        dropped = ("host", "connection", "expect", "transfer-encoding", "content-length")
        headers = [(n, v) for n, v in request.headers if n.lower() not in dropped]
        host = (request.get("host") if self._keep_host else None) or parts.netloc
        headers += [("Host", host), ("Connection", "close")]
        headers += [("Content-Length", str(len(body)))] if body or method != "GET" else []
        try:
            writer.write(_Message(request.first, tuple(headers), b"").encoded(body=body))
            await writer.drain()
            raw = await reader.read()
        finally:
            writer.close()
        head, separator, content = raw.partition(b"\r\n\r\n")
        head = head.replace(self.upstream.encode(), self.endpoint_url.encode())
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")
        ]
        return b"\r\n".join([*lines, b"Connection: close"]) + separator + content

    def _flipped(self, body: bytes) -> bytes:
        """The same with one bit turned: in the middle, or anywhere where faults come by `rate`."""
        if not body:
            return body
        turned = bytearray(body)
        place = self._random.randrange(len(turned)) if self.rate else len(turned) // 2
        turned[place] ^= 1 << (self._random.randrange(8) if self.rate else 0)
        return bytes(turned)

    def _choose(self, method: str, path: str) -> str | None:
        for injected in self._injected:
            if injected.method in (None, method) and injected.path in path and injected.times:
                if injected.skip:
                    injected.skip -= 1
                    continue
                injected.times -= 1
                return injected.fault
        if self._random.random() < self.rate:
            return self._random.choice(self._faults)
        return None


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Message | None:
    """One request, whole; None where the client has closed the connection instead."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    message = _Message(first, tuple((n, v.strip()) for n, _, v in pairs), b"")
    if (message.get("expect") or "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    if "chunked" in (message.get("transfer-encoding") or "").lower():
        body = await _read_chunked(reader)
    else:
        body = await reader.readexactly(int(message.get("content-length") or 0))
    return _Message(first, message.headers, body)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (await reader.readline()).strip():
        pass
    return bytes(body)
