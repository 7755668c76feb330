"""A commit's own checksum, so that bytes that were damaged on their way are not believed.

The next commit names the sha256 of the one before, but the newest has none after
it: a client that was told one wrong bit of it would chain its own commit to what
was never there, and spoil the log for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mm_core.schemas import canonical_json, sha256_hex

CHECK = "check"
"""The field with the checksum. It sorts first, so that it can be looked at without parsing."""

_START = f'{{"{CHECK}":"'.encode()
_DIGITS = 16
_END = len(_START) + _DIGITS
_BEHIND = b'",'
_TRIES = 4


def seal(commit: Mapping[str, Any]) -> bytes:
    """The bytes of a commit: canonical JSON, with the checksum of all the rest in it."""
    return canonical_json({**commit, CHECK: _check(canonical_json(dict(commit)))})


def is_sealed(data: bytes) -> bool:
    """Whether there is a checksum in these bytes, and it is right."""
    rest = b"{" + data[_END + len(_BEHIND) :]
    return data.startswith(_START) and data[len(_START) :].startswith(
        _check(rest).encode() + _BEHIND
    )


def is_broken(data: bytes) -> bool:
    """Whether there is a checksum in these bytes, and it is wrong. Old commits have none."""
    return data.startswith(_START) and not is_sealed(data)


def read_twice(read: Callable[[], bytes | None]) -> bytes | None:
    """What `read` returns; again, where it is not sealed, a few times until it is.

    What has no checksum is believed as soon as two reads agree. A wrong one is not: a
    line that turns a bit may turn the same one twice.
    """
    data = read()
    for _ in range(_TRIES - 1):
        if data is None or is_sealed(data):
            break
        before, data = data, read()
        if data == before and not is_broken(data):
            break
    return data


def _check(rest: bytes) -> str:
    return sha256_hex(rest)[:_DIGITS]
