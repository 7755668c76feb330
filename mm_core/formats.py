"""What a weights file says of itself, read from its first bytes and without its library."""

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


def read_safetensors_header(read: ReadRange, *, size: int) -> dict[str, Any]:
    """The facts in the header of a safetensors file of `size` bytes, as JSON data.

    ``{"format", "tensors", "parameters", "dtypes": {dtype: parameters}, "metadata"}``.
    Reads the header alone. The format:
    https://huggingface.co/docs/safetensors/index#format

    Raises `IntegrityError` if it is not such a header.
    """
    length = int.from_bytes(read(0, 8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise IntegrityError("not a safetensors file: its header's length is impossible")
    try:
        header = json.loads(read(8, 8 + length))
        metadata = header.pop("__metadata__", {})
        dtypes: dict[str, int] = {}
        for tensor in header.values():
            shape = tensor["shape"]
            if not all(isinstance(side, int) and side >= 0 for side in shape):
                raise ValueError(f"{shape!r:.80} is no shape")
            count = math.prod(shape)
            dtypes[tensor["dtype"]] = dtypes.get(tensor["dtype"], 0) + count
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"not a safetensors file: {error}") from error
    return {
        "format": "safetensors",
        "tensors": len(header),
        "parameters": sum(dtypes.values()),
        "dtypes": dtypes,
        "metadata": metadata,
    }
