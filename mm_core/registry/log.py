"""The log: one exclusive create for each commit, a hash chain through all of them."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from mm_core.exceptions import (
    CommitUnknownError,
    IntegrityError,
    MMError,
    OfflineError,
    TransientError,
)
from mm_core.registry.checkpoint import is_due, read_checkpoint, write_checkpoint
from mm_core.registry.deadline import Deadline
from mm_core.registry.layout import LOG_PREFIX, create_once, ensure_format, log_key, read_format
from mm_core.registry.operations import replay, transition
from mm_core.registry.state import GENESIS, Operation, State, ids_of
from mm_core.schemas import canonical_json, rfc3339, sha256_hex
from mm_core.sink import Sink, read_if_exists

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """One commit of the log.

    `time` (RFC 3339) and `writer` are for people. Each of `operations` has at
    least ``op``, ``id`` and ``model_id``.
    """

    seq: int
    writer: str
    time: str
    operations: tuple[Mapping[str, Any], ...]
    id: str = ""
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """The commit as JSON data."""
        return {
            "seq": self.seq,
            "id": self.id,
            "writer": self.writer,
            "time": self.time,
            "sha256": self.sha256,
            "operations": [dict(operation) for operation in self.operations],
        }


class _Ask:
    """What one caller wants committed, and what came of it."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self.state: State | None = None
        self.error: Exception | None = None

    @property
    def settled(self) -> bool:
        return self.state is not None or self.error is not None

    def result(self) -> State:
        if self.error is not None:
            raise self.error
        assert self.state is not None
        return self.state


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A commit ready to be made, and what each asker gets if it is."""

    data: bytes
    after: State
    accepted: list[_Ask]
    refused: list[tuple[_Ask, Exception]]


class Log:
    """The commit log of one store. Many threads may use one instance.

    Writers of one instance queue behind one committer; those who wait share
    the next commit.
    """

    def __init__(self, sink: Sink, *, timeout: float, writer: str) -> None:
        self.sink = sink
        self._timeout = timeout
        self._writer = writer
        self._state: State | None = None
        self._format: dict[str, Any] | None = None
        self._guard = threading.Lock()
        self._committing = threading.Lock()
        self._queue: list[_Ask] = []

    @property
    def known(self) -> State | None:
        """The state as it was last seen, without asking the store."""
        return self._state

    @property
    def format(self) -> Mapping[str, Any] | None:
        """What ``format.json`` says; None while nobody has written to the store."""
        if self._format is None:
            self._format = read_format(self.sink, Deadline(self._timeout))
        return self._format

    def refresh(self) -> State:
        """The newest state. Costs one read of an absent object where nothing is new."""
        return self._advance(Deadline(self._timeout))

    def reload(self) -> State:
        """The newest state, read anew from the store."""
        with self._guard:
            self._state = self._format = None
        return self.refresh()

    def records(self) -> Iterator[CommitRecord]:
        """All commits from the first, the chain checked: `IntegrityError` where it is broken."""
        deadline, head, seq = Deadline(self._timeout), GENESIS, 0
        while (found := _read_commit(self.sink, seq + 1, head, deadline)) is not None:
            commit, head = found
            seq += 1
            yield CommitRecord(
                seq=seq,
                id=str(commit.get("id", "")),
                writer=str(commit.get("writer", "")),
                time=str(commit.get("time", "")),
                operations=tuple(commit["operations"]),
                sha256=head,
            )
            deadline = Deadline(self._timeout)

    def commit(self, operations: Sequence[Operation]) -> State:
        """Make one commit of `operations`, all or none, and return the state after it.

        Raises what the checks raise (`ConflictError`, `NotFoundError`),
        `TransientError` if others were always first until the deadline, and
        `CommitUnknownError` if it could not be found out whether it was made.
        Operations whose ids are in the log already count as done.
        """
        ask = _Ask(operations)
        with self._guard:
            self._queue.append(ask)
        with self._committing:
            if not ask.settled:
                with self._guard:
                    batch, self._queue = self._queue, []
                self._settle(batch)
        return ask.result()

    def _settle(self, batch: list[_Ask]) -> None:
        try:
            self._commit(batch)
        except Exception as error:  # noqa: BLE001  # each asker raises it in its own thread
            for ask in batch:
                ask.error = error
        except BaseException:
            for ask in batch:
                if not ask.settled:
                    ask.error = _unknown(batch, "the writer was interrupted")
            raise

    def _commit(self, batch: list[_Ask]) -> None:
        deadline = Deadline(self._timeout)
        self._format = ensure_format(self.sink, deadline)
        while True:
            attempt = self._attempt(self._advance(deadline), batch)
            if not attempt.accepted or self._create(attempt, deadline):
                break
            if not deadline.pause():
                raise TransientError(
                    "the registry is busy: other writers were first until the deadline",
                    hint="try again, or raise the commit time-out",
                )
        for ask, error in attempt.refused:
            ask.error = error
        for ask in attempt.accepted:
            ask.state = attempt.after
        if attempt.accepted:
            self._keep(attempt.after)
            if is_due(attempt.after):
                write_checkpoint(self.sink, attempt.after)

    def _attempt(self, state: State, batch: list[_Ask]) -> _Attempt:
        accepted: list[_Ask] = []
        refused: list[tuple[_Ask, Exception]] = []
        operations: list[Operation] = []
        tentative = state
        for ask in batch:
            if state.has_done(ask.operations):
                ask.state = state
                continue
            try:
                tentative = transition(tentative, ask.operations)
            except MMError as error:
                refused.append((ask, error))
            else:
                accepted.append(ask)
                operations.extend(ask.operations)
        commit = {
            "seq": state.seq + 1,
            "prev": state.head,
            "id": uuid.uuid4().hex,
            "writer": self._writer,
            "time": rfc3339(datetime.now(timezone.utc)),
            "operations": operations,
        }
        data = canonical_json(commit)
        after = replay(state, [(commit, sha256_hex(data))])
        return _Attempt(data, after, accepted, refused)

    def _create(self, attempt: _Attempt, deadline: Deadline) -> bool:
        try:
            return create_once(self.sink, log_key(attempt.after.seq), attempt.data, deadline)
        except OfflineError:
            raise
        except TransientError as error:
            raise _unknown(attempt.accepted, str(error)) from error

    def _advance(self, deadline: Deadline) -> State:
        state = self._state
        if state is None:
            self._format = read_format(self.sink, deadline)
            state = self._follow(read_checkpoint(self.sink, deadline), deadline)
            self._refuse_gap(state, deadline)
        return self._keep(self._follow(state, deadline))

    def _follow(self, state: State, deadline: Deadline) -> State:
        def commits() -> Iterator[tuple[Mapping[str, Any], str]]:
            seq, head = state.seq, state.head
            while (found := _read_commit(self.sink, seq + 1, head, deadline)) is not None:
                seq, head = seq + 1, found[1]
                yield found

        first = next(found := commits(), None)
        return state if first is None else replay(state, chain([first], found))

    def _refuse_gap(self, state: State, deadline: Deadline) -> None:
        """A commit just beyond an absent one means that the log was damaged."""
        absent = log_key(state.seq + 1)
        near = absent[: -len("00.json")]
        listed = deadline.persist(lambda: [found.key for found in self.sink.list(near)])
        beyond = [key for key in listed if key > absent]
        if beyond and deadline.persist(lambda: self.sink.stat(absent)) is None:
            raise IntegrityError(
                f"commit {state.seq + 1} is missing from the registry's log at {self.sink.root}, "
                f"though later ones such as {beyond[0].removeprefix(LOG_PREFIX)} are there",
                hint="restore it from a backup; nothing is written until then",
            )

    def _keep(self, state: State) -> State:
        with self._guard:
            if self._state is None or state.seq > self._state.seq:
                self._state = state
            return self._state


def _read_commit(
    sink: Sink, seq: int, prev: str, deadline: Deadline
) -> tuple[dict[str, Any], str] | None:
    data = deadline.persist(lambda: read_if_exists(sink, log_key(seq)))
    if data is None:
        return None
    try:
        commit = json.loads(data)
        right = commit["seq"] == seq and isinstance(commit["operations"], list)
        named = commit["prev"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(sink, seq, "it cannot be read") from error
    if not right:
        raise _damaged(sink, seq, "it is not the commit of that number")
    if named != prev:
        raise _damaged(sink, seq, "it does not follow the commit before it")
    return commit, sha256_hex(data)


def _damaged(sink: Sink, seq: int, why: str) -> IntegrityError:
    return IntegrityError(
        f"commit {seq} of the registry's log at {sink.root} was changed or damaged: {why}",
        hint="restore it from a backup; nothing is written until then",
    )


def _unknown(asks: Sequence[_Ask], why: str) -> CommitUnknownError:
    return CommitUnknownError(
        f"it could not be found out in time whether the commit was made: {why}",
        operation_ids=tuple(id_ for ask in asks for id_ in ids_of(ask.operations)),
        hint="try again: what was committed already is not repeated",
    )
