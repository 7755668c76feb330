"""All that is known of a stored version, gathered for people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from mm_core.exceptions import IntegrityError
from mm_core.formats import read_safetensors_header
from mm_core.results import Shown
from mm_core.schemas import Manifest, ModelEntry
from mm_core.sink import Sink


class Lists(Protocol):
    """What knows the file lists of versions: a registry, or a reading of one."""

    @property
    def sink(self) -> Sink:
        """Where the files are."""

    def manifest(self, entry: ModelEntry) -> Manifest:
        """The file list of a version."""


def describe(lists: Lists, entry: ModelEntry, *, headers: bool = True) -> Shown:
    """`entry` with its manifest, its files' URLs, and the headers of its safetensors files.

    A header that cannot be read is left out; without `headers`, all are.
    """
    sink, manifest = lists.sink, lists.manifest(entry)
    return Shown(
        entry=entry,
        manifest=manifest,
        urls={file.path: sink.url(file.key) for file in manifest.files},
        headers=_headers(sink, manifest) if headers else {},
    )


def _headers(sink: Sink, manifest: Manifest) -> dict[str, dict[str, Any]]:
    headers: dict[str, dict[str, Any]] = {}
    for file in manifest.files:
        if file.path.endswith(".safetensors"):
            with contextlib.suppress(IntegrityError):
                read = _range_reader(sink, file.key)
                headers[file.path] = read_safetensors_header(read, size=file.size)
    return headers


def _range_reader(sink: Sink, key: str) -> Callable[[int, int], bytes]:
    def read(start: int, end: int) -> bytes:
        return b"".join(bytes(buffer) for buffer in sink.read(key, start, end))

    return read
