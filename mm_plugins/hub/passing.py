"""What passes on its way into the backend, kept for a moment for those who are served meanwhile."""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Iterator

from mm_core import Buffer, PassingSource, RangeReader, RemoteFile, Source


class Window:
    """The newest bytes of the files that are being fetched, at most `size` of them.

    Safe among threads. What is oldest goes first, whichever file it is of.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._pieces: dict[str, dict[int, bytes]] = {}
        self._starts: dict[str, list[int]] = {}
        self._order: deque[tuple[str, int]] = deque()
        self._lock = threading.Lock()

    def put(self, path: str, start: int, data: bytes) -> None:
        """Keep `data`, which stands at `start` in the file."""
        if not data:
            return
        with self._lock:
            pieces = self._pieces.setdefault(path, {})
            former = pieces.get(start)
            if former is None:
                bisect.insort(self._starts.setdefault(path, []), start)
                self._order.append((path, start))
            pieces[start] = data
            self._held += len(data) - len(former or b"")
            while self._held > self._size and self._order:
                self._remove(*self._order.popleft())

    def at(self, path: str, position: int, most: int) -> bytes:
        """Up to `most` bytes from `position` on; none where they have not come, or are gone."""
        found: list[bytes] = []
        with self._lock:
            starts, pieces = self._starts.get(path, ()), self._pieces.get(path, {})
            place = bisect.bisect_right(starts, position) - 1
            while 0 <= place < len(starts) and most:
                start = starts[place]
                piece = pieces[start][position - start :][:most] if start <= position else b""
                if not piece:
                    break
                found.append(piece)
                position, most, place = position + len(piece), most - len(piece), place + 1
        return b"".join(found)

    def forget(self, path: str) -> None:
        """The file stands in the backend now, or what came of it was wrong."""
        with self._lock:
            for start in list(self._pieces.get(path, ())):
                self._remove(path, start)

    def _remove(self, path: str, start: int) -> None:
        data = self._pieces.get(path, {}).pop(start, None)
        if data is not None:
            self._held -= len(data)
            self._starts[path].remove(start)


class Tee(PassingSource):
    """A source whose bytes are seen by `window` as they pass.

    Files that `known` has, whole and verified, are not read again.
    """

    type = "tee"

    def __init__(self, source: Source, window: Window, known: dict[str, bytes]) -> None:
        super().__init__(source)
        self._window = window
        self._known = known

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of the file, noted."""
        data = self._known.get(file.path)
        if data is not None:
            yield data[start:end]
            return
        for buffer in self.source.read(file, start, end):
            self._window.put(file.path, start, bytes(buffer))
            start += len(buffer)
            yield buffer

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """The same bytes, into memory of the caller's."""
        if file.path in self._known:
            return super(PassingSource, self).open(file, start, end)
        return _Noted(self.source.open(file, start, end), self._window, file.path, start)


class _Noted:
    """A reader whose bytes are noted."""

    def __init__(self, reader: RangeReader, window: Window, path: str, start: int) -> None:
        self._reader = reader
        self._window = window
        self._path = path
        self._position = start

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer)
        self._window.put(self._path, self._position, bytes(buffer[:count]))
        self._position += count
        return count

    def close(self) -> None:
        self._reader.close()
