"""The bytes of a version's files, wherever they are now: stored already, or still at the source."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from mm_core.exceptions import CancelledError, NotFoundError
from mm_core.sink import Buffer

if TYPE_CHECKING:
    from typing_extensions import Buffer as Writable

    from mm_core.formats import Inspected
    from mm_core.schemas import RemoteFile, StoredFile
    from mm_core.sink import Sink
    from mm_core.source import Source

T = TypeVar("T")

FIRST_WINDOW = 64 << 10
LAST_WINDOW = 8 << 20
"""So much is read at once at most, and held: what a file that is read in order grows to."""

ReadRange = Callable[[int, int], Iterator[Buffer]]
"""``read(start, end)``: the bytes ``[start, end)`` of a file, in order, fewer at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentFile:
    """One file whose bytes can be had. `sha256` is None where nobody knows it."""

    path: str
    size: int
    sha256: str | None = None


class Content:
    """Files by their paths in the model, each read in ranges. Safe among threads.

    `jobs` files at most are looked at at once by `each`.
    """

    def __init__(
        self, files: Sequence[ContentFile], reads: Mapping[str, ReadRange], *, jobs: int = 1
    ) -> None:
        self.files = tuple(files)
        self._reads = reads
        self._jobs = jobs
        self._sizes = {file.path: file.size for file in files}
        self._lock = threading.Lock()
        self._inspected: dict[str, tuple[Inspected, ...]] = {}

    @classmethod
    def stored(
        cls,
        sink: Sink,
        files: Sequence[StoredFile],
        *,
        stopped: Callable[[], bool] | None = None,
        jobs: int = 1,
    ) -> Content:
        """What stands in a backend. Once `stopped` says so, reading raises `CancelledError`."""

        def reader(key: str) -> ReadRange:
            return lambda start, end: _heeding(sink.read(key, start, end), stopped)

        listed = [ContentFile(path=f.path, size=f.size, sha256=f.sha256) for f in files]
        return cls(listed, {file.path: reader(file.key) for file in files}, jobs=jobs)

    @classmethod
    def remote(cls, source: Source, files: Sequence[RemoteFile], *, jobs: int = 1) -> Content:
        """What is still at its source; files of unknown size are left out."""

        def reader(file: RemoteFile) -> ReadRange:
            return lambda start, end: source.read(file, start, end)

        known = [(file, file.size) for file in files if file.size is not None]
        listed = [ContentFile(path=f.path, size=size, sha256=f.sha256) for f, size in known]
        return cls(listed, {file.path: reader(file) for file, _ in known}, jobs=jobs)

    def open(self, path: str) -> BinaryIO:
        """The file at `path`, to be read and sought in. Close it.

        Nothing is read before it is asked for, and never more than a few MiB are
        held. Raises as `Sink.read` or `Source.read`; `NotFoundError` for another path.
        """
        read = self._reads.get(path)
        if read is None:
            raise NotFoundError(f"there is no file {path!r} here")
        return cast("BinaryIO", RangedFile(read, self._sizes[path]))

    def each(self, look: Callable[[ContentFile], T]) -> list[T]:
        """What `look` makes of each file, in order; several at once. The first error ends it."""
        from mm_core.parallel import run_parallel

        return run_parallel(look, self.files, jobs=self._jobs, cancelled=threading.Event())

    def inspect(self, path: str) -> tuple[Inspected, ...]:
        """What the file at `path` is, and what is packed in it, see `mm_core.look_through`.

        With the opcodes of pickles. Looked at once, however many ask.
        """
        from mm_core.formats import look_through

        with self._lock:
            found = self._inspected.get(path)
        if found is None:
            with self.open(path) as opened:
                found = tuple(look_through(opened, self._sizes[path], skeletons=True))
            with self._lock:
                self._inspected[path] = found
        return found


def _heeding(buffers: Iterator[Buffer], stopped: Callable[[], bool] | None) -> Iterator[Buffer]:
    for buffer in buffers:
        if stopped is not None and stopped():
            raise CancelledError("stopped")
        yield buffer


class RangedFile(io.RawIOBase):
    """A file of `size` bytes that is read by ranges; what is read in order comes in larger ones."""

    def __init__(self, read: ReadRange, size: int) -> None:
        super().__init__()
        self._read = read
        self._size = size
        self._at = 0
        self._window = b""
        self._window_at = 0
        self._next_window = FIRST_WINDOW

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, and that costs nothing."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on from another byte; one beyond the end is allowed."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the file's begin")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end of the file."""
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted:
            piece = self._from_window(wanted)
            pieces.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Writable) -> int:
        """Fill `buffer`; fewer bytes only at the end of the file."""
        target = memoryview(buffer).cast("B")
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def _from_window(self, wanted: int) -> bytes:
        begin = self._at - self._window_at
        if not 0 <= begin < len(self._window):
            self._fill()
            begin = 0
        return self._window[begin : begin + wanted]

    def _fill(self) -> None:
        follows = self._at == self._window_at + len(self._window)
        span = min(2 * self._next_window, LAST_WINDOW) if follows else FIRST_WINDOW
        end = min(self._at + span, self._size)
        data = b"".join(bytes(buffer) for buffer in self._read(self._at, end))
        if not data:
            raise EOFError(f"the file ended at byte {self._at} of {self._size}")
        self._window, self._window_at, self._next_window = data, self._at, span
