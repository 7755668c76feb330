"""References: ``ID``, ``ID@VERSION``, ``ID@ALIAS`` and ``ID:ALIAS``, looked up in a state."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

from mm_core.exceptions import NotFoundError
from mm_core.names import check_model_id, fold
from mm_core.registry.state import Record, Row, State, is_available


def find_available(
    state: State, reference: str, names: Callable[[], Iterable[str]] | None = None
) -> tuple[Record, Row]:
    """The model and the AVAILABLE version that `reference` names, or `NotFoundError`.

    `names` tells all models where `state` holds but the one that is asked for.
    """
    model_id, separator, name = _split(reference)
    record = state.record(model_id)
    if record is None:
        known = names() if names else (found.model_id for found in state.models.values())
        raise NotFoundError(f"there is no model {model_id!r}", hint=_near(known, model_id))
    row = best(record) if not separator else _named(record, separator, name)
    if row is None or not is_available(row):
        status = f": it is {row['status']}" if row else ""
        raise NotFoundError(
            f"no available version answers to {reference!r}{status}",
            hint="see `mm list --all` for what there is, or pull it",
        )
    return record, row


def find_any(state: State, model_id: str, version: str | None) -> tuple[Record, Row] | None:
    """The model and a version of whatever status: that named, else the best, else the newest."""
    record = state.record(unicodedata.normalize("NFC", model_id))
    if record is None:
        return None
    if version is None:
        row = best(record) or record.newest(available=False)
    else:
        row = record.row(unicodedata.normalize("NFC", version))
    return None if row is None else (record, row)


def model_in(reference: str) -> str:
    """The model id in a reference. `InvalidNameError` if it is none."""
    return _split(reference)[0]


def best(record: Record) -> Row | None:
    """The AVAILABLE version that the alias ``latest`` names, or else the one added last."""
    alias = record.aliases.get("latest")
    row = record.row(alias[1]) if alias else None
    return row if row is not None and is_available(row) else record.newest(available=True)


def _split(reference: str) -> tuple[str, str, str]:
    for position, char in enumerate(reference):
        if char in "@:":
            name = unicodedata.normalize("NFC", reference[position + 1 :])
            return check_model_id(reference[:position]), char, name
    return check_model_id(reference), "", ""


def _named(record: Record, separator: str, name: str) -> Row | None:
    row = record.row(name) if separator == "@" else None
    alias = record.aliases.get(fold(name))
    return record.row(alias[1]) if row is None and alias else row


def _near(known: Iterable[str], model_id: str) -> str:
    import difflib

    by_key = {fold(name): name for name in known}
    close = difflib.get_close_matches(fold(model_id), by_key, n=1, cutoff=0.7)
    return f"did you mean {by_key[close[0]]!r}?" if close else "see `mm list` for what there is"
