"""Uploads by Xet: what its clients send in pieces, put together again when a commit wants it.

The formats are those of https://huggingface.co/docs/xet: a *xorb* is a row of compressed
chunks, a *shard* says of which chunks of which xorbs a file is made. Nothing of it stays: the
backend holds plain files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mm_core import Buffer, IntegrityError

_SHARD_TAG = b"HFRepoMetaData\x00"
_ENTRY = 48
_END = b"\xff" * 32
_VERIFIED, _HAS_SHA256 = 1 << 31, 1 << 30
_MOST_SEGMENTS = 1 << 20
_MOST_FILES = 10_000
_FOOTER = b"XETBLOB"


@dataclass(frozen=True, slots=True)
class Segment:
    """The chunks ``[first, last)`` of a xorb, `size` bytes of the file."""

    xorb: str
    first: int
    last: int
    size: int

    def to_json(self) -> list[Any]:
        """The segment as JSON data."""
        return [self.xorb, self.first, self.last, self.size]


def read_shard(data: bytes) -> dict[str, tuple[Segment, ...]]:
    """The files that a shard tells of, by their sha256. Raises `IntegrityError`."""
    try:
        if not data.startswith(_SHARD_TAG):
            raise IntegrityError("this is no shard")
        found: dict[str, tuple[Segment, ...]] = {}
        for name, segments in _files(data):
            found[name] = segments
            if len(found) > _MOST_FILES:
                raise IntegrityError(f"the shard tells of more than {_MOST_FILES} files")
        return found
    except (struct.error, IndexError) as error:
        raise IntegrityError("the shard is cut short") from error


def _files(data: bytes) -> Iterator[tuple[str, tuple[Segment, ...]]]:
    place = _ENTRY
    while data[place : place + 32] != _END:
        flags, count = struct.unpack_from("<II", data, place + 32)
        if count > _MOST_SEGMENTS:
            raise IntegrityError("a file of the shard has too many pieces")
        place += _ENTRY
        segments = tuple(_segment(data, place + number * _ENTRY) for number in range(count))
        place += count * _ENTRY * (2 if flags & _VERIFIED else 1)
        if flags & _HAS_SHA256:
            yield _hex(data, place), segments
            place += _ENTRY


def _segment(data: bytes, place: int) -> Segment:
    _, size, first, last = struct.unpack_from("<IIII", data, place + 32)
    return Segment(_hex(data, place), first, last, size)


def _hex(data: bytes, place: int) -> str:
    """A hash as Xet writes it: four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data, place))


def chunks(buffers: Iterable[Buffer], first: int, last: int) -> Iterator[bytes]:
    """The bytes of the chunks ``[first, last)`` of a xorb. Raises `IntegrityError`."""
    held, number = bytearray(), 0
    for buffer in buffers:
        held += buffer
        while number < last and len(held) >= 8 and not held.startswith(_FOOTER):
            packed, kind = int.from_bytes(held[1:4], "little"), held[4]
            if len(held) < 8 + packed:
                break
            if number >= first:
                size = int.from_bytes(held[5:8], "little")
                yield _unpacked(bytes(held[8 : 8 + packed]), kind, size)
            del held[: 8 + packed]
            number += 1
        if number >= last:
            return
    raise IntegrityError(f"a xorb has {number} chunks, of which {last} were promised")


def read_segments(
    segments: Sequence[tuple[Segment, Iterable[Buffer]]], start: int, end: int
) -> Iterator[bytes]:
    """The bytes ``[start, end)`` of a file made of `segments`, each with its xorb's bytes."""
    at = 0
    for segment, xorb in segments:
        if at >= end:
            return
        if at + segment.size > start:
            position = at
            for piece in chunks(xorb, segment.first, segment.last):
                yield piece[max(start - position, 0) : max(end - position, 0)]
                position += len(piece)
            if position != at + segment.size:
                raise IntegrityError(f"the pieces of xorb {segment.xorb} are of another size")
        at += segment.size


def _unpacked(data: bytes, kind: int, size: int) -> bytes:
    if kind == 0:
        plain = data
    elif kind in (1, 2):
        plain = _lz4(data, size)
    else:
        raise IntegrityError(f"a chunk is packed in a way that is not known: {kind}")
    if len(plain) != size:
        raise IntegrityError("a chunk is of another size than it states")
    return _regrouped(plain) if kind == 2 else plain


def _lz4(data: bytes, size: int) -> bytes:
    from lz4.frame import LZ4FrameDecompressor

    try:
        return bytes(LZ4FrameDecompressor().decompress(data, max_length=size + 1))
    except (RuntimeError, EOFError) as error:
        raise IntegrityError(f"a chunk cannot be unpacked: {error}") from error


def _regrouped(plain: bytes) -> bytes:
    """First bytes of all groups of four, then the second ones, and so on, in order again."""
    out, place = bytearray(len(plain)), 0
    for offset in range(4):
        count = len(out[offset::4])
        out[offset::4] = plain[place : place + count]
        place += count
    return bytes(out)
