"""The catalogue: what a registry holds, in the words of the Hub's protocol."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mm_core import (
    InvalidNameError,
    Manifest,
    ModelEntry,
    ModelRegistry,
    ModelStatus,
    Query,
    StoredFile,
    UsageError,
)

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


@dataclass(frozen=True)
class Model:
    """The AVAILABLE versions of one model, the newest last."""

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
        return named or self.versions[-1]

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
    """One version with its files."""

    model: Model
    entry: ModelEntry
    manifest: Manifest
    commit: str

    @cached_property
    def files(self) -> Mapping[str, StoredFile]:
        """The files by path, in the order of their paths."""
        return {file.path: file for file in sorted(self.manifest.files, key=lambda f: f.path)}


@dataclass
class _Known:
    """An answer, and until when it is taken as known."""

    answer: object
    until: float


@dataclass
class _Shelf:
    """Answers by question, the least asked for thrown away first. Safe among threads."""

    most: int
    answers: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> _Known | None:
        with self.lock:
            known = self.answers.get(key)
            if known is None or known.until < time.monotonic():
                return None
            self.answers.move_to_end(key)
            return known

    def put(self, key: str, answer: object, seconds: float) -> None:
        with self.lock:
            self.answers[key] = _Known(answer, time.monotonic() + seconds)
            self.answers.move_to_end(key)
            while len(self.answers) > self.most:
                self.answers.popitem(last=False)

    def clear(self) -> None:
        with self.lock:
            self.answers.clear()


class Catalog:
    """What is AVAILABLE in a registry, asked for again when it is `refresh` seconds old.

    Safe among threads. What was only registered, and so has no file list, is not in it.
    """

    def __init__(self, registry: ModelRegistry, *, refresh: float) -> None:
        self.registry = registry
        self._refresh = refresh
        self._models = _Shelf(_MOST_MODELS)
        self._lists = _Shelf(1)
        self._manifests = _Shelf(_MOST_FILE_LISTS)
        self._listing = threading.Lock()

    def forget(self) -> None:
        """Ask the registry again: something has changed."""
        self._models.clear()
        self._lists.clear()

    def knows(self, model_id: str) -> bool:
        """Whether `model` would answer at once."""
        return self._models.get(model_id) is not None

    def model(self, model_id: str) -> Model | None:
        """The model of this id; None if there is none that anybody could load."""
        known = self._models.get(model_id)
        if known is not None:
            found = known.answer
            assert found is None or isinstance(found, Model)
            return found
        model = self._ask(model_id)
        self._models.put(model_id, model, self._refresh)
        return model

    def knows_files(self, entry: ModelEntry) -> bool:
        """Whether `version` would answer at once."""
        return self._manifests.get(entry.manifest or "") is not None

    def version(self, model: Model, entry: ModelEntry) -> Version:
        """`entry` with its files. Raises as `ModelRegistry.manifest`."""
        known = self._manifests.get(entry.manifest or "")
        if known is not None and isinstance(known.answer, Version):
            version = known.answer
            if version.model is model and version.entry is entry:
                return version
            manifest = version.manifest
        else:
            manifest = self.registry.manifest(entry)
        version = Version(model, entry, manifest, commit_of(entry))
        self._manifests.put(entry.manifest or "", version, float("inf"))
        return version

    def models(self) -> tuple[Model, ...]:
        """All models, by id."""
        known = self._lists.get("")
        if known is None:
            with self._listing:  # one at a time: it may take long
                known = self._lists.get("")
                if known is None:
                    began = time.monotonic()
                    models = _by_model(self._available(Query()))
                    seconds = max(self._refresh, _LISTING_SHARE * (time.monotonic() - began))
                    self._lists.put("", models, seconds)
                    return models
        assert isinstance(known.answer, tuple)
        return known.answer

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


def _by_model(entries: list[ModelEntry]) -> tuple[Model, ...]:
    grouped: dict[str, list[ModelEntry]] = {}
    for entry in entries:
        grouped.setdefault(entry.model_id, []).append(entry)
    return tuple(Model(id_, tuple(found)) for id_, found in grouped.items())
