"""Where a key stands in a cache of the Hugging Face Hub, and the way back.

``models/org/name/<commit>/<path>`` stands at
``models--org--name/snapshots/<commit>/<path>``, so that a loader finds it. All
other keys, also those of versions that are no commits, stand under their own
names: nobody could say where in them the model's id ends.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from mm_core import InvalidNameError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SEGMENT = re.compile(r"[^\W_](?:[\w.-]*\w)?")
_HUBS = re.compile(r"[a-z]+--.+|\.locks|blobs|CACHEDIR\.TAG|version(?:_\w+)?\.txt")

MARKS = ".mm"
"""The folder in a repository's own that names the snapshots which are ours."""


class Snapshot(NamedTuple):
    """A version's place in the cache: its model's id, and its commit."""

    model_id: str
    commit: str

    @property
    def repository(self) -> str:
        """The folder of the model, below the root."""
        return f"models--{self.model_id.replace('/', '--')}"

    @property
    def folder(self) -> str:
        """The folder of the version, below the root."""
        return f"{self.repository}/snapshots/{self.commit}"

    @property
    def mark(self) -> str:
        """The file that says that the snapshot is ours, below the root."""
        return f"{self.repository}/{MARKS}/{self.commit}"

    @property
    def prefix(self) -> str:
        """What the version's keys begin with."""
        return f"models/{self.model_id}/{self.commit}"


def snapshot_of(key: str) -> Snapshot | None:
    """The version whose folder holds `key`, or is it; None for a key that stands elsewhere."""
    first, *parts = key.split("/")
    if first != "models":
        return None
    for length in (1, 2):
        if len(parts) > length and _COMMIT.fullmatch(parts[length]):
            return _snapshot(parts[:length], parts[length])
    return None


def place_of(key: str) -> str:
    """The path below the root of what has this key. `InvalidNameError` for what is the Hub's."""
    found = snapshot_of(key)
    if found is not None:
        return found.folder + key[len(found.prefix) :]
    if is_hubs(key.partition("/")[0]):
        raise InvalidNameError(f"key {key!r} belongs to the Hugging Face Hub's own files here")
    return key


def key_of(place: str, snapshot: Snapshot | None) -> str:
    """The key of what stands at `place`, within `snapshot` or outside of all."""
    return place if snapshot is None else snapshot.prefix + place[len(snapshot.folder) :]


def repository_of(model_id: str) -> str | None:
    """The folder below the root of a model; None for an id that the Hub could not have."""
    segments = model_id.split("/")
    fits = len(segments) <= 2 and all(map(_fits, segments))
    return Snapshot(model_id, "").repository if fits else None


def snapshots_in(root: str) -> list[Snapshot]:
    """The snapshots below `root` that are ours, by their keys."""
    found = [
        Snapshot(model_id, commit)
        for name in _names(root)
        if (model_id := _model_id(name)) is not None
        for commit in _names(os.path.join(root, name, MARKS))
    ]
    ours = (snapshot for snapshot in found if snapshot_of(snapshot.prefix) == snapshot)
    return sorted(ours, key=lambda snapshot: snapshot.prefix)


def is_hubs(name: str) -> bool:
    """Whether something of this name in the root is the Hub's client's."""
    return _HUBS.fullmatch(name) is not None


def _model_id(folder: str) -> str | None:
    """The one model id that has this folder; None if none has."""
    if not folder.startswith("models--"):
        return None
    model_id = folder.removeprefix("models--").replace("--", "/")
    return model_id if repository_of(model_id) == folder else None


def _snapshot(segments: list[str], commit: str) -> Snapshot | None:
    model_id = "/".join(segments)
    return None if repository_of(model_id) is None else Snapshot(model_id, commit)


def _fits(segment: str) -> bool:
    """Whether the folder's name leads back to this segment: ``--`` stands for a slash there."""
    return _SEGMENT.fullmatch(segment) is not None and "--" not in segment


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
