"""Queries: what is asked of a registry, as a value, and as the SQL that answers it.

A query is put to `mm_core.registry.rows`, in a file or in memory, so there is one
implementation of it. Values never become part of the SQL: they are parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any, NamedTuple

from mm_core.exceptions import UsageError
from mm_core.names import fold
from mm_core.registry.rows import LIST_END, Rows, microseconds
from mm_core.schemas import ModelStatus, ModelType
from mm_core.units import parse_duration, parse_moment, parse_size

_PART = r"(?s)\s*([A-Za-z_]+)\s*(!=|~=|>=|<=|=|>|<)\s*(.*?)\s*"  # compiled when there is a filter
_COMMA = r"(?<!\\),"
_HIDDEN = (ModelStatus.DELETED.value, ModelStatus.SWEEPING.value)
_FURTHEST = 2**62
_KEPT = "total(kept), total(size * kept), total(1 - kept), total(size * (1 - kept))"
_LARGEST_FIRST = "GROUP BY key ORDER BY total(size) DESC, key LIMIT ?"


class Condition(NamedTuple):
    """One part of a filter, checked: a field, an operator, and the value as it is compared.

    A value that is a size or a time is a range ``[low, high)`` of whole numbers.
    """

    field: str
    operator: str
    value: str = ""
    low: int = 0
    high: int = 0


class Order(NamedTuple):
    """One key to sort by."""

    field: str
    descending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which versions are wanted, and in which order.

    All of `where` must hold, and all of `words` stand somewhere in a version's
    names, aliases, type, source or metadata. Without `sort`, by model id and then
    by age; with `words`, those whose model id holds them all come first.
    Versions that are DELETED or SWEEPING are left out unless `removed` is set, or
    a condition asks for a status.
    """

    where: tuple[Condition, ...] = ()
    words: tuple[str, ...] = ()
    sort: tuple[Order, ...] = ()
    limit: int | None = None
    removed: bool = False

    @classmethod
    def parse(
        cls,
        filters: str | Sequence[str] = (),
        *,
        text: str = "",
        sort: str = "",
        limit: int | None = None,
        removed: bool = False,
        now: datetime | None = None,
    ) -> Query:
        """The query in the words of the command line, such as ``size>1GB,type=text-generation``.

        Ages are before `now`. `UsageError` names the part that is wrong, and what
        is allowed.
        """
        given = [filters] if isinstance(filters, str) else filters
        moment = datetime.now(timezone.utc) if now is None else now
        return cls(
            where=tuple(c for each in given if each for c in parse_filter(each, now=moment)),
            words=tuple(map(_known_text, fold(text).split())),
            sort=parse_sort(sort) if sort else (),
            limit=limit,
            removed=removed,
        )

    @property
    def hides_removed(self) -> bool:
        """Whether versions that were removed are left out."""
        asked = any(c.field == "status" and c.operator in ("=", "~=") for c in self.where)
        return not self.removed and not asked


