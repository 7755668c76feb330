"""The highest commit that this user has seen of each registry: a log never goes back.

A backup that was put back, or a tamperer who took commits away, leaves a log whose
chain is whole. Only somebody who remembers can tell. What is remembered is a
convenience: a folder that cannot be written or a file that cannot be read is as
if nothing had been seen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mm_core.exceptions import IntegrityError
from mm_core.schemas import sha256_hex

logger = logging.getLogger(__name__)

_TRIES = 50
_PAUSE = 0.002


@dataclass(frozen=True, slots=True)
class Seen:
    """Commit `seq`, whose bytes have this sha256."""

    seq: int
    sha256: str


class Memory:
    """What was seen of the registries of any number of stores, in one `folder`.

    A registry is told by its id and by the root of its store: a copy elsewhere,
    or a replica that lags behind, is another. Safe among threads and processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, registry_id: str, root: str) -> Seen | None:
        """The highest commit that was seen; None if nothing is remembered."""
        try:
            raw = json.loads(self._path(registry_id, root).read_bytes())
            seen = Seen(int(raw["seq"]), str(raw["sha256"]))
            return seen if seen.seq > 0 else None  # an empty log was accepted
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log_failure(error)
            return None

    def note(self, registry_id: str, root: str, seen: Seen) -> None:
        """Remember `seen`, unless it is behind what is remembered. No error is raised."""
        self._write(registry_id, root, seen, forward_only=True)

    def accept(self, registry_id: str, root: str, seen: Seen) -> None:
        """Remember `seen`, also if it is behind: somebody has said that it is right."""
        self._write(registry_id, root, seen, forward_only=False)

    def _write(self, registry_id: str, root: str, seen: Seen, *, forward_only: bool) -> None:
        path = self._path(registry_id, root)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                known = self.recall(registry_id, root) if forward_only else None
                if known is None or known.seq < seen.seq:
                    facts = {"id": registry_id, "root": root}
                    _replace(path, {**facts, "seq": seen.seq, "sha256": seen.sha256})
        except OSError as error:
            _log_failure(error)

    def _path(self, registry_id: str, root: str) -> Path:
        name = sha256_hex(f"{registry_id}\n{root}".encode())[:32]  # the id is a stranger's text
        return self._folder / f"{name}.json"


def went_back(root: str, seen: Seen, seq: int) -> IntegrityError:
    """What to raise where a registry ends at commit `seq`, though `seen` was there."""
    return IntegrityError(
        f"the registry at {root} went back from commit {seen.seq} to {seq}: "
        "was it restored from an older backup, or tampered with?",
        hint=_ACCEPT,
    )


def rewritten(root: str, seen: Seen) -> IntegrityError:
    """What to raise where a registry has another commit under a number that was seen."""
    return IntegrityError(
        f"the registry at {root} has another commit {seen.seq} than was seen there before: "
        "was it restored from a backup, or tampered with?",
        hint=_ACCEPT,
    )


_ACCEPT = "find out who did it; if it is meant to be so, accept it with `mm registry accept`"


def _replace(path: Path, value: dict[str, object]) -> None:
    staged = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        staged.write_text(json.dumps(value), encoding="utf-8")
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out. `BlockingIOError` if one stays in.

    Where there are no such locks, a race may cost the memory of the newest commits.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for left in range(_TRIES, -1, -1):
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(number)


def _log_failure(error: Exception) -> None:
    facts = {"error": str(error)}
    logger.debug("the memory of registries cannot be used", extra=facts)
