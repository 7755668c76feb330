"""Files from a disk into the socket by the kernel, as an extension of ASGI has it.

See https://asgi.readthedocs.io/en/latest/extensions.html#zero-copy-send.

uvicorn offers no ``http.response.zerocopysend``; here it does, where the connection has no
TLS of ours. The file is read by threads, so that a slow disk holds up nobody else.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mm_plugins.hub.sending import EXTENSION

_TRANSPORT = "mm.transport"
_STEP = 8 << 20
_SENDERS = 16


class Protocol(HttpToolsProtocol):
    """uvicorn's own, which tells the application where its bytes go."""

    def on_message_begin(self) -> None:
        """Offer the extension."""
        super().on_message_begin()
        plain = self.transport.get_extra_info("sslcontext") is None
        if plain and hasattr(os, "sendfile"):
            scope: Any = self.scope
            scope[_TRANSPORT] = self.transport
            scope["extensions"] = {EXTENSION: {}}


class ZeroCopy:
    """Sends what messages of the extension name; `app` is what sends them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="mm-hub-send")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        transport = scope.pop(_TRANSPORT, None)
        cycle = getattr(send, "__self__", None)  # what counts the bytes that are to come
        if transport is None or not isinstance(cycle, RequestResponseCycle):
            scope.pop("extensions", None)
            await self._app(scope, receive, send)
            return

        async def extended(message: Message) -> None:
            if message["type"] != EXTENSION:
                await send(message)
                return
            offset, count = message["offset"], message["count"]
            await _copied(transport, self._senders, message["file"], offset, count)
            cycle.expected_content_length -= count
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": b"", "more_body": more})

        await self._app(scope, receive, extended)


async def _copied(
    transport: asyncio.Transport, senders: Executor, file: int, offset: int, count: int
) -> None:
    """Send so much of `file`. `OSError` if the client is gone, or the file is shorter."""
    while transport.get_write_buffer_size():  # the head of the answer
        if transport.is_closing():
            raise ConnectionResetError
        await asyncio.sleep(0.001)
    loop = asyncio.get_running_loop()
    socket = os.dup(transport.get_extra_info("socket").fileno())
    try:
        while count:
            if transport.is_closing():
                raise ConnectionResetError
            step = min(count, _STEP)
            try:
                sent = await loop.run_in_executor(senders, os.sendfile, socket, file, offset, step)
            except BlockingIOError:
                await _writable(loop, socket)
                continue
            if not sent:
                raise OSError(f"the file ends {count} bytes early")
            offset, count = offset + sent, count - sent
    finally:
        os.close(socket)


async def _writable(loop: asyncio.AbstractEventLoop, socket: int) -> None:
    free: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not free.done():
            free.set_result(None)

    loop.add_writer(socket, note)
    try:
        await free
    finally:
        loop.remove_writer(socket)
