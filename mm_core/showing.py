"""All that is known of a stored version, gathered for people."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from mm_core.content import Content
from mm_core.exceptions import IntegrityError
from mm_core.formats import claimed_formats, read_header
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
    """`entry` with its manifest, its files' URLs, and the headers of its weights.

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
    content = Content.stored(sink, manifest.files)
    headers: dict[str, dict[str, Any]] = {}
    for file in manifest.files:
        for format_ in claimed_formats(file.path):
            with contextlib.suppress(IntegrityError), content.open(file.path) as opened:
                found = read_header(opened, file.size, format_)
                headers |= {} if found is None else {file.path: found}
    return headers
