"""How values look on stdout: JSON documents, tables, sizes, ages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import click

from mm_core.sizes import size_in_words

SCHEMA_VERSION = 1
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STATUS_COLORS = {"AVAILABLE": "green", "DOWNLOADING": "cyan", "FAILED": "red"}


def say_go_on() -> str:
    """How to go on after an interrupt, where all that was done counts."""
    return "what is done stays done; run the same command again to go on"


def write_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document, with its ``schema_version``."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


def write_json_line(kind: str, value: Mapping[str, Any]) -> None:
    """Print `value` as one JSON line that says its ``kind``."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "kind": kind, **value}))


def clean(text: object) -> str:
    """`text` on one line and without control characters, which could steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines with aligned columns. Nothing is cut, so that what is shown can be copied."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    widths[-1] = 0
    yield _line([click.style(h.ljust(w), bold=True) for h, w in zip(header, widths, strict=True)])
    for row in cells:
        yield _line([_paint(cell, width) for cell, width in zip(row, widths, strict=True)])


def table_or(
    nothing: str, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> Iterator[str]:
    """`table`; without any rows no line, and on stderr what `nothing` says."""
    if rows:
        yield from table(header, rows)
    else:
        click.echo(nothing, err=True)


def facts(pairs: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Lines ``name  value``, without those whose value is None or empty."""
    shown = [(name, clean(value)) for name, value in pairs if value not in (None, "", ())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        yield f"{click.style(name.ljust(width), bold=True)}  {value}"


def size(count: int | None) -> str:
    """A number of bytes for people: ``12.3 MiB``."""
    return "?" if count is None else size_in_words(count)


def number(count: int) -> str:
    """A count for people: ``1.2 B`` for 1,200,000,000."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)


def counted(count: int, what: str, several: str | None = None) -> str:
    """A count with its noun for people: ``1 entry``, ``1,200 entries``."""
    return f"{count:,} {what if count == 1 else several or what + 's'}"


def age(moment: datetime, now: datetime | None = None) -> str:
    """How long ago `moment` was, in one unit: ``3 h``."""
    now = now or datetime.now(timezone.utc)
    return duration((now - moment.astimezone(timezone.utc)).total_seconds())


def duration(seconds: float) -> str:
    """A time in one unit: ``3 h``."""
    seconds = max(0, int(seconds))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def short_version(version: str) -> str:
    """The version as a table shows it: the first 12 characters of a commit or a digest."""
    return version[:12] if re.fullmatch(r"[0-9a-f]{40,64}", version) else version


def _paint(cell: str, width: int) -> str:
    color = _STATUS_COLORS.get(cell)
    return click.style(cell.ljust(width), fg=color) if color else cell.ljust(width)


def _line(cells: list[str]) -> str:
    return "  ".join(cells).rstrip()
