"""Plan in, stored files out: parallel, hashed in order, retried, verified before visible."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from mm_core.exceptions import (
    CancelledError,
    IntegrityError,
    NotFoundError,
    SourceChangedError,
    TransientError,
    UploadLostError,
)
from mm_core.parallel import run_parallel
from mm_core.redaction import redact
from mm_core.schemas import Action, Plan, PlannedFile, RemoteFile, StoredFile, TransferEvent
from mm_core.sink import Buffer, ResumableSink, Sink, Upload
from mm_core.source import Source
from mm_core.tracing import note, span
from mm_core.transfer.buffers import Buffers
from mm_core.transfer.connections import Connections
from mm_core.transfer.hashing import Check, MismatchError
from mm_core.transfer.parts import PROGRESS_EVERY, Means, PartedFile
from mm_core.transfer.rate import RateLimit
from mm_core.transfer.retry import RetryPolicy, SteadyReader, pause
from mm_core.transfer.writers import Writers

MEMORY = 128 << 20
"""The default of `TransferOptions.memory`, in bytes."""

STREAM = 8 << 20
"""Bytes of the budget that are counted for one stream: what a sink may hold of it."""

OnEvent = Callable[[TransferEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """How a plan is carried out.

    `jobs` files move at once, over `connections` reads at once; parts of large
    files wait in buffers of `memory` bytes in all. `rate` caps the bytes read from
    the source. Without `parts` every file is one stream into one `Sink.write`:
    nothing is taken up, and nothing is left for a later attempt. With `read_copies`,
    what a store copied from the source's own file is read back and hashed, too.
    """

    jobs: int = 8
    connections: int = 8
    memory: int = MEMORY
    parts: bool = True
    read_copies: bool = False
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    rate: RateLimit | None = None


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
    a later plan finds them present. Parts of large files stay, too, in a
    `ResumableSink`, where the source states a hash: the next transfer takes them
    up, and verifies them by reading them back. `on_event` is called from several
    threads.

    Raises `IntegrityError` for wrong bytes, `TransientError` when retries are
    used up, `CancelledError` when `cancelled` is set (a failure sets it, too),
    and whatever final error the source or the sink has.
    """
    stop = cancelled or threading.Event()
    total = None
    if all(planned.file.size is not None for planned in plan.files):
        total = sum(planned.file.size or 0 for planned in plan.files)
    on_event(TransferEvent(kind="planned", model_id=plan.model_id, total=total))
    writers = Writers(options.connections + options.connections // 2)  # some wait for an answer
    means = Means(
        source=source,
        retry=options.retry,
        stop=stop,
        buffers=Buffers(options.memory),
        connections=Connections(options.connections),
        writers=writers,
        rate=options.rate,
    )
    engine = _Engine(plan=plan, sink=sink, means=means, on_event=on_event, options=options)
    # The largest file first: it is the one that the end waits for.
    ranked = sorted(plan.files, key=lambda planned: -(planned.file.size or 0))
    try:
        stored = run_parallel(engine.carry, ranked, jobs=options.jobs, cancelled=stop)
    finally:
        writers.close()
    by_path = {file.path: file for file in stored}
    return tuple(by_path[planned.file.path] for planned in plan.files)


@dataclass(slots=True)
class _Try:
    """What came of one try at a file: whether it was the last, and whether the file stands now."""

    is_last: bool = False
    stands: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    plan: Plan
    sink: Sink
    means: Means
    on_event: OnEvent
    options: TransferOptions

    def carry(self, planned: PlannedFile) -> StoredFile:
        with span("mm.file", model=self.plan.model_id, path=planned.file.path):
            stored = self._told(planned)
            note(bytes=stored.size, action=stored.action.value)
            return stored

    def _told(self, planned: PlannedFile) -> StoredFile:
        """Store one file, and tell of it."""
        file = planned.file
        self._emit("started", file, 0)
        try:
            stored = self._retrying(planned)
        except CancelledError:
            raise
        except Exception as error:
            self._emit("failed", file, 0, str(error))
            raise
        self._emit("stored", file, stored.size)
        return stored

    def _retrying(self, planned: PlannedFile) -> StoredFile:
        """Store one file; start it again where the sink had a passing fault."""
        attempt = 0
        while True:
            this = _Try()
            try:
                return self._store(planned, this)
            except TransientError as error:
                if this.is_last:
                    raise
                delay = self.means.retry.delay(error, attempt)
                self._on_retry(planned.file)(error, 0, delay)
            if this.stands:
                planned = replace(planned, action=Action.PRESENT)
            pause(delay, self.means.stop)
            attempt += 1

    def _store(self, planned: PlannedFile, this: _Try) -> StoredFile:
        if planned.action is Action.PRESENT:
            stored = self._read_back(planned)
        elif planned.action is Action.COPY:
            stored = self._hand_over(planned) if planned.copy_from is None else self._copy(planned)
        else:
            stored = None
        return stored or self._fetch_parts(planned, this) or self._fetch(planned, this)

    def _fetch(self, planned: PlannedFile, this: _Try) -> StoredFile:
        """One stream into one write."""
        file = planned.file
        reader = SteadyReader(
            self.means.source, file, self.means.retry, self.means.stop, self._on_retry(file)
        )
        check = Check(file)
        chunks = self._watch(file, check.through(self._slowly(reader)), check)
        stopped = self.means.stop.is_set
        held = STREAM if file.size is None else min(file.size, STREAM)
        try:
            with (
                self.means.connections.own(stopped),
                self.means.buffers.reserved(held, stopped=stopped),
            ):
                self.sink.write(planned.key, chunks, size=file.size)
        finally:
            this.is_last = reader.gave_up is not None
        return _record(planned, check.size, check.sha256, Action.FETCH)

    def _fetch_parts(self, planned: PlannedFile, this: _Try) -> StoredFile | None:
        """Parts in parallel, taken up where an earlier attempt left them; None for small files.

        Parts that turn out to be of other bytes are thrown away, and all is read anew.
        """
        upload = self._begin_upload(planned)
        if upload is None:
            return None
        try:
            return self._carry_parts(planned, upload, this)
        except MismatchError as error:
            if not upload.kept:
                raise
            message = f"what an earlier attempt left is not this file, and is fetched anew: {error}"
            self._emit("retry", planned.file, 0, message)
        this.is_last = this.stands = False
        upload = self._begin_upload(planned)
        assert upload is not None
        return self._carry_parts(planned, upload, this)

    def _begin_upload(self, planned: PlannedFile) -> Upload | None:
        size = planned.file.size
        if size is None or not self.options.parts or not isinstance(self.sink, ResumableSink):
            return None
        return self.sink.begin_upload(planned.key, size=size, identity=identity_of(planned.file))

    def _carry_parts(self, planned: PlannedFile, upload: Upload, this: _Try) -> StoredFile:
        parts = PartedFile(
            self.means,
            planned.file,
            upload,
            tell=partial(self._emit, "progress", planned.file),
            on_retry=self._on_retry(planned.file),
        )
        try:
            parts.carry()
        except BaseException as error:
            # What may help was tried within, but for an upload that is gone.
            this.is_last = not isinstance(error, UploadLostError)
            self._leave(planned, upload, parts, error)
            raise
        try:
            self._heed_stop()  # the last moment before the sink makes the bytes visible
            upload.commit()
        except BaseException as error:
            self._leave(planned, upload, parts, error)
            raise
        if parts.verified:
            stored: StoredFile | None = _record(planned, upload.size, parts.sha256, Action.FETCH)
        else:
            this.stands = True
            stored = self._read_back(planned, Action.FETCH, told=upload.size)
        if stored is not None:
            return replace(stored, kept=parts.kept)
        self._heed_stop()  # it is another's by now where the claim is lost
        self.sink.delete([planned.key])
        raise MismatchError(f"{planned.file.path}: what was stored is not what the source has")

    def _leave(
        self, planned: PlannedFile, upload: Upload, parts: PartedFile, error: BaseException
    ) -> None:
        """Keep what the next attempt can use; wrong bytes, and what cannot be told, go."""
        useless = isinstance(error, (MismatchError, SourceChangedError, UploadLostError))
        if useless or identity_of(planned.file) is None:
            parts.when_at_rest(upload.discard)
        else:
            parts.when_at_rest(upload.keep)

    def _read_back(
        self, planned: PlannedFile, action: Action = Action.PRESENT, *, told: int = 0
    ) -> StoredFile | None:
        """What stands there already, verified by reading it; None if it is not the file.

        `told` are the bytes of which progress was told before.
        """
        check = Check(planned.file)
        stands = check.through(self.sink.read(planned.key))
        try:
            for _ in self._watch(planned.file, stands, check, told=told):
                pass
        except (IntegrityError, NotFoundError):
            return None
        return _record(planned, check.size, check.sha256, action)

    def _copy(self, planned: PlannedFile) -> StoredFile | None:
        """A copy within the store of a file with the same sha256; None if that is gone."""
        assert planned.copy_from is not None
        assert planned.file.sha256 is not None
        self._heed_stop()
        try:
            self.sink.copy(planned.copy_from, planned.key)
        except NotFoundError:
            return None
        return self._read_back(planned) and _record(
            planned, planned.file.size or 0, planned.file.sha256, Action.COPY
        )

    def _hand_over(self, planned: PlannedFile) -> StoredFile | None:
        """A copy that the store makes of the source's own file; None where it does not."""
        file = planned.file
        assert file.sha256 is not None
        self._heed_stop()
        try:
            if not self.means.source.copy_to(file, self.sink, planned.key):
                return None
        except NotFoundError:
            return None
        stored = self.sink.stat(planned.key)
        if stored is None or file.size not in (None, stored.size):
            return None
        if self.options.read_copies and self._read_back(planned) is None:
            return None
        return _record(planned, stored.size, file.sha256, Action.COPY)

    def _watch(
        self, file: RemoteFile, buffers: Iterable[Buffer], check: Check, *, told: int = 0
    ) -> Iterator[Buffer]:
        due = time.monotonic() + PROGRESS_EVERY
        for buffer in buffers:
            self._heed_stop()
            yield buffer
            if time.monotonic() >= due:
                self._emit("progress", file, max(told, check.size))
                due = time.monotonic() + PROGRESS_EVERY
        self._heed_stop()  # the last moment before the sink makes the bytes visible

    def _slowly(self, buffers: Iterable[Buffer]) -> Iterator[Buffer]:
        for buffer in buffers:
            yield buffer
            self.means.slow_down(len(buffer))

    def _heed_stop(self) -> None:
        if self.means.stop.is_set():
            raise CancelledError("stopped")

    def _on_retry(self, file: RemoteFile) -> Callable[[TransientError, int, float], None]:
        def note(error: TransientError, offset: int, delay: float) -> None:
            if self.means.stop.is_set():  # who was stopped tries nothing again
                return
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


def identity_of(file: RemoteFile) -> str | None:
    """What tells the content apart from any other; None where only its name and size are known."""
    if file.sha256 is not None:
        return f"sha256:{file.sha256}"
    return None if file.git_sha1 is None else f"git-sha1:{file.git_sha1}"


def _record(planned: PlannedFile, size: int, sha256: str, action: Action) -> StoredFile:
    return StoredFile(
        path=planned.file.path, key=planned.key, size=size, sha256=sha256, action=action
    )
