"""A survey of the registry's own objects: what stands, and the state that it leads to.

It reads everything once, writes nothing, and raises for no damage, only for a
store that does not answer and for a registry of a newer format.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mm_core.exceptions import IntegrityError, TransientError
from mm_core.registry.checkpoint import decode
from mm_core.registry.hint import CHECKPOINT, PACK, Hint, parse_hint
from mm_core.registry.layout import (
    CHECKPOINT_PREFIX,
    FORMAT_KEY,
    HINT_KEY,
    LOG_PREFIX,
    PACK_PREFIX,
    log_key,
    read_format,
)
from mm_core.registry.pack import unpack
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import sha256_hex
from mm_core.upkeep.commits import Link, applies, judge, link_of
from mm_core.upkeep.store import (
    MANIFEST_PREFIX,
    QUARANTINE_PREFIX,
    Store,
    in_windows,
    original_key,
)

_LOG = re.compile(re.escape(LOG_PREFIX) + r"(\d{12})\.json")
_HELD_BYTES = 8 << 20
_LEAP = 1_000_000

NO_FORMAT = f"there is no {FORMAT_KEY}"
NO_HINT = "there is none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where a checkpoint stands: after commit `seq`, whose bytes have the sha256 `head`."""

    seq: int
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What stands in a store, and what of it is right.

    `links` are the commits by number; `top` is the highest number ever seen in any
    name; `bad` are the numbers up to it whose commit is lost or damaged, with the
    hashes that are named for it. `checkpoints` are those whose hash is right, and
    `packed` the hashes of the commits in packs that are right.
    """

    format: Mapping[str, Any] | None
    format_problem: str | None
    hint: Hint | None
    hint_problem: str | None
    links: Mapping[int, Link]
    top: int
    bad: Mapping[int, set[str]]
    vouched: Mapping[int, set[str]]
    checkpoints: Mapping[str, Mark]
    damaged_checkpoints: tuple[str, ...]
    packs: tuple[str, ...]
    damaged_packs: tuple[str, ...]
    packed: Mapping[int, str]
    foreign: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nobody has ever written a commit here, as far as anything tells."""
        return self.top == 0

    @property
    def needs_hint(self) -> bool:
        """Whether the hint is damaged, or lost where there is something to hint at."""
        lost = self.hint_problem == NO_HINT
        anything = bool(self.checkpoints or self.damaged_checkpoints)
        return self.hint_problem is not None and (anything or not lost)

    @property
    def needs_fence(self) -> bool:
        """Whether the last commit stands in for one that is lost.

        Who read that one would go on from it; a number that is taken stops them.
        """
        last = self.links.get(self.top)
        return last is not None and last.stands_in and not last.fence

    def mended(self, links: Mapping[int, Link], top: int) -> Survey:
        """The survey as it would be with other commits."""
        links, bad = _judged(dict(links), top, self.vouched)
        return replace(self, links=links, top=top, bad=bad)

    def checkpoint_at_or_after(self, seq: int) -> str | None:
        """The key of the first checkpoint at `seq` or later."""
        later = [(mark.seq, key) for key, mark in self.checkpoints.items() if mark.seq >= seq]
        return min(later)[1] if later else None


def survey(store: Store, trust: Trust | None = None) -> Survey:
    """Look at everything. Raises `StorageError` for a newer format, and errors of the store.

    With a `trust`, a checkpoint that nobody has signed who is trusted tells nothing.
    """
    format_, format_problem = _read_format(store)
    hint, hint_problem = _read_hint(store)
    checkpoints, damaged_checkpoints = _read_checkpoints(store, trust)
    packs, damaged_packs, packed = _read_packs(store)
    numbers, foreign = _numbers(store)
    top = _highest(
        [
            *numbers,
            *(mark.seq for mark in checkpoints.values()),
            *(int(CHECKPOINT.sub(r"\1", key)) for key in damaged_checkpoints),
            *(int(PACK.sub(r"\2", key)) for key in (*packs, *damaged_packs)),
            *_numbers_in_quarantine(store),
            hint.seq if hint else 0,
        ]
    )
    if not top and any(True for _ in store.list(MANIFEST_PREFIX)):
        top = 1  # versions were added here: the log is lost, and so is how long it was
    foreign += [log_key(seq) for seq in numbers if seq > top]
    links = _read_links(store, [seq for seq in numbers if seq <= top])
    vouched: dict[int, set[str]] = {}
    for mark in checkpoints.values():
        vouched.setdefault(mark.seq, set()).add(mark.head)
    for seq, sha256 in packed.items():
        vouched.setdefault(seq, set()).add(sha256)
    links, bad = _judged(links, top, vouched)
    hint_problem = hint_problem or _misled(hint, vouched)
    return Survey(
        format=format_,
        format_problem=format_problem,
        hint=hint,
        hint_problem=hint_problem,
        links=links,
        top=top,
        bad=bad,
        vouched=vouched,
        checkpoints=checkpoints,
        damaged_checkpoints=tuple(damaged_checkpoints),
        packs=tuple(packs),
        damaged_packs=tuple(damaged_packs),
        packed=packed,
        foreign=tuple(foreign),
    )


class DeletedError(TransientError):
    """A writer at work has deleted what was just found: look again."""


def read_checkpoint(store: Store, key: str) -> State:
    """The state in a checkpoint that was right. `DeletedError` where it has gone since."""
    data = store.read(key)
    state = _checkpoint(key, data) if data is not None else None
    if state is None:
        raise DeletedError(
            f"the checkpoint {key} at {store.sink.root} was deleted meanwhile", hint="try again"
        )
    return state


