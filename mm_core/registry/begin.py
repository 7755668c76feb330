"""Begin a pull: claim a version, or wait for the one who has, or take over from the dead."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from mm_core.exceptions import (
    CancelledError,
    CommitUnknownError,
    ConflictError,
    MMError,
    TransientError,
)
from mm_core.registry.claims import Claim, Watch, discard_heartbeat
from mm_core.registry.deadline import Deadline
from mm_core.registry.log import Log
from mm_core.registry.operations import operation
from mm_core.registry.processes import this_process
from mm_core.registry.state import Operation, Row, State, is_available, open_claim
from mm_core.schemas import ModelStatus

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


class Beginner:
    """One caller who wants to fill one version.

    `commit` makes a commit; `fields` go into the ``begin`` operation.
    """

    def __init__(
        self,
        log: Log,
        commit: Callable[[Sequence[Operation]], State],
        names: tuple[str, str],
        *,
        claim_timeout: float,
        fields: dict[str, Any],
    ) -> None:
        self._log = log
        self._commit = commit
        self._names = names
        self._timeout = claim_timeout
        self._fields = fields
        self._watch = Watch(log.sink, claim_timeout)

    def run(
        self, *, wait: bool, on_wait: Callable[[State], None], cancelled: threading.Event
    ) -> Claim | State:
        """A claim, or the state in which the version is AVAILABLE."""
        pause, told = _FIRST_PAUSE, False
        while True:
            if cancelled.is_set():
                raise CancelledError(f"stopped waiting for {'@'.join(self._names)}")
            state = self._log.refresh()
            row = state.row(*self._names)
            if row is not None and is_available(row):
                return state
            if self._is_free(row):
                claim = self._claim(row)
                if claim is not None:
                    return claim
                continue
            if not wait:
                raise self._taken(row)
            if not told:
                on_wait(state)
                told = True
            cancelled.wait(random.uniform(pause / 2, pause))  # noqa: S311  # jitter
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _is_free(self, row: Row | None) -> bool:
        if row is None or (open_claim(row) is None and not _is_swept(row)):
            return True
        try:
            return self._watch.is_left(row) if _is_swept(row) else self._watch.is_stale(row)
        except TransientError:
            return False

    def _claim(self, row: Row | None) -> Claim | None:
        """Commit a claim, over a stale one where there is one; None if the row has changed."""
        held = open_claim(row)
        sink = self._log.sink
        claim = Claim(sink, uuid.uuid4().hex, *self._names, interval=self._timeout / 4)
        try:
            Deadline(self._timeout).persist(claim.start)
            self._commit([*self._end_of_sweep(row), *self._operations(claim, held)])
        except CommitUnknownError:
            claim.close()
            raise
        except MMError as error:
            claim.discard()
            if isinstance(error, ConflictError) and self._log.refresh().row(*self._names) != row:
                return None
            raise
        except BaseException:
            claim.close()
            raise
        if held is not None:
            discard_heartbeat(sink, held)
        return claim

    def _operations(self, claim: Claim, held: str | None) -> list[Operation]:
        model_id, version = self._names
        begin = operation(
            "begin",
            model_id,
            version=version,
            claim=claim.id,
            timeout=self._timeout,
            owner=this_process(),
            **self._fields,
        )
        if held is None:
            return [begin]
        reason = "its heartbeat died"
        return [operation("abandon", model_id, version=version, claim=held, reason=reason), begin]

    def _end_of_sweep(self, row: Row | None) -> list[Operation]:
        """What takes a version out of the hands of a collector that is gone, as one would.

        Only if that has not said meanwhile that it is at work.
        """
        if row is None or not _is_swept(row):
            return []
        model_id, version = self._names
        ours: Row = {"version": version, "sweeper": uuid.uuid4().hex}
        seen: Row = {"over": row.get("sweeper"), "expect": list(row.get("ended", ()))}
        return [
            operation("sweep", model_id, **ours, **seen),
            operation("swept", model_id, **ours),
        ]

    def _taken(self, row: Row | None) -> ConflictError:
        status = row["status"] if row else "absent"
        return ConflictError(
            f"{'@'.join(self._names)} is {status} by another",
            hint="wait for it (leave out --no-wait), or try again later",
        )


def _is_swept(row: Row) -> bool:
    return bool(row["status"] == ModelStatus.SWEEPING)
