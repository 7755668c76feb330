"""Bytes are checked on their way, in order, before the sink may make them visible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from mm_core.exceptions import IntegrityError
from mm_core.schemas import RemoteFile
from mm_core.sink import Buffer


class MismatchError(IntegrityError):
    """All bytes came, and they are not what the source states."""


class Check:
    """Counts and hashes one file in order, and compares with what its source states."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = None
        if file.sha256 is None and file.git_sha1 is not None and file.size is not None:
            # git's own name for a blob; no defence against forgery, which is why sha256 wins
            self._git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        self.size = 0

    @property
    def sha256(self) -> str:
        """The sha256 of all that went through, in lower-case hex."""
        return self._sha256.hexdigest()

    def update(self, buffer: Buffer) -> None:
        """Take in the next bytes; `MismatchError` for more than were stated."""
        self._sha256.update(buffer)
        if self._git is not None:
            self._git.update(buffer)
        self.size += len(buffer)
        if self._file.size is not None and self.size > self._file.size:
            raise self._error("size", str(self._file.size), "more bytes")

    def through(self, buffers: Iterable[Buffer]) -> Iterator[Buffer]:
        """Pass `buffers` on; raise `MismatchError` instead of ending if they are wrong."""
        for buffer in buffers:
            self.update(buffer)
            yield buffer
        self.finish()

    def finish(self) -> None:
        """All has come: raise `MismatchError` if it is not what the source states."""
        file = self._file
        if file.size is not None and self.size != file.size:
            raise self._error("size", str(file.size), str(self.size))
        if file.sha256 is not None and self.sha256 != file.sha256:
            raise self._error("sha256", file.sha256, self.sha256)
        if self._git is not None and self._git.hexdigest() != file.git_sha1:
            raise self._error("git sha1", str(file.git_sha1), self._git.hexdigest())

    def _error(self, what: str, stated: str, found: str) -> MismatchError:
        return MismatchError(
            f"{self._file.path}: the source states {what} {stated}, what arrived has {found}",
            hint="nothing of this file was kept; try again, then tell the source's owner",
        )
