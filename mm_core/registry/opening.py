"""Open a registry that this process knows nothing of, in three round trips.

First what the store is and what the hint says; then the checkpoint and the pack
that the hint names; then the commits after them, many numbers at once. Whatever
of the first two is lost or damaged, the log alone leads to the same state.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.parallel import at_once
from mm_core.registry.chain import (
    CommitRecord,
    Patience,
    changed,
    missing,
    parse_commits,
    read_commit,
)
from mm_core.registry.checkpoint import decode
from mm_core.registry.hint import CHECKPOINT, PACK, Hint, Part, parse_hint
from mm_core.registry.layout import (
    CHECKPOINT_PREFIX,
    FORMAT_KEY,
    HINT_KEY,
    PACK_PREFIX,
    parse_format,
)
from mm_core.registry.memory import Seen, rewritten, went_back
from mm_core.registry.operations import replay
from mm_core.registry.pack import Recent, unpack
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import sha256_hex
from mm_core.sink import Sink, read_if_exists

logger = logging.getLogger(__name__)

_BEYOND = 8
"""So many numbers after an absent one are looked at, to see whether it was lost."""

_WINDOW = 32 + 1 + _BEYOND
"""Numbers read at once after the pack: up to 32 commits, an absent one, and those beyond."""

_WIDEST = 256
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A store's ``format.json`` (None: nobody has written yet), and its state.

    `sound` is whether the hint led there.
    """

    format: dict[str, Any] | None
    state: State
    sound: bool


def open_registry(
    sink: Sink,
    recent: Recent,
    patience: Patience,
    *,
    recall: Callable[[str], Seen | None],
    trust: Trust | None = None,
) -> Opened:
    """The newest state. The commits that no pack holds are noted in `recent`.

    `recall` tells which commit of the registry with some id was seen before.
    `IntegrityError` where that one is not there, or where a commit is missing,
    changed, not believed by `trust`, or not the one that the checkpoint and the
    pack lead to.
    """

    def read(key: str) -> bytes | None:
        return patience().persist(lambda: read_if_exists(sink, key))

    format_, data = at_once(read, [FORMAT_KEY, HINT_KEY])
    found = parse_format(sink, format_, lambda: read(FORMAT_KEY))
    seen = recall(str(found["id"])) if found else None
    opening = _Opening(sink, recent, patience, seen, trust)
    state, sound = opening.newest(data, lambda: read(HINT_KEY))
    opening.check_seen(state)
    return Opened(format=found, state=state, sound=sound)


