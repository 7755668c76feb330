"""What the calls of `ModelManager` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_core.schemas import Manifest, ModelEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """Where a version stands on the local disk."""

    path: Path
    entry: ModelEntry

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {"path": str(self.path), "entry": self.entry.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that is known of one version. `urls` and `headers` are by file path."""

    entry: ModelEntry
    manifest: Manifest
    urls: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The version as JSON data: the entry, and its files."""
        files = [
            {"path": f.path, "size": f.size, "sha256": f.sha256, "url": self.urls[f.path]}
            | ({"header": self.headers[f.path]} if f.path in self.headers else {})
            for f in self.manifest.files
        ]
        facts = {
            "revision": self.manifest.revision,
            "license": self.manifest.license,
            "replicated_from": self.manifest.facts.get("replicated_from"),
        }
        return self.entry.to_json() | facts | {"files": files}
