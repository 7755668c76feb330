"""A pull in a process that is up already, as in a pipeline or a server. Tells its own figures.

    python embedded.py SOURCE BACKEND [fsync]

All is imported, and the backend was asked once, before the clock starts.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from mm_core import ModelManager
from mm_core.config import load_settings


def cpu() -> float:
    """Seconds of CPU that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    source, to = sys.argv[1:3]
    overrides = {}
    if sys.argv[3:] == ["unsynced"]:
        overrides = {"backends": {"unsynced": {"type": "local", "root": to, "fsync": False}}}
        to = "unsynced"
    with ModelManager(load_settings(overrides=overrides), backend=to) as manager:
        manager.plan(source)
        before, start = cpu(), time.perf_counter()
        manager.pull(source)
        figures = {"wall": time.perf_counter() - start, "cpu": cpu() - before}
    sys.stdout.write(f"\nmeasured {json.dumps(figures)}\n")


if __name__ == "__main__":
    main()
