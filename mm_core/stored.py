"""A stored version as a source: getting it back is the same street, walked from the other end."""

from __future__ import annotations

from collections.abc import Iterator

from mm_core.schemas import Manifest, RemoteFile, Request, Snapshot
from mm_core.sink import Sink
from mm_core.source import Buffer, Source


class StoredSource(Source):
    """The files of one `Manifest`, read from the sink that holds them."""

    type = "mm"

    def __init__(self, sink: Sink, manifest: Manifest) -> None:
        super().__init__()
        self._sink = sink
        self._manifest = manifest
        self._keys = {file.path: file.key for file in manifest.files}

    def snapshot(self, request: Request) -> Snapshot:
        """All files of the version; the request's patterns do not apply."""
        manifest = self._manifest
        return Snapshot(
            source=manifest.source or "",
            revision=manifest.version,
            files=tuple(
                RemoteFile(path=file.path, size=file.size, sha256=file.sha256)
                for file in manifest.files
            ),
            model_id=manifest.model_id,
            model_type=manifest.model_type,
            license=manifest.license,
            facts=manifest.facts,
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of `file` as they stand in the sink."""
        return self._sink.read(self._keys[file.path], start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Every sink reads ranges."""
        return True
