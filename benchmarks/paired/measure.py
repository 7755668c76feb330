"""Run a sequence of commands, and say what it cost."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage

PATIENCE = 1800.0
"""Seconds after which a command is killed."""


@dataclass(frozen=True)
class Usage:
    """What commands cost, with all their children.

    `peak_mib` is the largest process of the largest command. `disk_mib` is what
    was written to a file system with a disk behind it, as the kernel counts it
    (`ru_oublock`), whether or not it has reached the disk.
    """

    wall: float
    cpu: float
    peak_mib: float
    disk_mib: float


def run(commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: Path) -> Usage:
    """Run `commands` one after the other; the first that fails ends the benchmark."""
    start = time.perf_counter()
    each = [_run_one(command, environment, log) for command in commands]
    wall = time.perf_counter() - start
    own = _own_figures(log)
    return Usage(
        wall=own.get("wall", wall),
        cpu=own.get("cpu", sum(usage.ru_utime + usage.ru_stime for usage in each)),
        peak_mib=max(usage.ru_maxrss for usage in each) / 1024,
        disk_mib=sum(usage.ru_oublock for usage in each) * 512 / (1 << 20),
    )


def _own_figures(log: Path) -> dict[str, float]:
    """What the last command measured itself, where it is one that does."""
    last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    word, _, figures = last.partition(" ")
    return dict(json.loads(figures)) if word == "measured" else {}


def _run_one(command: Sequence[str], environment: Mapping[str, str], log: Path) -> struct_rusage:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        watchdog.cancel()
        if process.returncode is None:  # we are told to end
            process.kill()
            process.wait()
    if process.returncode:
        raise CommandError(command, process.returncode, log.read_text(errors="replace")[-3000:])
    return usage


class CommandError(Exception):
    """A command of a way failed."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {status}:\n{output}")
