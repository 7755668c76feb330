"""One large file on its way: ranges read in parallel, hashed in order, written in parallel."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from mmap import mmap
from typing import NamedTuple

from mm_core.exceptions import (
    CancelledError,
    MMError,
    StorageError,
    TransientError,
)
from mm_core.parallel import GRACE
from mm_core.schemas import RemoteFile
from mm_core.sink import Upload
from mm_core.source import Source
from mm_core.transfer.buffers import Buffers
from mm_core.transfer.connections import Connections
from mm_core.transfer.hashing import Check
from mm_core.transfer.rate import RateLimit
from mm_core.transfer.retry import OnRetry, RetryPolicy, SteadyRange, pause, steadily
from mm_core.transfer.writers import Writers

SLICE = 1 << 20
"""Bytes that are read at once, to be hashed while they are in the processor's cache."""

LONG_RUN = 64 << 20
"""Bytes that one request asks for where nobody else could read a piece of the file meanwhile."""

SLOW_ANSWER = 0.01
"""Seconds to an answer from which on it is worth asking for the next run before one has ended."""

PROGRESS_EVERY = 0.2
"""Seconds between two progress events of one file."""

_POLL = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What all files of one transfer share."""

    source: Source
    retry: RetryPolicy
    stop: threading.Event
    buffers: Buffers
    connections: Connections
    writers: Writers
    rate: RateLimit | None = None

    def slow_down(self, count: int) -> None:
        """Keep the rate limit, if there is one, after `count` bytes."""
        if self.rate is not None:
            pause(self.rate.spend(count), self.stop)

    @property
    def slice(self) -> int:
        """Bytes to ask for at once."""
        return SLICE if self.rate is None else min(SLICE, self.rate.slice)


@dataclass(slots=True, kw_only=True)
class _Part:
    number: int
    buffer: mmap
    view: memoryview
    holders: int
    hashed: int = 0


class _Next(NamedTuple):
    """The run that a lane reads next, and the request for it, if it was made already."""

    run: range
    reader: SteadyRange | None


@dataclass(slots=True, kw_only=True)
class _State:
    """What the threads of one file share, under one lock."""

    following: int = 0
    turn: int = 0
    left: int = 0
    busy: int = 0
    unwritable: bool = False
    at_rest: Callable[[], None] | None = None
    error: BaseException | None = None
    read: dict[int, _Part] = field(default_factory=dict)


class PartedFile:
    """Carries one file into an `Upload`. `error` tells what ended it, if anything did.

    Each thread that reads takes the next run of parts. A part is written as soon
    as it is read, and hashed when all before it were: by the thread that reads
    it, slice by slice, when its turn has come, else by the one that closes the
    gap. Its buffer is free when both are done. Where an earlier attempt kept
    parts that cannot be read before the upload is committed, nothing is hashed:
    `verified` is False, and the caller reads the whole file back. `kept` are the
    bytes of the parts that were taken up.
    """

    def __init__(
        self,
        means: Means,
        file: RemoteFile,
        upload: Upload,
        *,
        tell: Callable[[int], None],
        on_retry: OnRetry,
    ) -> None:
        self._means = means
        self._file = file
        self._upload = upload
        self._on_retry = on_retry
        self._count = -(-upload.size // upload.part_size)
        self._check = Check(file)
        self._changed = threading.Condition()
        self.verified = upload.readable or not upload.kept
        self._skipped = frozenset() if self.verified else upload.kept
        self._state = _State(left=self._count - len(self._skipped))
        self.kept = sum(self._length(number) for number in upload.kept)
        self._on_bytes = _Meter(tell, 0 if self.verified else self.kept)

    @property
    def sha256(self) -> str:
        """The sha256 of the whole file, where `verified`."""
        return self._check.sha256

    def carry(self) -> None:
        """Read, hash and write all parts; raise what went wrong first.

        Raises `MismatchError` for bytes that are not what the source states.
        After an error threads may still be busy: see `when_at_rest`.
        """
        self._enter()
        try:
            with self._means.connections.own(self._stopped):
                self._lane(extra=False)
        except CancelledError as error:
            self._fail(error)
        finally:
            self._leave()
        with self._changed:
            while self._state.left and not self._stopped():
                self._changed.wait(_POLL)
        if self._state.left:
            self._fail(CancelledError("stopped"))
            self._drop_read()
        if self._state.error is not None:
            raise self._state.error
        if self.verified:
            self._check.finish()

    def when_at_rest(self, action: Callable[[], None]) -> None:
        """Do `action` when no thread touches the upload any more: now, after a moment, or later.

        Later it is done by the last thread that was stuck in it.
        """
        deadline = time.monotonic() + GRACE / 2
        with self._changed:
            while self._state.busy and time.monotonic() < deadline:
                self._changed.wait(_POLL)
            if self._state.busy:
                self._state.at_rest = action
                return
        action()

    # -- reading ---------------------------------------------------------------------

    def _lane(self, *, extra: bool) -> None:
        """Take runs of parts until none is left, or the file has failed.

        Where an answer takes its time, the next run is asked for shortly before
        the end of one, so that the line is not idle for a round trip.
        """
        try:
            following: _Next | None = _Next(self._next_run(), None)
            while following is not None and following.run:
                run, reader = following
                following = None
                if run[0] in self._upload.kept:
                    self._take_up(run)
                else:
                    following = self._fetch(run, reader or self._range(run), extra=extra)
                if following is None and not (extra and self._means.connections.wanted):
                    following = _Next(self._next_run(), None)
        except BaseException as error:  # noqa: BLE001  # `carry` raises it
            self._fail(error)

    def _extra_lane(self) -> None:
        try:
            if self._means.connections.take_extra():
                try:
                    self._lane(extra=True)
                finally:
                    self._means.connections.give_back()
        finally:
            self._leave()

    def _widen(self) -> None:
        """Let idle connections read further runs; called once the source has shown what it can."""
        means = self._means
        if not means.source.splits(self._file):
            return
        rest = self._count - self._state.following
        if rest <= 0:
            return
        for _ in range(min(means.connections.spare, -(-rest // self._run_length(rest)))):
            self._enter()
            run = contextvars.copy_context().run
            lane = threading.Thread(
                target=run, args=(self._extra_lane,), name="mm-read", daemon=True
            )
            try:
                lane.start()
            except RuntimeError:  # the system has no thread to give: it goes without
                self._leave()
                return

    def _next_run(self) -> range:
        """The next parts that nobody reads yet: all of them to be fetched, or all kept."""
        kept = self._upload.kept
        with self._changed:
            if self._stopped():
                return range(0)
            state = self._state
            while state.following < self._count and state.following in self._skipped:
                state.following += 1
            start = stop = state.following
            limit = min(self._count, start + self._run_length(self._count - start))
            while stop < limit and (stop in kept) == (start in kept):
                stop += 1
            state.following = stop
            return range(start, stop)

    def _run_length(self, rest: int) -> int:
        """How many of the `rest` parts one request asks for."""
        means = self._means
        if not means.source.splits(self._file):
            return rest
        share = means.buffers.budget // means.connections.count
        length = LONG_RUN if means.connections.crowded else share
        return max(1, length // self._upload.part_size)

    def _range(self, run: range) -> SteadyRange:
        """One request for a run of parts."""
        return SteadyRange(
            self._means.source,
            self._file,
            run.start * self._upload.part_size,
            min(run.stop * self._upload.part_size, self._upload.size),
            policy=self._means.retry,
            cancelled=self._means.stop,
            on_retry=self._on_retry,
        )

    def _fetch(self, run: range, reader: SteadyRange, *, extra: bool) -> _Next | None:
        """Read a run of parts. What this lane has to read next, if that was settled on the way.

        A lane that is not `extra` lets others join once bytes came.
        """
        following: _Next | None = None
        try:
            for number in run:
                if number == run[-1]:
                    following = self._ask_ahead(reader, extra=extra)
                self._read_part(number, reader, widen=not extra and number == run.start)
        except BaseException:
            if following is not None and following.reader is not None:
                following.reader.close()
            raise
        finally:
            reader.close()
        return following

    def _ask_ahead(self, reader: SteadyRange, *, extra: bool) -> _Next | None:
        """The next run, asked for already, where the answer to `reader` took its time."""
        if reader.waited < SLOW_ANSWER or (extra and self._means.connections.wanted):
            return None
        run = self._next_run()
        if not run:
            return None
        if run[0] in self._upload.kept:
            return _Next(run, None)
        ahead = self._range(run)
        ahead.ask_ahead()
        ahead.waited = reader.waited
        return _Next(run, ahead)

    def _read_part(self, number: int, reader: SteadyRange, *, widen: bool) -> None:
        self._means.writers.wait_for_room(self._stopped)
        part = self._new_part(number, holders=2 if self.verified else 1)
        try:
            view, done, size = part.view, 0, self._means.slice
            while done < len(view):
                count = reader.readinto(view[done : done + size])
                if widen and not done:
                    self._widen()
                done += count
                self._heed()
                if self.verified and self._state.turn == number:
                    self._check.update(view[part.hashed : done])
                    part.hashed = done
                self._on_bytes(count)
                self._means.slow_down(count)
        except BaseException:
            self._means.buffers.give(part.buffer)
            raise
        self._enter()
        self._means.writers.submit(partial(self._write, part))
        if self.verified:
            self._hash_in_turn(part)

    def _take_up(self, run: range) -> None:
        """Read what an earlier attempt kept: that is the one time it is read back."""
        for number in run:
            part = self._new_part(number, holders=1)
            try:
                self._heed()
                self._upload.read_part(number, part.view)
            except (StorageError, TransientError):  # it is not whole after all
                self._means.buffers.give(part.buffer)
                self.kept -= len(part.view)
                self._fetch_again(number)
            except BaseException:
                self._means.buffers.give(part.buffer)
                raise
            else:
                self._on_bytes(len(part.view))
                self._hash_in_turn(part)

    def _fetch_again(self, number: int) -> None:
        reader = self._range(range(number, number + 1))
        try:
            self._read_part(number, reader, widen=False)
        finally:
            reader.close()

    def _new_part(self, number: int, *, holders: int) -> _Part:
        size = self._upload.part_size
        buffer = self._means.buffers.take(
            size,
            its_turn=lambda: not self.verified or self._state.turn >= number,
            stopped=self._stopped,
        )
        view = memoryview(buffer)[: self._length(number)]
        return _Part(number=number, buffer=buffer, view=view, holders=holders)

    def _length(self, number: int) -> int:
        size = self._upload.part_size
        return min(size, self._upload.size - number * size)

    # -- hashing and writing ---------------------------------------------------------

    def _hash_in_turn(self, part: _Part) -> None:
        """Hash `part` if its turn has come, and all that wait behind it; else leave it to others.

        Only one thread hashes at a time: the one that finds the part whose turn it is.
        """
        state = self._state
        with self._changed:
            failed = state.error is not None
            if not failed:
                state.read[part.number] = part
        if failed:
            self._release(part)
            return
        while True:
            with self._changed:
                found = state.read.pop(state.turn, None)
            if found is None:
                return
            try:
                self._check.update(found.view[found.hashed :])
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                self._release(found)
            with self._changed:
                state.turn += 1
            self._means.buffers.turn()

    def _write(self, part: _Part) -> None:
        """Write a part, with tries of its own: its bytes are still there.

        Also where reading has failed meanwhile, so that these are not read again.
        """
        offset = part.number * self._upload.part_size
        try:
            steadily(
                partial(self._upload.write_part, part.number, part.view),
                policy=self._means.retry,
                cancelled=self._means.stop,
                on_retry=lambda error, delay: self._on_retry(error, offset, delay),
                given_up=lambda: self._state.unwritable or self._means.stop.is_set(),
            )
        except BaseException as error:  # noqa: BLE001  # `carry` raises it
            self._state.unwritable = True
            self._fail(error)
        finally:
            self._release(part)
            self._leave()

    def _release(self, part: _Part) -> None:
        with self._changed:
            part.holders -= 1
            if part.holders:
                return
            self._state.left -= 1
            self._changed.notify_all()
        self._means.buffers.give(part.buffer)

    # -- how it ends -----------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._state.error is None or isinstance(self._state.error, CancelledError):
                self._state.error = error
            self._changed.notify_all()
        self._means.buffers.turn()

    def _stopped(self) -> bool:
        return self._state.error is not None or self._means.stop.is_set()

    def _heed(self) -> None:
        if self._stopped():
            raise CancelledError("stopped")

    def _drop_read(self) -> None:
        """Give back the buffers of parts whose turn will never come."""
        with self._changed:
            waiting = list(self._state.read.values())
            self._state.read.clear()
        for part in waiting:
            self._release(part)

    def _enter(self) -> None:
        with self._changed:
            self._state.busy += 1

    def _leave(self) -> None:
        with self._changed:
            self._state.busy -= 1
            self._changed.notify_all()
            action = None if self._state.busy else self._state.at_rest
        if action is not None:
            with contextlib.suppress(MMError):  # there is nobody left to tell
                action()


class _Meter:
    """Counts the bytes of one file, which come on several threads; tells of them now and then."""

    def __init__(self, tell: Callable[[int], None], done: int) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._done = done
        self._due = time.monotonic() + PROGRESS_EVERY

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now < self._due:
                return
            self._due = now + PROGRESS_EVERY
            done = self._done
        self._tell(done)
