"""Looking back through the log: its newest commits, and what an alias named before.

Read from the newest commit backwards: each names the hash of the one before, so
that what is read hangs on the head that is known, and a long log is read only
as far as it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from mm_core.exceptions import NotFoundError
from mm_core.names import fold
from mm_core.parallel import at_once
from mm_core.registry.chain import (
    CommitRecord,
    Patience,
    changed,
    lost,
    missing,
    parse_commits,
    read_commit,
    stands_in,
)
from mm_core.registry.operations import operation
from mm_core.registry.signing import Trust
from mm_core.registry.state import Operation, Row, State, is_available
from mm_core.schemas import parse_rfc3339, sha256_hex
from mm_core.sink import Sink

_FIRST_WINDOW = 8
_WINDOW = 64
_MOST = 1 << 20


def newest_first(sink: Sink, state: State, patience: Patience) -> Iterator[CommitRecord]:
    """The commits up to that of `state`, the newest first.

    `IntegrityError` for one that is absent, or is not the one that its follower names,
    such as one that stands in for a lost one.
    """
    for record, follows in _back_over_gaps(sink, state, patience, None):
        if not follows:
            raise lost(sink, record.seq)
        yield record


def newest_first_over_gaps(
    sink: Sink, state: State, patience: Patience, trust: Trust
) -> Iterator[CommitRecord]:
    """As `newest_first`, for people: also over what stands in for lost commits.

    Where `trust` believes only some keys, one of them must have signed that.
    """
    return (record for record, _ in _back_over_gaps(sink, state, patience, trust))


def _back_over_gaps(
    sink: Sink, state: State, patience: Patience, trust: Trust | None
) -> Iterator[tuple[CommitRecord, bool]]:
    """The commits, the newest first, and whether each is the one that its follower names."""
    head: str | None = state.head
    for seq, data in _read_back(sink, state.seq, patience):
        if data is None:
            raise missing(sink, seq, "a later commit is there")
        gap = stands_in(data)
        follows = head is None or sha256_hex(data) == head
        if not (follows or gap):
            raise changed(sink, seq, "it is not the one that the next commit names")
        prev = _prev(sink, seq, data)
        ((record, _),) = parse_commits(sink, (data,), seq - 1, prev, trust if gap else None)
        head = None if gap else prev  # what it stands in for knew the one before, not it
        yield record, follows


def touching(records: Iterable[CommitRecord], model_id: str | None) -> Iterator[CommitRecord]:
    """Those of `records` with an operation on `model_id`; all of them where it is None."""
    for record in records:
        if model_id is None or any(o.get("model_id") == model_id for o in record.operations):
            yield record


def since(records: Iterable[CommitRecord], moment: datetime | None) -> Iterator[CommitRecord]:
    """Those of `records` that their writers noted as not older than `moment`.

    Writers' clocks differ, so each commit is looked at by itself. One whose time
    cannot be read is kept.
    """
    for record in records:
        if moment is None or (_moment(record) or moment) >= moment:
            yield record


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """An alias about to go back: the version it names now (None: none) and the one to name.

    `back` counts the versions that it leaves behind.
    """

    model_id: str
    alias: str
    former: str | None
    version: str
    back: int

    def to_json(self) -> dict[str, Any]:
        """The move as JSON data."""
        names = {"model_id": self.model_id, "alias": self.alias}
        return {**names, "version": self.version, "former": self.former}

    def operation(self) -> Operation:
        """The operation of the log: refused unless the alias still names `former`."""
        return operation(
            "alias",
            self.model_id,
            version=self.version,
            alias=self.alias,
            expect=self.former or "",
            back=self.back,
        )


def plan_rollback(
    state: State, records: Iterable[CommitRecord], model_id: str, alias: str, *, steps: int
) -> Rollback:
    """Where `alias` goes by `steps` back. `records` are those up to `state`, the newest first.

    What a rollback left behind does not count: two of one step are one of two
    steps. An alias that was taken away, alone or with its version, comes back by
    the first step.

    `NotFoundError` if it never named so many versions, or if the one that it
    would go to is not AVAILABLE; the hint names the nearest that is.
    """
    record = state.record(model_id)
    held = record.aliases.get(fold(alias)) if record else None
    now = held[1] if held else None
    moves = _moves(records, model_id, alias)
    trail, current = _Trail(moves), int(now is not None)
    versions = trail.newest(steps + current)
    if len(versions) < steps + current:
        raise _never(model_id, alias, now, versions[current:])
    target = versions[-1]
    if not _is_there(state, model_id, target):
        hint = _nearest(state, model_id, trail, at=len(versions) + 1, current=current)
        raise _gone(state.row(model_id, target), (model_id, target, alias), hint)
    spelt = held[0] if held else alias
    return Rollback(
        model_id=model_id, alias=spelt, former=now, version=target, back=len(versions) - 1
    )


class _Trail:
    """What one alias named, as far back as somebody asked.

    Moves are read from the newest back and then done in order: each puts a
    version on a pile, and a rollback takes some off. A part of the log tells
    the top of the pile rightly as soon as nothing is taken off that the part
    did not put on.
    """

    def __init__(self, moves: Iterator[Operation]) -> None:
        self._moves = moves
        self._seen: list[Operation] = []

    def newest(self, count: int) -> list[str]:
        """The `count` versions on top of the pile, the newest first; fewer if there are no more."""
        while True:
            pile, sound = self._pile()
            if sound and len(pile) >= count:
                break
            more = max(count - len(pile), len(self._seen) // 4, 1)
            moves = list(islice(self._moves, min(more, _MOST)))
            if not moves:
                break
            self._seen += moves
        return pile[::-1][:count]

    def _pile(self) -> tuple[list[str], bool]:
        pile: list[str] = []
        sound = True
        for move in reversed(self._seen):
            back = _back(move)
            sound = sound and (back == 0 or len(pile) > back)
            del pile[max(len(pile) - back, 0) :]
            if not pile or pile[-1] != move["version"]:
                pile.append(str(move["version"]))
        return pile, sound


def _back(move: Operation) -> int:
    back = move.get("back", 0)
    return back if isinstance(back, int) and back > 0 else 0


def _moves(records: Iterable[CommitRecord], model_id: str, alias: str) -> Iterator[Operation]:
    """The operations that let `alias` name something, the newest first."""
    folded = fold(alias)
    for record in records:
        for item in reversed(record.operations):
            names = item.get("op"), item.get("model_id"), fold(str(item.get("alias")))
            if names == ("alias", model_id, folded):
                yield item


def _is_there(state: State, model_id: str, version: str) -> bool:
    row = state.row(model_id, version)
    return row is not None and is_available(row)


def _never(model_id: str, alias: str, now: str | None, before: list[str]) -> NotFoundError:
    name = f"{model_id}:{alias}"
    if not before:
        what = f"names {now}, the first that it ever named" if now else "never named a version"
        return NotFoundError(f"{name} {what}", hint=f"see `mm history {model_id}`")
    count = len(before)
    return NotFoundError(
        f"{name} named no more than {count} version{'s' * (count > 1)} before",
        hint=f"the earliest is {before[-1]}: --steps {count}",
    )


def _gone(row: Row | None, names: tuple[str, str, str], hint: str | None) -> NotFoundError:
    model_id, version, alias = names
    status = f"is {row['status']}" if row else "is there no more"
    return NotFoundError(
        f"{model_id}@{version}, which {alias!r} named before, {status}",
        hint=hint or "nothing that it named before is available: point it with `mm alias set`",
    )


def _nearest(state: State, model_id: str, trail: _Trail, *, at: int, current: int) -> str | None:
    """Where the pile holds an AVAILABLE version at place `at` or below, in words."""
    while len(versions := trail.newest(at)) == at:
        if _is_there(state, model_id, versions[-1]):
            return f"the nearest that is available is {versions[-1]}: --steps {at - current}"
        at += 1
    return None


def _read_back(sink: Sink, seq: int, patience: Patience) -> Iterator[tuple[int, bytes | None]]:
    window = _FIRST_WINDOW
    while seq > 0:
        numbers = range(seq, max(seq - window, 0), -1)
        found = at_once(lambda number: read_commit(sink, number, patience), numbers)
        yield from zip(numbers, found, strict=True)
        seq -= window
        window = min(window * 2, _WINDOW)


def _prev(sink: Sink, seq: int, data: bytes) -> str:
    """The hash of the commit before the one in `data`, whose own hash is right."""
    try:
        return str(json.loads(data)["prev"])
    except (ValueError, KeyError, TypeError) as error:
        raise changed(sink, seq, "it cannot be read") from error


def _moment(record: CommitRecord) -> datetime | None:
    try:
        return parse_rfc3339(record.time).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
