"""Look after a registry that has a JSON view: one call, for programs that keep one on a disk."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mm_core.exceptions import IntegrityError, MMError, NotFoundError
from mm_core.registry import ModelRegistry
from mm_core.upkeep.backup import backup, verify_backup
from mm_core.upkeep.copies import Copies, refuse_another
from mm_core.upkeep.repair import repair
from mm_core.upkeep.steps import Repaired
from mm_core.upkeep.store import Store


def backup_and_repair_registry(registry: ModelRegistry) -> Repaired:
    """Back a registry up beside its `registry_file`, mend what is damaged, and load it anew.

    The file goes to ``NAME.json.backup`` and the log to ``NAME.mmbackup``, over those
    that are there; the log only while it is whole, so that a good backup stays, from
    which comes back what is lost since. Without a `registry_file` there is no backup:
    see `mm registry backup`.
    """
    file = registry.registry_file
    with contextlib.ExitStack() as stack:
        copies = None
        if file is not None and not _back_up(registry, file):
            copies = _last_backup(registry, file)
        if copies is not None:
            stack.enter_context(contextlib.closing(copies))
        repaired = repair(registry.sink, copies=copies, trust=registry.trust)
    if repaired.steps:
        registry.accept(vouch=False)
    registry.load()
    return repaired


def _back_up(registry: ModelRegistry, file: Path) -> bool:
    """Back up the file, and the log if it is whole: whether it is."""
    if file.exists():
        shutil.copy2(file, file.with_suffix(".json.backup"))
    with contextlib.suppress(IntegrityError, NotFoundError):
        backup(registry.sink, _beside(file), overwrite=True)
        return True
    return False


def _last_backup(registry: ModelRegistry, file: Path) -> Copies | None:
    """The backup of this registry that an earlier call has made, if it is whole."""
    copies = None
    try:
        copies = Copies(_beside(file))
        refuse_another(Store(registry.sink), copies)
        verify_backup(copies)
    except MMError:
        if copies is not None:
            copies.close()
        return None
    return copies


def _beside(file: Path) -> Path:
    return file.with_suffix(".mmbackup")
