"""A version that is there already: whether it is what was asked for, and whole."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from mm_core.exceptions import ConflictError, IntegrityError
from mm_core.manifests import difference
from mm_core.registry import ModelRegistry
from mm_core.registry.entries import files_prefix, folder_of
from mm_core.schemas import Action, Manifest, ModelEntry, Plan, PlannedFile, StoredFile
from mm_core.sink import Sink
from mm_core.verification import verify_entries


def refuse_another(manifest: Manifest, plan: Plan) -> None:
    """Raise `ConflictError` unless the stored version of `manifest` is what `plan` asks for."""
    other = difference(manifest, plan.snapshot)
    if other is not None:
        raise ConflictError(
            f"{plan.model_id} {plan.version} is there already, but not the same: {other}",
            hint="a version never changes: name another with --version, or an id with --as",
        )


def plan_mending(plan: Plan, manifest: Manifest, *, present: Mapping[str, int]) -> Plan:
    """`plan` for the version that `manifest` describes, of which `present` stands.

    `present` maps keys to sizes in bytes: what has the right size stays, and what
    is missing or cut short comes again. That must have the sha256 that `manifest`
    states, so that the registry need not change.
    """
    files = {file.path: file for file in manifest.files}
    return replace(
        plan,
        files=tuple(
            _mended(planned, stored, present)
            for planned in plan.files
            if (stored := files.get(planned.file.path)) is not None
        ),
    )


def what_stands(sink: Sink, manifest: Manifest) -> dict[str, int]:
    """The sizes, by key, of what stands in the folder of the version of `manifest`."""
    prefix = files_prefix(manifest.model_id, manifest.version, folder_of(manifest))
    return {stored.key: stored.size for stored in sink.list(prefix)}


def what_is_damaged(mending: Plan) -> Plan:
    """The part of `mending` for which anything must be done."""
    files = tuple(planned for planned in mending.files if planned.action is not Action.PRESENT)
    return replace(mending, files=files)


def refuse_damaged(registry: ModelRegistry, entry: ModelEntry) -> None:
    """Raise `IntegrityError` where a file of `entry` is missing or has another size."""
    if entry.manifest is None:
        return
    report = verify_entries(registry, [entry], deep=False, jobs=1, cancelled=threading.Event())
    if not report.ok:
        bad = report.bad[0]
        raise IntegrityError(
            f"{entry.model_id} {entry.version} is damaged: {bad.path}: {bad.reason}",
            hint="pull the model again to mend it; `mm verify` tells all that is wrong",
        )


def _mended(planned: PlannedFile, stored: StoredFile, present: Mapping[str, int]) -> PlannedFile:
    file = replace(planned.file, sha256=stored.sha256, size=stored.size)
    if present.get(stored.key) == stored.size:
        return replace(planned, file=file, key=stored.key, action=Action.PRESENT, copy_from=None)
    action = Action.FETCH if planned.copy_from is None else Action.COPY
    return replace(planned, file=file, key=stored.key, action=action)
