"""Whether S3 holds the bytes that were sent: CRC32 where it answers with one, else its md5."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from mm_core import Buffer

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


def crc32_of(data: Buffer) -> str:
    """The CRC32 of `data` as S3 writes it. Other threads go on meanwhile."""
    return base64.b64encode(_crc32()(data).to_bytes(4, "big")).decode()


def md5_of(data: Buffer) -> Any:
    """S3's own checksum of a part; against accidents, not against forgery."""
    return hashlib.md5(data, usedforsecurity=False)


def md5_in(answer: Mapping[str, Any]) -> str | None:
    """The md5 that the ETag is; with keys of KMS or of the customer it is none."""
    etag = _MD5.fullmatch(answer.get("ETag", ""))
    encrypted = answer.get("ServerSideEncryption") not in (None, "AES256")
    if etag is None or encrypted or "SSECustomerAlgorithm" in answer:
        return None
    return etag[1]


def holds_other_bytes(answer: Mapping[str, Any], data: Buffer) -> bool:
    """Whether `answer` tells the md5 of other bytes than `data`; only then is that worked out."""
    found = md5_in(answer)
    return found is not None and found != md5_of(data).hexdigest()


def etag_of(etags: list[str]) -> str | None:
    """The ETag of an upload of parts with `etags`, where those are md5 sums."""
    found = [_MD5.fullmatch(etag) for etag in etags]
    sums = [bytes.fromhex(match[1]) for match in found if match]
    if len(sums) != len(etags):
        return None
    return f"{md5_of(b''.join(sums)).hexdigest()}-{len(etags)}"


@cache
def _crc32() -> Callable[[Buffer], int]:
    """ISA-L's needs a tenth of zlib's time."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.crc32
    return isal_zlib.crc32
