"""Reading the log: commit after commit, each checked against the one before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.parallel import at_once
from mm_core.registry.deadline import Deadline
from mm_core.registry.layout import log_key
from mm_core.registry.seal import CHECK, is_broken, read_twice
from mm_core.registry.signing import Trust
from mm_core.schemas import sha256_hex
from mm_core.sink import Sink, read_if_exists

_ONE_BY_ONE = 4
_READERS = 8
_WINDOW = 64

Patience = Callable[[], Deadline]
"""Until when to try to read one object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """One commit of the log.

    `time` (RFC 3339) and `writer` are for people. Each of `operations` has at
    least ``op``, ``id`` and ``model_id``. `sha256` is that of the commit's
    bytes, which the next commit names. `extra` keeps fields new to this release.
    """

    seq: int
    writer: str
    time: str
    operations: tuple[Mapping[str, Any], ...]
    id: str
    sha256: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The commit as JSON data."""
        return {
            **self.extra,
            "seq": self.seq,
            "id": self.id,
            "writer": self.writer,
            "time": self.time,
            "sha256": self.sha256,
            "operations": [dict(operation) for operation in self.operations],
        }


def read_commits(
    sink: Sink, seq: int, head: str, patience: Patience, trust: Trust | None = None
) -> Iterator[CommitRecord]:
    """The commits after number `seq`, whose bytes have the sha256 `head`, up to an absent one.

    `IntegrityError` for one that does not follow, or that `trust` does not
    believe. Where nothing is new that costs one read; where there is much, many
    are read at once.
    """
    return (record for record, _ in read_with_bytes(sink, seq, head, patience, trust))


def read_over_gaps(
    sink: Sink, seq: int, head: str, patience: Patience, trust: Trust | None = None
) -> Iterator[CommitRecord]:
    """As `read_commits`, for people: also over an empty commit that stands in for a lost one.

    What follows it still names the lost one, which cannot be compared any more. The
    state is never read so: a checkpoint leads over the gap. Where `trust` believes
    only some keys, one of them must have signed what stands in.
    """
    expected: str | None = head
    for data in _read_on(sink, seq, patience):
        seq += 1
        gap = stands_in(data)
        record = _parse(sink, data, seq, None if gap else expected, trust if gap else None)
        expected = None if gap else record.sha256
        yield record


def read_with_bytes(
    sink: Sink, seq: int, head: str, patience: Patience, trust: Trust | None = None
) -> Iterator[tuple[CommitRecord, bytes]]:
    """As `read_commits`, with the bytes of each commit."""
    return parse_commits(sink, _read_on(sink, seq, patience), seq, head, trust)


def parse_commits(
    sink: Sink, commits: Iterable[bytes], seq: int, head: str, trust: Trust | None = None
) -> Iterator[tuple[CommitRecord, bytes]]:
    """The `commits` after number `seq`, each checked against the one before: `IntegrityError`."""
    for data in commits:
        seq += 1
        record = _parse(sink, data, seq, head, trust)
        head = record.sha256
        yield record, data


def read_commit(sink: Sink, seq: int, patience: Patience) -> bytes | None:
    """The bytes of commit number `seq`; None if there is none."""
    key = log_key(seq)
    return read_twice(lambda: patience().persist(lambda: read_if_exists(sink, key)))


def missing(sink: Sink, seq: int, there: str) -> IntegrityError:
    """What to raise where commit `seq` is absent although it must have been made."""
    return IntegrityError(
        f"commit {seq} is missing from the registry's log at {sink.root}, though {there}",
        hint=RESTORE,
    )


def changed(sink: Sink, seq: int, why: str) -> IntegrityError:
    """What to raise where commit `seq` is not what it must have been."""
    return IntegrityError(
        f"commit {seq} of the registry's log at {sink.root} was changed or damaged: {why}",
        hint=RESTORE,
    )


def lost(sink: Sink, seq: int) -> IntegrityError:
    """What to raise where an answer hangs on commit `seq`, in whose place an empty one stands."""
    return IntegrityError(
        f"commit {seq} of the registry's log at {sink.root} was lost, and a repair put an empty "
        "one in its place: what hangs on it cannot be told any more",
        hint="see `mm history`; what it is now is whole, and `mm alias set` points an alias",
    )


RESTORE = (
    "see `mm registry check`; `mm registry repair` mends what can be, and takes the rest from a "
    "backup; nothing is written until then"
)

STANDS_IN = "stands_in"
"""The field of a commit that a repair wrote in the place of a lost one."""


def _read_on(sink: Sink, seq: int, patience: Patience) -> Iterator[bytes]:
    for _ in range(_ONE_BY_ONE):
        data = read_commit(sink, seq + 1, patience)
        if data is None:
            return
        yield data
        seq += 1
    window = _READERS
    while True:
        numbers = range(seq + 1, seq + 1 + window)
        for found in at_once(lambda number: read_commit(sink, number, patience), numbers):
            if found is None:
                return
            yield found
        seq += window
        window = min(window * 2, _WINDOW)


def stands_in(data: bytes) -> bool:
    """Whether a repair wrote this commit in the place of a lost one: it does nothing itself."""
    try:
        raw = json.loads(data)
        return STANDS_IN in raw and not raw["operations"]
    except (ValueError, KeyError, TypeError):
        return False


def _parse(
    sink: Sink, data: bytes, seq: int, prev: str | None, trust: Trust | None
) -> CommitRecord:
    """The commit in `data`, which must name `prev` unless that is None."""
    try:
        raw = json.loads(data)
        if trust is not None:
            trust.check_commit(raw, seq, sink.root)
        number, named = raw.pop("seq"), raw.pop("prev")
        raw.pop(CHECK, None)
        record = CommitRecord(
            seq=seq,
            id=str(raw.pop("id")),
            writer=str(raw.pop("writer")),
            time=str(raw.pop("time")),
            operations=tuple(raw.pop("operations")),
            sha256=sha256_hex(data),
            extra=raw,
        )
    except IntegrityError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise changed(sink, seq, "it cannot be read") from error
    if is_broken(data):
        raise changed(sink, seq, "its checksum is wrong")
    if number != seq:
        raise changed(sink, seq, "it is not the commit of that number")
    if prev is not None and named != prev:
        raise changed(sink, seq, "it does not follow the commit before it")
    return record
