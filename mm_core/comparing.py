"""What differs between two stored versions: their files, and what is known about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mm_core.schemas import Manifest, StoredFile

CHANGES = ("added", "removed", "changed", "same")
_FACTS = ("source", "revision", "license", "model_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One path of either version: the file `before` and `after`, None where there is none."""

    path: str
    before: StoredFile | None
    after: StoredFile | None

    @property
    def change(self) -> str:
        """``added``, ``removed``, ``changed`` or ``same``: sizes and hashes are compared."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        equal = _content(self.before) == _content(self.after)
        return "same" if equal else "changed"

    def to_json(self) -> dict[str, Any]:
        """The change as JSON data."""
        return {
            "path": self.path,
            "change": self.change,
            "from": _content(self.before),
            "to": _content(self.after),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two versions side by side. `files` are by path; `facts` hold only what differs."""

    before: Manifest
    after: Manifest
    files: tuple[FileChange, ...]
    facts: dict[str, tuple[Any, Any]]

    @property
    def same_files(self) -> bool:
        """Whether both hold the same bytes under the same paths."""
        return all(file.change == "same" for file in self.files)

    def having(self, change: str) -> tuple[FileChange, ...]:
        """The files with that `change`."""
        return tuple(file for file in self.files if file.change == change)

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON data."""
        return {
            "from": _name(self.before),
            "to": _name(self.after),
            "same_files": self.same_files,
            "files": [file.to_json() for file in self.files],
            "facts": {name: {"from": a, "to": b} for name, (a, b) in self.facts.items()},
            "totals": {
                change: {"files": len(files), "bytes": bytes_of(files)}
                for change in CHANGES
                for files in (self.having(change),)
            },
        }


def compare(before: Manifest, after: Manifest) -> Comparison:
    """What differs from `before` to `after`. Reads nothing."""
    return Comparison(
        before=before,
        after=after,
        files=tuple(_changes(before, after)),
        facts=dict(_differing_facts(before, after)),
    )


def bytes_of(files: tuple[FileChange, ...]) -> int:
    """The bytes of `files` as they are afterwards; of those that were removed, as they were."""
    present = (file.after or file.before for file in files)
    return sum(file.size for file in present if file is not None)


def _changes(before: Manifest, after: Manifest) -> Iterator[FileChange]:
    old = {file.path: file for file in before.files}
    new = {file.path: file for file in after.files}
    for path in sorted(old.keys() | new.keys()):
        yield FileChange(path=path, before=old.get(path), after=new.get(path))


def _differing_facts(before: Manifest, after: Manifest) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in _FACTS:
        pair = _plain(getattr(before, name)), _plain(getattr(after, name))
        if pair[0] != pair[1]:
            yield name, pair


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _content(file: StoredFile | None) -> dict[str, Any] | None:
    return None if file is None else {"size": file.size, "sha256": file.sha256}


def _name(manifest: Manifest) -> dict[str, str]:
    return {"model_id": manifest.model_id, "version": manifest.version}
