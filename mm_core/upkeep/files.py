"""Files that a user names: written beside their place, and put there in one step."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from mm_core.exceptions import AlreadyExistsError, StorageError


@contextlib.contextmanager
def written_at_once(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path beside `path` to write to; at the end of the block it is at `path`, durable.

    If the block raises, nothing is left. Raises `AlreadyExistsError` where a file is
    there already, unless `overwrite`, and `StorageError` where it cannot be written.
    """
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    if not overwrite and path.exists():
        raise _taken(path)
    try:
        try:
            yield staged
            _publish(staged, path, overwrite=overwrite)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, (StorageError, AlreadyExistsError)) or error.strerror is None:
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            hint="name a file in a folder that is there, with room and with the right to write",
        ) from error


def _publish(staged: Path, path: Path, *, overwrite: bool) -> None:
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    if overwrite:
        staged.replace(path)
    else:
        try:
            path.hardlink_to(staged)
        except FileExistsError:
            raise _taken(path) from None
        except OSError:  # a disk without hard links
            staged.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the disk can."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _taken(path: Path) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{path} is there already", hint="name another file, or add --force to replace it"
    )
