"""What every built-in sink asks of a key, and of the number of bytes it was promised."""

from __future__ import annotations

import unicodedata

from mm_core import IntegrityError, InvalidNameError


def check_key(key: str) -> str:
    """Return `key`, or raise `InvalidNameError` for one that would leave its root or hide in it."""
    if not key:
        raise InvalidNameError("a key is empty")
    for segment in key.split("/"):
        _check_segment(segment, f"key {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`, or raise `InvalidNameError`; what stands before its last slash is a key."""
    folder, slash, _ = prefix.rpartition("/")
    if slash:
        check_key(folder)
    return prefix


def check_size(key: str, count: int, size: int | None) -> None:
    """Raise `IntegrityError` unless `count` bytes came where `size` were promised."""
    if size is not None and count != size:
        raise IntegrityError(
            f"{key!r} should have {size} bytes, but {count} came; nothing was stored",
            hint="the source sent too little or too much: pull again",
        )


def _check_segment(segment: str, what: str) -> None:
    if segment in ("", ".", ".."):
        raise InvalidNameError(f"{what} has the part {segment!r}, which is not allowed")
    if "\\" in segment:
        raise InvalidNameError(f"{what} holds a backslash")
    if segment.isprintable():  # quick: thousands of keys are looked at
        return
    for char in segment:
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise InvalidNameError(f"{what} holds the control character {char!r}")
