"""The answer that is a file: its head, and its bytes in a stream that stops with the client."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mm_core import IntegrityError, StoredFile
from mm_plugins.hub.catalog import Version, tag_of
from mm_plugins.hub.reading import FileBytes, UnsatisfiableError, parse_range

EXTENSION = "http.response.zerocopysend"
"""The extension of ASGI by which a server takes a file in place of bytes."""

UNSTATED = 50 * 10**9
"""Clients of the Hub refuse a plain download of more bytes than this, if they hear of it first."""

_TEXT = "text/plain; charset=utf-8"
_TYPES = {"json": "application/json", "md": _TEXT, "txt": _TEXT}
"""What may be shown. A browser runs none of it, and stores the rest: these files are anybody's."""


class FileAnswer(Response):
    """One file, whole or in part. Its first bytes are read before anything is said."""

    def __init__(
        self, source: FileBytes, headers: Mapping[str, str], wanted: range, status: int
    ) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(len(wanted))})
        self._source = source
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. What fails before the first byte is raised before the answer begins."""
        path = self._source.path
        if path is not None and EXTENSION in scope.get("extensions", ()):
            opened = await asyncio.to_thread(_open, path, self._source.size)
            if opened is not None:
                await self._copy(opened, send)
                return
        pieces = self._source.read(self._wanted.start, self._wanted.stop)
        try:
            first = await anext(pieces, b"")
            await send(self._start())
            await _send_all(first, pieces, receive, send)
        finally:
            await _close(pieces)

    async def _copy(self, file: int, send: Send) -> None:
        """Let the kernel move the bytes."""
        wanted = self._wanted
        try:
            await send(self._start())
            copy = {"type": EXTENSION, "file": file, "offset": wanted.start, "count": len(wanted)}
            await send(copy)
        except ConnectionError:
            pass  # the client is gone
        except OSError as error:
            raise IntegrityError(f"a file changed while it was sent: {error}") from error
        finally:
            os.close(file)

    def _start(self) -> MutableMapping[str, Any]:
        headers = self.raw_headers
        return {"type": "http.response.start", "status": self.status_code, "headers": headers}


def file_headers(version: Version, file: StoredFile) -> dict[str, str]:
    """What is said of a file, whoever asks: by its sha256 clients know and verify it."""
    name = file.path.rpartition("/")[2]
    return {
        "X-Repo-Commit": version.commit,
        "ETag": f'"{tag_of(file)}"',
        "X-Linked-Etag": f'"{tag_of(file)}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}",
        "Content-Type": _TYPES.get(name.rpartition(".")[2], "application/octet-stream"),
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=0, must-revalidate",
    }


def answer_head(version: Version, file: StoredFile) -> Response:
    """The answer to HEAD. The size of what is very large is left unsaid: see `UNSTATED`."""
    response = Response(None, 200, file_headers(version, file))
    if file.size <= UNSTATED:
        response.headers["X-Linked-Size"] = response.headers["Content-Length"] = str(file.size)
    else:
        del response.headers["Content-Length"]
    return response


def answer_file(
    version: Version,
    file: StoredFile,
    source: FileBytes,
    asked: Mapping[str, str],
) -> Response:
    """The answer to GET: the file, the range of it that is asked for, or that nothing changed."""
    headers = file_headers(version, file)
    if _names(asked.get("if-none-match"), headers["ETag"]):
        return Response(None, 304, headers)
    if file.size <= UNSTATED:
        headers["X-Linked-Size"] = str(file.size)
    if_range = asked.get("if-range")
    try:
        whole = if_range not in (None, headers["ETag"])
        span = None if whole else parse_range(asked.get("range"), file.size)
    except UnsatisfiableError:
        return Response(None, 416, {**headers, "Content-Range": f"bytes */{file.size}"})
    if span is None:
        return FileAnswer(source, headers, range(file.size), 200)
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    return FileAnswer(source, headers, span, 206)


def answer_elsewhere(version: Version, file: StoredFile, url: str) -> Response:
    """The answer to GET that sends a client to where the store has the file."""
    headers = {**file_headers(version, file), "Location": url, "Cache-Control": "no-store"}
    if file.size <= UNSTATED:
        headers["X-Linked-Size"] = str(file.size)
    return Response(None, 302, headers)


async def _send_all(first: bytes, rest: AsyncIterator[bytes], receive: Receive, send: Send) -> None:
    """Send the bytes until there are no more, or until the client is gone."""
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in rest:
            if gone.done():
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


def _open(path: Path, size: int) -> int | None:
    """The open file; None where it is not of that size, or cannot be had: the sink says why."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    if os.fstat(file).st_size == size:
        return file
    os.close(file)
    return None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _close(pieces: AsyncIterator[bytes]) -> None:
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()


def _names(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or etag in (
        one.strip().removeprefix("W/") for one in header.split(",")
    )
