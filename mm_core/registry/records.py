"""Records: what a state keeps of each model.

A row (one version) and a record (one model) are replaced and never changed. A
record out of a checkpoint stays the line it was until somebody asks for it, and
a change copies none of the others: so neither opening a registry nor a commit
costs more for the models that it does not touch.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.names import fold
from mm_core.schemas import ModelStatus, canonical_json

Row = Mapping[str, Any]

_MANY = 256
_ID = re.compile(rb'"(?:[^"\\]|\\.)*"(?=:)')


def is_available(row: Row) -> bool:
    """Whether a row's version is offered for use."""
    return bool(row["status"] == ModelStatus.AVAILABLE.value)


@dataclass(frozen=True, slots=True)
class Record:
    """One model: its versions by folded version, its aliases by folded alias."""

    model_id: str
    versions: dict[str, Row]
    aliases: dict[str, tuple[str, str]]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def row(self, version: str) -> Row | None:
        """The row of exactly this version."""
        row = self.versions.get(fold(version))
        return row if row is not None and row["version"] == version else None

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """The aliases that name `version`, sorted."""
        return tuple(sorted(a for a, v in self.aliases.values() if v == version))

    def newest(self, *, available: bool) -> Row | None:
        """The row added last, of those that are AVAILABLE or of all."""
        rows = (r for r in self.versions.values() if not available or is_available(r))
        return max(rows, key=lambda row: row["added"], default=None)

    def to_json(self) -> dict[str, Any]:
        """The record as a checkpoint keeps it, under its model id."""
        return {
            **self.extra,
            "versions": list(self.versions.values()),
            "aliases": dict(self.aliases.values()),
        }

    @classmethod
    def from_json(cls, model_id: str, raw: Mapping[str, Any]) -> Record:
        """The record that `to_json` gave; `IntegrityError` if it is none."""
        try:
            value = dict(raw)
            rows, aliases = value.pop("versions"), value.pop("aliases")
            return cls(
                model_id,
                {fold(row["version"]): row for row in rows},
                {fold(alias): (alias, version) for alias, version in aliases.items()},
                value,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"a checkpoint cannot be read: {error!r}") from error


class Records(Mapping[str, Record]):
    """Records by folded model id: a few that are new, over many that nobody changes.

    `put` and `drop` are for whoever made this one by `copy`, which shares the many.
    """

    __slots__ = ("_base", "_new")

    def __init__(self, base: _Base, new: dict[str, Record | None]) -> None:
        self._base = base
        self._new = new

    @classmethod
    def of(cls, records: Mapping[str, Record]) -> Records:
        """`records` as such a mapping; itself where it is one."""
        return records if isinstance(records, Records) else cls(_Base(dict(records)), {})

    @classmethod
    def from_lines(cls, lines: Iterable[bytes]) -> Records:
        """The records in the lines of a checkpoint. Raises `ValueError` for what is no line."""
        return cls(_Base({fold(_id_of(line)): line for line in lines}), {})

    def __getitem__(self, key: str) -> Record:
        if key not in self._new:
            return self._base.record(key)
        found = self._new[key]
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self._base.held if key not in self._new)
        yield from (key for key, record in self._new.items() if record is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def below(self, folder: str) -> Iterator[Record]:
        """The records whose key is `folder`, or goes on with a slash after it."""
        for key in self._base.below(folder):
            if key not in self._new:
                yield self._base.record(key)
        for key, record in self._new.items():
            if record is not None and (key == folder or key.startswith(f"{folder}/")):
                yield record

    def lines(self) -> list[bytes]:
        """Each record as the line of a checkpoint, sorted."""
        lines = [
            held if isinstance(held, bytes) else _line_of(held)
            for key, held in self._base.held.items()
            if key not in self._new
        ]
        lines += [_line_of(record) for record in self._new.values() if record is not None]
        return sorted(lines)

    def copy(self) -> Records:
        """One that can be changed while this one stays."""
        return Records(self._base, dict(self._new))

    def put(self, key: str, record: Record) -> None:
        """Set a record."""
        self._new[key] = record

    def drop(self, key: str) -> None:
        """Forget a record."""
        self._new[key] = None

    def settled(self) -> Records:
        """The same, with what is new among the many once that is much: copies stay cheap."""
        if len(self._new) <= _MANY:
            return self
        held = {**self._base.held, **self._new}
        return Records(_Base({k: record for k, record in held.items() if record is not None}), {})


class _Base:
    """Records, and lines that become records when they are asked for."""

    __slots__ = ("_sorted", "held")

    def __init__(self, held: dict[str, Record | bytes]) -> None:
        self.held = held
        self._sorted: list[str] | None = None

    def record(self, key: str) -> Record:
        found = self.held[key]
        if isinstance(found, bytes):
            found = self.held[key] = _record_in(found)
        return found

    def below(self, folder: str) -> Iterator[str]:
        if folder in self.held:
            yield folder
        keys = self._sorted
        if keys is None:
            keys = self._sorted = sorted(self.held)
        prefix = f"{folder}/"
        for index in range(bisect_left(keys, prefix), len(keys)):
            if not keys[index].startswith(prefix):
                return
            yield keys[index]


def _line_of(record: Record) -> bytes:
    return canonical_json(record.model_id) + b":" + canonical_json(record.to_json())


def _record_in(line: bytes) -> Record:
    try:
        [(model_id, value)] = json.loads(b"{%b}" % line).items()
    except ValueError as error:
        raise IntegrityError(f"a checkpoint cannot be read: {error}") from error
    return Record.from_json(model_id, value)


def _id_of(line: bytes) -> str:
    found = _ID.match(line)
    if found is None:
        raise ValueError("a line does not begin with a model id")
    return str(json.loads(found[0]))
