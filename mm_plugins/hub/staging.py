"""Bytes that clients send: kept below ``.mm/uploads/`` until a commit makes a version of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
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
from mm_plugins.hub.xet import Segment, read_segments, read_shard

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

    Of one that came by Xet, `keys` are what tells of it, and `pieces` what it is made of.
    `checked` tells that their sha256 was computed here; else a client states it.
    """

    size: int
    sha256: str
    data: bytes | None = None
    keys: tuple[tuple[str, int], ...] = ()
    checked: bool = True
    pieces: tuple[tuple[Segment, str], ...] = ()

    @property
    def used(self) -> list[str]:
        """The objects that nobody needs after the commit."""
        return [key for key, _ in self.keys]

    def read(self, sink: Sink, start: int, end: int | None) -> Iterator[Buffer]:
        """The bytes ``[start, end)``."""
        if self.data is not None:
            yield memoryview(self.data)[start:end]
            return
        stop, at = self.size if end is None else min(end, self.size), 0
        if self.pieces:
            of = [(segment, _of(sink, key)) for segment, key in self.pieces]
            yield from read_segments(of, start, stop)
            return
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

    # -- models without a version --------------------------------------------------------

    def announce(self, model_id: str) -> None:
        """There is such a model for a day, though nothing is in it yet."""
        self._hub.sink.put(_announced(model_id), b"{}")

    def is_announced(self, model_id: str) -> bool:
        """Whether that was said."""
        return self._hub.sink.stat(_announced(model_id)) is not None

    def withdraw(self, model_id: str) -> None:
        """It has a version now, or nobody wants it any more."""
        self._hub.sink.delete([_announced(model_id)])

    # -- what is there -----------------------------------------------------------------

    def find(self, model_id: str, oid: str, size: int | None) -> Staged | None:
        """The object, if all of it is here, in parts or by Xet."""
        return self._in_parts(model_id, oid, size) or self._by_xet(model_id, oid, size)

    def _by_xet(self, model_id: str, oid: str, size: int | None) -> Staged | None:
        for stored in self._hub.sink.list(f"{_folder(model_id)}xet/"):
            if not stored.key.endswith(f"/files/{oid}.json"):
                continue
            folder = stored.key.rpartition("files/")[0]
            rows = json.loads(b"".join(map(bytes, self._hub.sink.read(stored.key))))
            pieces = [(Segment(*row), f"{folder}xorbs/{row[0]}") for row in rows]
            total = sum(segment.size for segment, _ in pieces)
            if size in (None, total):
                keys = ((stored.key, stored.size),)
                return Staged(total, oid, keys=keys, checked=False, pieces=tuple(pieces))
        return None

    def _in_parts(self, model_id: str, oid: str, size: int | None) -> Staged | None:
        found = tuple((o.key, o.size) for o in self._hub.sink.list(f"{_folder(model_id)}{oid}/"))
        there = sum(length for _, length in found)
        if not found or (size is not None and there != size) or len(found) != part_count(there):
            return None
        return Staged(there, oid, keys=found, checked=len(found) == 1)

    async def take_xorb(
        self, model_id: str, session: str, name: str, stream: AsyncIterator[bytes]
    ) -> None:
        """A row of chunks, of which a shard tells later what they are."""
        await self.keep(f"{_session(model_id, session)}xorbs/{name}", stream, size=None)

    def take_shard(self, model_id: str, session: str, data: bytes) -> None:
        """Note of which chunks the files of a shard are made. All of their xorbs must be here."""
        folder = _session(model_id, session)
        try:
            files = read_shard(data)
        except IntegrityError as error:
            raise ProblemError(400, str(error)) from None
        there = {stored.key.rpartition("/")[2] for stored in self._hub.sink.list(f"{folder}xorbs/")}
        if lost := {s.xorb for segments in files.values() for s in segments} - there:
            raise ProblemError(400, f"The shard tells of xorbs that did not come: {min(lost)}")
        for oid, segments in files.items():
            rows = [segment.to_json() for segment in segments]
            self._hub.sink.put(f"{folder}files/{oid}.json", json.dumps(rows).encode())

    def forget(self, used: Sequence[Staged]) -> None:
        """Remove what a commit has used; now and then also what no commit came for."""
        doomed = [key for staged in used for key in staged.used]
        now = time.time()
        if now - self._swept > _SWEEP_EVERY:
            self._swept = now
            old = now - _STALE_SECONDS
            doomed += [o.key for o in self._hub.sink.list(PREFIX) if o.modified.timestamp() < old]
        with contextlib.suppress(MMError):  # it is swept another time
            self._hub.sink.delete(doomed)
            for folder in {key.rpartition("xorbs/")[0] for s in used for _, key in s.pieces}:
                if not any(self._hub.sink.list(f"{folder}files/")):
                    left = [stored.key for stored in self._hub.sink.list(f"{folder}xorbs/")]
                    self._hub.sink.delete(left)


def part_count(size: int) -> int:
    """How many parts a file of `size` bytes is sent in."""
    return max(1, -(-size // PART))


def ticket(token: Token, model_id: str, subject: str, size: int = 0) -> str:
    """The query of an address where its holder may send one object, without a token.

    `subject` is the sha256 of the object, or names a session of Xet.

    Signed with what the store knows of the token, so that every server believes it.
    """
    values = {
        "model": model_id,
        "size": str(size),
        "by": token.id,
        "until": str(int(time.time() + TICKET_SECONDS)),
    }
    return urlencode({**values, "mac": _mac(token, subject, values)})


def is_good(token: Token, subject: str, query: Mapping[str, str]) -> bool:
    """Whether the query of an address is a ticket of `token` for that, and still holds."""
    values = {name: query.get(name, "") for name in ("model", "size", "by", "until")}
    given = query.get("mac", "").encode()  # as text it would have to be ASCII
    if not hmac.compare_digest(_mac(token, subject, values).encode(), given):
        return False
    return int(values["until"]) > time.time() and token.allows("write", values["model"])


def _mac(token: Token, subject: str, values: Mapping[str, str]) -> str:
    message = "\0".join([subject, *(values[name] for name in ("model", "size", "by", "until"))])
    return hmac.new(token.sha256.encode(), message.encode(), hashlib.sha256).hexdigest()


def _of(sink: Sink, key: str) -> Iterator[Buffer]:
    """What stands under `key`, read when the first of it is asked for."""
    yield from sink.read(key)


def _announced(model_id: str) -> str:
    return f"{_folder(model_id)}announced.json"


def _session(model_id: str, session: str) -> str:
    return f"{_folder(model_id)}xet/{session}/"


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
