"""What stands below a prefix of some sink, as a source: hashed where it stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mm_core.exceptions import CancelledError, SourceChangedError
from mm_core.names import check_path
from mm_core.parallel import run_parallel
from mm_core.schemas import RemoteFile, Request, Snapshot, StoredObject, content_version
from mm_core.sink import Buffer, Sink
from mm_core.source import Source
from mm_core.transfer.hashing import Check


class StandingSource(Source):
    """All objects below `prefix`, which is empty or ends in a slash; `jobs` are hashed at once.

    The revision is the digest of their content, as that of a folder is.
    """

    type = "standing"

    def __init__(self, sink: Sink, prefix: str, *, jobs: int, cancelled: threading.Event) -> None:
        super().__init__()
        self._sink = sink
        self._prefix = prefix
        self._jobs = jobs
        self._cancelled = cancelled

    def snapshot(self, request: Request) -> Snapshot:
        """Read and hash every object. `SourceChangedError` if one changes meanwhile."""
        found = [
            stored
            for stored in self._sink.list(self._prefix)
            if _is_of_a_model(path := check_path(stored.key[len(self._prefix) :]))
            and request.selects(path)
        ]
        files = tuple(run_parallel(self._hashed, found, jobs=self._jobs, cancelled=self._cancelled))
        name = self._sink.url(self._prefix.rstrip("/")) if self._prefix else self._sink.root
        made = Snapshot(
            source=name,
            revision=content_version(files),
            files=files,
            model_id=name.rstrip("/").rpartition("/")[2],
        )
        self.confirm(made)
        return made

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of `file` as they stand there."""
        return self._sink.read(file.extra["key"], start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Every sink reads ranges."""
        return True

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """Where one store holds both."""
        return sink.copies_from(self._sink)

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """As the store copies."""
        return sink.copy_from(self._sink, file.extra["key"], key)

    def confirm(self, snapshot: Snapshot) -> None:
        """By size and time of each object, as the store tells them."""
        there = {stored.key: _state(stored) for stored in self._sink.list(self._prefix)}
        for file in snapshot.files:
            if there.get(file.extra["key"]) != file.extra["state"]:
                raise SourceChangedError(
                    f"{self._sink.url(file.extra['key'])} changed, or went, while it was looked at",
                    hint="wait until nobody writes there, then try again",
                )

    def _hashed(self, stored: StoredObject) -> RemoteFile:
        check = Check(RemoteFile(path=stored.key, size=stored.size))
        for _ in check.through(self._sink.read(stored.key)):
            if self._cancelled.is_set():
                raise CancelledError("stopped")
        return RemoteFile(
            path=stored.key[len(self._prefix) :],
            size=stored.size,
            sha256=check.sha256,
            extra={"key": stored.key, "state": _state(stored)},
        )


def _is_of_a_model(path: str) -> bool:
    """Left out is what a folder's source leaves out, too."""
    return not f"/{path}".startswith("/.git/") and "/.cache/huggingface/" not in f"/{path}"


def _state(stored: StoredObject) -> str:
    return f"{stored.size} bytes of {stored.modified.isoformat()}"
