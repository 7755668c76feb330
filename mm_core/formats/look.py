"""Looking through a file: what it is, and what is hidden in it, by its content alone.

Nothing is unpickled, imported or run. Only what tells something is read: the front of a
file and of what is packed in it, tables of contents, headers, and pickles without their
long data. What cannot be looked through is told as such: nobody may take it for harmless.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from mm_core.exceptions import IntegrityError
from mm_core.formats.gguf import MAGIC as GGUF
from mm_core.formats.kinds import PACKED, FileFormat
from mm_core.formats.onnx import looks_like_onnx
from mm_core.formats.packed import Unpacked
from mm_core.formats.pickles import Pickle, read_pickle
from mm_core.formats.reader import FARTHEST, Allowance, Reader, ShortError, TooMuchError, Window
from mm_core.formats.safetensors import header_length

HEAD = 8 << 10
"""So many bytes of the front of anything tell what it is."""

MOST_MEMBERS = 200_000
MOST_UNPACKED = 8 << 30
MOST_OPCODES = 20_000_000
DEEPEST = 4
MOST_AT_ONCE = 4 << 20
LONGEST_JSON = 2 << 20
LONGEST_SOUGHT = 64 << 20
"""What is compressed and longer is not unpacked only to look at its end."""

_ZIP_END = b"PK\x05\x06"
_ZIP_TAIL = 22 + (64 << 10)
_TAR_BLOCK = 512
_TAR_SUM = slice(148, 156)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_MAGICS = {
    b"\x1f\x8b\x08": FileFormat.GZIP,
    b"BZh": FileFormat.BZIP2,
    b"\xfd7zXZ\x00": FileFormat.XZ,
    b"\x04\x22\x4d\x18": FileFormat.LZ4,
    GGUF: FileFormat.GGUF,
    _NPY: FileFormat.NPY,
    _HDF5: FileFormat.HDF5,
    b"version https://git-lfs.github.com/spec/": FileFormat.LFS_POINTER,
}
_BROKEN = (
    IntegrityError,
    zipfile.BadZipFile,
    tarfile.TarError,
    struct.error,
    RuntimeError,
    ValueError,
    ArithmeticError,
)
"""What reading an archive raises that is none, or is not as it should be."""
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What one file is, or one of those that are packed in it.

    `member` is the way to it within the file, with ``!/`` between one archive and the
    next; empty for the file itself. One file may be several things at once, such as a
    pickle with a zip behind it. `pickles` are those in it, not those of its members.
    `unread` says why it could not be looked through, if it could not.
    """

    member: str = ""
    formats: tuple[FileFormat, ...]
    pickles: tuple[Pickle, ...] = ()
    unread: str | None = None


def look_through(file: BinaryIO, size: int, *, skeletons: bool = False) -> Iterator[Inspected]:
    """What `file`, of `size` bytes, is and holds: first it itself, then all that is packed in it.

    With `skeletons` each `Pickle` has its opcodes. Bounded in memory, and in what is
    unpacked, opened and read: what is beyond the bounds is `Inspected.unread`. Errors of
    what `file` reads from pass.
    """
    yield from _Look(skeletons=skeletons).through(file, size, "", 0)


def identify(file: BinaryIO, size: int) -> tuple[FileFormat, ...]:
    """What a file is, without a look at what is packed in it."""
    look = _Look(skeletons=False)
    formats, _ = look.formats(file, size, look.pickles(file))
    return formats