class _Opening:
    def __init__(
        self,
        sink: Sink,
        recent: Recent,
        patience: Patience,
        seen: Seen | None,
        trust: Trust | None,
    ) -> None:
        self._sink = sink
        self._recent = recent
        self._patience = patience
        self._seen = seen
        self._witness: list[bytes | None] = []
        self._trust = trust

    def newest(self, data: bytes | None, again: Callable[[], bytes | None]) -> tuple[State, bool]:
        """The newest state, and whether the hint in `data` led there; `again` reads it again."""
        hint = parse_hint(data)
        for _ in range(_TRIES):
            if hint is None:
                break
            state = self._by_hint(hint)
            if state is not None:
                return self._follow(state), True
            before, hint = hint, parse_hint(again())
            if hint == before:  # or else a writer has replaced what it named
                break
        if data is None:
            state = self._follow(State(), most=_WINDOW)
            if state.seq < _WINDOW:
                return state, True
        return self._follow(self._by_listing()), False

    def check_seen(self, state: State) -> None:
        """Raise `IntegrityError` if the commit that was seen before is not in the log."""
        seen = self._seen
        if seen is None:
            return
        data = self._witness[0] if self._witness else self._read_commit(seen.seq)
        if data is None:
            if state.seq < seen.seq:
                raise went_back(self._sink.root, seen, state.seq)
            raise missing(self._sink, seen.seq, "it was seen there before")
        if sha256_hex(data) != seen.sha256:
            raise rewritten(self._sink.root, seen)
        if state.seq < seen.seq:
            raise missing(self._sink, state.seq + 1, f"commit {seen.seq} is there")

    def _by_hint(self, hint: Hint) -> State | None:
        """The state after what the hint names; None where one of its parts is lost or damaged."""
        wanted = [partial(self._read_part, part) for part in hint.parts]
        if self._seen is not None:
            wanted.append(partial(self._read_commit, self._seen.seq))
        found = at_once(lambda read: read(), wanted)
        if self._seen is not None:
            self._witness = [found.pop()]
        state = self._checkpoint(hint.checkpoint.key, found[0])
        for pack, data in zip(hint.parts[1:], found[1:], strict=True):
            state = None if state is None else self._after_pack(pack.key, data, state)
        return state

    def _by_listing(self) -> State:
        """The state after the newest valid checkpoint and pack that are found by listing."""
        for key in reversed(self._listed(CHECKPOINT_PREFIX)):
            name = CHECKPOINT.fullmatch(key)
            state = self._checkpoint(key, self._read(key, name[2])) if name else None
            if state is not None:
                return self._after_packs(state)
        return State()

    def _follow(self, state: State, *, most: int | None = None) -> State:
        """The state after all commits of the log, or at least `most` after `state`."""
        window, start, checked = _WINDOW, state.seq, state.seq == 0
        while True:
            first = state.seq if not checked else state.seq + 1
            found = at_once(self._read_commit, range(first, state.seq + 1 + window))
            if not checked:
                self._check_head(state, found.pop(0))
                checked = True
            fresh = _up_to_absent(found)
            beyond = found[len(fresh) + 1 :]
            state = self._after(state, fresh)
            if len(fresh) == len(found):
                if most is not None and state.seq >= start + most:
                    return state
                window = min(window * 2, _WIDEST)
            elif any(data is not None for data in beyond):
                self._refuse_gap(state.seq + 1)
            elif len(beyond) < _BEYOND:
                window = _WINDOW  # too few to see a gap by
            else:
                return state

    def _after(self, state: State, commits: Sequence[bytes]) -> State:
        records: list[CommitRecord] = []
        for record, data in parse_commits(self._sink, commits, state.seq, state.head, self._trust):
            self._recent.note(record.seq, data)
            records.append(record)
        return replay(state, records) if records else state

    def _check_head(self, state: State, data: bytes | None) -> None:
        if data is None:
            raise missing(self._sink, state.seq, "a checkpoint or a pack holds it")
        if sha256_hex(data) != state.head:
            raise changed(self._sink, state.seq, "it is not the one that others followed")

    def _refuse_gap(self, seq: int) -> None:
        """Raise unless commit `seq`, before which a later one was seen, is there after all."""
        if self._read_commit(seq) is None:
            raise missing(self._sink, seq, "later ones are there")

    def _checkpoint(self, key: str, data: bytes | None) -> State | None:
        if data is None:
            return None
        try:
            state = decode(data, self._trust)
        except IntegrityError as error:
            facts = {"key": key, "error": str(error)}
            logger.warning("a checkpoint of the registry cannot be used", extra=facts)
            return None
        return state

    def _after_pack(self, key: str, data: bytes | None, state: State) -> State | None:
        try:
            lines = None if data is None else unpack(data)
        except (ValueError, OSError, EOFError, zlib.error) as error:
            logger.warning("a pack is damaged", extra={"key": key, "error": str(error)})
            return None
        if lines is None:
            return None
        try:
            commits = parse_commits(self._sink, lines, state.seq, state.head, self._trust)
            return replay(state, (record for record, _ in commits))
        except IntegrityError as error:
            facts = {"key": key, "error": str(error)}
            logger.warning("a pack of the registry cannot be used", extra=facts)
            return None

    def _after_packs(self, state: State) -> State:
        """The state after the longest packs in a row that follow `state`."""
        names = [name for key in self._listed(PACK_PREFIX) if (name := PACK.fullmatch(key))]
        names.sort(key=lambda name: -int(name[2]))
        while True:
            following = (name for name in names if int(name[1]) == state.seq + 1)
            tried = (self._after_pack(n[0], self._read(n[0], n[3]), state) for n in following)
            after = next((found for found in tried if found is not None), None)
            if after is None or after.seq <= state.seq:
                return state
            state = after

    def _read_part(self, part: Part) -> bytes | None:
        return self._read(part.key, part.sha256)

    def _read(self, key: str, digest: str) -> bytes | None:
        """The bytes under `key`, if their sha256 starts with `digest`."""
        data = self._patience().persist(lambda: read_if_exists(self._sink, key))
        if data is not None and not sha256_hex(data).startswith(digest):
            logger.warning("an object of the registry is damaged", extra={"key": key})
            return None
        return data

    def _read_commit(self, seq: int) -> bytes | None:
        return read_commit(self._sink, seq, self._patience)

    def _listed(self, prefix: str) -> list[str]:
        return self._patience().persist(lambda: [found.key for found in self._sink.list(prefix)])


def _up_to_absent(found: Sequence[bytes | None]) -> list[bytes]:
    present = []
    for data in found:
        if data is None:
            break
        present.append(data)
    return present
