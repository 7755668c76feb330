"""What a repair does, one step after the other, and what comes of it: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mm_core.names import version_prefix
from mm_core.registry.state import GENESIS, State
from mm_core.upkeep.rebuild import LostVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a repair does. `action` is stable: see docs/repair.md."""

    action: str
    key: str
    why: str
    data: bytes | None = field(default=None, repr=False)
    was: str | None = field(default=None, repr=False)
    """The sha256 of what stands under `key` now, where something does."""

    def to_json(self) -> dict[str, Any]:
        """The step as JSON data."""
        return {"action": self.action, "key": self.key, "why": self.why}


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Something that cannot be mended from what stands, and what may help."""

    key: str
    why: str
    hint: str

    def to_json(self) -> dict[str, Any]:
        """What is left as JSON data."""
        return {"key": self.key, "why": self.why, "hint": self.hint}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What a repair would do, in its order. `state` is what the registry will say then."""

    steps: tuple[Step, ...]
    state: State = field(repr=False)
    lost: tuple[LostVersion, ...] = field(default=(), repr=False)
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair did; with `dry_run`, what it would do.

    `left` is what it could not mend. `seq` and `head` are the last commit now, and
    the sha256 of its bytes.
    """

    steps: tuple[Step, ...]
    left: tuple[Left, ...] = ()
    seq: int = 0
    head: str = GENESIS
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "dry_run": self.dry_run,
            "steps": [step.to_json() for step in self.steps],
            "left": [left.to_json() for left in self.left],
            "seq": self.seq,
        }


def folder_of(lost: LostVersion) -> str:
    """The key of the folder of a version that is to be added again."""
    return version_prefix(lost.manifest.model_id, lost.manifest.version).rstrip("/")
