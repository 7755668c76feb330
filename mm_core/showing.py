"""All that is known of a stored version, gathered for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.formats import read_safetensors_header
from mm_core.registry import ModelRegistry
from mm_core.results import Shown
from mm_core.schemas import ModelEntry
from mm_core.sink import Sink


def describe(registry: ModelRegistry, entry: ModelEntry) -> Shown:
    """`entry` with its manifest, its files' URLs, and the headers of its safetensors files.

    A header that cannot be read is left out.
    """
    sink, manifest = registry.sink, registry.manifest(entry)
    headers: dict[str, dict[str, Any]] = {}
    for file in manifest.files:
        if file.path.endswith(".safetensors"):
            with contextlib.suppress(IntegrityError):
                read = _range_reader(sink, file.key)
                headers[file.path] = read_safetensors_header(read, size=file.size)
    urls = {file.path: sink.url(file.key) for file in manifest.files}
    return Shown(entry=entry, manifest=manifest, urls=urls, headers=headers)


def _range_reader(sink: Sink, key: str) -> Callable[[int, int], bytes]:
    def read(start: int, end: int) -> bytes:
        return b"".join(bytes(buffer) for buffer in sink.read(key, start, end))

    return read
