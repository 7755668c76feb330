"""Safetensors: https://huggingface.co/docs/safetensors/index#format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from mm_core.exceptions import IntegrityError

ReadRange = Callable[[int, int], bytes]
"""``read(start, end)``: the bytes ``[start, end)`` of a file, fewer at its end."""

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library itself sets."""
LONGEST_HEADER = 16 << 20
"""The longest header that is read here: parsed, it takes many times its size."""

_MOST_SIDES = 64
_LONGEST_SIDE = 1 << 63
_LONGEST_WORD = 32


def read_safetensors_header(read: ReadRange, *, size: int) -> dict[str, Any]:
    """The facts in the header of a safetensors file of `size` bytes, as JSON data.

    ``{"format", "tensors", "parameters", "dtypes": {dtype: parameters}, "metadata"}``.
    Reads the header alone.

    Raises `IntegrityError` if it is not such a header.
    """
    length = header_length(read(0, 8), size)
    if length is None:
        raise IntegrityError("not a safetensors file: its header's length is impossible")
    if length > LONGEST_HEADER:
        raise IntegrityError(f"a header of {length} bytes is too long to be read")
    try:
        return _facts(json.loads(read(8, 8 + length)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"not a safetensors file: {error!s:.200}") from error


def header_length(head: bytes, size: int) -> int | None:
    """The length of the header that `head` announces; None if it cannot be one."""
    length = int.from_bytes(head[:8], "little")
    possible = size >= 10 and 2 <= length <= min(size - 8, MAX_HEADER_BYTES)
    return length if possible else None


def _facts(header: dict[str, Any]) -> dict[str, Any]:
    metadata = header.pop("__metadata__", {})
    dtypes: dict[str, int] = {}
    for tensor in header.values():
        dtype, count = _word(tensor["dtype"]), math.prod(_shape(tensor["shape"]))
        dtypes[dtype] = dtypes.get(dtype, 0) + count
    return {
        "format": "safetensors",
        "tensors": len(header),
        "parameters": sum(dtypes.values()),
        "dtypes": dtypes,
        "metadata": metadata,
    }


def _shape(shape: Any) -> list[int]:
    fits = isinstance(shape, list) and len(shape) <= _MOST_SIDES
    if not fits or not all(isinstance(s, int) and 0 <= s < _LONGEST_SIDE for s in shape):
        raise ValueError(f"{shape!r:.80} is no shape")
    return list(shape)


def _word(dtype: Any) -> str:
    if not isinstance(dtype, str) or len(dtype) > _LONGEST_WORD:
        raise ValueError(f"{dtype!r:.80} is no dtype")
    return dtype
