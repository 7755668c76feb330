"""Versions on this machine, kept for all of its processes: brought once, verified once.

In the user's cache folder, below ``models``::

    <place>/<model id>/<version>/<word>/…    the files of a version, for any loader
    <place>/.named/<sha256 of a reference>   the version that it named last
    <place>/.verified/<word>                 sizes and times of the files when they were hashed
    .blobs/<first two>/<sha256>              the same files by content, as hard links
    .locks/<word>                            held while a version is brought
    .environments/<models>/                  what programs need to find them (`mm_core.environment`)

The word of a version is that of its manifest. All of it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from mm_core.exceptions import CancelledError, MMError, OfflineError, StorageError, TransientError
from mm_core.folders import models_cache, name_of_store
from mm_core.registry import ModelRegistry
from mm_core.results import Got
from mm_core.schemas import Manifest, ModelEntry, ModelType, parse_rfc3339
from mm_core.transfer.stop import Stop

logger = logging.getLogger(__name__)

Bring = Callable[[ModelEntry, Manifest, Path], None]

_POLL = 0.1
_BYTECODE = "__pycache__"
"""Made by whoever imports a module that comes with a model; it belongs to nobody."""


class LocalCopies:
    """What this machine has of the versions of one registry. Safe among threads and processes.

    `backend` is the registry's name to its user.
    """

    def __init__(self, backend: str, registry: ModelRegistry) -> None:
        self._backend = backend
        self._registry = registry
        self._root = models_cache()
        sink = registry.sink  # and what is in a memory is known by nothing but its registry
        own = str(registry.id) if sink.root.startswith("memory:") else ""
        self._place = self._root / name_of_store(sink, own)

    def get(self, reference: str, bring: Bring, *, offline: bool | None, stop: Stop) -> Got:
        """The version that `reference` names, as it stands here, or brought here by `bring`.

        That lets all of a manifest, verified, stand in a folder. Raises as `ModelManager.get`.
        """
        known = self.named(reference)
        if known is not None and not self.whole(known):
            known = None
        if known is not None and (offline or (offline is None and reference == pinned(known))):
            return Got(path=self.folder(known), entry=known)
        if offline:
            raise OfflineError(
                f"{reference} of {self._backend} is not on this machine",
                hint="get it once with a connection; what is in the cache needs none",
            )
        try:
            entry = self._registry.resolve(reference)
        except TransientError as error:
            if known is None or offline is False:
                raise
            logger.warning("%s; %s was %s when it was asked last", error, reference, known.version)
            return Got(path=self.folder(known), entry=known)
        if not self.whole(entry):
            with self.alone_with(entry, stop):
                if not self.whole(entry):
                    self._bring(entry, bring)
        self.note(reference, entry)
        return Got(path=self.folder(entry), entry=entry)

    def _bring(self, entry: ModelEntry, bring: Bring) -> None:
        manifest, folder = self._registry.manifest(entry), self.folder(entry)
        self.tidy(folder, manifest)
        self.link(folder, manifest)
        bring(entry, manifest, folder)
        self.keep(entry, manifest)

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
        return isinstance(raw, dict) and bool(raw) and raw == _seen(self.folder(entry), raw)

    @contextlib.contextmanager
    def alone_with(self, entry: ModelEntry, stop: Stop) -> Iterator[None]:
        """Hold what lets one process at a time bring `entry`; `CancelledError` if told to stop."""
        import filelock

        path = self._root / ".locks" / _word_for(entry)
        while True:
            if stop.is_set():
                raise CancelledError("stopped")
            with contextlib.ExitStack() as held:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    held.enter_context(filelock.FileLock(path).acquire(timeout=_POLL))
                except filelock.Timeout:
                    continue
                except OSError as error:
                    raise cannot_be_written(path, error) from error
                yield
                return

    def tidy(self, folder: Path, manifest: Manifest) -> None:
        """Take out of `folder` what is not of `manifest`: the folder is ours, and heals.

        What is hidden stays, since uploads go on from there, and so does bytecode of Python's.
        """
        files = {file.path for file in manifest.files}
        above = {parent.as_posix() for path in files for parent in PurePosixPath(path).parents}
        for name, path in _found(folder, hidden=True):
            is_folder = path.is_dir() and not path.is_symlink()
            fits = name in above if is_folder else name in files and not path.is_symlink()
            clashes = name in files or name in above
            if not fits and (clashes or not path.name.startswith(".")):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if is_folder else path.unlink()

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
        for name, path in _found(folder, hidden=True):  # what one that was killed had begun
            if name not in paths and path.name.startswith(".") and not path.is_dir():
                with contextlib.suppress(OSError):
                    path.unlink()
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
    shown = dict(_found(folder, hidden=False))
    found = {name: path for name, path in shown.items() if path.is_symlink() or not path.is_dir()}
    found.update({path: folder / path for path in paths})
    told = {}
    for name, path in found.items():
        with contextlib.suppress(OSError, ValueError):
            about = path.lstat()
            told[name] = [about.st_size, about.st_mtime_ns, about.st_ino]
    return told


def _found(folder: Path, *, hidden: bool) -> Iterator[tuple[str, Path]]:
    """Files, folders and links below `folder`, which are not followed; no bytecode of Python's."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != _BYTECODE and (hidden or name[0] != ".")]
        for name in [*folders, *(name for name in files if hidden or name[0] != ".")]:
            path = Path(where, name)
            yield path.relative_to(folder).as_posix(), path


def cannot_be_written(path: Path, error: OSError) -> StorageError:
    """What is said where the cache is no place to write to."""
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}",
        hint="set MM_CACHE to a folder that can be written",
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, value: Any) -> None:
    """Put `value` at `path` in one step; where it cannot be, it will be asked for again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{uuid.uuid4().hex}")
        staged.write_text(json.dumps(value), "utf-8")
        staged.replace(path)
