"""What clients of Xet send, made by hand: for tests of who reads it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any


def _packed(name: str) -> bytes:
    """A hash as Xet keeps it."""
    return b"".join(struct.pack("<Q", int(name[i : i + 16], 16)) for i in range(0, 64, 16))


def chunk(data: bytes, kind: int = 0) -> bytes:
    """One chunk of a xorb: as it is (0), packed (1), or packed with each four bytes apart (2)."""
    body = data
    if kind == 2:
        body = b"".join(data[offset::4] for offset in range(4))
    if kind:
        from lz4.frame import compress

        body = compress(body)
    sizes = len(body).to_bytes(3, "little") + bytes([kind]) + len(data).to_bytes(3, "little")
    return b"\0" + sizes + body


def shard(segments: Sequence[Any], sha256: str | None, *, verified: bool = True) -> bytes:
    """A shard of one file, made of `segments` (xorb, first, last and size of each)."""
    flags = (1 << 31) * verified | (1 << 30) * (sha256 is not None)
    out = b"HFRepoMetaData\0".ljust(32, b"x") + struct.pack("<QQ", 2, 0)
    out += bytes(32) + struct.pack("<IIQ", flags, len(segments), 0)
    for one in segments:
        out += _packed(one.xorb) + struct.pack("<IIII", 0, one.size, one.first, one.last)
    out += bytes(48) * len(segments) * verified
    if sha256 is not None:
        out += _packed(sha256) + bytes(16)
    return out + b"\xff" * 32 + bytes(16)
