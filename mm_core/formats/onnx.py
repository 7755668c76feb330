"""ONNX: a protobuf message, of which the few fields that matter are read and the rest is skipped.

The fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mm_core.exceptions import IntegrityError
from mm_core.formats.protobuf import BYTES, VARINT, Field, fields, varint
from mm_core.formats.reader import Allowance, Reader

_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH = 1, 2, 3, 7
_MODEL = {
    **dict.fromkeys((1, 5), VARINT),
    **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES),
}
_NODE, _INITIALIZER = 1, 5
_DIMS, _DTYPE, _LOCATION = 1, 2, 14
_EXTERNAL = 1

_DTYPES = dict(
    enumerate(
        (
            "FLOAT UINT8 INT8 UINT16 INT16 INT32 INT64 STRING BOOL FLOAT16 DOUBLE UINT32 "
            "UINT64 COMPLEX64 COMPLEX128 BFLOAT16 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 "
            "FLOAT8E5M2FNUZ UINT4 INT4 FLOAT4E2M1 FLOAT8E8M0 UINT2 INT2"
        ).split(),
        1,
    )
)

_NEWEST = 1000
_MOST_FIELDS = 1 << 20
_MOST_SIDES = 64
_LONGEST_SIDE = 1 << 63
_MOST_OPSETS = 64
_LONGEST_TEXT = 4096


@dataclass
class _Found:
    ir_version: int | None = None
    texts: dict[int, str] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    initializers: int = 0
    external: int = 0
    has_graph: bool = False


def looks_like_onnx(file: BinaryIO, size: int) -> bool:
    """Whether a file is one message with the fields that an ONNX model has, to its last byte."""
    seen = set()
    reader = Reader(file)
    try:
        for found in fields(reader, size, _allowance()):
            if _MODEL.get(found.number) != found.wire:
                return False
            if found.number == _IR_VERSION and not 1 <= found.value <= _NEWEST:
                return False
            seen.add(found.number)
    except IntegrityError:
        return False
    return {_IR_VERSION, _GRAPH} <= seen


def read_onnx_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """What an ONNX file of `size` bytes says of itself, as JSON data.

    ``{"format", "version", "opset", "opsets": {domain: version}, "producer", "nodes",
    "tensors", "parameters", "dtypes": {dtype: parameters}, "external"}``. Parameters are
    those of the graph's initializers, of which `external` have their data in another
    file. Weights are passed over, not read.

    Raises `IntegrityError` if it is no such file.
    """
    found = _Found()
    reading = _Reading(Reader(file), _allowance())
    for one in reading.fields(size):
        if _MODEL.get(one.number) != one.wire:
            raise IntegrityError("not an ONNX file: it has a field that no model has")
        reading.field(one, found)
    if found.ir_version is None or not found.has_graph:
        raise IntegrityError("not an ONNX file: it has no version, or no graph")
    producer = " ".join(found.texts[n] for n in (_PRODUCER, _PRODUCER_VERSION) if n in found.texts)
    return {
        "format": "onnx",
        "version": found.ir_version,
        "opset": found.opsets.get("", found.opsets.get("ai.onnx")),
        "opsets": found.opsets,
        "producer": producer or None,
        "nodes": found.nodes,
        "tensors": found.initializers,
        "parameters": sum(found.dtypes.values()),
        "dtypes": found.dtypes,
        "external": found.external,
    }


def _allowance() -> Allowance:
    return Allowance(_MOST_FIELDS, "an ONNX model with so many parts")


class _Reading:
    """One file while it is read, front to back."""

    def __init__(self, reader: Reader, allowance: Allowance) -> None:
        self._reader = reader
        self._allowance = allowance

    def fields(self, end: int) -> Iterator[Field]:
        """The fields of the message that is read next, which ends at `end`."""
        return fields(self._reader, end, self._allowance)

    def field(self, one: Field, found: _Found) -> None:
        """Read a field of the model itself."""
        match one.number:
            case 1:
                found.ir_version = one.value
            case 2 | 3:
                found.texts[one.number] = self._text(one)
            case 7:
                found.has_graph = True
                self._graph(one, found)
            case 8 if len(found.opsets) < _MOST_OPSETS:
                domain, version = self._opset(one)
                found.opsets[domain] = version

    def _opset(self, message: Field) -> tuple[str, int]:
        domain, version = "", 0
        for one in self.fields(self._end(message)):
            if one.number == 1 and one.wire == BYTES:
                domain = self._text(one)
            elif one.number == 2 and one.wire == VARINT:
                version = one.value
        return domain, version

    def _graph(self, message: Field, found: _Found) -> None:
        for one in self.fields(self._end(message)):
            if one.wire == BYTES:
                found.nodes += one.number == _NODE
                if one.number == _INITIALIZER:
                    self._tensor(one, found)

    def _tensor(self, message: Field, found: _Found) -> None:
        sides: list[int] = []
        dtype = 0
        for one in self.fields(self._end(message)):
            if one.number == _DIMS:
                sides += [one.value] if one.wire == VARINT else self._packed(one)
            elif one.number == _DTYPE and one.wire == VARINT:
                dtype = one.value
            elif one.number == _LOCATION and one.wire == VARINT:
                found.external += one.value == _EXTERNAL
            if len(sides) > _MOST_SIDES or any(side >= _LONGEST_SIDE for side in sides):
                raise IntegrityError("not an ONNX file: a tensor has an impossible shape")
        name = _DTYPES.get(dtype, str(dtype))
        found.initializers += 1
        found.dtypes[name] = found.dtypes.get(name, 0) + math.prod(sides)

    def _packed(self, one: Field) -> list[int]:
        end = self._end(one)
        sides: list[int] = []
        while self._reader.tell() < end and len(sides) <= _MOST_SIDES:
            sides.append(varint(self._reader))
        return sides

    def _end(self, one: Field) -> int:
        if one.wire != BYTES:
            raise IntegrityError("not an ONNX file: a part of it is of the wrong kind")
        return self._reader.tell() + one.value

    def _text(self, one: Field) -> str:
        return self._reader.take(min(one.value, _LONGEST_TEXT)).decode(errors="replace")
