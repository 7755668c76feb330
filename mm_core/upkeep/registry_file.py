"""Look after a registry that has a JSON view: one call, for programs that keep one on a disk."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mm_core.exceptions import IntegrityError, NotFoundError
from mm_core.registry import ModelRegistry
from mm_core.upkeep.backup import backup
from mm_core.upkeep.repair import repair
from mm_core.upkeep.steps import Repaired


def backup_and_repair_registry(registry: ModelRegistry) -> Repaired:
    """Back a registry up beside its `registry_file`, mend what is damaged, and load it anew.

    The file goes to ``NAME.json.backup`` and the log to ``NAME.mmbackup``, over those
    that are there; the log only while it is whole, so that a good backup stays. Without
    a `registry_file` there is no backup: see `mm registry backup`.
    """
    file = registry.registry_file
    if file is not None:
        _back_up(registry, file)
    repaired = repair(registry.sink, trust=registry.trust)
    if repaired.steps:
        registry.accept(vouch=False)
    registry.load()
    return repaired


def _back_up(registry: ModelRegistry, file: Path) -> None:
    if file.exists():
        shutil.copy2(file, file.with_suffix(".json.backup"))
    with contextlib.suppress(IntegrityError, NotFoundError):
        backup(registry.sink, file.with_suffix(".mmbackup"), overwrite=True)
