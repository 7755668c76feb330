"""Bytes that clients send: kept below ``.mm/uploads/`` until a commit makes a version of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect

from mm_core import Buffer, IntegrityError, MMError, Sink
from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.reading import CHUNK
from mm_plugins.hub.tokens import Token

if TYPE_CHECKING:
    from mm_plugins.hub.hub import Hub

PREFIX = ".mm/uploads/"
PART = 64 << 20
"""Bytes of one part of a file that is sent in several."""

TICKET_SECONDS = 24 * 3600.0
_STALE_SECONDS = 24 * 3600.0
_SWEEP_EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class Staged:
    """The bytes of one file: in memory, or in some objects, one after the other.

    `checked` tells that their sha256 was computed here; else a client states it.
    """

    size: int
    sha256: str
    data: bytes | None = None
    keys: tuple[tuple[str, int], ...] = ()
    checked: bool = True

    def read(self, sink: Sink, start: int, end: int | None) -> Iterator[Buffer]:
        """The bytes ``[start, end)``."""
        if self.data is not None:
            yield memoryview(self.data)[start:end]
            return
        stop, at = self.size if end is None else min(end, self.size), 0
        for key, size in self.keys:
            first, last = max(start - at, 0), min(stop - at, size)
            if first < last:
                yield from sink.read(key, first, last)
            at += size


class Stage:
    """The part of a backend where bytes wait for their commit. Nobody is shown any of it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._swept = 0.0

    # -- what comes in -----------------------------------------------------------------

    async def keep(self, key: str, stream: AsyncIterator[bytes], *, size: int | None) -> Staged:
        """Store all of `stream` under `key`, and tell its size and sha256."""
        digest, count = hashlib.sha256(), 0
        loop = asyncio.get_running_loop()

        def pieces() -> Iterator[bytes]:
            nonlocal count
            while piece := asyncio.run_coroutine_threadsafe(_gathered(stream), loop).result():
                digest.update(piece)
                count += len(piece)
                yield piece

        try:
            write = partial(self._hub.sink.write, key, pieces(), size=size)
            await loop.run_in_executor(self._hub.readers, write)
        except ClientDisconnect:
            raise ProblemError(400, "The upload broke off") from None
        except IntegrityError as error:
            raise ProblemError(
                400, f"The upload has another size than it states: {error}"
            ) from None
        return Staged(count, digest.hexdigest(), keys=((key, count),))

    async def take(
        self, model_id: str, oid: str, size: int, number: int, stream: AsyncIterator[bytes]
    ) -> str:
        """One part of the object `oid`; a name for it. One that is alone is checked by its hash."""
        count = part_count(size)
        length = PART if number < count else size - (count - 1) * PART
        key = f"{_folder(model_id)}{oid}/{number:05d}"
        staged = await self.keep(key, stream, size=length)
        if count == 1 and staged.sha256 != oid:
            await self._hub.in_thread(partial(self._hub.sink.delete, [key]))
            raise ProblemError(400, f"The upload is not the object {oid}")
        return staged.sha256

    async def inline(self, model_id: str, stream: AsyncIterator[bytes]) -> Staged:
        """What comes with the commit itself, of a size that nobody stated."""
        key = f"{_folder(model_id)}{secrets.token_hex(16)}/00001"
        return await self.keep(key, stream, size=None)

    # -- what is there -----------------------------------------------------------------

    def find(self, model_id: str, oid: str, size: int | None) -> Staged | None:
        """The object, if all parts of it are here."""
        found = tuple((o.key, o.size) for o in self._hub.sink.list(f"{_folder(model_id)}{oid}/"))
        there = sum(length for _, length in found)
        if not found or (size is not None and there != size) or len(found) != part_count(there):
            return None
        return Staged(there, oid, keys=found, checked=len(found) == 1)

    def forget(self, used: Sequence[Staged]) -> None:
        """Remove what a commit has used; now and then also what no commit came for."""
        doomed = [key for staged in used for key, _ in staged.keys]
        now = time.time()
        if now - self._swept > _SWEEP_EVERY:
            self._swept = now
            old = now - _STALE_SECONDS
            doomed += [o.key for o in self._hub.sink.list(PREFIX) if o.modified.timestamp() < old]
        with contextlib.suppress(MMError):  # it is swept another time
            self._hub.sink.delete(doomed)


def part_count(size: int) -> int:
    """How many parts a file of `size` bytes is sent in."""
    return max(1, -(-size // PART))


def ticket(token: Token, model_id: str, oid: str, size: int) -> str:
    """The query of an address where its holder may send one object, without a token.

    Signed with what the store knows of the token, so that every server believes it.
    """
    values = {
        "model": model_id,
        "size": str(size),
        "by": token.id,
        "until": str(int(time.time() + TICKET_SECONDS)),
    }
    return urlencode({**values, "mac": _mac(token, oid, values)})


def is_good(token: Token, oid: str, query: Mapping[str, str]) -> bool:
    """Whether the query of an address is a ticket of `token` for that object, and still holds."""
    values = {name: query.get(name, "") for name in ("model", "size", "by", "until")}
    if not hmac.compare_digest(_mac(token, oid, values), query.get("mac", "")):
        return False
    return int(values["until"]) > time.time() and token.allows("write", values["model"])


def _mac(token: Token, oid: str, values: Mapping[str, str]) -> str:
    message = "\0".join([oid, *(values[name] for name in ("model", "size", "by", "until"))])
    return hmac.new(token.sha256.encode(), message.encode(), hashlib.sha256).hexdigest()


def _folder(model_id: str) -> str:
    """Apart for each model: nobody touches what others send for another."""
    return f"{PREFIX}{hashlib.sha256(model_id.encode()).hexdigest()[:16]}/"


async def _gathered(stream: AsyncIterator[bytes]) -> bytes:
    pieces, total = [], 0
    async for piece in stream:
        pieces.append(piece)
        total += len(piece)
        if total >= CHUNK:
            break
    return b"".join(pieces)
