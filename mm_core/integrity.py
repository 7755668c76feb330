"""Check that the bytes of a file are the ones that were meant."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

from mm_core.exceptions import NotFoundError, StorageError, UsageError

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_BLOCK = 1 << 20


def verify_file_integrity(file_path: str | os.PathLike[str], expected_hash: str) -> bool:
    """Whether the sha256 of the file is `expected_hash`.

    The hash is 64 hex digits in either case, with or without ``sha256:`` before
    them. The file is read in blocks; memory stays small whatever its size.

    Raises `UsageError` if `expected_hash` is no sha256 (an empty hash never
    "matches"), `NotFoundError` if there is no such file, `StorageError` if it
    cannot be read.
    """
    wanted = _SHA256.fullmatch(expected_hash.strip().lower())
    if wanted is None:
        raise UsageError(
            "the expected hash is not a sha256",
            hint="give 64 hex digits, such as `sha256sum FILE` prints",
        )
    return hmac.compare_digest(file_sha256(file_path), wanted[1])


def file_sha256(file_path: str | os.PathLike[str]) -> str:
    """The sha256 of the file in lower-case hex.

    Raises `NotFoundError` if there is no such file, `StorageError` if it cannot be read.
    """
    path = Path(file_path)
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    return digest.hexdigest()
