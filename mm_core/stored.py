"""A stored version as a source: getting it back is the same street, walked from the other end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mm_core.exceptions import SourceChangedError
from mm_core.schemas import Manifest, ModelEntry, RemoteFile, Request, Snapshot, rfc3339
from mm_core.signatures.shelf import kept
from mm_core.sink import Buffer, Sink
from mm_core.source import Source

if TYPE_CHECKING:
    from mm_core.registry import ModelRegistry

COPIED_FROM = "replicated_from"
"""The fact that tells of a copy where it was copied from."""


class StoredSource(Source):
    """The files of one `Manifest`, read from the sink that holds them.

    Its facts are those of the manifest, and `origin`, if there is one, under `COPIED_FROM`.
    """

    type = "mm"

    def __init__(
        self,
        sink: Sink,
        manifest: Manifest,
        *,
        origin: Mapping[str, Any] | None = None,
        signatures: tuple[bytes, ...] = (),
    ) -> None:
        super().__init__()
        self._signatures = signatures
        self._sink = sink
        self._manifest = manifest
        self._origin = origin
        self._check: Callable[[], None] = _nothing

    @classmethod
    def of(cls, registry: ModelRegistry, entry: ModelEntry) -> StoredSource:
        """A version of a registry, to be copied into another.

        A copy has all that is known of the version, where it first came from
        included, its signatures, and in its facts the registry that it was copied from.
        """
        manifest = registry.manifest(entry)
        origin = {
            "registry": registry.id,
            "backend": registry.sink.root,
            "version": f"{entry.model_id}@{entry.version}",
            "manifest": entry.manifest,
            "stored": rfc3339(entry.download_date),
        }
        earlier = manifest.facts.get(COPIED_FROM)
        if earlier is not None:
            origin[COPIED_FROM] = earlier
        bundles = kept(registry.sink, entry.manifest or "")
        source = cls(
            registry.sink,
            manifest,
            origin=origin,
            signatures=tuple(bundle.data for bundle in bundles),
        )
        source._check = partial(refuse_changed, registry, entry)
        return source

    def snapshot(self, request: Request) -> Snapshot:
        """The version's files that the request's patterns let through."""
        manifest = self._manifest
        copied = {} if self._origin is None else {COPIED_FROM: dict(self._origin)}
        return Snapshot(
            source=manifest.source or self._sink.root,
            revision=manifest.revision,
            version=manifest.version,
            files=tuple(
                RemoteFile(
                    path=file.path,
                    size=file.size,
                    sha256=file.sha256,
                    extra={"key": file.key},
                    notes=file.extra,
                )
                for file in manifest.files
                if request.selects(file.path)
            ),
            model_id=manifest.model_id,
            model_type=manifest.model_type,
            license=manifest.license,
            facts={**manifest.facts, **copied},
            extra=manifest.extra,
            signatures=self._signatures,
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of `file` as they stand in the sink."""
        return self._sink.read(file.extra["key"], start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Every sink reads ranges."""
        return True

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """Where one store holds both."""
        return sink.copies_from(self._sink)

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """As the store copies; what stands here was verified when it was stored."""
        return sink.copy_from(self._sink, file.extra["key"], key)

    def confirm(self, snapshot: Snapshot) -> None:
        """While a version is AVAILABLE with the same manifest, none of its files changes."""
        self._check()


def refuse_changed(registry: ModelRegistry, entry: ModelEntry) -> None:
    """Raise `SourceChangedError` unless `entry` is AVAILABLE still, with the files that it had."""
    there = registry.get_model(entry.model_id, entry.version)
    if there is None or (there.status, there.manifest) != (entry.status, entry.manifest):
        raise SourceChangedError(
            f"{entry.model_id}@{entry.version} was removed from {registry.sink.root} meanwhile",
            hint="copy it again if it is there again",
        )


def _nothing() -> None:
    """A version that nobody can change."""
