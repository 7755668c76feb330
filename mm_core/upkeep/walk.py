"""The state that a log leads to, over what is lost of it from one checkpoint to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mm_core.exceptions import TransientError
from mm_core.registry.chain import CommitRecord
from mm_core.registry.layout import log_key
from mm_core.registry.operations import replay
from mm_core.registry.state import Record, State
from mm_core.upkeep.commits import Link, link_of
from mm_core.upkeep.store import WINDOW, Store, in_windows
from mm_core.upkeep.survey import DeletedError, Survey, read_checkpoint


@dataclass(slots=True)
class Walk:
    """What following the log gave.

    `state` is what it leads to, as far as that can be known. `skipped` are the
    numbers that are lost and that no later checkpoint covers: what they did is not
    in `state`. `stuck` are the numbers where a reader stops, since no checkpoint
    leads beyond them. `wrong` are checkpoints that are not what the log says.
    """

    state: State = field(default_factory=State)
    skipped: list[int] = field(default_factory=list)
    stuck: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def walk(store: Store, found: Survey) -> Walk:
    """Follow the log of a survey to its end.

    `StorageError` for an operation that this release does not know: it must not
    judge what a newer one wrote.
    """
    return _Walker(store, found).run()


def same_state(one: State, other: State) -> bool:
    """Whether two states say the same of the same commit."""
    same_place = (one.seq, one.head) == (other.seq, other.head)
    return same_place and dict(one.models) == dict(other.models)


class _Walker:
    def __init__(self, store: Store, found: Survey) -> None:
        self._found = found
        self._records = _Records(store, found.links)
        self._way = Walk()
        self._pending: list[CommitRecord] = []
        self._seq, self._head = 0, State().head
        self._store = store
        self._kept: dict[int, list[str]] = {}
        for key, mark in found.checkpoints.items():
            self._kept.setdefault(mark.seq, []).append(key)

    def run(self) -> Walk:
        while self._seq < self._found.top:
            self._step(self._seq + 1)
            for key in self._kept.get(self._seq, ()):
                self._flush()
                with contextlib.suppress(DeletedError):  # a writer at work deleted an old one
                    if not same_state(self._way.state, read_checkpoint(self._store, key)):
                        self._way.wrong.append(key)
        self._flush()
        self._way.state = _plausible(self._way.state)
        return self._way

    def _step(self, seq: int) -> None:
        link = None if seq in self._found.bad else self._found.links.get(seq)
        replaced = link is not None and link.stands_in and not link.fence
        if link is not None and link.prev == self._head and not replaced:
            self._follow(link)
            return
        cover = self._cover(seq, link, replaced=replaced)
        if cover is not None:
            self._pending = []
            state = read_checkpoint(self._store, cover)
            self._way.state, self._seq, self._head = state, state.seq, state.head
            return
        if link is None or link.prev != self._head:
            self._way.stuck.append(seq)
        if link is None or replaced:
            self._way.skipped.append(seq)
        if link is None:
            standing = self._found.links.get(seq)
            self._leap(seq, standing.sha256 if standing else "")
        else:
            self._follow(link)

    def _cover(self, seq: int, link: Link | None, *, replaced: bool) -> str | None:
        """The first checkpoint with all that is lost here; None if there is none."""
        if link is not None and not replaced and link.prev != self._head:
            for key in self._kept.get(seq - 1, ()):
                if self._found.checkpoints[key].head == link.prev:
                    return key
        return self._found.checkpoint_at_or_after(seq)

    def _follow(self, link: Link) -> None:
        self._pending.append(self._records.get(link))
        self._seq, self._head = link.seq, link.sha256
        if len(self._pending) >= WINDOW:
            self._flush()

    def _leap(self, seq: int, head: str) -> None:
        self._flush()
        self._way.state = replace(self._way.state, seq=seq, head=head)
        self._seq, self._head = seq, head

    def _flush(self) -> None:
        if self._pending:
            self._way.state = replay(self._way.state, self._pending)
            self._pending = []


class _Records:
    """The commits themselves; those that were let go of are read again, many at once."""

    def __init__(self, store: Store, links: Mapping[int, Link]) -> None:
        self._store = store
        self._links = links
        self._read: dict[int, Link] = {}

    def get(self, link: Link) -> CommitRecord:
        if link.record is not None:
            return link.record
        if link.seq not in self._read:
            numbers = [n for n in range(link.seq, link.seq + WINDOW) if n in self._links]
            found = in_windows(lambda n: self._store.read(log_key(n)), numbers)
            self._read = {n: link_of(n, data) for n, data in found if data is not None}
        again = self._read.get(link.seq)
        if again is None or again.record is None or again.sha256 != link.sha256:
            raise TransientError(
                f"{log_key(link.seq)} changes while it is read",
                hint="try again when nobody else repairs this registry",
            )
        return again.record


def _plausible(state: State) -> State:
    """`state` without the rows that operations on a lost row left, which say nothing."""
    broken = {
        key: record
        for key, record in state.models.items()
        if any("added" not in row or "status" not in row for row in record.versions.values())
    }
    if not broken:
        return state
    mended = {key: _without_torsos(record) for key, record in broken.items()}
    return replace(state, models={**state.models, **mended})


def _without_torsos(record: Record) -> Record:
    rows = {key: row for key, row in record.versions.items() if "added" in row and "status" in row}
    return replace(record, versions=rows)
