"""Numbers of bytes in words."""

from __future__ import annotations


def size_in_words(count: int) -> str:
    """A number of bytes for people: ``12.3 MiB``."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
