"""What a check finds: one line for each thing that is not as it should be."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Severity(str, enum.Enum):
    """How bad a finding is."""

    ERROR = "error"
    """Something is lost or refused, or would be read wrongly."""

    WARNING = "warning"
    """Nothing is lost as yet: a convenience is damaged, and a repair makes it anew."""

    NOTE = "note"
    """Worth knowing; nothing has to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. `code` is stable: see docs/repair.md."""

    code: str
    severity: Severity
    key: str
    message: str
    remedy: str | None = None
    model_id: str | None = None
    version: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "key": self.key,
            "message": self.message,
            "remedy": self.remedy,
            "model_id": self.model_id,
            "version": self.version,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check looked at, and what it found, by key."""

    commits: int
    checkpoints: int
    versions: int
    files: int
    deep: bool
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done: notes count for nothing."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings without the notes."""
        return tuple(f for f in self.findings if f.severity is not Severity.NOTE)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "ok": self.ok,
            "deep": self.deep,
            "checked": {
                "commits": self.commits,
                "checkpoints": self.checkpoints,
                "versions": self.versions,
                "files": self.files,
            },
            "findings": [finding.to_json() for finding in self.findings],
        }
