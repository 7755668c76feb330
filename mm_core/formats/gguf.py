"""GGUF, versions 1 to 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import math
import struct
from typing import Any, BinaryIO

from mm_core.exceptions import IntegrityError
from mm_core.formats.reader import Allowance, Reader, TooMuchError

MAGIC = b"GGUF"

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

_MOST_ENTRIES = 1 << 20
_MOST_TEXTS = 8 << 20
_LONGEST_TEXT = 64 << 10
_DEEPEST = 4
_MOST_SIDES = 8
_MOST_FOUND = 64
_CONTEXT = ".context_length"
_GUESSED = 1024

_FILE_TYPES = dict(
    enumerate(
        (
            "F32 F16 Q4_0 Q4_1 Q4_1_F16 Q4_2 Q4_3 Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L "
            "Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S "
            "IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 "
            "TQ1_0 TQ2_0 MXFP4_MOE"
        ).split()
    )
)
"""What ``general.file_type`` means, as llama.cpp numbers it."""

_TENSOR_TYPES = {
    **dict(enumerate(("F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1").split())),
    **dict(enumerate(("Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS").split(), 10)),
    **dict(enumerate(("IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64").split(), 19)),
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def read_gguf_header(file: BinaryIO) -> dict[str, Any]:
    """The facts in the header of a GGUF file, as JSON data.

    ``{"format", "version", "tensors", "parameters", "dtypes": {dtype: parameters},
    "architecture", "name", "quantization", "context_length"}``, the last four None
    where the file does not state them. Reads the header alone.

    Raises `IntegrityError` if it is not such a header.
    """
    header = _Header(Reader(file))
    facts, dtypes = header.values(), header.dtypes()
    architecture = facts.get("general.architecture")
    file_type = facts.get("general.file_type")
    return {
        "format": "gguf",
        "version": header.version,
        "tensors": header.tensors,
        "parameters": sum(dtypes.values()),
        "dtypes": dtypes,
        "architecture": architecture,
        "name": facts.get("general.name"),
        "quantization": None if file_type is None else _quantization(file_type),
        "context_length": facts.get(f"{architecture}{_CONTEXT}"),
    }


class _Header:
    """The header of one file, read from its front: first `values`, then `dtypes`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        if reader.take(4) != MAGIC:
            raise IntegrityError("not a GGUF file: it does not begin with GGUF")
        version = reader.take(4)
        self._big = version[0] == 0
        self.version = int.from_bytes(version, "big" if self._big else "little")
        if not 1 <= self.version <= 3:
            raise IntegrityError(f"GGUF version {self.version} is not known here")
        self._width = 4 if self.version == 1 else 8
        self.tensors = self._count(_MOST_ENTRIES, "tensors")
        self._entries = self._count(_MOST_ENTRIES, "entries")
        self._allowance = Allowance(_MOST_TEXTS, "a GGUF header with so many texts")

    def values(self) -> dict[str, Any]:
        """The values that tell something of the model; all others are passed over."""
        found: dict[str, Any] = {}
        for _ in range(self._entries):
            key, kind = self._text(), self._number(4)
            if key in _WANTED or (key.endswith(_CONTEXT) and len(found) < _MOST_FOUND):
                found[key] = _fitting(key, self._value(kind))
            else:
                self._pass(kind)
        return found

    def dtypes(self) -> dict[str, int]:
        """How many parameters there are of each type."""
        found: dict[str, int] = {}
        for _ in range(self.tensors):
            self._pass(_STRING)
            sides = self._count(_MOST_SIDES, "dimensions", width=4)
            count = math.prod([self._number(self._width) for _ in range(sides)])
            kind = self._number(4)
            self._reader.skip(8)
            name = _TENSOR_TYPES.get(kind, str(kind))
            found[name] = found.get(name, 0) + count
        return found

    def _number(self, width: int) -> int:
        return self._reader.number(width, big=self._big)

    def _count(self, most: int, what: str, width: int | None = None) -> int:
        count = self._number(width or self._width)
        if count > most:
            raise TooMuchError(f"a GGUF header of {count} {what} is too long to be read")
        return count

    def _text(self) -> str:
        length = self._number(self._width)
        if length > _LONGEST_TEXT:
            raise IntegrityError("not a GGUF file: a name in its header is too long")
        return self._reader.take(length).decode(errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _NUMBERS:
            form = (">" if self._big else "<") + _NUMBERS[kind]
            return struct.unpack(form, self._reader.take(struct.calcsize(form)))[0]
        self._pass(kind)
        return None

    def _pass(self, kind: int, depth: int = 0) -> None:
        if kind in _NUMBERS:
            self._reader.skip(struct.calcsize("<" + _NUMBERS[kind]))
        elif kind == _STRING:
            self._allowance.use()
            self._reader.skip(self._number(self._width))
        elif kind == _ARRAY and depth < _DEEPEST:
            self._pass_array(depth)
        else:
            raise IntegrityError("not a GGUF file: its header has a value of no known kind")

    def _pass_array(self, depth: int) -> None:
        self._allowance.use()
        kind, count = self._number(4), self._number(self._width)
        if kind in _NUMBERS:
            self._reader.skip(count * struct.calcsize("<" + _NUMBERS[kind]))
            return
        for _ in range(count):
            self._pass(kind, depth + 1)


def _quantization(file_type: int) -> str:
    kind = file_type & ~_GUESSED
    return _FILE_TYPES.get(kind, str(kind))


_WANTED = {"general.architecture": str, "general.name": str, "general.file_type": int}


def _fitting(key: str, value: Any) -> Any:
    """`value` if it is of the kind that `key` should have, else None."""
    kind = _WANTED.get(key, int)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None
