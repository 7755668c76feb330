"""A folder on the local disk: what `mm push` reads."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mm_core import (
    AuthError,
    Buffer,
    MMError,
    NotFoundError,
    RangeReader,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    SourceChangedError,
    StorageError,
    UsageError,
    check_path,
    hookimpl,
)
from mm_plugins.sinks._staging import is_staged

_BUFFER = 1 << 20
_HUB_CACHE = "/.cache/huggingface"
_HOW_TO_LINK = "replace it by the file itself, or leave it out with --exclude"


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer folders."""
    return [FolderSource]


class FolderSource(Source):
    """All regular files of a folder: ``/path/of/folder`` or ``file:///path/of/folder``.

    Every file is read once for the snapshot, since only its bytes name it: each
    has a sha256, and the revision is the digest of them all. Left out are
    ``.git``, ``.cache/huggingface`` and unfinished writes. A link to a file in
    the folder counts as that file; one that leaves the folder is refused.
    """

    type = "folder"
    schemes = ("file",)
    needs_network = False

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer the path of a folder that is there."""
        return "://" not in url and Path(url).expanduser().is_dir()

    def snapshot(self, request: Request) -> Snapshot:
        """Hash every file; the revision is 40 hex digits over paths, sizes and hashes.

        Raises `UsageError` for a link that leaves the folder, and
        `SourceChangedError` for a file that changes while it is hashed.
        """
        folder = _folder(request.url)
        paths = sorted(path for path in _walk(folder, "") if request.selects(path))
        files = tuple(_describe(folder, path) for path in paths)
        revision = _digest(files)
        if request.revision not in (None, revision):
            raise NotFoundError(
                f"{folder} has no revision {request.revision!r}: its content is {revision} now",
                hint="leave --revision out to take the folder as it is",
            )
        return Snapshot(
            source=folder.as_uri(), revision=revision, files=files, model_id=folder.name
        )

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


class _FileReader:
    """A range of a file that must stay as it was listed."""

    def __init__(self, file: RemoteFile, start: int, end: int | None) -> None:
        self._file = file
        size = file.size or 0
        self._left = max(0, (size if end is None else min(end, size)) - start)
        with _translated(file.path):
            self._stream = Path(file.extra["path"]).open("rb", buffering=0)  # noqa: SIM115  # closed by close
            try:
                _check_same(file, self._stream.fileno())
                self._stream.seek(start)
            except BaseException:
                self._stream.close()
                raise

    def readinto(self, buffer: memoryview, /) -> int:
        with _translated(self._file.path):
            count = self._stream.readinto(buffer[: self._left]) if self._left else 0
            self._left -= count
            if not count or not self._left:
                _check_same(self._file, self._stream.fileno())
        return count

    def close(self) -> None:
        self._stream.close()


def _folder(url: str) -> Path:
    path = url
    if url.lower().startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(
                f"{url!r} names the host {parts.netloc!r}, not a folder",
                hint="write file:///path with three slashes",
            )
        path = url2pathname(parts.path)
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}", hint="check the path")
    return folder


def _walk(folder: Path, below: str) -> Iterator[str]:
    """The paths of all files under `below`, relative to `folder`, each name checked."""
    with _translated(below or str(folder)):
        entries = list(os.scandir(folder / below))
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if is_staged(entry.name) or entry.name == ".git" or f"/{path}".endswith(_HUB_CACHE):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, path)
        elif entry.is_file() or entry.is_symlink():
            yield check_path(path)


def _describe(folder: Path, path: str) -> RemoteFile:
    target = _target(folder, path)
    sha256 = hashlib.sha256()
    with _translated(path), target.open("rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        while data := stream.read(_BUFFER):
            sha256.update(data)
        file = RemoteFile(
            path=path,
            size=status.st_size,
            sha256=sha256.hexdigest(),
            extra={"path": str(target), "mtime_ns": str(status.st_mtime_ns)},
        )
        _check_same(file, stream.fileno())
    return file


def _target(folder: Path, path: str) -> Path:
    """The regular file that `path` is, or leads to within `folder`."""
    target = (folder / path).resolve()
    if not target.is_relative_to(folder):
        raise UsageError(f"{path!r} is a link that leaves the folder", hint=_HOW_TO_LINK)
    if target.is_dir():
        raise UsageError(f"{path!r} is a link to a folder", hint=_HOW_TO_LINK)
    with _translated(path):
        if not stat.S_ISREG(target.stat().st_mode):
            raise UsageError(f"{path!r} leads to what is no regular file", hint=_HOW_TO_LINK)
    return target


def _check_same(file: RemoteFile, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.extra["mtime_ns"]):
        raise SourceChangedError(
            f"{file.path} changed while it was read",
            hint="wait until nobody writes to the folder, then try again",
        )


def _digest(files: tuple[RemoteFile, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode())
    return digest.hexdigest()[:40]


@contextmanager
def _translated(path: str) -> Iterator[None]:
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
