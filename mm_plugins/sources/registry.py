"""A version in another backend's registry: ``mm://backend/org/model[@version|:alias]``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from mm_core import (
    Backends,
    Buffer,
    ConfigError,
    ModelEntry,
    ModelRegistry,
    ModelStatus,
    NotFoundError,
    RemoteFile,
    Request,
    Sink,
    Snapshot,
    Source,
    StoredSource,
    UsageError,
    hookimpl,
)

_ADDRESS = re.compile(r"(?i)mm://(?P<backend>[^/]+)/(?P<reference>[^@:]+(?P<exact>[@:].+)?)")


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer what other backends hold."""
    return [RegistrySource]


class RegistrySource(Source):
    """A stored version with all that is known of it: where it first came from, its facts.

    The backend is one of ``mm.yaml``. The version keeps its name, and the sha256 of
    every file is stated by its registry. Without a version it is the newest one,
    as everywhere.
    """

    type = "mm"
    schemes = ("mm",)
    needs_network = False

    def __init__(self, config: Source.Config | None = None) -> None:
        super().__init__(config)
        self._backends: Backends | None = None
        self._versions: dict[Snapshot, StoredSource] = {}

    def bind(self, backends: Backends) -> None:
        """Remember where the backends are."""
        self._backends = backends

    def snapshot(self, request: Request) -> Snapshot:
        """The version that the address, or the revision asked for, names in its registry now."""
        found = _ADDRESS.fullmatch(request.url)
        if found is None or (found["exact"] and request.revision is not None):
            raise UsageError(
                f"{request.url!r} names no version in a backend"
                + (f" together with {request.revision!r}" if request.revision else ""),
                hint="write mm://BACKEND/org/model, with @VERSION or :ALIAS after it to be exact",
            )
        registry = self._bound.registry(found["backend"])
        version = StoredSource.of(registry, _entry(registry, found["reference"], request.revision))
        made = version.snapshot(request)
        where = {"backend": found["backend"]}
        files = tuple(replace(file, extra={**file.extra, **where}) for file in made.files)
        made = replace(made, files=files)
        self._versions[made] = version
        return made

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` as they stand in the backend."""
        return self._sink(file.extra["backend"]).read(file.extra["key"], start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Every sink reads ranges."""
        return True

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """Where one store holds both."""
        return sink.copies_from(self._sink(file.extra["backend"]))

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """As the store copies; what stands in the backend was verified when it was stored."""
        return sink.copy_from(self._sink(file.extra["backend"]), file.extra["key"], key)

    def confirm(self, snapshot: Snapshot) -> None:
        """While a version is AVAILABLE with the same manifest, none of its files changes."""
        version = self._versions.get(snapshot)
        if version is not None:
            version.confirm(snapshot)

    def _sink(self, backend: str) -> Sink:
        return self._bound.sink(backend)

    @property
    def _bound(self) -> Backends:
        if self._backends is None:
            raise ConfigError("mm:// addresses are opened by a ModelManager, which knows backends")
        return self._backends


def _entry(registry: ModelRegistry, reference: str, revision: str | None) -> ModelEntry:
    """The AVAILABLE version of that name, alias or, failing that, revision of its source."""
    if revision is None:
        return registry.resolve(reference)
    try:
        return registry.resolve(f"{reference}@{revision}")
    except NotFoundError:
        versions = registry.list_models(model_id=reference, status=ModelStatus.AVAILABLE)
        for entry in reversed(versions):
            if entry.metadata.get("revision") == revision:
                return entry
        raise
