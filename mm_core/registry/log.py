"""The log: one exclusive create for each commit, a hash chain through all of them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import count
from typing import Any

from mm_core.exceptions import (
    CommitUnknownError,
    IntegrityError,
    MMError,
    OfflineError,
    TransientError,
    UsageError,
)
from mm_core.registry.chain import (
    RESTORE,
    CommitRecord,
    Patience,
    read_commit,
    read_over_gaps,
    read_with_bytes,
)
from mm_core.registry.deadline import Deadline
from mm_core.registry.layout import create_once, ensure_format, log_key, read_format
from mm_core.registry.memory import Memory, Seen
from mm_core.registry.operations import replay, transition
from mm_core.registry.pack import Recent
from mm_core.registry.saving import is_due, save
from mm_core.registry.seal import seal
from mm_core.registry.signing import Trust
from mm_core.registry.state import GENESIS, Operation, State, ids_of
from mm_core.schemas import canonical_json, rfc3339, sha256_hex
from mm_core.sink import Sink

_FAR_BEHIND = 128
"""Commits after which a reader begins anew: checkpoint and pack bring it nearer in one step."""

SURE_FOR = 120.0
"""Seconds after which it is made sure that the store still has the newest commit that was seen."""


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
    """A commit ready to be made, and what each asker gets if it is: the state after its part."""

    data: bytes
    after: State
    accepted: list[tuple[_Ask, State]]
    refused: list[tuple[_Ask, Exception]]


class Log:
    """The commit log of one store. Many threads may use one instance.

    Writers of one instance queue behind one committer; those who wait share
    the next commit. With a `memory`, a log that went back is refused; with a
    `trust`, what nobody has signed who is trusted.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        timeout: float,
        writer: str,
        memory: Memory | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.sink = sink
        self.trust = trust or Trust()
        self._memory = memory
        self._timeout = timeout
        self._writer = writer
        self._state: State | None = None
        self._format: dict[str, Any] | None = None
        self._recent = Recent()
        self._unsound = False
        self._sure = 0.0
        self._guard = threading.Lock()
        self._committing = threading.Lock()
        self._queue: list[_Ask] = []

    @property
    def memory(self) -> Memory | None:
        """What is remembered of the commits that were seen, if anything is."""
        return self._memory

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
        return self._advance(self._patience)

    def reload(self) -> State:
        """The newest state, read anew from the store."""
        with self._guard:
            self._state = self._format = None
        return self.refresh()

    def accept(self, *, vouch: bool = True) -> State:
        """The state as the store has it, even if it went back.

        With `vouch`, where this process has a key to sign with, even if nobody has
        signed it: then a checkpoint of it is written, which is signed. It is
        remembered as the newest that was seen.
        """
        if vouch and self.trust.signs:
            self.trust.refuse_to_write_unsigned()
            state = self._open_unsigned()
            if state.seq:
                save(self.sink, state, self._recent, whole=True, trust=self.trust)
        else:
            state = self._open(self._patience, _nothing_seen, self.trust)
        if self._memory is not None and self._format is not None:
            seen = Seen(state.seq, state.head)
            self._memory.accept(str(self._format["id"]), self.sink.root, seen)
        with self._guard:
            self._state = state
        return state

    def records(self) -> Iterator[CommitRecord]:
        """All commits from the first, the chain checked: `IntegrityError` where it is broken.

        A commit that stands in for a lost one is among them, and the chain goes on after it.
        Those that a signed checkpoint covers hang on it by their hashes, and need
        no signatures of their own.
        """
        state, seq, head = self.refresh(), 0, GENESIS
        for record in read_over_gaps(self.sink, 0, GENESIS, self._patience, self.trust):
            seq = record.seq
            if seq == state.seq:
                head = record.sha256
            yield record
        if head != state.head:
            raise IntegrityError(
                f"the registry's log at {self.sink.root} was changed or damaged: "
                f"commit {min(seq + 1, state.seq)} is not the one that was there before",
                hint=RESTORE,
            )

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
        try:
            with self._committing:
                if not ask.settled:
                    with self._guard:
                        batch, self._queue = self._queue, []
                    self._settle(batch)
        except BaseException:  # interrupted while waiting: nobody else may carry it out later
            with self._guard:
                self._queue = [other for other in self._queue if other is not ask]
            raise
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
        self.trust.refuse_to_write_unsigned()
        if self._state is None:
            self._advance(lambda: deadline)
        if self._format is None:
            self._format = ensure_format(self.sink, deadline)
        for losses in count(1):
            started = time.monotonic()
            attempt = self._attempt(self._advance(lambda: deadline), batch)
            if not attempt.accepted or self._create(attempt, deadline):
                break
            if not deadline.give_way(losses, time.monotonic() - started):
                raise TransientError(
                    "the registry is busy: other writers were first until the deadline",
                    hint="try again, or raise the commit time-out",
                )
        for ask, error in attempt.refused:
            ask.error = error
        for ask, state in attempt.accepted:
            ask.state = replace(state, seq=attempt.after.seq, head=attempt.after.head)
        if attempt.accepted:
            self._recent.note(attempt.after.seq, attempt.data)
            self._keep(attempt.after)
            if self._unsound or is_due(attempt.after.seq, len(attempt.data)):
                save(
                    self.sink,
                    attempt.after,
                    self._recent,
                    whole=self._unsound,
                    trust=self.trust,
                )
                self._unsound = False

    def _attempt(self, state: State, batch: list[_Ask]) -> _Attempt:
        accepted: list[tuple[_Ask, State]] = []
        refused: list[tuple[_Ask, Exception]] = []
        operations: list[Operation] = []
        tentative = state
        for ask in batch:
            if state.has_done(ask.operations):
                ask.state = state
                continue
            try:
                canonical_json([*ask.operations])
                tentative = transition(tentative, ask.operations, first=len(operations))
            except MMError as error:
                refused.append((ask, error))
            except (ValueError, TypeError) as error:
                reason = UsageError(f"this cannot be recorded as JSON: {error}")
                refused.append((ask, reason))
            else:
                accepted.append((ask, tentative))
                operations.extend(ask.operations)
        commit = {
            "seq": state.seq + 1,
            "prev": state.head,
            "id": uuid.uuid4().hex,
            "writer": self._writer,
            "time": rfc3339(datetime.now(timezone.utc)),
            "operations": operations,
        }
        data = seal(self.trust.signed(commit))
        after = replace(tentative, seq=state.seq + 1, head=sha256_hex(data))
        return _Attempt(data, after, accepted, refused)

    def _create(self, attempt: _Attempt, deadline: Deadline) -> bool:
        try:
            return create_once(self.sink, log_key(attempt.after.seq), attempt.data, deadline)
        except OfflineError:
            raise
        except TransientError as error:
            asks = [ask for ask, _ in attempt.accepted]
            raise _unknown(asks, str(error)) from error

    def _advance(self, patience: Patience) -> State:
        state = self._state
        if state is None:
            return self._keep(self._open(patience, self._recall, self.trust))
        return self._keep(self._follow(state, patience))

    def _open(
        self, patience: Patience, recall: Callable[[str], Seen | None], trust: Trust | None
    ) -> State:
        from mm_core.registry.opening import open_registry

        opened = open_registry(self.sink, self._recent, patience, recall=recall, trust=trust)
        self._format, self._unsound = opened.format, not opened.sound
        self._sure = time.monotonic()
        return opened.state

    def _open_unsigned(self) -> State:
        """What the log says, whoever made it; a checkpoint that nobody signed may say more.

        So that counts only where the log alone leads nowhere, such as over a gap.
        """
        try:
            return self._open(self._patience, _nothing_seen, self.trust.of_checkpoints)
        except IntegrityError:
            return self._open(self._patience, _nothing_seen, None)

    def _follow(self, state: State, patience: Patience) -> State:
        records, may_leap = [], True
        found = read_with_bytes(self.sink, state.seq, state.head, patience, self.trust)
        for record, data in found:
            self._recent.note(record.seq, data)
            records.append(record)
            if may_leap and len(records) > _FAR_BEHIND:
                try:
                    return self._open(patience, lambda _: Seen(state.seq, state.head), self.trust)
                except IntegrityError:
                    # Damage of what lies behind us: step by step nobody needs that.
                    may_leap = False
        if records:
            self._sure = time.monotonic()  # the first of them names the last that was seen
            return replay(state, records)
        if self._is_there(state, patience):
            return state
        return self._open(patience, lambda _: Seen(state.seq, state.head), self.trust)

    def _is_there(self, state: State, patience: Patience) -> bool:
        """Whether the store has the last commit of `state`, as far as that was looked at lately.

        Where the log was taken back meanwhile, who goes on from what he knows would
        leave a gap.
        """
        if not state.seq or time.monotonic() - self._sure < SURE_FOR:
            return True
        data = read_commit(self.sink, state.seq, patience)
        if data is None or sha256_hex(data) != state.head:
            return False
        self._sure = time.monotonic()
        return True

    def _patience(self) -> Deadline:
        return Deadline(self._timeout)

    def _keep(self, state: State) -> State:
        with self._guard:
            if self._state is not None and state.seq <= self._state.seq:
                return self._state
            self._state = state
        if self._memory is not None and self._format is not None and state.seq:
            seen = Seen(state.seq, state.head)
            self._memory.note(str(self._format["id"]), self.sink.root, seen)
        return state

    def _recall(self, registry_id: str) -> Seen | None:
        return self._memory.recall(registry_id, self.sink.root) if self._memory else None


def _nothing_seen(_: str) -> None:
    """What a memory recalls that is to be accepted anew."""


def _unknown(asks: Sequence[_Ask], why: str) -> CommitUnknownError:
    return CommitUnknownError(
        f"it could not be found out in time whether the commit was made: {why}",
        operation_ids=tuple(id_ for ask in asks for id_ in ids_of(ask.operations)),
        hint="try again: what was committed already is not repeated",
    )
