"""From what was planned and stored to what is kept, and back to what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mm_core.schemas import CHECKS, Action, Manifest, Plan, Snapshot, StoredFile


def manifest_of(
    plan: Plan, stored: Sequence[StoredFile], checks: Mapping[str, Any] | None = None
) -> Manifest:
    """What is kept of a version: its plan, as it was carried out, and what `checks` came to.

    What another registry's checks came to is not taken over: its word is not ours.
    """
    snapshot = plan.snapshot
    extra = {name: value for name, value in snapshot.extra.items() if name != CHECKS}
    if checks:
        extra[CHECKS] = dict(checks)
    notes = {file.path: file.notes for file in snapshot.files if file.notes}
    return Manifest(
        model_id=plan.model_id,
        version=plan.version,
        model_type=plan.model_type,
        files=tuple(replace(file, extra=notes.get(file.path, {})) for file in stored),
        source=snapshot.source,
        revision=snapshot.revision,
        license=snapshot.license,
        facts=snapshot.facts,
        extra=extra,
    )


def bytes_by_action(stored: Sequence[StoredFile]) -> dict[str, int]:
    """How many bytes were fetched, copied and found present, as `Pulled` has them."""

    def total(action: Action) -> int:
        return sum(file.size for file in stored if file.action is action)

    kept = sum(file.kept for file in stored)
    return {
        "fetched_bytes": total(Action.FETCH) - kept,
        "copied_bytes": total(Action.COPY),
        "present_bytes": total(Action.PRESENT) + kept,
    }


def difference(manifest: Manifest, snapshot: Snapshot) -> str | None:
    """How `snapshot` asks for something that `manifest` does not hold; None if it does not."""
    stored = {file.path: file for file in manifest.files}
    for file in snapshot.files:
        have = stored.get(file.path)
        if have is None:
            return f"it was stored without {file.path}"
        if file.size not in (None, have.size) or file.sha256 not in (None, have.sha256):
            return f"{file.path} differs"
    unhashed = any(file.sha256 is None for file in snapshot.files)
    if unhashed and manifest.revision != snapshot.revision:
        return f"it was stored from revision {manifest.revision}, now it is {snapshot.revision}"
    return None
