"""Packs: the bytes of all commits since a checkpoint in one object.

So a new reader reads two objects and few commits, and the whole state need not be
written often. A pack can be lost or damaged: the log has all that is in it.
"""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from collections.abc import Sequence

from mm_core.registry.layout import PACK_PREFIX
from mm_core.schemas import sha256_hex

MOST_BYTES = 4 << 20
"""So many bytes of commits a pack holds at most: what a new reader has to replay."""

_KEPT_BYTES = MOST_BYTES
_LEVEL = 6
_LARGEST = 16 * MOST_BYTES


class Recent:
    """The bytes of the commits that were seen last. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, bytes] = {}
        self._size = 0

    def note(self, seq: int, data: bytes) -> None:
        """Keep a commit; those that were noted first go when there are too many bytes."""
        with self._lock:
            if seq in self._held:
                return
            self._held[seq] = data
            self._size += len(data)
            while self._size > _KEPT_BYTES and len(self._held) > 1:
                self._size -= len(self._held.pop(next(iter(self._held))))

    def between(self, seq: int, last: int) -> list[bytes] | None:
        """The commits after number `seq` up to `last`; None where one is not held."""
        with self._lock:
            found = [self._held.get(number) for number in range(seq + 1, last + 1)]
        held = [data for data in found if data is not None]
        return held if len(held) == len(found) else None


def append(packed: bytes, commits: Sequence[bytes]) -> bytes | None:
    """A pack with `commits` after what is `packed`; None where one is not a line.

    What was there is not packed again: a pack is a row of gzip members.
    """
    if any(b"\n" in commit for commit in commits):
        return None
    packer = zlib.compressobj(_LEVEL, wbits=31)
    lines = b"".join(commit + b"\n" for commit in commits)
    return b"".join((packed, packer.compress(lines), packer.flush()))


def unpack(data: bytes) -> list[bytes]:
    """The commits in a pack. `ValueError`, `OSError`, `EOFError` or `zlib.error` if it is none."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        lines = file.read(_LARGEST + 1)
    if len(lines) > _LARGEST:
        raise ValueError("it is too large to be a pack")
    return lines.split(b"\n")[:-1]


def pack_key(first: int, last: int, data: bytes) -> str:
    """The key of a pack of the commits from `first` to `last`."""
    return f"{PACK_PREFIX}{first:012d}-{last:012d}-{sha256_hex(data)[:12]}.jsonl.gz"
