"""The operations of the log: when each is allowed, and what each does to the state.

A check looks before a commit is made and raises; an application never refuses,
since what is in the log has happened. The order of the log settles the order of
any two operations.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mm_core.exceptions import ConflictError, IntegrityError, NotFoundError, StorageError
from mm_core.names import fold
from mm_core.registry.chain import CommitRecord
from mm_core.registry.state import Draft, Operation, Row, State, open_claim, status_of
from mm_core.schemas import ModelStatus

_ENVELOPE = frozenset({"op", "id", "model_id", "version"})
_S = ModelStatus


def operation(op: str, model_id: str, *, id: str | None = None, **fields: Any) -> dict[str, Any]:
    """An operation as the log keeps it; fields that are None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {"op": op, "id": id or uuid.uuid4().hex, "model_id": model_id, **given}


def transition(state: State, operations: Sequence[Operation], *, first: int = 0) -> State:
    """The state with checked `operations` done, still under the old number.

    They are those of the next commit, from place `first` in it on. Raises
    `ConflictError` or `NotFoundError` if one is not allowed; then none is done.
    """
    draft = Draft(state)
    for index, item in enumerate(operations, first):
        _rule(item).check(draft.view(), item)
        _apply(draft, item, state.seq + 1, index)
    return draft.finish(state.seq, state.head)


def replay(state: State, commits: Iterable[CommitRecord]) -> State:
    """The state after `commits`. Checks nothing."""
    draft, seq, head = Draft(state), state.seq, state.head
    for commit in commits:
        seq, head = commit.seq, commit.sha256
        for index, item in enumerate(commit.operations):
            _apply(draft, item, seq, index)
    return draft.finish(seq, head)


def apply_all(state: State, operations: Sequence[Operation], seq: int, head: str) -> State:
    """The state after a commit of `operations` that were checked."""
    draft = Draft(state)
    for index, item in enumerate(operations):
        _apply(draft, item, seq, index)
    return draft.finish(seq, head)


