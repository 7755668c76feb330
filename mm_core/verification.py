"""Look at what is stored, and say what is not as the registry has it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mm_core.exceptions import CancelledError, IntegrityError, NotFoundError
from mm_core.names import version_prefix
from mm_core.parallel import run_parallel
from mm_core.registry import ModelRegistry
from mm_core.schemas import Manifest, ModelEntry, RemoteFile, StoredFile
from mm_core.sink import Sink
from mm_core.tally import Tally, Tell, say_nothing
from mm_core.transfer.hashing import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFile:
    """One file that is missing or wrong, and why."""

    model_id: str
    version: str
    path: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """The finding as JSON data."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "path": self.path,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MendedFile:
    """One file that was missing or wrong, and is right again."""

    model_id: str
    version: str
    path: str

    def to_json(self) -> dict[str, str]:
        """The file as JSON data."""
        return {"model_id": self.model_id, "version": self.version, "path": self.path}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification found. `checked` counts files; `mended` were bad, and are right again."""

    checked: int
    bad: tuple[BadFile, ...] = ()
    mended: tuple[MendedFile, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is bad."""
        return not self.bad

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "ok": self.ok,
            "checked": self.checked,
            "bad": [bad.to_json() for bad in self.bad],
            "mended": [mended.to_json() for mended in self.mended],
        }


def verify_entries(
    registry: ModelRegistry,
    entries: Iterable[ModelEntry],
    *,
    deep: bool,
    jobs: int,
    cancelled: threading.Event,
    tell: Tell = say_nothing,
) -> VerifyReport:
    """Compare every file of `entries` with what their sink holds, `jobs` files at once.

    The size alone, or with `deep` the sha256 of all bytes. A manifest that is
    lost or damaged, and a file in a version's folder that is none of its files,
    are findings, too. Changes nothing. `tell` hears how far it is.
    """
    files: list[tuple[ModelEntry, StoredFile]] = []
    bad: list[BadFile] = []
    for entry in entries:
        try:
            manifest = registry.manifest(entry)
        except (NotFoundError, IntegrityError) as error:
            if entry.manifest is None:
                raise
            bad.append(_finding(entry, "", str(error)))
            continue
        files += [(entry, file) for file in manifest.files]
        bad += _strays(registry.sink, entry, manifest)

    total = sum(file.size for _, file in files)
    tally = Tally(tell, "read", total) if deep else Tally(tell, "looked at", len(files), "files")

    def look(item: tuple[ModelEntry, StoredFile]) -> BadFile | None:
        entry, file = item
        reason = _complaint(registry.sink, file, tally, deep=deep, cancelled=cancelled)
        return None if reason is None else _finding(entry, file.path, reason)

    found = run_parallel(look, files, jobs=jobs, cancelled=cancelled)
    return VerifyReport(checked=len(files), bad=(*bad, *(one for one in found if one is not None)))


def _finding(entry: ModelEntry, path: str, reason: str) -> BadFile:
    return BadFile(model_id=entry.model_id, version=entry.version, path=path, reason=reason)


def _strays(sink: Sink, entry: ModelEntry, manifest: Manifest) -> list[BadFile]:
    prefix = version_prefix(entry.model_id, entry.version)
    keys = {file.key for file in manifest.files}
    strays = [stored.key for stored in sink.list(prefix) if stored.key not in keys]
    return [_finding(entry, key[len(prefix) :], "it is no file of this version") for key in strays]


def _complaint(
    sink: Sink, file: StoredFile, tally: Tally, *, deep: bool, cancelled: threading.Event
) -> str | None:
    stored = sink.stat(file.key)
    if not deep:
        tally.add()
    if stored is None:
        return "missing"
    if stored.size != file.size:
        return f"its size is {stored.size}, the registry says {file.size}"
    if not deep:
        return None
    check = Check(RemoteFile(path=file.path))
    try:
        for buffer in check.through(sink.read(file.key)):
            tally.add(memoryview(buffer).nbytes)
            if cancelled.is_set():
                raise CancelledError("stopped")
    except (NotFoundError, IntegrityError) as error:
        return str(error)
    return None if check.sha256 == file.sha256 else f"its sha256 is {check.sha256}"