def _read_format(store: Store) -> tuple[Mapping[str, Any] | None, str | None]:
    try:
        found = read_format(store.sink, store.deadline())
    except IntegrityError as error:
        return None, str(error)
    return found, NO_FORMAT if found is None else None


def _read_hint(store: Store) -> tuple[Hint | None, str | None]:
    data = store.read(HINT_KEY)
    if data is None:
        return None, NO_HINT
    hint = parse_hint(data)
    if hint is None:
        return None, "it cannot be read"
    for part in hint.parts:
        named = store.read(part.key)
        if named is not None and sha256_hex(named) == part.sha256:
            continue
        if store.read(HINT_KEY) != data:  # a writer at work replaced it and what it named
            return _read_hint(store)
        return hint, f"{part.key}, which it names, is lost or damaged"
    return hint, None


def _misled(hint: Hint | None, vouched: Mapping[int, set[str]]) -> str | None:
    """What is wrong with the last commit that a hint names; None if nothing is."""
    if hint is None or not hint.head or hint.head in vouched.get(hint.seq, {hint.head}):
        return None
    return f"it names another commit {hint.seq} than what it leads to"


def _read_checkpoints(store: Store, trust: Trust | None) -> tuple[dict[str, Mark], list[str]]:
    right: dict[str, Mark] = {}
    damaged: list[str] = []
    for found in store.list(CHECKPOINT_PREFIX):
        if not CHECKPOINT.fullmatch(found.key):
            continue
        data = store.read(found.key)
        if data is None:  # deleted by a writer meanwhile
            continue
        state = _checkpoint(found.key, data)
        if state is None:
            damaged.append(found.key)
        elif trust is None or not trust.checks or _is_believed(data, trust):
            right[found.key] = Mark(seq=state.seq, head=state.head)
    return right, damaged


def _is_believed(data: bytes, trust: Trust) -> bool:
    try:
        decode(data, trust)
    except IntegrityError:
        return False
    return True


def _checkpoint(key: str, data: bytes) -> State | None:
    name = CHECKPOINT.fullmatch(key)
    if name is None or not sha256_hex(data).startswith(name[2]):
        return None
    try:
        state = decode(data)
    except IntegrityError:
        return None
    return state if state.seq == int(name[1]) else None


def _read_packs(store: Store) -> tuple[list[str], list[str], dict[int, str]]:
    right: list[str] = []
    damaged: list[str] = []
    packed: dict[int, str] = {}
    for found in store.list(PACK_PREFIX):
        data = store.read(found.key) if PACK.fullmatch(found.key) else None
        if data is None:
            continue
        commits = commits_in_pack(found.key, data)
        if commits is None:
            damaged.append(found.key)
        else:
            right.append(found.key)
            packed.update((seq, sha256_hex(commit)) for seq, commit in commits.items())
    return right, damaged, packed


def commits_in_pack(key: str, data: bytes) -> dict[int, bytes] | None:
    """The raw commits in the pack under `key`, by number; None if it is damaged."""
    name = PACK.fullmatch(key)
    if name is None or not sha256_hex(data).startswith(name[3]):
        return None
    try:
        commits = unpack(data)
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    first, last = int(name[1]), int(name[2])
    return dict(enumerate(commits, first)) if len(commits) == last - first + 1 else None


def _highest(seen: list[int]) -> int:
    """The highest number, but for those that no log leads up to: no registry is that far ahead."""
    top = 0
    for seq in sorted(seen):
        if seq - top > _LEAP:
            break
        top = seq
    return top


def _numbers(store: Store) -> tuple[list[int], list[str]]:
    numbers: list[int] = []
    foreign: list[str] = []
    for found in store.list(LOG_PREFIX):
        name = _LOG.fullmatch(found.key)
        if name is None:
            foreign.append(found.key)
        else:
            numbers.append(int(name[1]))
    return [n for n in numbers if n > 0], foreign


def _numbers_in_quarantine(store: Store) -> Iterator[int]:
    for found in store.list(f"{QUARANTINE_PREFIX}{LOG_PREFIX}"):
        key = original_key(found.key)
        name = _LOG.fullmatch(key) if key else None
        if name is not None:
            yield int(name[1])


def _read_links(store: Store, numbers: list[int]) -> dict[int, Link]:
    links: dict[int, Link] = {}
    held = 0
    for seq, data in in_windows(lambda n: store.read(log_key(n)), numbers):
        if data is None:
            continue
        link = link_of(seq, data)
        if link.prev is None:  # damaged in the store, or only on its way
            link = link_of(seq, store.read(log_key(seq)) or data)
        held += len(data)
        links[seq] = link if held <= _HELD_BYTES else replace(link, record=None)
    return links


def _judged(
    links: dict[int, Link], top: int, vouched: Mapping[int, set[str]]
) -> tuple[dict[int, Link], dict[int, set[str]]]:
    """The links, those without proof whose operations make no sense as unreadable; and the bad."""
    while True:
        bad = judge(links, top, vouched)
        absurd = [
            link
            for seq, link in links.items()
            if (seq == top or seq + 1 in bad)
            and seq not in bad
            and link.record is not None
            and not applies(link.record)
        ]
        if not absurd:
            return links, bad
        links = {**links, **{a.seq: replace(a, prev=None, record=None) for a in absurd}}