@dataclass
class _Look:
    """One look; what it may use up is for the whole file, however it is nested."""

    skeletons: bool
    members: Allowance = field(default_factory=lambda: Allowance(MOST_MEMBERS, "so many members"))
    unpacked: Allowance = field(
        default_factory=lambda: Allowance(MOST_UNPACKED, f"it unpacks to {MOST_UNPACKED >> 30} GiB")
    )
    opcodes: Allowance = field(
        default_factory=lambda: Allowance(MOST_OPCODES, "pickles with so many opcodes")
    )

    def through(
        self, file: BinaryIO, size: int | None, member: str, depth: int
    ) -> Iterator[Inspected]:
        """What `file` is, and what is in it. The size of what is compressed is not known."""
        formats: tuple[FileFormat, ...] = (FileFormat.OTHER,)
        pickles: tuple[Pickle, ...] = ()
        inside: FileFormat | None = None
        why = None
        try:
            pickles = self.pickles(file)
            formats, inside = self.formats(file, size, pickles)
            if not all(one.whole for one in pickles):
                why = "a pickle in it breaks off after it has run something"
        except ShortError:
            raise
        except IntegrityError as error:
            why = str(error)
            formats = (FileFormat.PICKLE,) if pickles else formats
        yield Inspected(member=member, formats=formats, pickles=pickles, unread=why)
        if inside is None or why is not None:
            return
        if depth >= DEEPEST:
            yield _unread(member, f"it is packed {DEEPEST} times and more", formats)
            return
        members = _MEMBERS.get(inside, _Look._unpack)
        try:
            yield from members(self, file, size, inside, member, depth + 1)
        except ShortError:
            raise
        except _BROKEN as error:
            yield _unread(member, f"{error!s:.200}", formats)

    # -- what it is ------------------------------------------------------------------

    def pickles(self, file: BinaryIO) -> tuple[Pickle, ...]:
        """The pickles that a file begins with, one behind the other."""
        found: list[Pickle] = []
        start = _object_array(file)
        while True:
            try:
                reader = Reader(file, start)
            except OverflowError:
                break
            one = read_pickle(reader, self.opcodes, skeleton=self.skeletons)
            if one is None:
                break
            found.append(one)
            start = one.end
            if not one.whole:
                break
        return tuple(found)

    def formats(
        self, file: BinaryIO, size: int | None, pickles: tuple[Pickle, ...]
    ) -> tuple[tuple[FileFormat, ...], FileFormat | None]:
        """What a file is, and as what it has to be opened to see more."""
        head = _front(file)
        formats = [FileFormat.PICKLE] if pickles else []
        packed = _archive(file, head, size) or _packing(head)
        if packed is not None:
            formats.append(packed)
        elif (magic := _by_magic(head)) is not None:
            formats.append(magic)
        elif size is not None and _is_safetensors(head, size):
            formats.append(FileFormat.SAFETENSORS)
        elif not pickles and size is not None and looks_like_onnx(file, size):
            formats.append(FileFormat.ONNX)
        elif not pickles:
            formats.append(_plain(file, head, size))
        if packed is FileFormat.ZIP and size is not None and _holds_torch(file, size):
            formats[-1] = FileFormat.TORCH
        return tuple(formats), packed

    # -- what is in it ---------------------------------------------------------------

    def _unzip(
        self, file: BinaryIO, size: int | None, _: FileFormat, member: str, depth: int
    ) -> Iterator[Inspected]:
        with _zip(file, file.seek(0, io.SEEK_END) if size is None else size) as archive:
            for entry in archive.infolist():
                self.members.use()
                if entry.is_dir() and not entry.file_size:
                    continue
                place = _place(member, entry.filename)
                if entry.flag_bits & 1:
                    yield _unread(place, "it is encrypted")
                elif entry.compress_type == zipfile.ZIP_STORED:
                    start = _start_of(file, entry)
                    inner = cast("BinaryIO", Window(file, start, entry.file_size))
                    yield from self.through(inner, entry.file_size, place, depth)
                elif entry.compress_type == zipfile.ZIP_DEFLATED:
                    start = _start_of(file, entry)
                    packed = cast("BinaryIO", Window(file, start, entry.compress_size))
                    inner = cast("BinaryIO", Unpacked(packed, FileFormat.ZIP, self.unpacked))
                    known = entry.file_size if entry.file_size <= LONGEST_SOUGHT else None
                    yield from self.through(inner, known, place, depth)
                else:
                    yield _unread(place, f"it is packed by method {entry.compress_type}")

    def _untar(
        self, file: BinaryIO, size: int | None, _: FileFormat, member: str, depth: int
    ) -> Iterator[Inspected]:
        file.seek(0)
        bounded = _Bounded(file, FARTHEST if size is None else size)
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                self.members.use()
                place = _place(member, entry.name)
                if entry.issparse():
                    yield _unread(place, "it is sparse")
                elif entry.isreg():
                    inner = cast("BinaryIO", Window(file, entry.offset_data, entry.size))
                    yield from self.through(inner, entry.size, place, depth)

    def _unpack(
        self, file: BinaryIO, _: int | None, kind: FileFormat, member: str, depth: int
    ) -> Iterator[Inspected]:
        inner = cast("BinaryIO", Unpacked(file, kind, self.unpacked))
        yield from self.through(inner, None, _place(member, ""), depth)


_MEMBERS = {FileFormat.ZIP: _Look._unzip, FileFormat.TAR: _Look._untar}  # noqa: SLF001


def _unread(
    member: str, why: str, formats: tuple[FileFormat, ...] = (FileFormat.OTHER,)
) -> Inspected:
    return Inspected(member=member, formats=formats, unread=why)


def _place(member: str, name: str) -> str:
    return f"{member}!/{name}" if member else name or "!"


# -- telling formats apart -------------------------------------------------------------


def _front(file: BinaryIO) -> bytes:
    file.seek(0)
    pieces, left = [], HEAD
    try:
        while left and (piece := file.read(left)):
            pieces.append(piece)
            left -= len(piece)
    except EOFError as error:
        raise ShortError(f"it is shorter than it should be: {error}") from error
    return b"".join(pieces)


