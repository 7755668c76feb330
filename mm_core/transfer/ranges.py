"""A part of one large file, carried into an upload that others write to at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from mm_core.exceptions import CancelledError
from mm_core.parallel import run_parallel
from mm_core.schemas import RemoteFile
from mm_core.sink import Upload
from mm_core.source import Source
from mm_core.transfer.buffers import Buffers
from mm_core.transfer.engine import TransferOptions
from mm_core.transfer.parts import PROGRESS_EVERY, SLICE
from mm_core.transfer.retry import OnRetry, SteadyRange, pause, steadily

_LANES = 4
"""Requests at once, where the budget of connections allows."""


def carry_range(
    source: Source,
    file: RemoteFile,
    upload: Upload,
    numbers: Sequence[int],
    *,
    options: TransferOptions,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
    on_retry: OnRetry,
) -> int:
    """Write those of the parts `numbers` that `upload` has not kept; how many bytes they have.

    Nothing is verified here: only who has the whole file can. `on_bytes` is told, from time to
    time, how many bytes came by then. The upload is left open, whatever happens.

    Raises `TransientError` when retries are used up, `UploadLostError` where the upload is gone,
    `CancelledError`, and the final errors of source and sink.
    """
    missing = [number for number in numbers if number not in upload.kept]
    if not missing:
        return 0
    lanes = max(1, min(_LANES, options.connections, options.memory // (2 * upload.part_size)))
    share = -(-len(missing) // lanes)
    runs = [
        run for at in range(0, len(missing), share) for run in _joined(missing[at : at + share])
    ]
    work = _Work(
        source=source,
        file=file,
        upload=upload,
        options=options,
        stop=stop,
        on_bytes=on_bytes,
        on_retry=on_retry,
    )
    run_parallel(work.carry, runs, jobs=lanes, cancelled=stop)
    on_bytes(work.done)
    return work.done


class _Work:
    def __init__(
        self,
        *,
        source: Source,
        file: RemoteFile,
        upload: Upload,
        options: TransferOptions,
        stop: threading.Event,
        on_bytes: Callable[[int], None],
        on_retry: OnRetry,
    ) -> None:
        self.done = 0
        self._source, self._file, self._upload = source, file, upload
        self._options, self._stop = options, stop
        self._on_bytes, self._on_retry = on_bytes, on_retry
        self._buffers = Buffers(options.memory)
        self._slice = SLICE if options.rate is None else min(SLICE, options.rate.slice)
        self._lock = threading.Lock()
        self._due = time.monotonic() + PROGRESS_EVERY

    def carry(self, run: range) -> None:
        """One request for a run of parts; each is written when it is whole."""
        size = self._upload.part_size
        start, end = run.start * size, min(run.stop * size, self._upload.size)
        reader = SteadyRange(
            self._source, self._file, start, end,
            policy=self._options.retry, cancelled=self._stop, on_retry=self._on_retry,
        )  # fmt: skip
        buffer = self._buffers.take(size, its_turn=lambda: True, stopped=self._stop.is_set)
        try:
            for number in run:
                view = memoryview(buffer)[: min(size, self._upload.size - number * size)]
                self._read(reader, view)
                self._write(number, view)
        finally:
            reader.close()
            self._buffers.give(buffer)

    def _read(self, reader: SteadyRange, view: memoryview) -> None:
        done = 0
        while done < len(view):
            if self._stop.is_set():
                raise CancelledError("stopped")
            count = reader.readinto(view[done : done + self._slice])
            done += count
            self._tell(count)
            if self._options.rate is not None:
                pause(self._options.rate.spend(count), self._stop)

    def _tell(self, count: int) -> None:
        with self._lock:
            self.done += count
            if time.monotonic() < self._due:
                return
            self._due = time.monotonic() + PROGRESS_EVERY
            done = self.done
        self._on_bytes(done)

    def _write(self, number: int, view: memoryview) -> None:
        offset = number * self._upload.part_size
        steadily(
            partial(self._upload.write_part, number, view),
            policy=self._options.retry,
            cancelled=self._stop,
            on_retry=lambda error, delay: self._on_retry(error, offset, delay),
        )


def _joined(numbers: Sequence[int]) -> Iterator[range]:
    """The runs of neighbours among sorted `numbers`."""
    start = before = numbers[0]
    for number in numbers[1:]:
        if number != before + 1:
            yield range(start, before + 1)
            start = number
        before = number
    yield range(start, before + 1)
