"""A pull's claim on a version: waited for, and given back when the pull ends badly."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from mm_core.exceptions import CancelledError, MMError, PolicyError, TransientError
from mm_core.redaction import redact
from mm_core.registry import Claim, ModelRegistry
from mm_core.registry.claims import steady_seconds
from mm_core.registry.deadline import Deadline
from mm_core.schemas import (
    ModelEntry,
    ModelStatus,
    Plan,
    StoredFile,
    TransferEvent,
    UnfinishedUpload,
)
from mm_core.sink import ResumableSink, Sink

HASTE = 0.3
"""Seconds that an interrupted pull takes to tell the registry of its end."""

PATIENCE = 60.0
"""Seconds for which a store may fail before a refused model is left to `gc`."""

BATCH = 500
"""Keys that are deleted between two looks at the clock."""

FRESH = 15.0
"""Seconds for which a pull that mends trusts what it knows of the version."""


def begin(
    registry: ModelRegistry,
    plan: Plan,
    *,
    wait: bool,
    on_event: Callable[[TransferEvent], None],
    cancelled: threading.Event,
) -> Claim | ModelEntry:
    """`ModelRegistry.begin` for what `plan` would make; waiting is an event."""

    def on_wait(entry: ModelEntry) -> None:
        name = f"{plan.model_id} {plan.version}"
        message = f"{name} is in the hands of another process; waiting"
        if entry.status is ModelStatus.SWEEPING:
            message = f"{name} is being deleted by `mm gc`; waiting"
        on_event(TransferEvent(kind="waiting", model_id=plan.model_id, message=message))

    return registry.begin(
        plan.model_id,
        plan.version,
        model_type=plan.model_type,
        source=plan.snapshot.source,
        wait=wait,
        on_wait=on_wait,
        cancelled=cancelled,
    )


@contextlib.contextmanager
def abandoned_on_error(registry: ModelRegistry, claim: Claim) -> Iterator[None]:
    """Give `claim` back if what is done under it fails; the first error is the one to tell.

    Where the claim was lost meanwhile, that is said, as a `TransientError`. A user
    who interrupts does not wait for a store that does not answer: the claim of a
    process that has ended is taken over.
    """
    try:
        yield
    except BaseException as error:
        reason = redact(str(error)).partition("\n")[0] or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            _give_back_in_haste(registry, claim, reason)
        else:
            _give_back(registry, claim, reason)
        if isinstance(error, CancelledError) and claim.lost.is_set():
            raise TransientError(
                f"the backend was out of reach for so long that the claim on {claim.model_id} "
                f"{claim.version} is lost; another process may be fetching it now",
                hint="pull again: what is stored is found",
            ) from error
        raise


@contextlib.contextmanager
def given_back(registry: ModelRegistry, claim: Claim, reason: str) -> Iterator[None]:
    """Hold `claim` for the block, and then give it back, whatever came: another claims it next."""
    try:
        yield
    except KeyboardInterrupt:
        _give_back_in_haste(registry, claim, reason)
        raise
    except BaseException:
        _give_back(registry, claim, reason)
        raise
    _give_back(registry, claim, reason)


def leave_only(registry: ModelRegistry, claim: Claim, stored: Sequence[StoredFile]) -> None:
    """Let the claimed folder, which loaders are given, hold the files in `stored` and no others.

    `CancelledError` if the claim is not ours any more: then nothing is touched.
    `TransientError` if a file has vanished meanwhile, or is not of its size.
    """
    sink = registry.sink
    wanted = {file.key: file.size for file in stored}
    found = {there.key: there.size for there in sink.list(claim.prefix)}
    wrong = [(key, size) for key, size in wanted.items() if found.get(key) != size]
    gone = [key for key, size in wrong if not _is_there(sink, key, size)]
    strays = [key for key in found if key not in wanted]
    if strays and not registry.holds(claim):
        claim.lost.set()
    if claim.lost.is_set():
        raise CancelledError("stopped")
    if gone:
        raise TransientError(
            f"{gone[0]} was stored, and does not stand any more as it was",
            hint="pull again: what is stored is found",
        )
    if strays:
        sink.delete(strays)


@contextlib.contextmanager
def gone_if_refused(registry: ModelRegistry, claim: Claim) -> Iterator[None]:
    """Let a `PolicyError` leave nothing in the claimed folder: it passes when all is deleted.

    What earlier attempts left goes as well, parts included. Where that cannot be done
    now, the error's hint says so; the next attempt meets what is left and is refused
    like this one, or `gc` takes it.
    """
    try:
        yield
    except PolicyError as error:
        try:
            left = Deadline(PATIENCE).persist(lambda: _delete_all(registry, claim))
        except MMError as failure:
            left = redact(str(failure))
        if left:
            error.hint = f"what was stored could not be deleted: {left}; `mm gc` will take it"
        raise


def _delete_all(registry: ModelRegistry, claim: Claim) -> str | None:
    """Empty the folder of `claim`, as long as it is ours; why something is left, if it is."""
    sink = registry.sink
    keys = [stored.key for stored in sink.list(claim.prefix)]
    if not registry.holds(claim):
        claim.lost.set()
    for start in range(0, len(keys), BATCH):
        if claim.lost.is_set():
            return "another process has taken the version over"
        sink.delete(keys[start : start + BATCH])
    if not isinstance(sink, ResumableSink):
        return None
    held = [upload for upload in sink.unfinished(claim.prefix) if not _discard(sink, claim, upload)]
    return f"another process writes {held[0].key}" if held else None


def _discard(sink: ResumableSink, claim: Claim, upload: UnfinishedUpload) -> bool:
    return not claim.lost.is_set() and sink.discard_unfinished(upload)


def _is_there(sink: Sink, key: str, size: int) -> bool:
    stored = sink.stat(key)
    return stored is not None and stored.size == size


class Changed(threading.Event):
    """Set, for good, once a version is not AVAILABLE any more with the files that it had.

    Who asks gets an answer that is at most `FRESH` seconds old: the registry is
    asked again where it is older.
    """

    def __init__(self, registry: ModelRegistry, entry: ModelEntry) -> None:
        super().__init__()
        self._registry = registry
        self._entry = entry
        self._asked = steady_seconds()

    def is_set(self) -> bool:
        """Whether it has changed, as far as is known."""
        while (now := steady_seconds()) - self._asked > FRESH and not super().is_set():
            there = self._registry.get_model(self._entry.model_id, self._entry.version)
            if there is None or _what_stands(there) != _what_stands(self._entry):
                self.set()
            self._asked = now
        return super().is_set()


@contextlib.contextmanager
def as_long_as_it_stands(registry: ModelRegistry, entry: ModelEntry) -> Iterator[Changed]:
    """What to heed while files of `entry` are mended, for which there is no claim.

    `TransientError` where it is removed or replaced meanwhile: what stands is not ours to mend.
    """
    changed = Changed(registry, entry)
    try:
        yield changed
    except CancelledError as error:
        if threading.Event.is_set(changed):
            raise TransientError(
                f"{entry.model_id} {entry.version} was removed while it was being mended",
                hint="pull it again",
            ) from error
        raise


def _what_stands(entry: ModelEntry) -> tuple[ModelStatus, str | None]:
    return entry.status, entry.manifest


def _give_back(registry: ModelRegistry, claim: Claim, reason: str) -> None:
    with contextlib.suppress(MMError):
        registry.abandon(claim, reason)


def _give_back_in_haste(registry: ModelRegistry, claim: Claim, reason: str) -> None:
    work = threading.Thread(target=_give_back, args=(registry, claim, reason), daemon=True)
    work.start()
    work.join(HASTE)
