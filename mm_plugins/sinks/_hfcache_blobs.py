"""The blobs of a cached model: second names of our files, for the Hub's own client to find.

That client names a blob by the hash which the Hub states for it, and fetches none that
is there. A blob is shared by second names (hard links) only: where a disk has none,
nothing is shared, and nothing is lost but that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows: there nothing is shared
    fcntl = None  # type: ignore[assignment]  # the name stands for "no locks here"

_LOCKS = ".locks"


def share(root: str, repository: str, path: str, name: str) -> None:
    """Let the file at `path` be the blob `name` as well, unless there is one."""
    if fcntl is None:
        return
    folder = os.path.join(root, repository, "blobs")
    with contextlib.suppress(OSError):  # it is in its snapshot, which is what matters
        os.makedirs(folder, exist_ok=True)
        os.link(path, os.path.join(folder, name))


def inode_of(path: str) -> tuple[int, int] | None:
    """What all names of a file have in common; None where it has but one, or is no file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else None


def release(root: str, repository: str, inodes: set[tuple[int, int]]) -> None:
    """Remove the blobs that are such files, and that no snapshot uses any more.

    One that the Hub's client is at just now stays.
    """
    folder = os.path.join(root, repository, "blobs")
    if fcntl is None or not inodes or not os.path.isdir(folder):
        return
    with contextlib.suppress(OSError):
        for name, path in _only_here(folder, inodes):
            with _locked(os.path.join(root, _LOCKS, repository), name) as mine:
                if mine and name not in _linked(os.path.join(root, repository, "snapshots")):
                    os.unlink(path)
        os.rmdir(folder)


def _only_here(folder: str, inodes: set[tuple[int, int]]) -> list[tuple[str, str]]:
    with os.scandir(folder) as entries:
        found = [(e.name, e.path, e.stat(follow_symlinks=False)) for e in entries]
    return [
        (name, path) for name, path, status in found
        if (status.st_dev, status.st_ino) in inodes and status.st_nlink == 1
    ]  # fmt: skip


def _linked(snapshots: str) -> set[str]:
    """The names of the blobs that links in the snapshots lead to."""
    return {
        os.path.basename(os.readlink(path))
        for folder, _, names in os.walk(snapshots)
        for name in names
        if os.path.islink(path := os.path.join(folder, name))
    }


@contextlib.contextmanager
def _locked(folder: str, name: str) -> Iterator[bool]:
    """Hold the lock that the Hub's client holds while it makes this blob; whether that is so."""
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(os.path.join(folder, f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
