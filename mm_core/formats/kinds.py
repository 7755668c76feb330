"""The formats that content can have, and those that a name claims."""

from __future__ import annotations

import enum


class FileFormat(str, enum.Enum):
    """What a file is by its content. The values are the words of policies and of ``mm scan``.

    `LFS_POINTER` is what git LFS keeps in the place of a file. `TORCH` is a zip that
    holds what `torch.save` or TorchScript wrote. A compressed
    file is known by its packing alone. `TEXT` is also an empty file; `OTHER` is all
    that is none of these.
    """

    PICKLE = "pickle"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    ONNX = "onnx"
    ZIP = "zip"
    TORCH = "torch"
    TAR = "tar"
    GZIP = "gzip"
    ZLIB = "zlib"
    BZIP2 = "bzip2"
    XZ = "xz"
    LZ4 = "lz4"
    NPY = "npy"
    HDF5 = "hdf5"
    LFS_POINTER = "lfs-pointer"
    JSON = "json"
    TEXT = "text"
    OTHER = "other"


VAGUE = frozenset({FileFormat.JSON, FileFormat.TEXT, FileFormat.OTHER})
"""What nothing but the lack of another format tells: no name is caught lying by it."""

PACKED = frozenset(
    {FileFormat.GZIP, FileFormat.ZLIB, FileFormat.BZIP2, FileFormat.XZ, FileFormat.LZ4}
)
"""One stream, compressed."""

_TEXTS = (
    "cfg csv html ini jinja js json5 jsonl log md py rst sh toml tsv txt vocab xml yaml yml"
).split()
_CLAIMS: dict[str, tuple[FileFormat, ...]] = {
    "safetensors": (FileFormat.SAFETENSORS,),
    "gguf": (FileFormat.GGUF,),
    "onnx": (FileFormat.ONNX,),
    "json": (FileFormat.JSON,),
    "h5": (FileFormat.HDF5,),
    "hdf5": (FileFormat.HDF5,),
    "npy": (FileFormat.NPY,),
    "npz": (FileFormat.ZIP, FileFormat.TORCH),
    "zip": (FileFormat.ZIP, FileFormat.TORCH),
    "tar": (FileFormat.TAR,),
    "gz": (FileFormat.GZIP,),
    "tgz": (FileFormat.GZIP,),
    "bz2": (FileFormat.BZIP2,),
    "xz": (FileFormat.XZ,),
    **dict.fromkeys(_TEXTS, (FileFormat.TEXT,)),
}


def claimed_formats(path: str) -> tuple[FileFormat, ...]:
    """The formats that the end of a file's name states; none for one that states nothing.

    ``.bin``, ``.pt`` and the like state nothing: many things are called so.
    """
    return _CLAIMS.get(path.rpartition("/")[2].rpartition(".")[2].lower(), ())
