"""Whose folder a key lies in: a version's, a registered entry's, or nobody's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from urllib.parse import unquote, urlsplit

from mm_core.exceptions import ConflictError, InvalidNameError
from mm_core.names import check_model_id, check_version, version_prefix
from mm_core.registry import ModelRegistry
from mm_core.registry.claims import steady_seconds
from mm_core.registry.operations import check_folder
from mm_core.registry.state import Record, Row, State

MODELS = "models/"

FRESH = 15.0
"""Seconds for which what the registry said is trusted, where nothing locks it."""

Owner = tuple[Record, Row]


def owner_of(state: State, key: str) -> Owner | None:
    """The version in whose folder `key` lies; None for nobody's, and for registered entries'."""
    for model_id, version in _splits(key):
        record = state.record(model_id)
        row = record.row(version) if record else None
        if record is not None and row is not None and "path" not in row:
            return record, row
    return None


def lockable(state: State, key: str, named: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """A model id and version under whose name `key`, which is nobody's, can be locked.

    Folders of versions never nest, so any name whose folder holds the key keeps all
    others out. The first of `named` that fits is taken, then one of a model that
    there is, then ``ORG/NAME`` and the next. None where each is refused.
    """
    splits = list(_splits(key))
    known = [split for split in named if key.startswith(version_prefix(*split))]
    known += [split for split in splits if state.record(split[0]) is not None]
    known += splits[1:2] + splits
    return next((split for split in known if _may_be_locked(state, *split)), None)


def could_be_a_version(key: str) -> bool:
    """Whether a version's folder could hold `key` at all."""
    return any(True for _ in _splits(key))


class Registered:
    """The keys of entries whose files the caller looks after, where those lie in this root.

    Safe among threads. What was seen of models that have not changed is not looked at again.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._seen: dict[str, Record] = {}
        self._keys: dict[str, tuple[str, ...]] = {}
        self._prefixes: tuple[str, ...] = ()
        self._looked: float | None = None
        self._lock = threading.Lock()

    def look(self, state: State) -> None:
        """Know what `state` says."""
        with self._lock:
            self._looked = steady_seconds()
            for key, record in state.models.items():
                if self._seen.get(key) is not record:
                    self._seen[key] = record
                    self._keys[key] = tuple(self._keys_of(record))
            self._keys = {k: found for k, found in self._keys.items() if found}
            there = (found for k, found in self._keys.items() if k in state.models)
            self._prefixes = tuple(chain.from_iterable(there))

    def look_again(self, registry: ModelRegistry) -> None:
        """Know what the newest state says, if the last look was more than `FRESH` seconds ago."""
        if self._looked is None or steady_seconds() - self._looked > FRESH:
            self.look(registry.state())

    def holds(self, key: str) -> bool:
        """Whether `key` is such a path, or lies below one."""
        return any(not p or key == p or key.startswith(f"{p}/") for p in self._prefixes)

    def _keys_of(self, record: Record) -> Iterator[str]:
        for row in record.versions.values():
            key = _key_of(str(row["path"]), self._root) if "path" in row else None
            if key is not None:
                yield key


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """Each model id and version whose folder would hold `key`, the shortest id first."""
    parts = key.removeprefix(MODELS).split("/")
    for depth in range(1, len(parts) - 1):
        yield "/".join(parts[:depth]), parts[depth]


def _may_be_locked(state: State, model_id: str, version: str) -> bool:
    try:
        if (check_model_id(model_id), check_version(version)) != (model_id, version):
            return False
        check_folder(state, model_id, version)
    except (InvalidNameError, ConflictError):
        return False
    return state.row(model_id, version) is None


def _key_of(path: str, root: str) -> str | None:
    """`path` as a key below `root`, empty where it holds the root; None where it is elsewhere."""
    if "://" in root:
        return _below(_place_of(path), _place_of(root), "/") if "://" in path else None
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    if "://" in path:
        return None
    return _below(os.path.realpath(path), os.path.realpath(root), os.sep)


def _place_of(url: str) -> str:
    """A URL without what one place may be spelled with in several ways: scheme, user, slashes."""
    host, slash, path = url.partition("://")[2].partition("/")
    return f"{host.rpartition('@')[2].lower()}{slash}{path}".rstrip("/")


def _below(path: str, root: str, separator: str) -> str | None:
    if path == root or root.startswith(path.rstrip(separator) + separator):
        return ""
    if not path.startswith(root.rstrip(separator) + separator):
        return None
    return path[len(root.rstrip(separator)) + 1 :].replace(separator, "/")
