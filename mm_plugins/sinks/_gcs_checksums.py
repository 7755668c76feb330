"""The checksum that GCS is told of an object: crc32c where it is fast here, else md5."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol

from mm_core import Buffer


class Checksum(Protocol):
    """Of all that `update` was given; against accidents, not against forgery.

    Other threads go on while it is computed.
    """

    word: str
    """What ``X-Goog-Hash`` calls it."""

    field: str
    """What GCS's record of an object calls it."""

    def update(self, data: Buffer) -> None:
        """Take in what follows."""

    def encoded(self) -> str:
        """The sum as GCS writes it."""


class Md5:
    """Twenty times slower than crc32c, and in every Python. Composed objects have none."""

    word = "md5"
    field = "md5Hash"

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, data: Buffer) -> None:
        """Take in what follows."""
        self._md5.update(data)

    def encoded(self) -> str:
        """In base64."""
        return _in_base64(self._md5.digest())


class Crc32c:
    """What GCS computes of every object."""

    word = field = "crc32c"

    def __init__(self, extended: Callable[[Buffer, int], int]) -> None:
        self._extended = extended
        self._sum = 0

    def update(self, data: Buffer) -> None:
        """Take in what follows."""
        self._sum = self._extended(data, self._sum)

    def encoded(self) -> str:
        """In base64, the highest byte first."""
        return _in_base64(self._sum.to_bytes(4, "big"))


def begin_checksum() -> Checksum:
    """The better one of those that can be had."""
    extended = _crc32c()
    return Md5() if extended is None else Crc32c(extended)


def checksum_of(data: Buffer) -> Checksum:
    """Likewise, of `data`."""
    checksum = begin_checksum()
    checksum.update(data)
    return checksum


def tells_other_bytes(
    record: Mapping[str, Any], checksum: Checksum, data: Buffer | None = None
) -> bool:
    """Whether GCS's `record` of an object tells the checksum of other bytes.

    Where it tells its md5 alone, that is compared with the one of `data`.
    """
    if record.get(checksum.field) is None and record.get(Md5.field) and data is not None:
        checksum = Md5()
        checksum.update(data)
    return record.get(checksum.field) not in (None, checksum.encoded())


def _in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


@cache
def _crc32c() -> Callable[[Buffer, int], int] | None:
    """google-crc32c, which gcsfs brings along, takes only `bytes` and holds all threads up."""
    try:
        from crc32c import crc32c
    except ImportError:
        return None
    extended: Callable[[Buffer, int], int] = crc32c
    return extended
