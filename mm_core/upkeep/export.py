"""The registry as rows, one for each version, for spreadsheets and other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mm_core.schemas import ModelEntry

FORMATS = ("jsonl", "csv")

COLUMNS = (
    "model_id",
    "version",
    "model_type",
    "status",
    "path",
    "size_bytes",
    "download_date",
    "source",
    "aliases",
    "metadata",
)
"""The columns of the CSV, in their order. Within one, aliases are joined by spaces, metadata
is JSON."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def rows_of(entries: Iterable[ModelEntry], format: str) -> Iterator[str]:
    """The lines for `entries`, with their ends: JSON lines, or CSV (RFC 4180) with a header."""
    return _as_csv(entries) if format == "csv" else _as_json_lines(entries)


def _as_json_lines(entries: Iterable[ModelEntry]) -> Iterator[str]:
    for entry in entries:
        yield json.dumps(entry.to_json(), ensure_ascii=False) + "\n"


def _as_csv(entries: Iterable[ModelEntry]) -> Iterator[str]:
    yield _line(COLUMNS)
    for entry in entries:
        row = entry.to_json()
        row["aliases"] = " ".join(row["aliases"])
        row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False, sort_keys=True)
        yield _line([_cell(row[column]) for column in COLUMNS])


def _cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()
