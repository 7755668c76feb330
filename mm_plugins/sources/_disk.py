"""Files on a local disk, as sources read them: hashed, and never of two states."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm_core import (
    AuthError,
    Buffer,
    MMError,
    RangeReader,
    RemoteFile,
    Sink,
    Source,
    SourceChangedError,
    StorageError,
    UsageError,
)
from mm_plugins.sinks.local import LocalSink

_BUFFER = 1 << 20
_HOW_TO_LINK = "replace it by the file itself, or leave it out with --exclude"
_SHARED = "shared"


class DiskSource(Source):
    """A source whose files are on a local disk, as `describe` made them."""

    needs_network = False

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes as they are now; `SourceChangedError` if the file was touched since."""
        buffer = memoryview(bytearray(_BUFFER))
        reader = self.open(file, start, end)
        try:
            while count := reader.readinto(buffer):
                yield buffer[:count]
        finally:
            reader.close()

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """The same, into the caller's memory."""
        return _FileReader(file, start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Disks read in several places at once."""
        return True

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """Into a folder on the same disk, where the request allows that both share the bytes."""
        return _SHARED in file.extra and sink.copies_from(_folder_of(file))

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """By a second name for the same bytes, where the disk knows them."""
        path = Path(file.extra["path"])
        if not sink.copy_from(_folder_of(file), path.name, key):
            return False
        with translated(file.path):
            _check_same(file, path.stat())
        return True


class _FileReader:
    """A range of a file that must stay as it was listed."""

    def __init__(self, file: RemoteFile, start: int, end: int | None) -> None:
        self._file = file
        size = file.size or 0
        self._left = max(0, (size if end is None else min(end, size)) - start)
        with translated(file.path):
            self._stream = Path(file.extra["path"]).open("rb", buffering=0)  # noqa: SIM115  # closed by close
            try:
                _check_same(file, os.fstat(self._stream.fileno()))
                self._stream.seek(start)
            except BaseException:
                self._stream.close()
                raise

    def readinto(self, buffer: memoryview, /) -> int:
        with translated(self._file.path):
            count = self._stream.readinto(buffer[: self._left]) if self._left else 0
            self._left -= count
            if not count or not self._left:
                _check_same(self._file, os.fstat(self._stream.fileno()))
        return count

    def close(self) -> None:
        self._stream.close()


def describe(target: Path, path: str, *, shared: bool, git: bool = False) -> RemoteFile:
    """The file at `target`, which the model knows as `path`, read once and hashed.

    With `shared`, a folder on the same disk may keep the same bytes; with `git`,
    the name that git has for them is stated, too. `SourceChangedError` for a file
    that changes while it is hashed.
    """
    sha256 = hashlib.sha256()
    with translated(path), target.open("rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        sha1 = hashlib.sha1(b"blob %d\0" % status.st_size, usedforsecurity=False) if git else None
        while data := stream.read(_BUFFER):
            sha256.update(data)
            if sha1 is not None:
                sha1.update(data)
        where = {"path": str(target), "mtime_ns": str(status.st_mtime_ns)}
        file = RemoteFile(
            path=path,
            size=status.st_size,
            sha256=sha256.hexdigest(),
            git_sha1=None if sha1 is None else sha1.hexdigest(),
            extra={**where, _SHARED: "yes"} if shared else where,
        )
        _check_same(file, os.fstat(stream.fileno()))
    return file


def target_of(folder: Path, path: str) -> Path:
    """The regular file that `path` is, or leads to within `folder`."""
    target = (folder / path).resolve()
    if not target.is_relative_to(folder):
        raise UsageError(f"{path!r} is a link that leaves the folder", hint=_HOW_TO_LINK)
    if target.is_dir():
        raise UsageError(f"{path!r} is a link to a folder", hint=_HOW_TO_LINK)
    with translated(path):
        if not stat.S_ISREG(target.stat().st_mode):
            raise UsageError(f"{path!r} leads to what is no regular file", hint=_HOW_TO_LINK)
    return target


def _folder_of(file: RemoteFile) -> LocalSink:
    return LocalSink(LocalSink.Config(root=str(Path(file.extra["path"]).parent)))


def _check_same(file: RemoteFile, status: os.stat_result) -> None:
    if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.extra["mtime_ns"]):
        raise SourceChangedError(
            f"{file.path} changed while it was read",
            hint="wait until nobody writes to the folder, then try again",
        )


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn the errors of the disk into ours."""
    try:
        yield
    except MMError:
        raise
    except FileNotFoundError as error:
        raise SourceChangedError(
            f"{path} is gone, or is a link to nothing", hint="try again when it is there"
        ) from error
    except PermissionError as error:
        raise AuthError(f"{path} may not be read", hint="check its mode and owner") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
