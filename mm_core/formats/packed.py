"""What a compressed file holds, as a file: unpacked while it is read, and never all at once."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

from mm_core.exceptions import IntegrityError
from mm_core.formats.kinds import FileFormat
from mm_core.formats.reader import Allowance, ShortError

_PIECE = 16 << 10
_OUTPUT = 64 << 10
_BEHIND = 128 << 10
"""So much of what was read last can be gone back to without unpacking it all again."""
_MOST_MEMORY = 256 << 20

_WINDOW_BITS = {FileFormat.GZIP: 31, FileFormat.ZLIB: 15, FileFormat.ZIP: -15}
"""How zlib is told which frame it will meet; `ZIP` is a member, which has none."""


class Unpacked(io.RawIOBase):
    """The content of `file`, which is packed as `kind` says; that of all its streams in a row.

    Every byte that comes out uses up one of `allowance`, also when it comes out again:
    seeking back far begins anew. Raises `IntegrityError` where the packing is broken,
    after what came before that.
    """

    def __init__(self, file: BinaryIO, kind: FileFormat, allowance: Allowance) -> None:
        super().__init__()
        self._file = file
        self._kind = kind
        self._allowance = allowance
        self._at = self._produced = self._file_at = 0
        self._behind = bytearray()
        self._rest = b""
        self._decoder: Any = _decoder(kind)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, at the price of unpacking."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on from another byte; from the end only to the end itself."""
        if whence == io.SEEK_END:
            while self._produce():
                pass
            self._at = self._produced
            return self._at
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if target < self._produced - len(self._behind):
            self._begin()
        while self._produced < target and self._produce():
            pass
        self._at = target
        return target

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end."""
        wanted = _OUTPUT if size is None or size < 0 else size
        pieces = []
        while wanted:
            if self._at >= self._produced and not self._produce():
                break
            begin = self._at - (self._produced - len(self._behind))
            piece = bytes(self._behind[begin : begin + wanted])
            pieces.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def _begin(self) -> None:
        self._at = self._produced = self._file_at = 0
        self._behind = bytearray()
        self._rest = b""
        self._decoder = _decoder(self._kind)

    def _produce(self) -> int:
        """Unpack a little more; how many bytes came, 0 at the end."""
        output = b""
        while not output:
            if self._decoder.eof and not self._next_stream():
                return 0
            data = self._input() if self._decoder.needs_input else b""
            output = self._decoded(data)
        self._allowance.use(len(output))
        self._behind += output
        del self._behind[: max(0, len(self._behind) - _BEHIND - len(output))]
        self._produced += len(output)
        return len(output)

    def _decoded(self, data: bytes) -> bytes:
        try:
            return bytes(self._decoder.decompress(data, _OUTPUT))
        except Exception as error:  # each library has errors of its own
            raise IntegrityError(f"what is packed cannot be unpacked: {error!s:.200}") from error

    def _input(self) -> bytes:
        data = self._rest or self._more()
        self._rest = b""
        if not data:
            raise IntegrityError("what is packed ends in the midst")
        return data

    def _more(self) -> bytes:
        self._file.seek(self._file_at)
        try:
            data = self._file.read(_PIECE)
        except EOFError as error:
            raise ShortError(f"it is shorter than it should be: {error}") from error
        self._file_at += len(data)
        return data

    def _next_stream(self) -> bool:
        """Whether another stream follows the one that ended; zeros and rubbish are none."""
        rest = self._decoder.unused_data or self._more()
        if self._kind is FileFormat.ZIP or not rest.startswith(_MAGICS[self._kind]):
            return False
        self._rest, self._decoder = rest, _decoder(self._kind)
        return True


_MAGICS = {
    FileFormat.GZIP: b"\x1f\x8b",
    FileFormat.ZLIB: b"\x78",
    FileFormat.BZIP2: b"BZh",
    FileFormat.XZ: b"\xfd7zXZ",
}


class _Inflate:
    """zlib with the manners of the other two."""

    def __init__(self, window_bits: int) -> None:
        self._inflate = zlib.decompressobj(window_bits)

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, most)

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


def _decoder(kind: FileFormat) -> Any:
    if kind in _WINDOW_BITS:
        return _Inflate(_WINDOW_BITS[kind])
    try:
        if kind is FileFormat.BZIP2:
            import bz2

            return bz2.BZ2Decompressor()
        if kind is FileFormat.XZ:
            import lzma

            return lzma.LZMADecompressor(memlimit=_MOST_MEMORY)
    except ImportError as error:  # a Python that was built without it
        raise IntegrityError(f"{kind.value} cannot be unpacked here: {error}") from error
    raise IntegrityError(f"{kind.value} cannot be unpacked here")
