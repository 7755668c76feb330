"""What copying some versions, or all, is asked for and ends with."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from mm_core.exceptions import MMError


class CopyOptions(TypedDict, total=False):
    """What `ModelManager.copy` and `replicate` take: the fields of `CopyWishes`."""

    aliases: Sequence[str]
    with_aliases: bool
    move_aliases: bool
    read_copies: bool
    dry_run: bool
    jobs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWishes:
    """How versions are copied.

    `aliases` will name the copy, wherever they pointed. `with_aliases` gives it those
    that it has in the source, where the target has none of that name;
    `move_aliases` also those that name another version there. With `read_copies`,
    what a store copied by itself is read back and hashed. A `dry_run` writes nothing.
    """

    aliases: Sequence[str] = ()
    with_aliases: bool = False
    move_aliases: bool = False
    read_copies: bool = False
    dry_run: bool = False
    jobs: int | None = None


class Outcome(str, enum.Enum):
    """What became of one version; of a dry run, COPIED and REMOVED are what would become."""

    COPIED = "copied"
    PRESENT = "present"
    SKIPPED = "skipped"
    FAILED = "failed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedVersion:
    """What became of one version. `fetched_bytes` went through this process, and no others.

    `reason` says why it was skipped, or failed.
    """

    model_id: str
    version: str
    outcome: Outcome
    size_bytes: int = 0
    fetched_bytes: int = 0
    copied_bytes: int = 0
    reason: str | None = None
    error: MMError | None = None

    @property
    def reference(self) -> str:
        """``ID@VERSION``."""
        return f"{self.model_id}@{self.version}"

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "outcome": self.outcome.value,
            "size_bytes": self.size_bytes,
            "fetched_bytes": self.fetched_bytes,
            "copied_bytes": self.copied_bytes,
            "reason": self.reason,
            "code": None if self.error is None else self.error.code,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedAlias:
    """One alias that the target did not have as the source has it.

    `outcome` is ``set``, ``moved``, ``differs`` (and was left), or ``failed``.
    """

    model_id: str
    alias: str
    version: str
    before: str | None
    outcome: str
    error: MMError | None = None

    @property
    def reference(self) -> str:
        """``ID:ALIAS``."""
        return f"{self.model_id}:{self.alias}"

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "model_id": self.model_id,
            "alias": self.alias,
            "version": self.version,
            "before": self.before,
            "outcome": self.outcome,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What became of all versions that were to be copied; failures are told, not raised."""

    source: str
    target: str
    versions: tuple[CopiedVersion, ...] = ()
    aliases: tuple[CopiedAlias, ...] = ()
    dry_run: bool = False

    @property
    def failed(self) -> dict[str, MMError]:
        """The errors, by version or alias."""
        results: list[CopiedVersion | CopiedAlias] = [*self.versions, *self.aliases]
        return {one.reference: one.error for one in results if one.error is not None}

    def count(self, outcome: Outcome) -> int:
        """How many versions ended so."""
        return sum(one.outcome is outcome for one in self.versions)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "from": self.source,
            "to": self.target,
            "dry_run": self.dry_run,
            "versions": [one.to_json() for one in self.versions],
            "aliases": [one.to_json() for one in self.aliases],
            **{outcome.value: self.count(outcome) for outcome in Outcome},
        }
