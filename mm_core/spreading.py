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

from mm_core.exceptions import CancelledError, SourceChangedError, TransientError
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


def could_be_spread(plan: Plan, *, sink: Sink, at_least: int) -> bool:
    """Whether `plan` fetches a file of `at_least` bytes into a sink that shares its uploads."""
    return bool(_shared(sink)) and any(_large(plan, at_least))


def begin_ranges(
    request: Request,
    plan: Plan,
    source: Source,
    sink: Sink,
    *,
    at_least: int,
    wanted: Callable[[str], bool],
) -> Iterator[FileRange]:
    """Begin the uploads of all such files whose content is `wanted`, in ranges.

    Ranges have about a quarter of `at_least`, so that there are some for several jobs. Who
    calls this holds the claim of the version: what others left under the keys is given up.
    """
    for planned in _large(plan, at_least):
        identity, upload = identity_of(planned.file), None
        if identity is not None and source.splits(planned.file) and wanted(identity):
            upload = _begun(planned, _shared(sink), identity)
        if identity is None or upload is None or upload.id is None:
            continue
        for first, last in _cut(upload, at_least // _RANGES):
            yield FileRange(
                request=request,
                model_id=plan.model_id,
                path=planned.file.path,
                key=planned.key,
                size=upload.size,
                identity=identity,
                upload=upload.id,
                first=first,
                last=last,
            )


def _shared(sink: Sink) -> ResumableSink | None:
    return sink if isinstance(sink, ResumableSink) and sink.shares_uploads else None


def _large(plan: Plan, at_least: int) -> Iterator[PlannedFile]:
    for planned in plan.files:
        if (planned.file.size or 0) >= at_least and planned.action is Action.FETCH:
            yield planned


def _begun(planned: PlannedFile, sink: ResumableSink | None, identity: str) -> Upload | None:
    """The upload of a file, left as it is for others to join; None where it needs none."""
    if sink is None or planned.file.size is None:
        return None
    return sink.begin_upload(planned.key, size=planned.file.size, identity=identity)


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

    def __init__(self, tell: Callable[[TransferEvent], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._done: dict[tuple[str, str], dict[int, int]] = {}

    def tell(self, piece: FileRange, event: TransferEvent) -> None:
        """Tell of what happened to `piece`; of its progress with that of the others."""
        if event.kind == "progress":
            with self._lock:
                ranges = self._done.setdefault((piece.model_id, piece.path), {})
                ranges[piece.first] = max(event.done, ranges.get(piece.first, 0))
                event = replace(event, done=sum(ranges.values()))
        self._tell(event)


@dataclass(frozen=True, kw_only=True)
class RangeJob:
    """One `FileRange`, as a job that any executor can carry out; twice is once.

    In this process `manager` does it, and `gathered` hears of it; pickled, it leaves both behind.
    """

    piece: FileRange
    to: str | None
    home: Home
    manager: ModelManager | None = field(default=None, compare=False, repr=False)
    gathered: _Gathered | None = field(default=None, compare=False, repr=False)

    def __call__(self, cancelled: threading.Event) -> int:
        """Do it; how many bytes it moved."""
        if self.manager is not None:
            return self.manager.carry_range(
                self.piece, to=self.to, cancelled=cancelled, on_event=self._tell
            )
        with self.home.open() as manager:
            return manager.carry_range(self.piece, cancelled=cancelled)

    def heard(self, event: Mapping[str, Any]) -> None:
        """Something happened to it elsewhere: told here, with what the others have done."""
        self._tell(TransferEvent(**event))

    def _tell(self, event: TransferEvent) -> None:
        if self.gathered is not None:
            self.gathered.tell(self.piece, event)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "manager": None, "gathered": None}


def spread(
    manager: ModelManager, pulls: Sequence[PullJob], executor: Executor, cancelled: threading.Event
) -> None:
    """Have `executor` bring the large files of `pulls` in ranges, as far as that can be.

    Of files with the same content one comes. What cannot come in ranges is left to the pulls,
    and so are the errors: none is raised but `CancelledError`.
    """
    from mm_core.pulling import options_of

    at_least = executor.split_bytes
    if at_least is None or not pulls:
        return
    gathered, seen = _Gathered(manager.relay), set[tuple[str | None, str]]()

    def is_worth_it(pull: PullJob) -> bool:
        try:
            plan = manager.plan(pull.request.url, to=pull.to, **options_of(pull.request))
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the pull will tell
            logger.debug("not in ranges: %s", error)
            return False
        return could_be_spread(plan, sink=manager.sink(pull.to), at_least=at_least)

    def begin(pull: PullJob) -> tuple[FileRange, ...]:
        def wanted(content: str) -> bool:
            before = len(seen)
            seen.add((pull.to, content))
            return len(seen) > before

        begun = manager.ranges(
            pull.request, to=pull.to, at_least=at_least, wanted=wanted, cancelled=cancelled
        )
        try:
            return claims.enter_context(begun)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # likewise
            logger.debug("not in ranges: %s", error)
            return ()

    with contextlib.ExitStack() as claims:
        worth = run_parallel(is_worth_it, pulls, jobs=_PLANS, cancelled=Stop(cancelled))
        jobs = [
            RangeJob(piece=piece, to=pull.to, home=pull.home, manager=manager, gathered=gathered)
            for pull, large in zip(pulls, worth, strict=True)
            if large
            for piece in begin(pull)  # in their order: the first of equal files is pulled first
        ]
        if not jobs:
            return
        ended = claims.enter_context(contextlib.closing(executor.run(jobs, cancelled=cancelled)))
        for one in ended:
            if one.error is not None and not isinstance(one.error, CancelledError):
                piece = jobs[one.index].piece
                logger.warning("A range of %s is left to the pull: %s", piece.path, one.error)
