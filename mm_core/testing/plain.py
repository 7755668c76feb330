"""The registry's rules once more, as plainly as docs/storage-format.md has them.

Slow, strict, and written from that page alone: whatever the registry did must be
a history that these rules allow, and end where they end. It knows nothing of
checkpoints, caches or retries, and shares no code with `mm_core.registry`::

    plain = PlainRegistry()
    for data in commits:          # the bytes of each, in order
        plain.commit(data)        # BrokenLogError says which one is not allowed, and why
    assert plain.rows() == rows_of(ModelRegistry(sink))
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_core.registry import ModelRegistry

Operation = Mapping[str, Any]
_Aliases = dict[tuple[str, str], tuple[str, str]]
PlainRow = tuple[str, str, str, tuple[str, ...]]
"""Model id, version, status, and the aliases that name it."""


class BrokenLogError(AssertionError):
    """A commit that must not be in the log."""


class RefusedError(Exception):
    """The rules do not allow this operation now."""


@dataclasses.dataclass
class PlainVersion:
    """One version. `added` is the commit and place of its last begin, add or register."""

    status: str
    added: tuple[int, int]
    claim: str | None = None
    manifest: str | None = None
    elsewhere: bool = False


class PlainRegistry:
    """What the operations so far have led to."""

    def __init__(self) -> None:
        self.seq = 0
        self.head = "0" * 64
        self.versions: dict[tuple[str, str], PlainVersion] = {}
        self.aliases: _Aliases = {}
        """By model id and folded alias: the alias as it was spelt, and the version."""
        self.ids: set[str] = set()

    def commit(self, data: bytes) -> Sequence[Operation]:
        """Take in the bytes of the next commit and return its operations; `BrokenLogError`."""
        commit = json.loads(data)
        operations = commit["operations"]
        canonical = json.dumps(
            commit, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        if canonical.encode() != data:
            raise BrokenLogError(f"commit {self.seq + 1} is not canonical JSON")
        if (commit["seq"], commit["prev"]) != (self.seq + 1, self.head):
            raise BrokenLogError(f"commit {commit['seq']} does not follow commit {self.seq}")
        self.seq += 1
        for place, operation in enumerate(operations):
            try:
                self._do(operation, (self.seq, place))
            except RefusedError as error:
                raise BrokenLogError(f"commit {self.seq}: {error}") from error
            if operation["id"] in self.ids:
                raise BrokenLogError(f"commit {self.seq} repeats {operation['id']}")
            self.ids.add(operation["id"])
        self.head = hashlib.sha256(data).hexdigest()
        return list(operations)

    def apply(self, operations: Sequence[Operation]) -> None:
        """Do the operations as the next commit; all, or none and `RefusedError`."""
        before = self._saved()
        self.seq += 1
        try:
            for place, operation in enumerate(operations):
                self._do(operation, (self.seq, place))
        except RefusedError:
            self.seq, self.versions, self.aliases = before
            raise

    def allows(self, operations: Sequence[Operation]) -> bool:
        """Whether the rules allow them now."""
        before = self._saved()
        try:
            self.apply(operations)
        except RefusedError:
            return False
        self.seq, self.versions, self.aliases = before
        return True

    def _saved(self) -> tuple[int, dict[tuple[str, str], PlainVersion], _Aliases]:
        versions = {name: dataclasses.replace(found) for name, found in self.versions.items()}
        return self.seq, versions, dict(self.aliases)

    def rows(self) -> list[PlainRow]:
        """All versions, ordered by folded model id and then by when they were added."""
        ordered = sorted(self.versions.items(), key=lambda item: (fold(item[0][0]), item[1].added))
        return [
            (model, version, found.status, self.aliases_of(model, version))
            for (model, version), found in ordered
        ]

    def aliases_of(self, model: str, version: str) -> tuple[str, ...]:
        """The aliases that name a version, sorted."""
        named = self.aliases.items()
        return tuple(sorted(a for (m, _), (a, v) in named if (m, v) == (model, version)))

    def best(self, model: str) -> str | None:
        """The version that the bare model id means."""
        available = {
            version: found.added
            for (name, version), found in self.versions.items()
            if name == model and found.status == "AVAILABLE"
        }
        latest = self.aliases.get((model, "latest"))
        if latest and latest[1] in available:
            return latest[1]
        return max(available, key=lambda version: available[version], default=None)

    def _do(self, operation: Operation, added: tuple[int, int]) -> None:
        kind, model = operation["op"], operation["model_id"]
        if kind == "unalias":
            self._require((model, fold(operation["alias"])) in self.aliases, operation)
            del self.aliases[model, fold(operation["alias"])]
            return
        found = self.versions.get((model, operation["version"]))
        getattr(self, f"_{kind}")(operation, found, added)

    def _begin(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        waiting = found is not None and found.status == "DOWNLOADING" and not found.claim
        self._require(found is None or waiting or found.status in ("FAILED", "DELETED"), op)
        self._require_names(op, folder=True)
        self._set(op, PlainVersion("DOWNLOADING", added, claim=op.get("claim")))

    def _add(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        found = self._claimed(op, found)
        self._set(op, PlainVersion("AVAILABLE", added, op["claim"], op["manifest"]))

    def _abandon(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        self._claimed(op, found).status = "FAILED"

    def _register(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        self._require(found is None or found.status == "DELETED", op)
        self._require_names(op, folder=False)
        fresh = PlainVersion(op["status"], added, manifest=op.get("manifest"), elsewhere=True)
        self._set(op, fresh)

    def _status(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        found = self._idle(op, found)
        self._require(found.status != "SWEEPING", op)
        complete = found.manifest is not None or found.elsewhere
        self._require(op["status"] != "AVAILABLE" or complete, op)
        found.status, found.claim = op["status"], None
        if found.status == "DELETED":
            self._drop_aliases(op)

    def _remove(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        found = self._idle(op, found)
        self._require(found.status not in ("DELETED", "SWEEPING"), op)
        found.status = "DELETED"
        self._drop_aliases(op)

    def _sweep(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        if found is None:
            self._require_names(op, folder=True)
            self._set(op, PlainVersion("SWEEPING", added))
            return
        self._require(found.status in ("FAILED", "DELETED", "SWEEPING"), op)
        found.status = "SWEEPING"

    def _swept(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        self._require(found is not None and found.status == "SWEEPING", op)
        self._drop_aliases(op)
        del self.versions[op["model_id"], op["version"]]

    def _alias(self, op: Operation, found: PlainVersion | None, added: tuple[int, int]) -> None:
        self._require(found is not None and found.status == "AVAILABLE", op)
        key = op["model_id"], fold(op["alias"])
        if "expect" in op:
            self._require(self.aliases.get(key, ("", ""))[1] == op["expect"], op)
        self.aliases[key] = op["alias"], op["version"]

    def _claimed(self, op: Operation, found: PlainVersion | None) -> PlainVersion:
        held = found is not None and found.status == "DOWNLOADING" and found.claim == op["claim"]
        self._require(held, op)
        assert found is not None
        return found

    def _idle(self, op: Operation, found: PlainVersion | None) -> PlainVersion:
        claimed = found is not None and found.status == "DOWNLOADING" and found.claim is not None
        self._require(found is not None and not claimed, op)
        assert found is not None
        return found

    def _require_names(self, op: Operation, *, folder: bool) -> None:
        """No second spelling of a known name, and no folder in, or around, another's."""
        model, version = op["model_id"], op["version"]
        mine = fold(f"{model}/{version}/")
        for (other, name), found in self.versions.items():
            if fold(other) == fold(model):
                self._require(other == model, op)
                self._require(fold(name) != fold(version) or name == version, op)
            theirs = fold(f"{other}/{name}/")
            if folder and theirs != mine and not found.elsewhere:
                self._require(not theirs.startswith(mine) and not mine.startswith(theirs), op)

    def _set(self, op: Operation, found: PlainVersion) -> None:
        self.versions[op["model_id"], op["version"]] = found

    def _drop_aliases(self, op: Operation) -> None:
        for key, (_, version) in list(self.aliases.items()):
            if (key[0], version) == (op["model_id"], op["version"]):
                del self.aliases[key]

    @staticmethod
    def _require(allowed: bool, operation: Operation) -> None:
        if not allowed:
            raise RefusedError(f"{operation['op']} of {operation} is not allowed")


@functools.cache
def fold(name: str) -> str:
    """The form in which names are compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def rows_of(registry: ModelRegistry) -> list[PlainRow]:
    """What a registry says, in the form of `PlainRegistry.rows`."""
    return [
        (entry.model_id, entry.version, entry.status.value, entry.aliases)
        for entry in registry.list_models(include_deleted=True)
    ]
