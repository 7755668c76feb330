"""Versions on this machine, kept for all of its processes: brought once, verified once.

In the user's cache folder, below ``models``::

    <place>/<model id>/<version>/<word>/…    the files of a version, for any loader
    <place>/.named/<sha256 of a reference>   the version that it named last
    <place>/.verified/<word>                 sizes and times of the files when they were hashed
    .blobs/<first two>/<sha256>              the same files by content, as hard links
    .locks/<word>                            held while a version is brought
    .environments/<models>/                  what programs need to find them, see `mm run`

The word of a version is that of its manifest. All of it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mm_core.exceptions import CancelledError, MMError
from mm_core.folders import models_cache, name_of_store
from mm_core.registry import ModelRegistry
from mm_core.results import Got
from mm_core.schemas import Manifest, ModelEntry, ModelType, parse_rfc3339
from mm_core.transfer.stop import Stop

_POLL = 0.1


class LocalCopies:
    """What this machine has of the versions of one registry. Safe among threads and processes."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._root = models_cache()
        sink = registry.sink  # and what is in a memory is known by nothing but its registry
        own = str(registry.id) if sink.root.startswith("memory:") else ""
        self._place = self._root / name_of_store(sink, own)

    def folder(self, entry: ModelEntry) -> Path:
        """Where the files of `entry` stand, or will."""
        place = self._place / entry.model_id / entry.version
        return place / _word_for(entry)[:12]  # a version may be removed and made anew

    def named(self, reference: str) -> ModelEntry | None:
        """The version that `reference` named when it was last asked for here; None if it never was.

        Whether its files are here is for `whole` to say.
        """
        raw = _read(self._name_file(reference))
        with contextlib.suppress(MMError, KeyError, TypeError, ValueError, AttributeError):
            if raw is not None and raw["reference"] == reference:
                return _entry(raw["entry"])
        return None

    def note(self, reference: str, entry: ModelEntry) -> None:
        """Keep in mind that `reference` names `entry`, which has its own name as well."""
        raw = {**entry.to_json(), "manifest": entry.manifest}
        for one in {reference, pinned(entry)}:
            _write(self._name_file(one), {"reference": one, "entry": raw})

    def whole(self, entry: ModelEntry) -> bool:
        """Whether all files are here, unchanged since they were hashed, and no others."""
        raw = _read(self._verified_file(entry))
        return bool(raw) and raw == _seen(self.folder(entry), raw)

    @contextlib.contextmanager
    def alone_with(self, entry: ModelEntry, stop: Stop) -> Iterator[None]:
        """Hold what lets one process at a time bring `entry`; `CancelledError` if told to stop."""
        import filelock

        path = self._root / ".locks" / _word_for(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        while True:
            if stop.is_set():
                raise CancelledError("stopped")
            try:
                with lock.acquire(timeout=_POLL):
                    yield
                return
            except filelock.Timeout:
                time.sleep(0)

    def link(self, folder: Path, manifest: Manifest) -> None:
        """Put into `folder` what is here by content already. It is hashed by whoever goes on."""
        for file in manifest.files:
            path, blob = folder / file.path, self._blob(file.sha256)
            with contextlib.suppress(OSError):
                if blob.stat().st_size == file.size and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.hardlink_to(blob)

    def keep(self, entry: ModelEntry, manifest: Manifest) -> None:
        """Keep in mind that all of `manifest` stands in the folder of `entry`, just verified."""
        folder = self.folder(entry)
        for file in manifest.files:
            path, blob = folder / file.path, self._blob(file.sha256)
            with contextlib.suppress(OSError):  # a disk without hard links: each has its own
                if not blob.exists() or not blob.samefile(path):
                    blob.parent.mkdir(parents=True, exist_ok=True)
                    staged = blob.with_name(f".{uuid.uuid4().hex}")
                    staged.hardlink_to(path)
                    staged.replace(blob)
        paths = {file.path for file in manifest.files}
        for path in folder.rglob(".*"):  # what one that was killed had begun
            if path.is_file() and path.relative_to(folder).as_posix() not in paths:
                path.unlink(missing_ok=True)
        _write(self._verified_file(entry), _seen(folder, paths))

    def _blob(self, sha256: str) -> Path:
        return self._root / ".blobs" / sha256[:2] / sha256

    def _name_file(self, reference: str) -> Path:
        return self._place / ".named" / hashlib.sha256(reference.encode()).hexdigest()

    def _verified_file(self, entry: ModelEntry) -> Path:
        return self._place / ".verified" / _word_for(entry)


def _word_for(entry: ModelEntry) -> str:
    """A word for the files of `entry`, and no path, whatever a registry says of its manifest."""
    return hashlib.sha256(f"{entry.manifest}".encode()).hexdigest()


def pinned(entry: ModelEntry) -> str:
    """The reference that names no other version than `entry`."""
    return f"{entry.model_id}@{entry.version}"


def room_taken() -> tuple[Path, int]:
    """The folder of all copies on this machine, and the bytes that they take on the disk."""
    root, sizes = models_cache(), {}
    for where, _, files in os.walk(root):
        for name in files:
            with contextlib.suppress(OSError):
                about = os.lstat(Path(where, name))
                sizes[about.st_dev, about.st_ino] = about.st_size
    return root, sum(sizes.values())


def environment_folder(got: Sequence[Got]) -> Path:
    """A folder for what a program needs beside these models; the same ones have the same."""
    telling = "\n".join(f"{pinned(one.entry)} {one.entry.aliases} {one.path}" for one in got)
    return models_cache() / ".environments" / hashlib.sha256(telling.encode()).hexdigest()[:32]


def _entry(raw: Mapping[str, Any]) -> ModelEntry:
    date: datetime = parse_rfc3339(raw["download_date"])
    made = ModelEntry(
        model_id=raw["model_id"],
        version=raw["version"],
        path=raw["path"],
        model_type=ModelType(raw["model_type"]),
        size_bytes=raw["size_bytes"],
        download_date=date,
        source=raw["source"],
        aliases=tuple(raw["aliases"]),
        manifest=raw["manifest"],
    )
    return replace(made, metadata=dict(raw["metadata"]))


def _seen(folder: Path, paths: Iterable[str]) -> dict[str, list[int]]:
    """Size, time of change and number of each of `paths`, and of all else that is not hidden."""
    found = {}
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (Path(where, name) for name in files if not name.startswith("."))
        found.update({path.relative_to(folder).as_posix(): path for path in shown})
    found.update({path: folder / path for path in paths})
    told = {}
    for name, path in found.items():
        with contextlib.suppress(OSError):
            about = path.stat()
            told[name] = [about.st_size, about.st_mtime_ns, about.st_ino]
    return told


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write(path: Path, value: Any) -> None:
    """Put `value` at `path` in one step; where it cannot be, it will be asked for again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{uuid.uuid4().hex}")
        staged.write_text(json.dumps(value), "utf-8")
        staged.replace(path)
