"""Plan in, stored files out: parallel, hashed in order, retried, verified before visible."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mm_core.exceptions import CancelledError, IntegrityError, NotFoundError, TransientError
from mm_core.redaction import redact
from mm_core.schemas import Action, Plan, PlannedFile, RemoteFile, StoredFile, TransferEvent
from mm_core.sink import Sink
from mm_core.source import Buffer, Source
from mm_core.transfer.hashing import Check
from mm_core.transfer.pool import run_parallel
from mm_core.transfer.retry import RetryPolicy, SteadyReader, pause

PROGRESS_EVERY = 0.2
"""Seconds between two progress events of one file."""

OnEvent = Callable[[TransferEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """How a plan is carried out. `jobs` files move at once."""

    jobs: int = 8
    retry: RetryPolicy = field(default_factory=RetryPolicy)


def transfer(
    plan: Plan,
    source: Source,
    sink: Sink,
    *,
    options: TransferOptions,
    on_event: OnEvent,
    cancelled: threading.Event | None = None,
) -> tuple[StoredFile, ...]:
    """Make every file of `plan` stand in `sink`, verified; return the records in plan order.

    What the source states (size, sha256, git sha1) is checked while the bytes
    pass, before the sink makes them visible. Files stored before a failure stay;
    a later plan finds them present. `on_event` is called from several threads.

    Raises `IntegrityError` for wrong bytes, `TransientError` when retries are
    used up, `CancelledError` when `cancelled` is set (a failure sets it, too),
    and whatever final error the source or the sink has.
    """
    stop = cancelled or threading.Event()
    total = None
    if all(planned.file.size is not None for planned in plan.files):
        total = sum(planned.file.size or 0 for planned in plan.files)
    on_event(TransferEvent(kind="planned", model_id=plan.model_id, total=total))
    engine = _Engine(
        plan=plan, source=source, sink=sink, retry=options.retry, on_event=on_event, stop=stop
    )
    # The largest file first: it is the one that the end waits for.
    ranked = sorted(plan.files, key=lambda planned: -(planned.file.size or 0))
    stored = run_parallel(engine.carry, ranked, jobs=options.jobs, cancelled=stop)
    by_path = {file.path: file for file in stored}
    return tuple(by_path[planned.file.path] for planned in plan.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    plan: Plan
    source: Source
    sink: Sink
    retry: RetryPolicy
    on_event: OnEvent
    stop: threading.Event

    def carry(self, planned: PlannedFile) -> StoredFile:
        file = planned.file
        self._emit("started", file, 0)
        try:
            stored = self._retrying(planned)
        except Exception as error:
            self._emit("failed", file, 0, str(error))
            raise
        self._emit("stored", file, stored.size)
        return stored

    def _retrying(self, planned: PlannedFile) -> StoredFile:
        """Store one file; start it again where the sink had a passing fault."""
        attempt = 0
        while True:
            reader = SteadyReader(
                self.source, planned.file, self.retry, self.stop, self._on_retry(planned.file)
            )
            try:
                return self._store(planned, reader)
            except TransientError as error:
                if reader.gave_up is not None:
                    raise
                delay = self.retry.delay(error, attempt)
                self._on_retry(planned.file)(error, 0, delay)
            pause(delay, self.stop)
            attempt += 1

    def _store(self, planned: PlannedFile, reader: SteadyReader) -> StoredFile:
        if planned.action is Action.PRESENT:
            stored = self._read_back(planned)
        elif planned.action is Action.COPY:
            stored = self._copy(planned)
        else:
            stored = None
        return stored or self._fetch(planned, reader)

    def _fetch(self, planned: PlannedFile, reader: SteadyReader) -> StoredFile:
        file = planned.file
        check = Check(file)
        self.sink.write(
            planned.key, self._watch(file, check.through(reader), check), size=file.size
        )
        return _record(planned, check.size, check.sha256, Action.FETCH)

    def _read_back(self, planned: PlannedFile) -> StoredFile | None:
        """What stands there already, verified by reading it; None if it is not the file."""
        check = Check(planned.file)
        try:
            for _ in self._watch(planned.file, check.through(self.sink.read(planned.key)), check):
                pass
        except (IntegrityError, NotFoundError):
            return None
        return _record(planned, check.size, check.sha256, Action.PRESENT)

    def _copy(self, planned: PlannedFile) -> StoredFile | None:
        """A copy within the store of a file with the same sha256; None if that is gone."""
        assert planned.copy_from is not None
        assert planned.file.sha256 is not None
        try:
            self.sink.copy(planned.copy_from, planned.key)
        except NotFoundError:
            return None
        return self._read_back(planned) and _record(
            planned, planned.file.size or 0, planned.file.sha256, Action.COPY
        )

    def _watch(self, file: RemoteFile, buffers: Iterable[Buffer], check: Check) -> Iterator[Buffer]:
        due = time.monotonic() + PROGRESS_EVERY
        for buffer in buffers:
            self._heed_stop()
            yield buffer
            if time.monotonic() >= due:
                self._emit("progress", file, check.size)
                due = time.monotonic() + PROGRESS_EVERY
        self._heed_stop()  # the last moment before the sink makes the bytes visible

    def _heed_stop(self) -> None:
        if self.stop.is_set():
            raise CancelledError("stopped")

    def _on_retry(self, file: RemoteFile) -> Callable[[TransientError, int, float], None]:
        def note(error: TransientError, offset: int, delay: float) -> None:
            message = f"at byte {offset}, in {delay:.1f} s: {error}"
            self._emit("retry", file, offset, message)

        return note

    def _emit(self, kind: str, file: RemoteFile, done: int, message: str | None = None) -> None:
        self.on_event(
            TransferEvent(
                kind=kind,
                model_id=self.plan.model_id,
                path=file.path,
                done=done,
                total=file.size,
                message=None if message is None else redact(message),
            )
        )


def _record(planned: PlannedFile, size: int, sha256: str, action: Action) -> StoredFile:
    return StoredFile(
        path=planned.file.path, key=planned.key, size=size, sha256=sha256, action=action
    )
