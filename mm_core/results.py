"""What the calls of `ModelManager` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_core.schemas import Manifest, ModelEntry

if TYPE_CHECKING:
    from mm_core.signatures.checking import CheckedSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """Where a version stands on the local disk; `signature` is the file with one, if there is."""

    path: Path
    entry: ModelEntry
    signature: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        signature = None if self.signature is None else str(self.signature)
        return {
            "path": str(self.path),
            "entry": self.entry.to_json(),
            "signature": signature,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a program is run with: `variables`, and of each model where the program finds it.

    `models` maps each reference to a folder or a URL, in the order they were asked for.
    """

    variables: dict[str, str]
    models: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {"variables": self.variables, "models": self.models}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that is known of one version. `urls` and `headers` are by file path.

    `signatures` are those over it, looked at; None where nobody has looked for them.
    """

    entry: ModelEntry
    manifest: Manifest
    urls: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    signatures: tuple[CheckedSignature, ...] | None = None

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
        if self.signatures is not None:
            facts["signatures"] = [one.to_json() for one in self.signatures]
        return self.entry.to_json() | facts | {"files": files}
