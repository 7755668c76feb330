"""The facts in the headers of weights files, by content."""

from __future__ import annotations

from typing import Any, BinaryIO

from mm_core.formats.gguf import read_gguf_header
from mm_core.formats.kinds import FileFormat
from mm_core.formats.onnx import read_onnx_header
from mm_core.formats.safetensors import read_safetensors_header

DESCRIBED = (FileFormat.SAFETENSORS, FileFormat.GGUF, FileFormat.ONNX)
"""The formats whose headers say something of the model."""


def read_header(file: BinaryIO, size: int, format_: FileFormat) -> dict[str, Any] | None:
    """What the header of a file says, as JSON data; None for a format that has none to read.

    See the readers of the formats for the fields; all have ``format``, ``parameters``
    and ``dtypes``. Bounded in bytes and memory. Raises `IntegrityError` where it is no
    such header.
    """
    if format_ is FileFormat.SAFETENSORS:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return read_safetensors_header(read, size=size)
    file.seek(0)
    if format_ is FileFormat.GGUF:
        return read_gguf_header(file)
    return read_onnx_header(file, size) if format_ is FileFormat.ONNX else None
