"""As much of protobuf's encoding as telling fields apart takes: https://protobuf.dev/programming-guides/encoding/."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mm_core.exceptions import IntegrityError
from mm_core.formats.reader import Allowance, EndedError, Reader

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_FIXED = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its number, its wire type, and a number: its value, or its length."""

    number: int
    wire: int
    value: int


def fields(reader: Reader, end: int, allowance: Allowance) -> Iterator[Field]:
    """The fields of the message that `reader` stands before, and that ends at `end`.

    Each uses up one of `allowance`. Whoever gets one of `BYTES` may read its content or
    not, and nothing beyond.
    Raises `IntegrityError` where this cannot be a message.
    """
    while reader.tell() < end:
        allowance.use()
        key = varint(reader)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise IntegrityError("a field of a message has no number")
        if wire in _FIXED:
            yield Field(number, wire, reader.number(_FIXED[wire]))
            continue
        if wire not in (VARINT, BYTES):
            raise IntegrityError("a field of a message is of no known kind")
        field = Field(number, wire, varint(reader))
        after = reader.tell() + (field.value if wire == BYTES else 0)
        if after > end:
            raise EndedError("a field of a message is longer than the message")
        yield field
        if reader.tell() > after:
            raise EndedError("a part of a field is longer than the field")
        reader.skip(after - reader.tell())
    if reader.tell() != end:
        raise EndedError("a field of a message is longer than the message")


def varint(reader: Reader) -> int:
    """An unsigned number in groups of seven bits, at most 64 of them."""
    value = 0
    for shift in range(0, 70, 7):
        byte = reader.number(1)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF
    raise IntegrityError("a number in a message is too long")
