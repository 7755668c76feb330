"""Look at what is stored, and say what is not as the registry has it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mm_core.exceptions import IntegrityError, NotFoundError
from mm_core.schemas import Manifest, RemoteFile, StoredFile
from mm_core.sink import Sink
from mm_core.transfer.hashing import Check
from mm_core.transfer.pool import run_parallel


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
class VerifyReport:
    """What a verification found. `checked` counts files."""

    checked: int
    bad: tuple[BadFile, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is bad."""
        return not self.bad

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {"ok": self.ok, "checked": self.checked, "bad": [b.to_json() for b in self.bad]}


def verify_manifests(
    sink: Sink, manifests: Iterable[Manifest], *, deep: bool, jobs: int
) -> VerifyReport:
    """Compare every file of `manifests` with what `sink` holds, `jobs` files at once.

    The size alone, or with `deep` the sha256 of all bytes. Changes nothing.
    """
    files = [(manifest, file) for manifest in manifests for file in manifest.files]

    def look(item: tuple[Manifest, StoredFile]) -> BadFile | None:
        manifest, file = item
        reason = _complaint(sink, file, deep=deep)
        if reason is None:
            return None
        return BadFile(
            model_id=manifest.model_id, version=manifest.version, path=file.path, reason=reason
        )

    found = run_parallel(look, files, jobs=jobs, cancelled=threading.Event())
    return VerifyReport(checked=len(files), bad=tuple(bad for bad in found if bad is not None))


def _complaint(sink: Sink, file: StoredFile, *, deep: bool) -> str | None:
    stored = sink.stat(file.key)
    if stored is None:
        return "missing"
    if stored.size != file.size:
        return f"its size is {stored.size}, the registry says {file.size}"
    if not deep:
        return None
    check = Check(RemoteFile(path=file.path))
    try:
        for _ in check.through(sink.read(file.key)):
            pass
    except (NotFoundError, IntegrityError) as error:
        return str(error)
    return None if check.sha256 == file.sha256 else f"its sha256 is {check.sha256}"
