"""A folder on the local disk: what `mm push` reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mm_core import (
    AuthError,
    Buffer,
    NotFoundError,
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

_BUFFER = 1 << 20
_LEFT_OUT = frozenset({".git", ".hg", ".svn", ".cache", ".mm", "__pycache__", ".DS_Store"})
_STAGED = ".mm-staged-"


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer folders."""
    return [FolderSource]


class FolderSource(Source):
    """All regular files of a folder. Its revision is the digest of its content.

    Every file is read once for the snapshot, since only its bytes name it.
    Version control, caches and unfinished writes are left out. A link is
    followed if it stays in the folder.
    """

    type = "folder"
    schemes = ("file",)

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer the path of a folder that is there."""
        return "://" not in url and Path(url).is_dir()

    def snapshot(self, request: Request) -> Snapshot:
        """Hash every file; the revision is 40 hex digits over paths, sizes and hashes."""
        folder = _folder(request.url)
        files = tuple(_describe(folder, path) for path in _paths(folder) if request.selects(path))
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode())
        return Snapshot(
            source=folder.as_uri(),
            revision=digest.hexdigest()[:40],
            files=files,
            model_id=folder.name,
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes as they are now; `SourceChangedError` if the file was touched since."""
        path = Path(file.extra["path"])
        stop = file.size or 0 if end is None else min(end, file.size or 0)
        try:
            with path.open("rb", buffering=0) as stream:
                if _state(os.fstat(stream.fileno())) != file.extra["state"]:
                    raise SourceChangedError(
                        f"{file.path} changed while it was read", hint="push the folder again"
                    )
                stream.seek(start)
                while start < stop and (data := stream.read(min(_BUFFER, stop - start))):
                    start += len(data)
                    yield data
        except OSError as error:
            raise _translate(error, file.path) from error


def _folder(url: str) -> Path:
    path = url2pathname(urlsplit(url).path) if url.startswith("file://") else url
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}")
    return folder


def _paths(folder: Path) -> Iterator[str]:
    """The paths of all files below `folder`, relative, in order, links looked through."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in (*names, *(n for n in folders if Path(parent, n).is_symlink())):
            path = Path(parent, name)
            if name in _LEFT_OUT or name.startswith(_STAGED):
                continue
            _refuse_escape(folder, path)
            if path.is_file():
                found.append(check_path(path.relative_to(folder).as_posix()))
            elif path.is_symlink() and path.is_dir():
                raise UsageError(f"{path.relative_to(folder)} is a link to a folder")
    return iter(sorted(found))


def _refuse_escape(folder: Path, path: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder):
        raise UsageError(
            f"{path.relative_to(folder)} is a link that leaves the folder",
            hint="replace it by the file itself, or leave it out",
        )


def _describe(folder: Path, path: str) -> RemoteFile:
    target, sha256 = folder / path, hashlib.sha256()
    try:
        with target.open("rb") as stream:
            before = os.fstat(stream.fileno())
            while data := stream.read(_BUFFER):
                sha256.update(data)
    except OSError as error:
        raise _translate(error, path) from error
    return RemoteFile(
        path=path,
        size=before.st_size,
        sha256=sha256.hexdigest(),
        extra={"path": str(target), "state": _state(before)},
    )


def _state(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _translate(error: OSError, path: str) -> Exception:
    what = f"{path}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        return SourceChangedError(f"{path} was there and is gone", hint="push the folder again")
    if isinstance(error, PermissionError):
        return AuthError(what, hint="check the file's mode and owner")
    return StorageError(what)
