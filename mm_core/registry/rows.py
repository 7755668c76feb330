"""The state as rows of SQLite: what queries run on, in a file or in memory.

Text to filter by is folded, so that a query need not mind case. The entry itself
is one JSON text beside it, made from the state and read back unchanged.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NamedTuple

from mm_core.exceptions import IntegrityError
from mm_core.names import fold
from mm_core.registry.state import Record, Row, State
from mm_core.schemas import ModelType, parse_rfc3339

SCHEMA = 1
"""Raised with every change of the tables, or of what stands in them."""

LIST_END = "\n"
"""Stands before and after each alias in its column, so that a whole one can be looked for."""

_LARGEST = 2**62
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TABLES = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1), schema INTEGER NOT NULL, root TEXT NOT NULL,
    registry TEXT NOT NULL, seq INTEGER NOT NULL, head TEXT NOT NULL, checked REAL NOT NULL,
    stamp TEXT NOT NULL);
CREATE TABLE models (
    key TEXT PRIMARY KEY, model_id TEXT NOT NULL, aliases TEXT NOT NULL, extra TEXT NOT NULL,
    crc INTEGER NOT NULL);
CREATE TABLE versions (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, version TEXT NOT NULL,
    seq INTEGER NOT NULL, place INTEGER NOT NULL, type TEXT NOT NULL, status TEXT NOT NULL,
    size INTEGER NOT NULL, date INTEGER NOT NULL, source TEXT NOT NULL, licence TEXT NOT NULL,
    revision TEXT NOT NULL, aliases TEXT NOT NULL, words TEXT NOT NULL);
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY, body TEXT NOT NULL, crc INTEGER NOT NULL);
"""
_INDEX = "CREATE INDEX in_order ON versions (key, seq, place, version)"
_INSERT = "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class DamagedRowsError(sqlite3.DatabaseError):
    """A row is not what was written."""


class Position(NamedTuple):
    """The commit whose state the rows show, and the sha256 of its bytes."""

    seq: int
    head: str


