"""Large files in blocks. Those that are in no blob yet are the journal of an upload.

The id of a block tells the content that it is a part of, the upload, when the part was
stored, and its number: so a later attempt knows what it may take up. Azure has no way to
drop such blocks but to make a blob, which somebody could see. So an upload is given up
by one block more that says so; Azure itself drops all of them after a week, or as soon
as a blob of that name is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from mm_core import Buffer, IntegrityError, MMError, UnfinishedUpload, Upload, UploadLostError
from mm_plugins.sinks._azure_blobs import AzureBlobs, Block
from mm_plugins.sinks._azure_errors import BlocksLostError
from mm_plugins.sinks._patience import ATTEMPTS

_ID = re.compile(r"mm1([0-9a-f]{16})([0-9a-f]{12})(\d{10})(\d{6})")
_GIVEN_UP = 999_999


@dataclass
class Left:
    """The blocks of one upload, by the number of their part."""

    content: str
    upload: str
    blocks: dict[int, list[Block]] = field(default_factory=dict)
    latest: int = 0
    given_up: bool = False

    @property
    def modified(self) -> datetime:
        """When the latest was stored."""
        return datetime.fromtimestamp(self.latest, timezone.utc)

    @property
    def size(self) -> int:
        """Bytes that are stored."""
        return sum(block.size for blocks in self.blocks.values() for block in blocks)


class BlockUpload(Upload):
    """A large file on its way. What a process leaves is taken up again, for the same content."""

    def __init__(
        self, blobs: AzureBlobs, key: str, left: Left, *, size: int, part_size: int, now: datetime
    ) -> None:
        self.size = size
        self.part_size = part_size
        self._blobs = blobs
        self._key = key
        self._left = left
        self._ahead = now.timestamp() - time.monotonic()
        self._ids = {
            number: block.id
            for number, blocks in left.blocks.items()
            for block in blocks
            if block.size == self._length(number)
        }
        self.kept = frozenset(self._ids)

    def write_part(self, number: int, data: memoryview) -> None:
        """One Put Block."""
        if len(data) != self._length(number):
            raise IntegrityError(
                f"part {number} of {self._key!r} should have {self._length(number)} bytes, "
                f"but {len(data)} came"
            )
        block = self._id(number)
        self._blobs.stage(self._key, block, data)
        self._ids[number] = block

    def commit(self) -> None:
        """One Put Block List. `UploadLostError` where Azure has dropped a block meanwhile."""
        count = -(-self.size // self.part_size)
        if len(self._ids) != count:
            raise IntegrityError(f"{self._key!r} lacks parts; nothing was stored")
        blocks = [self._ids[number] for number in range(count)]
        try:
            self._blobs.commit(self._key, blocks, self.size)
        except BlocksLostError as error:
            raise UploadLostError(f"{error}: its parts are gone") from error

    def keep(self) -> None:
        """Nothing to do: Azure keeps the blocks for a week."""

    def discard(self) -> None:
        """Say that nobody may take it up; Azure drops the blocks by itself."""
        if self._ids:
            with contextlib.suppress(MMError):
                _give_up(self._blobs, self._key, self._left, self._now())

    def _length(self, number: int) -> int:
        return max(0, min(self.part_size, self.size - number * self.part_size))

    def _id(self, number: int) -> str:
        return _block_id(self._left, self._now(), number)

    def _now(self) -> int:
        return int(time.monotonic() + self._ahead)


class Stream:
    """A large file whose size may not be known, in blocks that come in order."""

    def __init__(self, blobs: AzureBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._left = Left(secrets.token_hex(8), secrets.token_hex(6))
        self._ids: list[str] = []

    def append(self, number: int, part: Buffer) -> None:
        """Store the next part."""
        block = _block_id(self._left, int(time.time()), number)
        self._blobs.stage(self._key, block, part, attempts=ATTEMPTS)
        self._ids.append(block)

    def commit(self, size: int) -> None:
        """Let the parts become the blob, of so many bytes."""
        self._blobs.commit(self._key, self._ids, size)

    def discard(self) -> None:
        """Say that the parts are nobody's; the error on the way is the one to tell."""
        if self._ids:
            with contextlib.suppress(MMError):
                _give_up(self._blobs, self._key, self._left, int(time.time()))


def begin(
    blobs: AzureBlobs, key: str, *, size: int, part_size: int, identity: str | None
) -> BlockUpload:
    """An upload of `key`: the newest that was left of the same content, or a fresh one.

    All others that were left under `key` are given up.
    """
    now, blocks = blobs.staged(key)
    content = secrets.token_hex(8) if identity is None else _tag(identity, size)
    taken: Left | None = None
    for left in sorted(_uploads(blocks), key=lambda left: left.latest, reverse=True):
        if taken is None and left.content == content:
            taken = left
        else:
            _give_up(blobs, key, left, int(now.timestamp()))
    left = taken or Left(content, secrets.token_hex(6))
    return BlockUpload(blobs, key, left, size=size, part_size=part_size, now=now)


def unfinished(blobs: AzureBlobs, prefix: str) -> Iterator[UnfinishedUpload]:
    """The uploads of keys that begin with `prefix`, and under which no blob stands yet.

    Where one stands, Azure lists no blocks beside it; they go after a week at the latest.
    """
    for found in blobs.listed(prefix, "uncommittedblobs"):
        if found.size:
            continue
        key = blobs.key_of(found)
        for left in _uploads(blobs.staged(key)[1]):
            yield UnfinishedUpload(key=key, id=left.upload, modified=left.modified, size=left.size)


def discard(blobs: AzureBlobs, upload: UnfinishedUpload) -> bool:
    """Give an upload up, unless somebody has added to it since it was listed."""
    now, blocks = blobs.staged(upload.key)
    for left in _uploads(blocks):
        if left.upload == upload.id:
            if left.modified - upload.modified > timedelta(0):
                return False
            _give_up(blobs, upload.key, left, int(now.timestamp()))
    return True


def _uploads(blocks: list[Block]) -> list[Left]:
    """What was left, without what was given up and what is none of ours."""
    found: dict[str, Left] = {}
    for block in blocks:
        match = _ID.fullmatch(block.id)
        if match is None:
            continue
        left = found.setdefault(match[2], Left(match[1], match[2]))
        number = int(match[4])
        if number == _GIVEN_UP:
            left.given_up = True
        else:
            left.blocks.setdefault(number, []).append(block)
            left.latest = max(left.latest, int(match[3]))
    return [left for left in found.values() if left.blocks and not left.given_up]


def _give_up(blobs: AzureBlobs, key: str, left: Left, now: int) -> None:
    blobs.stage(key, _block_id(left, now, _GIVEN_UP), b"-", attempts=ATTEMPTS)


def _block_id(left: Left, now: int, number: int) -> str:
    return f"mm1{left.content}{left.upload}{now:010d}{number:06d}"


def _tag(identity: str, size: int) -> str:
    return hashlib.sha256(f"{size} {identity}".encode()).hexdigest()[:16]
