"""Where in a backend the bytes of a new version stand already, under another name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace

from mm_core.exceptions import IntegrityError, NotFoundError
from mm_core.parallel import run_parallel
from mm_core.registry import ModelRegistry
from mm_core.schemas import Action, ModelStatus, Plan, PlannedFile, StoredFile

SIBLINGS = 3
"""How many of a model's newest versions are searched for equal files of any size."""

WORTH_A_HINT = 1 << 20
"""Smaller files, in bytes, are fetched as soon as they are asked after."""


def files_of_siblings(registry: ModelRegistry, model_id: str, *, but: str) -> dict[str, str]:
    """The keys of the files of the newest AVAILABLE versions of a model, by their sha256.

    The version `but` is left out: it is the one that the files are wanted for.
    """
    versions = [
        entry
        for entry in registry.list_models(model_id=model_id, status=ModelStatus.AVAILABLE)
        if entry.manifest and entry.version != but
    ]
    known: dict[str, str] = {}
    for entry in versions[-SIBLINGS:]:
        with contextlib.suppress(NotFoundError, IntegrityError):  # verify tells of those
            known.update((file.sha256, file.key) for file in registry.manifest(entry).files)
    return known


def copy_what_is_known(
    plan: Plan, registry: ModelRegistry, *, jobs: int, cancelled: threading.Event
) -> Plan:
    """`plan`, with a copy in place of each fetch of bytes that any other version has.

    Only hints are asked, for large files and `jobs` at once: a copy is read back
    before anybody sees it.
    """

    def look(planned: PlannedFile) -> str | None:
        assert planned.file.sha256 is not None
        return registry.find_content(planned.file.sha256, size=planned.file.size)

    asked = [planned for planned in plan.files if _is_worth_asking(planned)]
    found = run_parallel(look, asked, jobs=jobs, cancelled=cancelled)
    copies = {
        planned.key: replace(planned, action=Action.COPY, copy_from=key)
        for planned, key in zip(asked, found, strict=True)
        if key is not None and not key.startswith(plan.prefix)
    }
    return replace(plan, files=tuple(copies.get(p.key, p) for p in plan.files))


def copies_in(plan: Plan) -> dict[str, str]:
    """The keys that `plan` copies from, by sha256: `known` for planning the same again."""
    return {
        planned.file.sha256: planned.copy_from
        for planned in plan.files
        if planned.file.sha256 is not None and planned.copy_from is not None
    }


def leave_hints(files: Sequence[StoredFile], registry: ModelRegistry, *, jobs: int) -> None:
    """Let later pulls of any model find `files`, which have just become AVAILABLE."""
    large = [file for file in files if file.size >= WORTH_A_HINT]
    run_parallel(registry.note_content, large, jobs=jobs, cancelled=threading.Event())


def _is_worth_asking(planned: PlannedFile) -> bool:
    return (
        planned.action is Action.FETCH
        and planned.file.sha256 is not None
        and (planned.file.size is None or planned.file.size >= WORTH_A_HINT)
    )
