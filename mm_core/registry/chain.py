"""Reading the log: commit after commit, each checked against the one before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.registry.deadline import Deadline
from mm_core.registry.layout import LOG_PREFIX, log_key
from mm_core.registry.state import State
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


def read_commits(sink: Sink, seq: int, head: str, patience: Patience) -> Iterator[CommitRecord]:
    """The commits after number `seq`, whose bytes have the sha256 `head`, up to an absent one.

    `IntegrityError` for one that does not follow. Where nothing is new that
    costs one read; where there is much, many are read at once.
    """
    for data in _read_on(sink, seq, patience):
        seq += 1
        record = _parse(sink, data, seq, head)
        head = record.sha256
        yield record


def refuse_gap(sink: Sink, state: State, patience: Patience) -> None:
    """Raise `IntegrityError` if the commit after `state` is absent and one soon after it is not."""
    absent = log_key(state.seq + 1)
    near = absent[: -len("00.json")]
    listed = patience().persist(lambda: [found.key for found in sink.list(near)])
    beyond = [key for key in listed if key > absent]
    if beyond and patience().persist(lambda: sink.stat(absent)) is None:
        raise IntegrityError(
            f"commit {state.seq + 1} is missing from the registry's log at {sink.root}, "
            f"though later ones such as {beyond[0].removeprefix(LOG_PREFIX)} are there",
            hint=_RESTORE,
        )


_RESTORE = "restore it from a backup; nothing is written until then"


def _read_on(sink: Sink, seq: int, patience: Patience) -> Iterator[bytes]:
    def read(number: int) -> bytes | None:
        return patience().persist(lambda: read_if_exists(sink, log_key(number)))

    for _ in range(_ONE_BY_ONE):
        data = read(seq + 1)
        if data is None:
            return
        yield data
        seq += 1
    with ThreadPoolExecutor(_READERS, thread_name_prefix="mm-log") as pool:
        window = _READERS
        while True:
            for found in pool.map(read, range(seq + 1, seq + 1 + window)):
                if found is None:
                    return
                yield found
            seq += window
            window = min(window * 2, _WINDOW)


def _parse(sink: Sink, data: bytes, seq: int, prev: str) -> CommitRecord:
    try:
        raw = json.loads(data)
        number, named = raw.pop("seq"), raw.pop("prev")
        record = CommitRecord(
            seq=seq,
            id=str(raw.pop("id")),
            writer=str(raw.pop("writer")),
            time=str(raw.pop("time")),
            operations=tuple(raw.pop("operations")),
            sha256=sha256_hex(data),
            extra=raw,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(sink, seq, "it cannot be read") from error
    if number != seq:
        raise _damaged(sink, seq, "it is not the commit of that number")
    if named != prev:
        raise _damaged(sink, seq, "it does not follow the commit before it")
    return record


def _damaged(sink: Sink, seq: int, why: str) -> IntegrityError:
    return IntegrityError(
        f"commit {seq} of the registry's log at {sink.root} was changed or damaged: {why}",
        hint=_RESTORE,
    )
