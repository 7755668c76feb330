"""Sizes, durations and moments as people write them. Imports next to nothing."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_size(value: Any) -> int:
    """The number of bytes in ``268435456``, ``"256MiB"`` or ``"1.5 GB"``. Raises `ValueError`."""
    match = None if isinstance(value, bool) else _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("a size is a number of bytes, or such as 256MiB or 1.5GB")
    number, prefix, binary = match.groups()
    power = "kmgtp".find(prefix.lower()) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def parse_rate(value: Any) -> int:
    """The bytes a second in ``"50MiB"`` or ``"50MiB/s"``. Raises `ValueError`."""
    return parse_size(value.strip().removesuffix("/s") if isinstance(value, str) else value)


def parse_duration(value: Any) -> float:
    """The number of seconds in ``60``, ``"90s"``, ``"1h30m"`` or ``"24h"``. Raises `ValueError`."""
    text = "" if isinstance(value, bool) else str(value).strip()
    parts = list(_DURATION.finditer(text))
    if (
        not parts
        or "".join(p[0] for p in parts) != text
        or (len(parts) > 1 and not all(p[2] for p in parts))
    ):
        raise ValueError("a duration is a number of seconds, or such as 90s, 15m, 24h or 7d")
    return sum(float(p[1]) * _SECONDS[(p[2] or "s").lower()] for p in parts)


def parse_moment(text: str, *, now: datetime | None = None) -> datetime:
    """The moment in ``2026-01-31``, ``2026-01-31T12:00:00Z``, or ``3d``: so long before `now`.

    Without a zone it is local time. Raises `ValueError`.
    """
    words = text.strip()
    try:
        ago = timedelta(seconds=parse_duration(words)) if words[-1:].isalpha() else None
        if ago is not None:
            return (datetime.now(timezone.utc) if now is None else now) - ago
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", words)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(
            "a time is such as 2026-01-31, 2026-01-31T12:00:00Z, or an age: 90m, 24h, 7d"
        ) from None
