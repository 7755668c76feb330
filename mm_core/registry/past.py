"""What a registry held once: the state after a former commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from typing import TypeVar

from mm_core.exceptions import IntegrityError, NotFoundError, UsageError
from mm_core.registry.chain import (
    STANDS_IN,
    Patience,
    lost,
    read_commit,
    read_commits,
    read_over_gaps,
)
from mm_core.registry.checkpoint import decode
from mm_core.registry.hint import CHECKPOINT
from mm_core.registry.layout import CHECKPOINT_PREFIX
from mm_core.registry.operations import replay
from mm_core.registry.rows import Position, Rows
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import parse_rfc3339, rfc3339, sha256_hex
from mm_core.sink import Sink, read_if_exists
from mm_core.units import parse_moment

logger = logging.getLogger(__name__)

T = TypeVar("T")

_EARLIEST = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOf:
    """The commit that an answer is as of. `time` is what its writer noted, by its own clock."""

    commit: int
    time: str | None = None

    def to_json(self) -> dict[str, object]:
        """The commit as JSON data."""
        return {"commit": self.commit, "time": self.time}


class Past:
    """Answers of the state after one commit."""

    def __init__(self, state: State, as_of: AsOf) -> None:
        self.as_of = as_of
        self._state = state

    def answer(self, ask: Callable[[Rows], T]) -> T:
        """What `ask` finds."""
        rows = Rows.in_memory(self._state)
        try:
            return ask(rows)
        finally:
            rows.close()

    def state_with(self, key: str) -> State:
        """The state."""
        return self._state


def look_back(
    sink: Sink,
    point: int | str | datetime,
    newest: Position,
    patience: Patience,
    trust: Trust | None = None,
) -> Past:
    """The registry after the commit that `point` names: a number, a time, or text for either.

    A time means a commit noted at or before it, whose successor was noted later.
    The times are those of the writers' clocks: where one was wrong, there may be
    several such commits, and one of them is taken.

    `UsageError` for a point that means nothing; `NotFoundError` for a number that
    is not there yet, and for a time before the first commit.
    """
    wanted = _parse(point) if isinstance(point, str) else point
    if isinstance(wanted, datetime):
        seq = _last_noted(sink, wanted, newest.seq, patience)
        if seq == 0:
            raise NotFoundError(
                f"the registry at {sink.root} has no commit that was noted at or before "
                f"{rfc3339(wanted)}",
                hint="`mm history` shows the commits with their times",
            )
    else:
        seq = wanted
    if not 0 <= seq <= newest.seq:
        raise NotFoundError(
            f"the registry at {sink.root} has no commit {seq}: the newest is {newest.seq}",
            hint="`mm history` shows the commits with their numbers and times",
        )
    state = state_after(sink, seq, newest, patience, trust)
    return Past(state, AsOf(commit=seq, time=_noted(sink, seq, patience) if seq else None))


def state_after(
    sink: Sink, seq: int, newest: Position, patience: Patience, trust: Trust | None = None
) -> State:
    """The state after commit `seq`: that of the nearest checkpoint before it, brought forward.

    The chain is checked from there. `IntegrityError` where the log is damaged, or
    where `trust` does not believe it.
    """
    state = _checkpoint_up_to(sink, seq, patience, trust)
    commits = read_commits(sink, state.seq, state.head, patience, trust)
    try:
        state = replay(state, islice(commits, seq - state.seq))
    except IntegrityError:
        _refuse_gap(sink, state, seq, patience, trust)
        raise
    if state.seq != seq or (seq == newest.seq and state.head != newest.head):
        raise IntegrityError(
            f"commit {state.seq + 1} of the registry's log at {sink.root} is lost or was changed",
            hint="see `mm history`; restore it from a backup",
        )
    return state


def _checkpoint_up_to(sink: Sink, seq: int, patience: Patience, trust: Trust | None) -> State:
    keys = patience().persist(lambda: [found.key for found in sink.list(CHECKPOINT_PREFIX)])
    for name in filter(None, map(CHECKPOINT.fullmatch, reversed(keys))):
        key, number, digest = name[0], int(name[1]), name[2]
        if number > seq:
            continue
        try:
            data = patience().persist(partial(read_if_exists, sink, key))
            if data is not None and sha256_hex(data).startswith(digest):
                return decode(data, trust)
        except IntegrityError as error:
            logger.warning("a checkpoint is damaged", extra={"key": key, "error": str(error)})
    return State()


def _refuse_gap(
    sink: Sink, state: State, seq: int, patience: Patience, trust: Trust | None
) -> None:
    """`IntegrityError` if only a lost commit keeps `state` from being brought to `seq`."""
    records = read_over_gaps(sink, state.seq, state.head, patience, trust)
    for record in islice(records, seq - state.seq):
        if STANDS_IN in record.extra:
            raise lost(sink, record.seq)


def _parse(point: str) -> int | datetime:
    text = point.strip()
    if text.isdecimal():
        return int(text)
    try:
        return parse_moment(text)
    except ValueError as error:
        raise UsageError(
            f"{point!r} is neither the number of a commit nor a time: {error}",
            hint="write such as 42, 2026-01-31, 2026-01-31T12:00:00Z or 7d",
        ) from None


def _last_noted(sink: Sink, moment: datetime, newest: int, patience: Patience) -> int:
    """A commit noted at or before `moment`, whose successor was noted later; 0 for none."""
    low, high = 0, newest + 1
    while high - low > 1:
        middle = (low + high) // 2
        noted = _moment(_noted(sink, middle, patience))
        low, high = (middle, high) if noted <= moment else (low, middle)
    return low


def _noted(sink: Sink, seq: int, patience: Patience) -> str | None:
    data = read_commit(sink, seq, patience)
    if data is None:
        raise IntegrityError(
            f"commit {seq} is missing from the registry's log at {sink.root}",
            hint="restore it from a backup",
        )
    try:
        return str(json.loads(data)["time"])
    except (ValueError, KeyError, TypeError):
        return None


def _moment(noted: str | None) -> datetime:
    """The time in a commit; a commit without one counts as early."""
    try:
        moment = _EARLIEST if noted is None else parse_rfc3339(noted)
    except ValueError:
        return _EARLIEST
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
