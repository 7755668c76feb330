"""The registry's state: what the log says, as frozen plain data.

Rows are plain dicts, so that fields that are new to this release are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.names import fold
from mm_core.registry.records import Record, Records, Row, is_available
from mm_core.schemas import ModelStatus

__all__ = [
    "GENESIS",
    "KEPT_OPERATIONS",
    "Draft",
    "Operation",
    "Record",
    "Row",
    "State",
    "ids_of",
    "is_available",
    "open_claim",
    "status_of",
]

GENESIS = "0" * 64
"""What the first commit names as its predecessor."""

KEPT_OPERATIONS = 512
"""So many operation ids are remembered, to know a redo when it comes."""

Operation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What stands after commit `seq`, whose bytes have the sha256 `head`.

    `models` is keyed by folded model id. `operations` are the ids of the latest
    operations, oldest first.
    """

    seq: int = 0
    head: str = GENESIS
    models: Mapping[str, Record] = field(default_factory=dict)
    operations: Mapping[str, None] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def record(self, model_id: str) -> Record | None:
        """The model of exactly this id."""
        record = self.models.get(fold(model_id))
        return record if record is not None and record.model_id == model_id else None

    def row(self, model_id: str, version: str) -> Row | None:
        """The row of exactly this version of exactly this model."""
        record = self.record(model_id)
        return record.row(version) if record else None

    def rows(self) -> Iterator[tuple[Record, Row]]:
        """All rows with their models, ordered by model id and then by when they were added."""
        for key in sorted(self.models):
            record = self.models[key]
            for row in sorted(record.versions.values(), key=lambda row: row["added"]):
                yield record, row

    def below(self, folder: str) -> Iterator[Record]:
        """The models whose folded id is `folder`, or goes on with a slash after it."""
        return Records.of(self.models).below(folder)

    def has_done(self, operations: Sequence[Operation]) -> bool:
        """Whether all these operations are in the log already (as far as it is remembered)."""
        return all(operation["id"] in self.operations for operation in operations)

    def head_json(self) -> dict[str, Any]:
        """All of the state but its models, as a checkpoint keeps it."""
        operations = list(self.operations)
        return {**self.extra, "seq": self.seq, "head": self.head, "operations": operations}

    def to_json(self) -> dict[str, Any]:
        """The state as a checkpoint keeps it."""
        models = {record.model_id: record.to_json() for record in self.models.values()}
        return {**self.head_json(), "models": models}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], models: Mapping[str, Record] | None = None) -> State:
        """The state that `to_json` gave, or `head_json` and `models`; else `IntegrityError`."""
        try:
            if models is None:
                found = raw["models"].items()
                models = {fold(id_): Record.from_json(id_, value) for id_, value in found}
            return cls(
                seq=int(raw["seq"]),
                head=str(raw["head"]),
                models=models,
                operations=dict.fromkeys(raw["operations"]),
                extra={key: value for key, value in raw.items() if key not in _KNOWN},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"a checkpoint cannot be read: {error!r}") from error


_KNOWN = frozenset({"seq", "head", "models", "operations", "signature"})


class Draft:
    """A state being changed: each record is copied at its first change, and only once.

    `position` is that of the operation now being done: its commit, and its place in it.
    """

    def __init__(self, state: State) -> None:
        self.position = [state.seq, 0]
        self._base = state
        self._models = Records.of(state.models).copy()
        self._operations = dict(state.operations)
        self._changed: set[str] = set()

    def view(self) -> State:
        """The state as it is now, for checks; it changes along with the draft."""
        return State(self._base.seq, self._base.head, self._models, self._operations)

    def put_row(self, model_id: str, version: str, row: dict[str, Any]) -> None:
        """Set the row of a version."""
        record = self._own(model_id)
        record.versions[fold(version)] = {**row, "version": version}

    def drop_row(self, model_id: str, version: str) -> None:
        """Forget a version and its aliases, and the model with its last version."""
        record = self._own(model_id)
        record.versions.pop(fold(version), None)
        self.drop_aliases(model_id, version)
        if not record.versions:
            self._models.drop(fold(model_id))
            self._changed.discard(fold(model_id))

    def put_alias(self, model_id: str, alias: str, version: str) -> None:
        """Let an alias name a version."""
        self._own(model_id).aliases[fold(alias)] = (alias, version)

    def drop_alias(self, model_id: str, alias: str) -> None:
        """Forget an alias."""
        self._own(model_id).aliases.pop(fold(alias), None)

    def drop_aliases(self, model_id: str, version: str) -> None:
        """Forget all aliases of a version."""
        for alias in self._own(model_id).aliases_of(version):
            self.drop_alias(model_id, alias)

    def note(self, operation_id: str) -> None:
        """Remember that an operation was done."""
        self._operations[operation_id] = None

    def finish(self, seq: int, head: str) -> State:
        """The state after commit `seq`. The draft must not be used again."""
        surplus = len(self._operations) - KEPT_OPERATIONS
        for old in list(self._operations)[: max(surplus, 0)]:
            del self._operations[old]
        return State(seq, head, self._models.settled(), self._operations, self._base.extra)

    def _own(self, model_id: str) -> Record:
        key = fold(model_id)
        if key not in self._changed:
            old = self._models.get(key) or Record(model_id, {}, {})
            new = Record(old.model_id, dict(old.versions), dict(old.aliases), old.extra)
            self._models.put(key, new)
            self._changed.add(key)
        return self._models[key]


def status_of(row: Row) -> ModelStatus:
    """The status in a row."""
    return ModelStatus(row["status"])


def open_claim(row: Row | None) -> str | None:
    """The id of the claim under which a version is being pulled now, if any."""
    if row is None or row["status"] != ModelStatus.DOWNLOADING.value:
        return None
    claim: str | None = row.get("claim")
    return claim


def ids_of(operations: Iterable[Operation]) -> tuple[str, ...]:
    """The ids of operations."""
    return tuple(operation["id"] for operation in operations)
