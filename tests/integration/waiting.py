"""Waiting for what another process does."""

from __future__ import annotations

import time


def until(holds, seconds: float = 10) -> None:
    """Return when `holds()` does; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
