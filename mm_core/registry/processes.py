"""Who holds a claim: a process that others on the same machine can look for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


def this_process() -> dict[str, Any] | None:
    """The running process as others on this machine can find it; None where /proc does not tell.

    The boot, the pid namespace and the start time are named along with the pid:
    pids are given again, and each container has its own.
    """
    started = _started(os.getpid())
    place = _place()
    if started is None or place is None:
        return None
    return {**place, "pid": os.getpid(), "started": started}


def is_dead(process: Mapping[str, Any] | None) -> bool:
    """Whether that process ran here, on this boot of this machine, and has ended.

    False where nothing can be said.
    """
    place = _place()
    if not process or place is None or any(process.get(key) != place[key] for key in place):
        return False
    pid, started = process.get("pid"), process.get("started")
    if not isinstance(pid, int) or not isinstance(started, str):
        return False
    return _started(pid) != started


def _place() -> dict[str, str] | None:
    if not sys.platform.startswith("linux"):
        return None
    import socket

    try:
        return {
            "host": socket.gethostname(),
            "boot": (_PROC / "sys/kernel/random/boot_id").read_text().strip(),
            "namespace": str((_PROC / "self/ns/pid").readlink()),
        }
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Field 22 of ``stat``: ticks since boot. None for no process, and for a zombie."""
    try:
        after_name = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]
