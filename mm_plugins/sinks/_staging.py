"""Files made beside their target and shown only when they are whole.

A staged file has a name that no key can have, is locked by its writer while it
grows, and becomes the target in one system call. What a dead writer leaves
behind is invisible, harmless, and swept by a later write to the same folder.
The parts of large files have names of the same kind, and are not swept: they
wait to be taken up.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mm_core import Buffer, TransientError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be deleted there, which does as well
    fcntl = None  # type: ignore[assignment]  # the name stands for "no locks here"

T = TypeVar("T")

JOURNAL = ".journal"

_PREFIX = ".mm-staged-"
_PARTS = ".mm-parts-"
_SWEPT_NAME = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{16}", re.IGNORECASE)
_PARTS_NAME = re.compile(
    re.escape(_PARTS) + r"[0-9a-f]{16}(" + re.escape(JOURNAL) + ")?", re.IGNORECASE
)
_STALE_SECONDS = 600.0
_ATTEMPTS = 100
_NO_COPY = {
    errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM,
}  # fmt: skip
_BUFFER = 1 << 20
_COPY_STEP = 64 << 20  # a signal is heard between two steps
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)


def is_staged(name: str) -> bool:
    """Whether a file of this name belongs to an unfinished write."""
    return _is_swept(name) or is_parts(name)


def is_parts(name: str) -> bool:
    """Whether a file of this name holds parts of a large file, or the journal of them."""
    return _PARTS_NAME.fullmatch(name) is not None


def parts_name(name: str) -> str:
    """The name of the file that holds the parts of the file `name`; always the same."""
    return _PARTS + hashlib.sha256(name.encode()).hexdigest()[:16]


def staged_path(folder: str) -> str:
    """A new name in `folder` for an unfinished write."""
    return os.path.join(folder, _PREFIX + os.urandom(8).hex())


def remove(path: str) -> bool:
    """Remove an unfinished file if it is there; whether it was."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


class Staged:
    """An open, locked, unfinished file."""

    def __init__(self, path: str, descriptor: int, *, durable: bool) -> None:
        self.path = path
        self.size = 0
        self._descriptor = descriptor
        self._durable = durable

    def append(self, buffer: Buffer) -> None:
        """Write all of `buffer` at the end."""
        rest = memoryview(buffer).cast("B")
        self.size += len(rest)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def append_file(self, source: int) -> None:
        """Write all that stands in the open file `source` at the end.

        The system copies it, by sharing the blocks where the disk can. Where it
        cannot, and for what it left out, the bytes go through this process.
        """
        if hasattr(os, "copy_file_range"):
            try:
                while count := os.copy_file_range(source, self._descriptor, _COPY_STEP):
                    self.size += count
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
        while buffer := os.read(source, _BUFFER):
            self.append(buffer)

    def publish(self, target: str, move: Callable[[str, str], None]) -> None:
        """Make the content durable, `move` the file to `target`, and make the name durable."""
        publish(self._descriptor, self.path, target, move, durable=self._durable)


def publish(
    descriptor: int, path: str, target: str,
    move: Callable[[str, str], None] = os.replace, *, durable: bool,
) -> None:  # fmt: skip
    """Make the content durable, `move` the file at `path` to `target`, make the name durable."""
    if durable:
        _fsync(descriptor)
    try:
        move(path, target)
    except FileNotFoundError as error:
        raise TransientError(f"{target} could not be stored: its folder was removed") from error
    if durable:
        sync_folder(os.path.dirname(target))


@contextmanager
def staged(target: str, *, durable: bool) -> Iterator[Staged]:
    """A file to be published as `target`; whatever is unfinished at the end is removed.

    Missing folders are made, and made again if a deletion takes them away meanwhile.
    """
    path, descriptor = in_folder(os.path.dirname(target), open_locked, durable=durable)
    try:
        yield Staged(path, descriptor, durable=durable)
    finally:
        if os.name == "nt":  # an open file cannot be removed there
            os.close(descriptor)
            remove(path)
        else:  # removed while still locked
            remove(path)
            os.close(descriptor)


def in_folder(folder: str, make: Callable[[str], T], *, durable: bool) -> tuple[str, T]:
    """Call `make` with a new name in `folder`, whose folders are made as often as they vanish."""

    def make_new() -> tuple[str, T]:
        path = staged_path(folder)
        return path, make(path)

    return made_in(folder, make_new, durable=durable)


def made_in(folder: str, make: Callable[[], T], *, durable: bool) -> T:
    """Call `make`, which needs `folder`: its folders are made as often as they vanish."""
    for _ in range(_ATTEMPTS):
        try:
            make_folders(folder, durable=durable)
            return make()
        except FileNotFoundError:
            continue
    raise TransientError(f"{folder} is removed by somebody as often as it is made")


def make_folders(folder: str, *, durable: bool) -> None:
    """Make `folder` and its parents; each new name is made durable. May lose to a deletion."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        make_folders(parent, durable=durable)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise
        return
    if durable:
        sync_folder(parent)


def remove_empty_folders(folder: str, root: str) -> None:
    """Remove `folder` and its parents below `root` while they are empty."""
    while folder != root and folder.startswith(root):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError:
            if not sweep(folder):
                return
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        folder = os.path.dirname(folder)


def sweep(folder: str) -> bool:
    """Remove what dead writers left in `folder`; whether anything was removed.

    Gone is only what nobody touched for ten minutes by the disk's own clock and
    what no living writer has locked. Should a network disk lie about both, the
    writer's own rename fails: a write is then repeated, never damaged.
    """
    removed = False
    with contextlib.suppress(OSError):
        left = [os.path.join(folder, name) for name in os.listdir(folder) if _is_swept(name)]
        oldest = _clock(folder) - _STALE_SECONDS if left else 0.0
        for path in left:
            if changed(os.lstat(path)) < oldest and _is_unlocked(path):
                removed = remove(path) or removed
    return removed


def _is_swept(name: str) -> bool:
    return _SWEPT_NAME.fullmatch(name) is not None


def _clock(folder: str) -> float:
    path = staged_path(folder)
    descriptor = open_locked(path)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        remove(path)


def changed(status: os.stat_result) -> float:
    """When the file came to be what and where it is: also a hard link is as young as its making."""
    return status.st_mtime if os.name == "nt" else max(status.st_mtime, status.st_ctime)


def is_object(status: os.stat_result) -> bool:
    """Whether this is a plain file; folders, links and devices are none of ours."""
    return stat.S_ISREG(status.st_mode)


def sync_file(path: str) -> None:
    """Wait until the disk itself has the content of the file at `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str) -> None:
    """Make the names in `folder` durable, where the system can open a folder at all."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_locked(path: str) -> int:
    """Make the file `path`, open it for writing, and lock it against the sweep."""
    descriptor = os.open(path, _CREATE, 0o666)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a disk without locks is swept by age alone
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _is_unlocked(path: str) -> bool:
    if fcntl is None:
        return True
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True


def _fsync(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full is not None:  # macOS: fsync alone stops at the drive's cache
        fcntl.fcntl(descriptor, full)
    else:
        os.fsync(descriptor)