class Rows:
    """The tables behind one connection. Not for several threads at once.

    All methods raise `sqlite3.Error`, and `UnicodeDecodeError` from a damaged file.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    def in_memory(cls, state: State) -> Rows:
        """Rows of `state` that nobody else sees."""
        rows = cls(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
        rows.create(state)
        return rows

    def create(
        self,
        state: State,
        *,
        root: str = "",
        registry: str = "",
        stamp: str = "",
        checked: float = 0.0,
    ) -> None:
        """Make the tables, and fill them with `state`. The rest is kept for `meta`."""
        self._db.executescript(_TABLES)
        with self.transaction():
            meta = (SCHEMA, root, registry, state.seq, state.head, checked, stamp)
            self._db.execute("INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?, ?, ?)", meta)
            self._add((record, row) for record, row in state.rows())
            self._db.executemany("INSERT INTO models VALUES (?, ?, ?, ?, ?)", _models(state.models))
            self._db.execute(_INDEX)

    def close(self) -> None:
        """Give back the connection."""
        self._db.close()

    # -- reading ---------------------------------------------------------------------

    def meta(self) -> dict[str, Any]:
        """What the rows are of: schema, root, registry, seq, head, checked, stamp."""
        found = self._db.execute(f"SELECT {', '.join(_META)} FROM meta").fetchone()  # noqa: S608
        if found is None or [*map(type, found)] != [*_META.values()]:
            raise DamagedRowsError("the rows do not say what they are of")
        return dict(zip(_META, found, strict=True))

    def position(self) -> Position:
        """Which commit's state the rows show."""
        meta = self.meta()
        return Position(meta["seq"], meta["head"])

    def ask(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        """All that a question of `queries` finds."""
        return self._db.execute(sql, tuple(values)).fetchall()

    def versions(self, ids: Iterable[int]) -> Iterator[tuple[Record, Row]]:
        """The versions of these row ids, in that order; each with as much of its model as it shows.

        A record holds no version, and only the aliases that name this one.
        """
        for id_ in ids:
            body = self._body(id_)
            aliases = {fold(a): (a, body["row"]["version"]) for a in body["aliases"]}
            yield Record(body["model_id"], {}, aliases), body["row"]

    def state_of(self, keys: Iterable[str]) -> State:
        """The state with no models but those of these folded ids."""
        models = {}
        for key in keys:
            found = self._db.execute(f"{_MODELS} WHERE key = ?", (key,)).fetchone()
            if found is not None:
                model_id, aliases, extra = _checked(found)
                ids = self._db.execute("SELECT id FROM versions WHERE key = ?", (key,)).fetchall()
                rows = [self._body(id_)["row"] for (id_,) in ids]
                value = {"versions": rows, "aliases": _loads(aliases)}
                models[model_id] = {**_loads(extra), **value}
        position = self.position()
        try:
            return State.from_json({**position._asdict(), "models": models, "operations": []})
        except IntegrityError as error:
            raise DamagedRowsError(str(error)) from error

    def aliases(self, model_id: str | None) -> dict[str, dict[str, str]]:
        """The aliases of one model or of all: model id -> alias -> version."""
        found = map(_checked, self._db.execute(f"{_MODELS} WHERE aliases <> '{{}}' ORDER BY key"))
        return {
            id_: dict(sorted(_loads(aliases).items()))
            for id_, aliases, _ in found
            if model_id in (None, id_)
        }

    # -- writing ---------------------------------------------------------------------

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All of what is done within, or none of it. With ``DEFERRED``, reads of one moment."""
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def change(self, old: State, new: State, keys: Iterable[str]) -> None:
        """Bring the models of these folded ids from `old`, which the rows show, to `new`.

        Only rows that are another object in `new` are written. Call it in a
        `transaction`.
        """
        for key in keys:
            self._change(key, old.models.get(key), new.models.get(key))
        self._db.execute("UPDATE meta SET seq = ?, head = ?", (new.seq, new.head))

    def note_check(self, when: float, stamp: str) -> None:
        """Remember that the store was found to be the same one."""
        with self.transaction():
            self._db.execute("UPDATE meta SET checked = ?, stamp = ?", (when, stamp))

    def _change(self, key: str, old: Record | None, new: Record | None) -> None:
        self._db.execute("DELETE FROM models WHERE key = ?", (key,))
        if new is not None:
            self._db.executemany("INSERT INTO models VALUES (?, ?, ?, ?, ?)", _models({key: new}))
        before, after = _shown(old), _shown(new)
        gone = [version for version, was in before.items() if not _same(was, after.get(version))]
        for version in gone:
            where = (key, version)
            self._db.execute(
                "DELETE FROM bodies WHERE id IN "
                "(SELECT id FROM versions WHERE key = ? AND version = ?)",
                where,
            )
            self._db.execute("DELETE FROM versions WHERE key = ? AND version = ?", where)
        if new is not None:
            changed = (v for v, now in after.items() if not _same(now, before.get(v)))
            self._add((new, new.versions[version]) for version in changed)

    def _add(self, versions: Iterable[tuple[Record, Row]]) -> None:
        (highest,) = self._db.execute("SELECT coalesce(max(id), 0) FROM versions").fetchone()
        bodies: list[tuple[int, str, int]] = []
        columns: list[tuple[Any, ...]] = []
        last, names = None, {}
        for id_, (record, row) in enumerate(versions, highest + 1):
            if record is not last:
                last, names = record, _names(record)
            aliases = names.get(row["version"], [])
            body = json.dumps({"model_id": record.model_id, "aliases": aliases, "row": row})
            bodies.append((id_, body, _crc(body)))
            columns.append((id_, *_columns(record, row, aliases)))
            if len(bodies) == _BATCH:
                self._flush(bodies, columns)
        self._flush(bodies, columns)

    def _flush(self, bodies: list[tuple[int, str, int]], columns: list[tuple[Any, ...]]) -> None:
        self._db.executemany("INSERT INTO bodies VALUES (?, ?, ?)", bodies)
        self._db.executemany(_INSERT, columns)
        bodies.clear()
        columns.clear()

    def _body(self, id_: int) -> dict[str, Any]:
        found = self._db.execute("SELECT body, crc FROM bodies WHERE id = ?", (id_,)).fetchone()
        if found is None:
            raise DamagedRowsError(f"row {id_} is lost")
        return _loads(*_checked(found))


def _checked(found: tuple[Any, ...]) -> tuple[str, ...]:
    """The texts of a row, without the checksum at its end, which must be theirs."""
    *texts, crc = found
    if not all(isinstance(text, str) for text in texts) or _crc(*texts) != crc:
        raise DamagedRowsError("a row is damaged")
    return tuple(texts)


def _crc(*texts: str) -> int:
    return zlib.crc32("\n".join(texts).encode())


def _loads(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


_BATCH = 5_000
_MODELS = "SELECT model_id, aliases, extra, crc FROM models"
_META = {
    "schema": int,
    "root": str,
    "registry": str,
    "seq": int,
    "head": str,
    "checked": float,
    "stamp": str,
}


def _models(models: Mapping[str, Record]) -> Iterator[tuple[str, str, str, str, int]]:
    for key, record in models.items():
        texts = (
            record.model_id,
            json.dumps(dict(record.aliases.values())),
            json.dumps(dict(record.extra)),
        )
        yield key, *texts, _crc(*texts)


def _names(record: Record) -> dict[str, list[str]]:
    """The aliases by the version that they name, sorted."""
    found: dict[str, list[str]] = {}
    for alias, version in sorted(record.aliases.values()):
        found.setdefault(version, []).append(alias)
    return found


def _shown(record: Record | None) -> dict[str, tuple[Row, list[str]]]:
    """What the rows of a model are made of, by folded version."""
    if record is None:
        return {}
    names = _names(record)
    return {
        version: (row, names.get(row["version"], [])) for version, row in record.versions.items()
    }


def _same(one: tuple[Row, list[str]], other: tuple[Row, list[str]] | None) -> bool:
    return other is not None and one[0] is other[0] and one[1] == other[1]


def _columns(record: Record, row: Row, aliases: list[str]) -> tuple[Any, ...]:
    seq, place = row["added"]
    metadata = row.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = ModelType.from_tag(row.get("model_type")).value
    names = [_folded(alias) for alias in aliases] if aliases else []
    key, version = _folded(record.model_id), _folded(row["version"])
    source, licence = _folded(row.get("source")), _folded(metadata.get("license"))
    words = dict.fromkeys((key, version, *names, kind, source, *_words(metadata)))
    return (
        key,
        version,
        seq,
        place,
        kind,
        str(row["status"]),
        _bytes(row.get("size_bytes")),
        microseconds(row.get("date")),
        source,
        licence,
        _folded(metadata.get("revision")),
        "".join(f"{LIST_END}{name}" for name in names) + LIST_END if names else "",
        LIST_END.join(words),
    )


def _bytes(size: Any) -> int:
    """The size in a row; 0 for none, and for what is none."""
    try:
        return max(-_LARGEST, min(int(size or 0), _LARGEST))
    except (ValueError, TypeError, OverflowError):
        return 0


def microseconds(date: Any) -> int:
    """The time in a row, or any `datetime`, since 1970; 0 for none, and for what is none."""
    try:
        moment = parse_rfc3339(date) if isinstance(date, str) else date
        if not isinstance(moment, datetime):
            return 0
        since = (moment if moment.tzinfo else moment.astimezone()) - _EPOCH
    except (ValueError, OverflowError):  # whoever asks for the entry is told
        return 0
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _words(value: Any) -> list[str]:
    """All text in some metadata, folded."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [] if value is None else [_folded(value)]


def _folded(value: Any) -> str:
    """Folded text that SQLite takes; none is empty."""
    if value is None:
        return ""
    text = str(value)
    if text.isascii():
        return text.lower()
    return fold(text).encode("utf-8", "replace").decode()
