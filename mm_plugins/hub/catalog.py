"""The catalogue: what a registry holds, in the words of the Hub's protocol."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cachetools import LRUCache, TTLCache

from mm_core import (
    InvalidNameError,
    Manifest,
    ModelEntry,
    ModelRegistry,
    ModelStatus,
    ModelType,
    Query,
    StoredFile,
    UsageError,
)

if TYPE_CHECKING:
    from mm_plugins.hub.upstream import Coming

HEX40 = re.compile(r"[0-9a-f]{40}")
MAIN = "main"

_MOST_MODELS = 4096
_MOST_FILE_LISTS = 256
_LISTING_SHARE = 10.0  # a listing that took a second is taken as known for ten


def commit_of(entry: ModelEntry) -> str:
    """The 40 hex digits that clients know a version by.

    That of the source it was pulled from, where it states one, so that caches of the
    Hub's own clients stay good. Else it is made from the id and the version.
    """
    revision = entry.metadata.get("revision")
    for stated in (entry.version, revision):
        if isinstance(stated, str) and HEX40.fullmatch(stated):
            return stated
    return hashlib.sha1(
        f"model-manager\0{entry.model_id}\0{entry.version}".encode(), usedforsecurity=False
    ).hexdigest()


def tag_of(file: StoredFile) -> str:
    """What tells the content of a file from any other: its sha256.

    Of a file that is on its way that may not be known; then it is what upstream states.
    """
    return file.sha256 or str(file.extra["tag"])


@dataclass(frozen=True)
class Model:
    """Versions of one model, the newest last: in a `Catalog`, the AVAILABLE ones."""

    id: str
    versions: tuple[ModelEntry, ...]

    @cached_property
    def aliases(self) -> Mapping[str, ModelEntry]:
        """What each alias names."""
        return {alias: entry for entry in self.versions for alias in entry.aliases}

    @cached_property
    def main(self) -> ModelEntry:
        """What is meant where nobody says which: ``main``, else ``latest``, else the newest."""
        named = self.aliases.get(MAIN) or self.aliases.get("latest")
        return named or self.newest

    @property
    def newest(self) -> ModelEntry:
        """The newest version that can be loaded; where none can, the newest of all."""
        loadable = (e for e in reversed(self.versions) if e.status is ModelStatus.AVAILABLE)
        return next(loadable, self.versions[-1])

    def find(self, revision: str) -> ModelEntry | None:
        """The version that a branch, a tag, or a commit names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        by_version = {entry.version: entry for entry in self.versions}
        found = by_version.get(name) or self.aliases.get(name)
        if found is not None:
            return found
        if name == MAIN:
            return self.main
        if not HEX40.fullmatch(name):
            return None
        return next((e for e in reversed(self.versions) if commit_of(e) == name), None)


@dataclass(frozen=True)
class Version:
    """One version with its files; `coming` if they are on their way here."""

    model: Model
    entry: ModelEntry
    manifest: Manifest
    commit: str
    coming: Coming | None = None

    @cached_property
    def files(self) -> Mapping[str, StoredFile]:
        """The files by path, in the order of their paths."""
        return {file.path: file for file in sorted(self.manifest.files, key=lambda f: f.path)}


def empty(model_id: str, root: str) -> Version:
    """A model that has been announced, with nothing in it."""
    name = hashlib.sha1(f"empty\0{model_id}".encode(), usedforsecurity=False).hexdigest()
    manifest = Manifest(model_id=model_id, version=name, model_type=ModelType.OTHER, files=())
    entry = ModelEntry(model_id=model_id, version=name, path=root, status=ModelStatus.DOWNLOADING)
    return Version(Model(model_id, (entry,)), entry, manifest, name)


class Catalog:
    """What is AVAILABLE in a registry, asked for again when it is `refresh` seconds old.

    Safe among threads. What was only registered, and so has no file list, is not in it.
    """

    def __init__(self, registry: ModelRegistry, *, refresh: float) -> None:
        self.registry = registry
        self._refresh = refresh
        self._models: TTLCache[str, Model | None] = TTLCache(_MOST_MODELS, ttl=refresh)
        self._versions: LRUCache[str, Version] = LRUCache(_MOST_FILE_LISTS)
        self._list: tuple[Model, ...] = ()
        self._list_until = 0.0
        self._lock = threading.Lock()
        self._listing = threading.Lock()

    def knows(self, model_id: str) -> bool:
        """Whether `model` would answer at once."""
        with self._lock:
            return model_id in self._models

    def model(self, model_id: str) -> Model | None:
        """The model of this id; None if there is none that anybody could load."""
        with self._lock:
            if model_id in self._models:
                return self._models[model_id]
        model = self._ask(model_id)
        with self._lock:
            self._models[model_id] = model
        return model

    def forget(self, model_id: str) -> None:
        """Ask anew for a model of which is known that it changed."""
        with self._lock:
            self._models.pop(model_id, None)
            self._list_until = 0.0

    def knows_files(self, entry: ModelEntry) -> bool:
        """Whether `version` would answer at once."""
        with self._lock:
            return (entry.manifest or "") in self._versions

    def version(self, model: Model, entry: ModelEntry) -> Version:
        """`entry` with its files. Raises as `ModelRegistry.manifest`."""
        key = entry.manifest or ""
        with self._lock:
            known = self._versions.get(key)
        if known is not None and known.model is model and known.entry is entry:
            return known
        manifest = self.registry.manifest(entry) if known is None else known.manifest
        version = Version(model, entry, manifest, commit_of(entry))
        with self._lock:
            self._versions[key] = version
        return version

    def models(self) -> tuple[Model, ...]:
        """All models, by id."""
        with self._listing:  # one at a time: it may take long
            began = time.monotonic()
            if began >= self._list_until:
                self._list = by_model(self._available(Query()))
                took = time.monotonic() - began
                self._list_until = began + took + max(self._refresh, _LISTING_SHARE * took)
            return self._list

    def _ask(self, model_id: str) -> Model | None:
        try:
            query = Query.parse("model=" + model_id.replace(",", "\\,"))
        except (UsageError, InvalidNameError):
            return None
        found = [entry for entry in self._available(query) if entry.model_id == model_id]
        return Model(model_id, tuple(found)) if found else None

    def _available(self, query: Query) -> list[ModelEntry]:
        return [
            entry
            for entry in self.registry.query(query)
            if entry.status is ModelStatus.AVAILABLE and entry.manifest
        ]


def by_model(entries: Iterable[ModelEntry]) -> tuple[Model, ...]:
    """Versions, the older first, as the models that they are of."""
    grouped: dict[str, list[ModelEntry]] = {}
    for entry in entries:
        grouped.setdefault(entry.model_id, []).append(entry)
    return tuple(Model(id_, tuple(found)) for id_, found in grouped.items())
