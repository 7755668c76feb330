"""Large files in ranges: several jobs write parts of one upload, and a pull ends it.

The parts are what a pull that was killed would have left: the pull that comes after takes
them up, reads the whole file back, and compares its hash, as it always does with such parts
(ADR 32). So whatever becomes of a range, the pull makes it good.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mm_core.exceptions import CancelledError, MMError, SourceChangedError, TransientError
from mm_core.executor import Executor
from mm_core.parallel import run_parallel
from mm_core.redaction import redact
from mm_core.schemas import Action, Plan, PlannedFile, Request, TransferEvent
from mm_core.sink import ResumableSink, Sink, Upload
from mm_core.source import Source
from mm_core.transfer.engine import TransferOptions, identity_of
from mm_core.transfer.ranges import carry_range
from mm_core.transfer.stop import Stop

if TYPE_CHECKING:
    from mm_core.manager import ModelManager
    from mm_core.pulling import Home, PullJob

logger = logging.getLogger(__name__)

_PLANS = 8
_RANGES = 4
"""Ranges of the smallest file that is parted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Some parts of one file on its way: the numbers from `first` to before `last`, of `upload`."""

    request: Request
    model_id: str
    path: str
    key: str
    size: int
    identity: str
    upload: str
    first: int
    last: int


def begin_ranges(
    request: Request, plan: Plan, source: Source, sink: Sink, *, at_least: int
) -> Iterator[FileRange]:
    """Begin the uploads of all files of `at_least` bytes that are to be fetched, in ranges.

    None where the sink lets nobody else write to an upload. Ranges have about a quarter of
    `at_least`, so that there are some for several jobs.
    """
    if not isinstance(sink, ResumableSink) or not sink.shares_uploads:
        return
    for planned in plan.files:
        if (planned.file.size or 0) >= at_least and planned.action is Action.FETCH:
            upload = _begun(planned, source, sink)
            if upload is None or upload.id is None:
                continue
            for first, last in _cut(upload, at_least // _RANGES):
                yield FileRange(
                    request=request,
                    model_id=plan.model_id,
                    path=planned.file.path,
                    key=planned.key,
                    size=upload.size,
                    identity=identity_of(planned.file) or "",
                    upload=upload.id,
                    first=first,
                    last=last,
                )


def _begun(planned: PlannedFile, source: Source, sink: ResumableSink) -> Upload | None:
    """The upload of a file; None for one of which no ranges can be brought.

    It is left as it is, for others to join: who began it has nothing to do with it any more.
    """
    file, identity = planned.file, identity_of(planned.file)
    if identity is None or file.size is None or not source.splits(file):
        return None
    return sink.begin_upload(planned.key, size=file.size, identity=identity)


def _cut(upload: Upload, length: int) -> Iterator[tuple[int, int]]:
    """The parts that are missing, in runs of about `length` bytes."""
    count, step = -(-upload.size // upload.part_size), max(1, length // upload.part_size)
    for first in range(0, count, step):
        last = min(first + step, count)
        if not upload.kept.issuperset(range(first, last)):
            yield first, last


def carry_piece(
    piece: FileRange,
    request: Request,
    source: Source,
    sink: Sink,
    *,
    options: TransferOptions,
    on_event: Callable[[TransferEvent], None],
    stop: threading.Event,
) -> int:
    """Write the parts of `piece` that are missing. Raises as `ModelManager.carry_range`."""
    files = {file.path: file for file in source.snapshot(request).files}
    file = files.get(piece.path)
    if file is None or identity_of(file) != piece.identity:
        raise SourceChangedError(f"{piece.path} is another file at its source by now")
    assert isinstance(sink, ResumableSink)

    def tell(kind: str, done: int, message: str | None = None) -> None:
        on_event(
            TransferEvent(
                kind=kind,
                model_id=piece.model_id,
                path=piece.path,
                done=done,
                total=piece.size,
                message=message,
            )
        )

    def retried(error: TransientError, offset: int, delay: float) -> None:
        if not stop.is_set():
            tell("retry", offset, redact(f"at byte {offset}, in {delay:.1f} s: {error}"))

    upload = sink.join_upload(piece.key, size=piece.size, id=piece.upload)
    try:
        return carry_range(
            source, file, upload, range(piece.first, piece.last),
            options=options, stop=stop, on_bytes=partial(tell, "progress"), on_retry=retried,
        )  # fmt: skip
    finally:
        upload.keep()


class _Gathered:
    """How much of each file came by all its ranges together, told as one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: dict[tuple[str, str], dict[int, int]] = {}

    def add(self, event: TransferEvent, first: int) -> TransferEvent:
        with self._lock:
            ranges = self._done.setdefault((event.model_id, event.path or ""), {})
            ranges[first] = max(event.done, ranges.get(first, 0))
            return replace(event, done=sum(ranges.values()))


@dataclass(frozen=True, kw_only=True)
class RangeJob:
    """One `FileRange`, as a job that any executor can carry out; twice is once."""

    piece: FileRange
    to: str | None
    home: Home
    manager: ModelManager | None = field(default=None, compare=False, repr=False)
    gathered: _Gathered | None = field(default=None, compare=False, repr=False)

    def __call__(self, cancelled: threading.Event) -> int:
        """Do it; how many bytes it moved."""
        if self.manager is not None:
            return self.manager.carry_range(self.piece, to=self.to, cancelled=cancelled)
        with self.home.open() as manager:
            return manager.carry_range(self.piece, cancelled=cancelled)

    def heard(self, event: Mapping[str, Any]) -> None:
        """Something happened to it elsewhere: told here, with what the others have done."""
        if self.manager is not None and self.gathered is not None:
            told = TransferEvent(**event)
            if told.kind == "progress":
                told = self.gathered.add(told, self.piece.first)
            self.manager.relay(told)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "manager": None, "gathered": None}


def spread(
    manager: ModelManager, pulls: Sequence[PullJob], executor: Executor, cancelled: threading.Event
) -> None:
    """Have `executor` bring the large files of `pulls` in ranges, as far as that can be.

    What cannot is left to the pulls: no error is raised but `CancelledError`.
    """
    at_least = executor.split_bytes
    if at_least is None or not pulls:
        return

    def begin(pull: PullJob) -> list[RangeJob]:
        try:
            pieces = manager.begin_ranges(pull.request, to=pull.to, at_least=at_least)
        except CancelledError:
            raise
        except MMError as error:  # the pull will tell
            logger.debug("not in ranges: %s", error)
            return []
        return [
            RangeJob(piece=piece, to=pull.to, home=pull.home, manager=manager, gathered=gathered)
            for piece in pieces
        ]

    gathered = _Gathered()
    begun = run_parallel(begin, pulls, jobs=_PLANS, cancelled=Stop(cancelled))
    jobs = [job for some in begun for job in some]
    if not jobs:
        return
    with contextlib.closing(executor.run(jobs, cancelled=cancelled)) as ended:
        for one in ended:
            if one.error is not None and not isinstance(one.error, CancelledError):
                logger.warning("A range of %s is left to the pull: %s", jobs[one.index].piece.path,
                               one.error)  # fmt: skip
