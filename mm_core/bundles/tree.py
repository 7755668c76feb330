"""A folder whose files are all known, by name, size and sha256: written, and looked through."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mm_core.bundles.contents import INDEX_NAME, MEMBER_NAME
from mm_core.exceptions import AlreadyExistsError, IntegrityError, StorageError
from mm_core.sink import Buffer
from mm_core.upkeep.files import sync_folder, written_at_once

PIECE = 1 << 20

_STAGED = re.compile(r"(?P<folder>(?:.*/)?)\.(?P<name>[^/]+)\.[0-9a-f]{32}")
_OF_A_BUNDLE = re.compile(
    rf"{INDEX_NAME.pattern}|{MEMBER_NAME.pattern}"
    r"|oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file that is to stand in a folder. `pieces` are asked for where it does not yet."""

    name: str
    size: int
    sha256: str
    pieces: Callable[[], Iterable[Buffer]]

    @classmethod
    def of(cls, name: str, data: bytes) -> File:
        """A small one."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(name=name, size=len(data), sha256=digest, pieces=partial(list, [data]))


def write_files(folder: Path, files: Sequence[File], *, force: bool) -> int:
    """Make `folder` hold these files and no others; how many bytes they have.

    The last is the root, without which the rest is no bundle: it is written when all others
    stand. What stands already as it should is not written again, so a cut call is gone on
    with by the next.

    Raises `AlreadyExistsError` where other files are there; with `force`, those of
    another bundle are deleted, and its root first.
    """
    expected = {file.name: file for file in files}
    root = files[-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, expected, root, force=force)
        for inner in sorted({Path(name).parent for name in expected}):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        for file in expected.values():
            if file is not root:
                _put(folder / file.name, file)
        for inner in {parent for name in expected for parent in Path(name).parents}:
            sync_folder(folder / inner)
        _put(folder / root.name, root)
    except OSError as error:
        if isinstance(error, (StorageError, AlreadyExistsError)):
            raise
        raise StorageError(f"{folder} cannot be written: {error}") from error
    return sum(file.size for file in expected.values())


def _clear(folder: Path, expected: Mapping[str, File], root: File, *, force: bool) -> None:
    """Delete what an earlier call left half written, and with `force` another bundle."""
    strays = []
    for name in names_in(folder):
        staged = _STAGED.fullmatch(name)
        if staged and _OF_A_BUNDLE.fullmatch(staged["folder"] + staged["name"]):
            (folder / name).unlink()
        elif name not in expected or (name == root.name and not _stands(folder / name, root)):
            strays.append(name)
    strays.sort(key=lambda name: name.startswith(("manifests/", "signatures/", "blobs/")))
    for name in strays:
        if _OF_A_BUNDLE.fullmatch(name) is None:
            raise AlreadyExistsError(
                f"{folder} holds {name}, which is no file of a bundle", hint="name another folder"
            )
    if strays and not force:
        raise AlreadyExistsError(
            f"{folder} holds {strays[0]}, which is of another bundle",
            hint="name another folder, or add --force to replace that bundle",
        )
    for name in strays:
        (folder / name).unlink()


def _put(path: Path, file: File) -> None:
    if _stands(path, file):
        return
    with written_at_once(path, overwrite=True) as staged, staged.open("wb") as out:
        for piece in file.pieces():
            out.write(piece)


def _stands(path: Path, file: File) -> bool:
    """Whether these bytes are there; they are read."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if path.is_symlink() or status.st_size != file.size:
            return False
        digest = hashlib.sha256()
        for piece in read_file(path, 0, file.size):
            digest.update(piece)
        return digest.hexdigest() == file.sha256
    return False


def names_in(folder: Path) -> list[str]:
    """All that is below `folder` and is no folder, sorted; links are not followed."""
    found, waiting = [], [""]
    try:
        while waiting:
            inner = waiting.pop()
            with os.scandir(folder / inner) as entries:
                for entry in entries:
                    name = f"{inner}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    else:
                        found.append(name)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error}") from error
    return sorted(found)


def check_files(folder: Path, names: Iterable[str], expected: Mapping[str, int]) -> None:
    """`IntegrityError`, naming it, for a file that is missing, of another size, or too much."""
    there = set(names)
    for name, size in expected.items():
        if name not in there:
            raise IntegrityError(f"{name} is missing in {folder}")
        status = (folder / name).lstat()
        if (folder / name).is_symlink() or status.st_size != size:
            raise IntegrityError(f"{name} in {folder} is not a file of {size} bytes")
    more = sorted(there - set(expected))
    if more:
        raise IntegrityError(
            f"{folder} holds {more[0]}, which is not in its index",
            hint="a bundle has no other files; delete what somebody put there",
        )


def read_file(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes ``[start, stop)``. `IntegrityError` where the file ends before."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            left = stop - start
            while left > 0:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise IntegrityError(f"{path} ends within what should be there")
                left -= len(piece)
                yield piece
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing") from None
    except OSError as error:
        if isinstance(error, IntegrityError):
            raise
        raise StorageError(f"{path} cannot be read: {error}") from error
