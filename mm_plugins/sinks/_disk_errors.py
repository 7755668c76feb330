"""What the errors of a disk mean: one seam from the system's to ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mm_core import (
    AuthError,
    InvalidNameError,
    MMError,
    NotFoundError,
    StorageError,
    TransientError,
)

FULL = "free some space, or use a backend on another disk"
_RIGHTS = "check the owner and the mode of the folder"
_CLASH = "a file and a folder of one name cannot stand together"
_MEANINGS: dict[int, tuple[type[MMError], str | None]] = {
    errno.ENOENT: (NotFoundError, None),
    errno.ENOTDIR: (NotFoundError, None),
    errno.ENOSPC: (StorageError, FULL),
    errno.EDQUOT: (StorageError, FULL),
    errno.EFBIG: (StorageError, "this disk, or a limit (ulimit -f), forbids files of that size"),
    errno.EACCES: (AuthError, _RIGHTS),
    errno.EPERM: (AuthError, _RIGHTS),
    errno.EROFS: (StorageError, "the disk is mounted read-only: mount it for writing"),
    errno.ENAMETOOLONG: (InvalidNameError, "this disk cannot hold such a name"),
    errno.EEXIST: (StorageError, _CLASH),
    errno.EISDIR: (StorageError, _CLASH),
    errno.ENOTEMPTY: (StorageError, _CLASH),
    errno.EMFILE: (StorageError, "raise the limit of open files (ulimit -n), or use fewer jobs"),
    errno.ESTALE: (TransientError, None),
    errno.ETIMEDOUT: (TransientError, None),
    errno.EAGAIN: (TransientError, None),
    errno.EBUSY: (TransientError, None),
}


@contextmanager
def translated(key: str) -> Iterator[None]:
    """Turn the system's errors into ours. Nothing of the caller's may run inside."""
    try:
        yield
    except MMError:
        raise
    except OSError as error:
        raise translate(error, key) from error


def translate(error: OSError, key: str) -> MMError:
    """Our error for one of the system's."""
    what = f"{error.filename or key}: {error.strerror or error}"
    kind, hint = _MEANINGS.get(error.errno or 0, (StorageError, None))
    return kind(what, hint=hint)