def _archive(file: BinaryIO, head: bytes, size: int | None) -> FileFormat | None:
    """A zip, also behind anything else, or a tar."""
    if _is_tar(head):
        return FileFormat.TAR
    if head.startswith((b"PK\x03\x04", _ZIP_END)):
        return FileFormat.ZIP
    if size is not None and size >= _TAIL_LEAST and _has_zip_end(file, size):
        return FileFormat.ZIP
    return None


_TAIL_LEAST = 22


def _has_zip_end(file: BinaryIO, size: int) -> bool:
    """Whether a zip ends here, with its table of contents: programs open such a file, too."""
    start = max(0, size - _ZIP_TAIL)
    tail = Reader(file, start).take(size - start)
    at = tail.rfind(_ZIP_END)
    if at < 0 or at + _TAIL_LEAST > len(tail):
        return False
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    count = int.from_bytes(tail[at + 10 : at + 12], "little")
    table = start + at - length
    if not count or table < 0:
        return False
    return Reader(file, table).take(4) == b"PK\x01\x02"


def _is_tar(head: bytes) -> bool:
    block = head[:_TAR_BLOCK]
    if len(block) < _TAR_BLOCK or not block[0]:
        return False
    try:
        stated = int(block[_TAR_SUM].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    rest = block[: _TAR_SUM.start] + b" " * 8 + block[_TAR_SUM.stop :]
    return stated == sum(rest)


def _packing(head: bytes) -> FileFormat | None:
    found = _by_magic(head)
    if found in PACKED:
        return found
    if head.startswith(_ZLIB):
        return FileFormat.ZLIB
    return None


def _by_magic(head: bytes) -> FileFormat | None:
    return next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)


def _is_safetensors(head: bytes, size: int) -> bool:
    return header_length(head, size) is not None and head[8:9] == b"{"


def _plain(file: BinaryIO, head: bytes, size: int | None) -> FileFormat:
    """JSON, other text, or nothing that is known here."""
    text = _text(head)
    if text is None or "\0" in text:
        return FileFormat.OTHER
    looks_so = text.lstrip("\ufeff \t\r\n").startswith(("{", "["))
    if looks_so and size is not None and size <= LONGEST_JSON:
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(Reader(file).take(size))
            return FileFormat.JSON
    return FileFormat.TEXT


def _text(head: bytes) -> str | None:
    """What is text in UTF-8, whose last character may be cut; None for what is none."""
    for cut in range(4 if len(head) >= HEAD else 1):
        with contextlib.suppress(UnicodeDecodeError):
            return head[: len(head) - cut].decode()
    return None


def _object_array(file: BinaryIO) -> int:
    """Where the pickle of an array of objects begins in an ``.npy`` file; 0 in any other file."""
    head = _front(file)
    if not head.startswith(_NPY) or len(head) < _NPY_LEAST:
        return 0
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _LONGEST_NPY:
        raise TooMuchError(f"a header of {length} bytes is too long to be read")
    text = Reader(file, 8 + width).take(length)
    try:
        described = ast.literal_eval(text.decode("latin-1").strip())["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise IntegrityError("its header is not that of an array") from error
    return start if "O" in str(described) else 0


_NPY_LEAST = 12
_LONGEST_NPY = 64 << 10


# -- archives --------------------------------------------------------------------------


class _Bounded(Window):
    """A whole file, of which nobody reads much at once."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, 0, size)

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end."""
        left = self.left()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MOST_AT_ONCE:
            raise TooMuchError(f"a piece of it has more than {MOST_AT_ONCE >> 20} MiB")
        try:
            return super().read(wanted)
        except EOFError as error:
            raise ShortError(f"it is shorter than it should be: {error}") from error


def _zip(file: BinaryIO, size: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(cast("BinaryIO", _Bounded(file, size)))
    except _BROKEN as error:
        if isinstance(error, TooMuchError | ShortError):
            raise
        raise IntegrityError(f"a zip that cannot be read: {error!s:.100}") from error


def _start_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the data of a member begins: behind a header whose texts have lengths of their own."""
    reader = Reader(file, entry.header_offset)
    if reader.take(4) != b"PK\x03\x04":
        raise IntegrityError(f"a zip that cannot be read: {entry.filename!r:.80} is not in it")
    reader.skip(22)
    return reader.tell() + 4 + reader.number(2) + reader.number(2)


def _holds_torch(file: BinaryIO, size: int) -> bool:
    """Whether it is what `torch.save` or TorchScript writes."""
    try:
        with _zip(file, size) as archive:
            names = archive.namelist()
    except IntegrityError:
        return False
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in names)