def _apply(draft: Draft, item: Operation, seq: int, index: int) -> None:
    try:
        draft.position = [seq, index]
        _rule(item).apply(draft, item)
        draft.note(item["id"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IntegrityError(f"commit {seq} holds a broken operation: {error!r}") from error


def _rule(item: Operation) -> Rule:
    rule = RULES.get(item["op"])
    if rule is None:
        raise StorageError(
            f"the registry's log holds an operation {item['op']!r} that this release does not know",
            hint="upgrade it: pip install --upgrade model-manager",
        )
    return rule


def _fields(item: Operation) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in _ENVELOPE}


def _old(draft: Draft, item: Operation) -> dict[str, Any]:
    return dict(draft.view().row(item["model_id"], item["version"]) or {})


# begin, add, abandon: a pull


def _check_begin(state: State, item: Operation) -> None:
    row = state.row(item["model_id"], item["version"])
    _refuse_unless(
        row is None
        or status_of(row) in (_S.FAILED, _S.DELETED)
        or (status_of(row) is _S.DOWNLOADING and open_claim(row) is None),
        item,
        row,
    )
    check_folder(state, item["model_id"], item["version"])


def _apply_begin(draft: Draft, item: Operation) -> None:
    row = {**_fields(item), "status": _S.DOWNLOADING.value, "added": draft.position}
    draft.put_row(item["model_id"], item["version"], row)


def _check_add(state: State, item: Operation) -> None:
    row = state.row(item["model_id"], item["version"])
    if open_claim(row) != item["claim"]:
        raise ConflictError(
            f"the claim on {_name(item)} was given up or taken over, so the version is not added",
            hint="pull it again; what is stored already is used",
        )


def _apply_add(draft: Draft, item: Operation) -> None:
    row = _old(draft, item)
    for gone in ("owner", "timeout", "reason"):
        row.pop(gone, None)
    row.update(_fields(item), status=_S.AVAILABLE.value, added=draft.position)
    draft.put_row(item["model_id"], item["version"], row)


def _check_abandon(state: State, item: Operation) -> None:
    row = state.row(item["model_id"], item["version"])
    if open_claim(row) != item["claim"]:
        raise ConflictError(f"the claim on {_name(item)} is not open any more")


def _apply_abandon(draft: Draft, item: Operation) -> None:
    row = _old(draft, item)
    if row.get("claim") == item["claim"]:
        row.update(_fields(item), status=_S.FAILED.value, ended=draft.position)
        draft.put_row(item["model_id"], item["version"], row)


# register, status: entries that the caller looks after


def _check_register(state: State, item: Operation) -> None:
    row = state.row(item["model_id"], item["version"])
    _refuse_unless(row is None or status_of(row) is _S.DELETED, item, row)
    check_spelling(state, item["model_id"], item["version"])


def _apply_register(draft: Draft, item: Operation) -> None:
    draft.put_row(item["model_id"], item["version"], {**_fields(item), "added": draft.position})


def _check_status(state: State, item: Operation) -> None:
    row = _existing(state, item)
    _refuse_unless(open_claim(row) is None and status_of(row) is not _S.SWEEPING, item, row)
    if item["status"] == _S.AVAILABLE.value and "path" not in row and "manifest" not in row:
        raise ConflictError(
            f"{_name(item)} was never completed, so it cannot be made AVAILABLE",
            hint="pull it again; what is stored already is used",
        )


def _apply_status(draft: Draft, item: Operation) -> None:
    row = {**_old(draft, item), **_fields(item), "ended": draft.position}
    row.pop("claim", None)
    draft.put_row(item["model_id"], item["version"], row)
    if row["status"] == _S.DELETED.value:
        draft.drop_aliases(item["model_id"], item["version"])


# remove, sweep, swept: the way out


def _check_remove(state: State, item: Operation) -> None:
    row = _existing(state, item)
    if status_of(row) in (_S.DELETED, _S.SWEEPING):
        raise NotFoundError(f"{_name(item)} is removed already")
    _refuse_unless(open_claim(row) is None, item, row)
    if "expect" in item:
        _refuse_other_aliases(state, item)


def _refuse_other_aliases(state: State, item: Operation) -> None:
    record = state.record(item["model_id"])
    names = record.aliases_of(item["version"]) if record else ()
    if not set(names) <= set(item["expect"]):
        raise ConflictError(f"{_name(item)} has other aliases than expected: {', '.join(names)}")


def _apply_remove(draft: Draft, item: Operation) -> None:
    row = {
        **_old(draft, item),
        **_fields(item),
        "status": _S.DELETED.value,
        "ended": draft.position,
    }
    row.pop("expect", None)
    draft.put_row(item["model_id"], item["version"], row)
    draft.drop_aliases(item["model_id"], item["version"])


def _check_sweep(state: State, item: Operation) -> None:
    row = state.row(item["model_id"], item["version"])
    _refuse_unless(row is None or status_of(row) in (_S.DELETED, _S.FAILED, _S.SWEEPING), item, row)
    _refuse_rival(item, row)
    if "expect" in item and [*item["expect"]] != [*(row or {}).get("ended", ())]:
        raise ConflictError(f"{_name(item)} is not what it was")
    if row is None:
        check_folder(state, item["model_id"], item["version"])


def _refuse_rival(item: Operation, row: Row | None) -> None:
    """Only its own collector, or one that says whose place it takes, goes on with a sweep."""
    sweeper = row.get("sweeper") if row and status_of(row) is _S.SWEEPING else None
    if sweeper is not None and sweeper not in (item.get("sweeper"), item.get("over")):
        raise ConflictError(f"{_name(item)} is being swept by another")


def _apply_sweep(draft: Draft, item: Operation) -> None:
    old = _old(draft, item)
    for gone in ("sweeper", "owner", "free"):
        old.pop(gone, None)
    row = {
        "added": draft.position,
        **old,
        **_fields(item),
        "status": _S.SWEEPING.value,
        "ended": draft.position,
    }
    for gone in ("expect", "over"):
        row.pop(gone, None)
    draft.put_row(item["model_id"], item["version"], row)


def _check_swept(state: State, item: Operation) -> None:
    row = _existing(state, item)
    _refuse_unless(status_of(row) is _S.SWEEPING, item, row)
    _refuse_rival(item, row)


def _apply_swept(draft: Draft, item: Operation) -> None:
    draft.drop_row(item["model_id"], item["version"])


# alias, unalias


def _check_alias(state: State, item: Operation) -> None:
    row = state.row(item["model_id"], item["version"])
    if row is None or status_of(row) is not _S.AVAILABLE:
        raise NotFoundError(
            f"{_name(item)} is not available, so the alias {item['alias']!r} cannot name it",
            hint="see `mm list --all`",
        )
    _check_expected(state, item)


def _check_expected(state: State, item: Operation) -> None:
    if "expect" not in item:
        return
    record = state.record(item["model_id"])
    held = record.aliases.get(fold(item["alias"])) if record else None
    if (held[1] if held else "") != item["expect"]:
        raise ConflictError(
            f"the alias {item['model_id']}:{item['alias']} names {held[1] if held else 'nothing'}, "
            f"not {item['expect'] or 'nothing'} as expected",
            hint="look at what it names now, then try again",
        )


def _apply_alias(draft: Draft, item: Operation) -> None:
    draft.put_alias(item["model_id"], item["alias"], item["version"])


def _check_unalias(state: State, item: Operation) -> None:
    record = state.record(item["model_id"])
    if record is None or fold(item["alias"]) not in record.aliases:
        raise NotFoundError(f"there is no alias {item['model_id']}:{item['alias']}")


def _apply_unalias(draft: Draft, item: Operation) -> None:
    draft.drop_alias(item["model_id"], item["alias"])


class Rule(NamedTuple):
    """When an operation is allowed, and what it does."""

    check: Callable[[State, Operation], None]
    apply: Callable[[Draft, Operation], None]


RULES: Mapping[str, Rule] = {
    "begin": Rule(_check_begin, _apply_begin),
    "add": Rule(_check_add, _apply_add),
    "abandon": Rule(_check_abandon, _apply_abandon),
    "register": Rule(_check_register, _apply_register),
    "status": Rule(_check_status, _apply_status),
    "remove": Rule(_check_remove, _apply_remove),
    "sweep": Rule(_check_sweep, _apply_sweep),
    "swept": Rule(_check_swept, _apply_swept),
    "alias": Rule(_check_alias, _apply_alias),
    "unalias": Rule(_check_unalias, _apply_unalias),
}


def check_spelling(state: State, model_id: str, version: str) -> None:
    """Raise `ConflictError` if the names differ from known ones by case or Unicode form only."""
    record = state.models.get(fold(model_id))
    if record is None:
        return
    row = record.versions.get(fold(version))
    known = f"{record.model_id}@{row['version'] if row else version}"
    if known != f"{model_id}@{version}":
        raise ConflictError(
            f"{model_id}@{version} differs from {known} by case or Unicode form only",
            hint=f"use the name {known}",
        )


def check_folder(state: State, model_id: str, version: str) -> None:
    """Raise `ConflictError` if the version's folder would lie in, or hold, another's."""
    check_spelling(state, model_id, version)
    folder = fold(f"{model_id}/{version}")
    parts = folder.split("/")
    for depth in range(2, len(parts)):
        record = state.models.get("/".join(parts[: depth - 1]))
        row = record.versions.get(parts[depth - 1]) if record else None
        if record and row and _has_folder(row):
            raise _nested(model_id, version, f"{record.model_id}@{row['version']}")
    for record in state.below(folder):
        for row in record.versions.values():
            if _has_folder(row):
                raise _nested(model_id, version, f"{record.model_id}@{row['version']}")


def _has_folder(row: Row) -> bool:
    return "path" not in row


def _nested(model_id: str, version: str, other: str) -> ConflictError:
    return ConflictError(
        f"the folder of {model_id}@{version} would share files with that of {other}",
        hint="choose another model id (--as) or version (--version)",
    )


def _existing(state: State, item: Operation) -> Row:
    row = state.row(item["model_id"], item["version"])
    if row is None:
        raise NotFoundError(f"there is no {_name(item)}", hint="see `mm list --all`")
    return row


def _refuse_unless(allowed: bool, item: Operation, row: Row | None) -> None:
    if not allowed:
        status = status_of(row).value if row else "absent"
        raise ConflictError(f"{item['op']}: {_name(item)} is {status}")


def _name(item: Operation) -> str:
    return f"{item['model_id']}@{item['version']}"