class Usage(NamedTuple):
    """What one model takes, by the sizes in the registry; `removed_bytes` go with the next gc."""

    model_id: str
    versions: int
    bytes: int
    removed_versions: int
    removed_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The usage as JSON data."""
        return self._asdict()


def parse_filter(text: str, *, now: datetime) -> list[Condition]:
    """The conditions in ``size>1GB,alias=prod``; a comma after a backslash is one in a value."""
    return [_condition(part.replace("\\,", ","), now) for part in re.split(_COMMA, text)]


def parse_sort(text: str) -> tuple[Order, ...]:
    """The keys in ``size:desc,model``."""
    return tuple(_order(part) for part in text.split(","))


def matching(rows: Rows, query: Query) -> list[int]:
    """The ids of the rows that `query` wants, in its order."""
    where, values = _where(query)
    order, keys = _order_by(query)
    limit = -1 if query.limit is None else min(query.limit, _FURTHEST)
    wanted = f"SELECT id FROM versions WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608
    found = rows.ask(wanted, (*values, *keys, limit))
    return [id_ for (id_,) in found]


def usage(rows: Rows, query: Query) -> list[Usage]:
    """What each model takes whose versions `query` wants, the largest first.

    Removed versions count, too: their files stay until they are swept.
    """
    where, values = _where(query, hide=False)
    limit = -1 if query.limit is None else min(query.limit, _FURTHEST)
    sizes = f"SELECT key, size, status NOT IN (?, ?) AS kept FROM versions WHERE {where}"  # noqa: S608
    found = rows.ask(
        f"SELECT model_id, {_KEPT} FROM ({sizes}) JOIN models USING (key) {_LARGEST_FIRST}",  # noqa: S608
        (*_HIDDEN, *values, limit),
    )
    return [Usage(str(model_id), *map(int, numbers)) for model_id, *numbers in found]


# -- fields


class _Field(NamedTuple):
    column: str
    operators: tuple[str, ...]
    read: Callable[[_Asked], Condition]


class _Asked(NamedTuple):
    """A part of a filter, as it was written."""

    part: str
    field: str
    operator: str
    value: str
    now: datetime


def _as_text(asked: _Asked) -> Condition:
    return Condition(asked.field, asked.operator, fold(asked.value))


def _as_type(asked: _Asked) -> Condition:
    return _as_one_of([kind.value for kind in ModelType], asked)


def _as_status(asked: _Asked) -> Condition:
    return _as_one_of([status.value for status in ModelStatus], asked)


def _as_one_of(known: list[str], asked: _Asked) -> Condition:
    names = {fold(name): name for name in known}
    wanted = fold(asked.value)
    upper = known[0].isupper()
    if asked.operator != "~=" and wanted not in names:
        near = _near(wanted.upper() if upper else wanted, known)
        choices = ", ".join(known) if len(known) < 12 else f"such as {', '.join(known[:3])}"
        raise UsageError(
            f"{asked.part!r}: there is no {asked.field} {asked.value!r}{near}",
            hint=f"a {asked.field} is {'one of ' if len(known) < 12 else ''}{choices}",
        )
    return Condition(asked.field, asked.operator, wanted.upper() if upper else wanted)


def _as_size(asked: _Asked) -> Condition:
    size = min(_read(parse_size, asked), _FURTHEST)
    return Condition(asked.field, asked.operator, low=size, high=size + 1)


def _as_date(asked: _Asked) -> Condition:
    """A moment, or a whole day: ``=`` is within, ``>`` after its end, ``<`` before its start."""
    low, high = _read(lambda text: _span(text, asked.now), asked)
    return Condition(asked.field, asked.operator, low=low, high=high)


def _span(text: str, now: datetime) -> tuple[int, int]:
    low = microseconds(parse_moment(text, now=now))
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return low, low + 1
    next_day = date.fromisoformat(text) + timedelta(days=1)
    return low, microseconds(parse_moment(next_day.isoformat()))


def _as_age(asked: _Asked) -> Condition:
    """An age counts the other way round than a date: older is earlier."""
    seconds = _read(parse_duration, asked)
    low = microseconds(asked.now) - int(min(seconds * 1e6, _FURTHEST))
    turned = asked.operator.translate(str.maketrans("<>", "><"))
    return Condition("date", turned, low=low, high=low + 1)


_TEXT = ("=", "!=", "~=")
_RANGE = ("=", "!=", ">", ">=", "<", "<=")
_FIELDS = {
    "model": _Field("key", _TEXT, _as_text),
    "version": _Field("version", _TEXT, _as_text),
    "type": _Field("type", _TEXT, _as_type),
    "status": _Field("status", _TEXT, _as_status),
    "size": _Field("size", _RANGE, _as_size),
    "date": _Field("date", _RANGE, _as_date),
    "age": _Field("date", _RANGE[2:], _as_age),
    "source": _Field("source", _TEXT, _as_text),
    "licence": _Field("licence", _TEXT, _as_text),
    "revision": _Field("revision", _TEXT, _as_text),
    "alias": _Field("aliases", _TEXT, _as_text),
}
_OTHER_NAMES = {
    "license": "licence",
    "model_id": "model",
    "model_type": "type",
    "size_bytes": "size",
    "download_date": "date",
    "aliases": "alias",
}


def _condition(part: str, now: datetime) -> Condition:
    match = re.fullmatch(_PART, part)
    if match is None:
        raise UsageError(
            f"the filter {part.strip()!r} is not understood",
            hint="write FIELD OPERATOR VALUE, such as size>1GB or source~=hf://meta; fields are "
            + ", ".join(_FIELDS),
        )
    name = _field(match[1], part, _FIELDS)
    allowed = _FIELDS[name].operators
    if match[2] not in allowed:
        raise UsageError(
            f"{part.strip()!r}: {name} cannot be compared by {match[2]}",
            hint=f"{name} takes {' '.join(allowed)}",
        )
    return _FIELDS[name].read(_Asked(part.strip(), name, match[2], match[3], now))


def _order(part: str) -> Order:
    name, separator, direction = part.strip().partition(":")
    if separator and direction not in ("asc", "desc"):
        raise UsageError(
            f"the order {part.strip()!r} is not understood",
            hint="write KEY, KEY:asc or KEY:desc, such as --sort size:desc,model",
        )
    return Order(_field(name, part, _FIELDS), direction == "desc")


def _field(name: str, part: str, known: Iterable[str]) -> str:
    lower = name.lower()
    lower = _OTHER_NAMES.get(lower, lower)
    if lower not in known:
        raise UsageError(
            f"{part.strip()!r}: there is no field {name!r}{_near(lower, [*known, *_OTHER_NAMES])}",
            hint="fields are " + ", ".join(known),
        )
    return lower


def _near(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _read(parse: Callable[[str], Any], asked: _Asked) -> Any:
    try:
        return parse(asked.value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{asked.part!r}: {asked.value!r} is no {asked.field}: {error}") from None


# -- SQL


def _where(query: Query, *, hide: bool = True) -> tuple[str, list[Any]]:
    parts: list[str] = ["1"]
    values: list[Any] = []
    if hide and query.hides_removed:
        parts.append("status NOT IN (?, ?)")
        values += _HIDDEN
    for condition in query.where:
        sql, given = _sql(condition)
        parts.append(sql)
        values += given
    for word in query.words:
        parts.append("instr(words, ?) > 0")
        values.append(word)
    return " AND ".join(parts), values


def _sql(condition: Condition) -> tuple[str, list[Any]]:
    column, operator = _FIELDS[condition.field].column, condition.operator
    if column in ("size", "date"):
        return _range_sql(column, condition)
    value = _known_text(condition.value)
    if operator == "~=":
        return f"instr({column}, ?) > 0", [value]
    if column == "aliases" and value:
        found = "> 0" if operator == "=" else "= 0"
        return f"instr(aliases, ?) {found}", [f"{LIST_END}{value}{LIST_END}"]
    return f"{column} {'=' if operator == '=' else '<>'} ?", [value]


def _known_text(text: str) -> str:
    """`text` without what is no character, such as bytes of an argument that were none."""
    return text.encode("utf-8", "replace").decode()


def _range_sql(column: str, condition: Condition) -> tuple[str, list[Any]]:
    low, high = condition.low, condition.high
    if condition.operator in ("=", "!="):
        wanted = "" if condition.operator == "=" else "NOT "
        return f"{column} {wanted}BETWEEN ? AND ?", [low, high - 1]
    bound = {">": (">=", high), ">=": (">=", low), "<": ("<", low), "<=": ("<", high)}
    sign, value = bound[condition.operator]
    return f"{column} {sign} ?", [value]


def _order_by(query: Query) -> tuple[str, list[Any]]:
    keys: list[str] = []
    values: list[Any] = []
    for order in query.sort:
        down = order.descending is not (order.field == "age")  # the younger, the later
        keys.append(f"{_FIELDS[order.field].column}{' DESC' if down else ''}")
    if query.words and not query.sort:
        keys.append(" + ".join("(instr(key, ?) > 0)" for _ in query.words) + " DESC")
        values += query.words
    return ", ".join([*keys, "key", "seq", "place", "version"]), values
