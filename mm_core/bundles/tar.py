"""The form of one file: a tar whose every byte follows from its index, which comes first."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mm_core.bundles.contents import INDEX_LIMIT, INDEX_NAME, Contents, Index
from mm_core.bundles.form import Form
from mm_core.exceptions import IntegrityError, NotFoundError, StorageError, UsageError
from mm_core.sink import Buffer

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_PIECE = 1 << 20


def write_tar(contents: Contents, out: BinaryIO) -> int:
    """Write a bundle to `out`, in order and once through; how many bytes that were.

    Raises `IntegrityError` for a stored file that is not what its manifest says: what was
    written by then is no bundle.
    """
    tar, index = _Writer(out), contents.index
    tar.add(index.name, len(index.data), [index.data])
    for member, size in index.members.items():
        tar.add(member, size, contents.pieces(member))
    return tar.end()


class _Writer:
    """A tar, written once through."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._at = 0

    def add(self, name: str, size: int, pieces: Iterable[Buffer]) -> None:
        self._write(_head(name, size))
        for piece in pieces:
            self._write(piece)
        self._write(bytes(-size % _BLOCK))

    def end(self) -> int:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._at % _RECORD))
        return self._at

    def _write(self, data: Buffer) -> None:
        self._out.write(data)
        self._at += len(data)


def _head(name: str, size: int) -> bytes:
    """The block that stands before a member: the same for the same name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


class TarForm(Form):
    """A bundle in one file.

    Raises `NotFoundError` where there is no such file, `UsageError` for one that is no
    bundle, and `IntegrityError`, naming what, for one that was changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise NotFoundError(f"there is no file or folder {str(path)!r}") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error}") from error
        try:
            self.index, at = self._read_index()
            self._places = dict(self._find_members(at))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, member: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a member."""
        at, end = (self._places[member] + place for place in (start, stop))
        while at < end:
            piece = self._pread(at, min(_PIECE, end - at))
            if not piece:
                raise IntegrityError(f"{self._path} ends within {member}")
            at += len(piece)
            yield piece

    def _read_index(self) -> tuple[Index, int]:
        """The index, and where it ends."""
        try:
            info = tarfile.TarInfo.frombuf(self._pread(0, _BLOCK), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            info = tarfile.TarInfo()
        if INDEX_NAME.fullmatch(info.name) is None or info.size > INDEX_LIMIT:
            raise UsageError(
                f"{self._path} is no bundle, or its first block is damaged",
                hint="a bundle is what `mm export` writes",
            )
        self._expect(0, _head(info.name, info.size), "the head of the index")
        index = Index.from_named(info.name, self._pread(_BLOCK, info.size), self._path)
        at = _BLOCK + info.size
        return index, self._expect_zeros(at, -info.size % _BLOCK, "what follows the index")

    def _find_members(self, at: int) -> Iterator[tuple[str, int]]:
        """Where each member begins; all heads, fillings and the end are as they must be."""
        for name, size in self.index.members.items():
            self._expect(at, _head(name, size), f"the head of {name}")
            yield name, at + _BLOCK
            at += _BLOCK + size
            at = self._expect_zeros(at, -size % _BLOCK, f"what follows {name}")
        at = self._expect_zeros(at, 2 * _BLOCK, "the end")
        at = self._expect_zeros(at, -at % _RECORD, "the end")
        if self._pread(at, 1):
            raise IntegrityError(f"{self._path} goes on after its end")

    def _expect(self, at: int, data: bytes, what: str) -> None:
        if self._pread(at, len(data)) != data:
            raise IntegrityError(f"{what} in {self._path} is damaged, at byte {at}")

    def _expect_zeros(self, at: int, count: int, what: str) -> int:
        self._expect(at, bytes(count), what)
        return at + count

    def _pread(self, at: int, count: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), count, at) if count else b""
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error}") from error
