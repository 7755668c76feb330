"""Jobs for the tests of executors. They can be pickled, and leave traces in a folder."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mm_core.exceptions import CancelledError, NotFoundError, StorageError

PATIENCE = 60.0
"""Seconds after which a job gives up: only where something is wrong."""

_STEP = 0.02


@dataclass(frozen=True, slots=True)
class Note:
    """Notes in `folder` that it was carried out, and returns its name and its process."""

    folder: Path
    name: str

    def __call__(self, cancelled: threading.Event) -> tuple[str, int]:
        with (self.folder / self.name).open("a") as file:
            file.write("done\n")
        return self.name, os.getpid()


@dataclass(frozen=True, slots=True)
class Fail:
    """Fails, in our words or in foreign ones."""

    name: str
    foreign: bool = False

    def __call__(self, cancelled: threading.Event) -> None:
        if self.foreign:
            raise ValueError(f"{self.name} is no number")
        raise NotFoundError(f"{self.name} is not there", hint="look elsewhere")


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Waits until the file `name` is in `folder`."""

    folder: Path
    name: str

    def __call__(self, cancelled: threading.Event) -> str:
        _until(self.folder / self.name, cancelled)
        return self.name


@dataclass(frozen=True, slots=True)
class Linger:
    """Notes that it began, and ends when it is asked to, or when the file ``over`` is there."""

    folder: Path
    name: str

    def __call__(self, cancelled: threading.Event) -> str:
        (self.folder / f"began-{self.name}").touch()
        _until(self.folder / "over", cancelled)
        return self.name


def _until(file: Path, cancelled: threading.Event) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if cancelled.wait(_STEP):
            raise CancelledError("stopped")
        if time.monotonic() > deadline:
            raise StorageError(f"{file.name} did not come")
