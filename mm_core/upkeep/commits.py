"""Commits as they stand in the store, and what vouches for them.

A commit's bytes are proven by the commit after it, which names their sha256, or
by a checkpoint or a pack that does. The last one has its own checksum only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mm_core.exceptions import IntegrityError
from mm_core.registry.chain import STANDS_IN, CommitRecord
from mm_core.registry.operations import replay
from mm_core.registry.seal import is_broken, seal
from mm_core.registry.signing import Trust
from mm_core.registry.state import GENESIS, State
from mm_core.schemas import sha256_hex

WRITER = "mm registry repair"
"""The `writer` of a stand-in."""

BROKEN = "f" * 64
"""What a stand-in names as its predecessor where the log cannot be read from its start any more."""

_START = "1970-01-01T00:00:00Z"
_ALIKE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One commit as it stands: enough to judge it.

    `prev` is None where it cannot be read. With `stands_in` a repair wrote it in the
    place of one that is lost, with `fence` behind the last one. `record` may be let
    go of where there are many.
    """

    seq: int
    sha256: str
    prev: str | None
    time: str = _START
    stands_in: bool = False
    fence: bool = False
    record: CommitRecord | None = None


def link_of(seq: int, data: bytes) -> Link:
    """What `data`, standing under number `seq`, is."""
    sha256 = sha256_hex(data)
    if is_broken(data):
        return Link(seq=seq, sha256=sha256, prev=None)
    try:
        raw = json.loads(data)
        number, prev = raw.pop("seq"), raw.pop("prev")
        record = CommitRecord(
            seq=seq,
            id=str(raw.pop("id")),
            writer=str(raw.pop("writer")),
            time=str(raw.pop("time")),
            operations=tuple(raw.pop("operations")),
            sha256=sha256,
            extra=raw,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Link(seq=seq, sha256=sha256, prev=None)
    if number != seq or not isinstance(prev, str) or not _are_operations(record):
        return Link(seq=seq, sha256=sha256, prev=None)
    mark = raw.get(STANDS_IN) if not record.operations else None
    return Link(
        seq=seq,
        sha256=sha256,
        prev=prev,
        time=record.time,
        stands_in=isinstance(mark, dict),
        fence=isinstance(mark, dict) and bool(mark.get("fence")),
        record=record,
    )


def number_of(key: str) -> int:
    """The number in the key of a commit."""
    return int(key[-len("000000000000.json") : -len(".json")])


def _are_operations(record: CommitRecord) -> bool:
    return all(
        isinstance(item, dict) and all(isinstance(item.get(k), str) for k in ("op", "id"))
        for item in record.operations
    )


def applies(record: CommitRecord) -> bool:
    """Whether the operations of a commit have what they need. Raises for one that is not known."""
    try:
        replay(State(), [record])
    except IntegrityError:
        return False
    return True


def stand_in(
    seq: int,
    prev: str,
    *,
    time: str,
    aside: str | None,
    fence: bool = False,
    trust: Trust | None = None,
) -> bytes:
    """A commit without operations, for a number whose own commit is lost.

    Equal facts make equal bytes, so that two repairs, or one that is done again,
    write the same. `aside` is where the damaged bytes are; with `fence` nothing is
    lost here, and the number is taken so that nobody goes on from what is.
    """
    commit = {
        "seq": seq,
        "prev": prev,
        "id": f"stand-in-{seq}",
        "writer": WRITER,
        "time": time,
        "operations": [],
        STANDS_IN: {"quarantine": aside, "fence": fence},
    }
    return seal(trust.signed(commit) if trust else commit)


def names_of_predecessors(links: Mapping[int, Link], seq: int) -> set[str]:
    """The sha256 that the commit after `seq` names as that of number `seq`.

    A stand-in names what its repair saw, and condemns nothing that came since.
    """
    after = links.get(seq + 1)
    if after is None or after.prev is None or after.stands_in:
        return set()
    return {after.prev}


def judge(
    links: Mapping[int, Link], top: int, vouched: Mapping[int, set[str]]
) -> dict[int, set[str]]:
    """The numbers from 1 to `top` whose commit is lost or damaged, with the hashes it should have.

    `vouched` are the hashes that checkpoints and packs name. From the last
    backwards: a commit is right if its hash is named. Where nobody names it, it is
    right if it follows what stands before it, or if that is what is damaged: then
    the two hashes have nothing in common, while a damaged name is nearly right.
    """
    bad: dict[int, set[str]] = {}
    for seq in range(top, 0, -1):
        link = links.get(seq)
        named = set(vouched.get(seq, ()))
        if seq + 1 not in bad:
            named |= names_of_predecessors(links, seq)
        if link is None or link.prev is None or (named and link.sha256 not in named):
            bad[seq] = named
        elif link.stands_in and not named:
            continue
        elif not named and _is_misnamed(links, seq, link.prev):
            bad[seq] = named
    return bad


def _is_misnamed(links: Mapping[int, Link], seq: int, prev: str) -> bool:
    """Whether `prev` is nearly the hash of what stands before, and so is what was damaged."""
    before = GENESIS if seq == 1 else links[seq - 1].sha256 if seq - 1 in links else prev
    alike = sum(a == b for a, b in zip(before, prev, strict=False))
    return prev != before and (seq == 1 or alike >= _ALIKE)
