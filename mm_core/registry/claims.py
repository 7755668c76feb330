"""Claims: who is pulling a version now, and whether they still are.

A claim is opened and closed by operations in the log; beside it an object is
overwritten again and again, the heartbeat. Its age is measured by the store's
own clock, so that no two machines' clocks are ever compared.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
import weakref
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mm_core.exceptions import MMError
from mm_core.names import version_prefix
from mm_core.registry.layout import PROBE_PREFIX, claim_key, log_key
from mm_core.registry.processes import is_dead
from mm_core.registry.state import Row, open_claim
from mm_core.schemas import canonical_json
from mm_core.sink import Sink

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

SWEEP_TIMEOUT = 3_600.0
"""Seconds after which another may take the place of who sweeps a version.

Who sweeps stops, or says again that it is at work, long before.
"""


class Claim:
    """The right to fill one version's folder, kept alive by a heartbeat in its own thread.

    `prefix` is the folder's key with a trailing slash. End it with
    `ModelRegistry.add` or `ModelRegistry.abandon`. `close`, or the end of a
    ``with`` block, only stops the heartbeat: others may take the claim over when
    its time is up.
    """

    def __init__(
        self, sink: Sink, claim_id: str, model_id: str, version: str, *, interval: float
    ) -> None:
        self.id = claim_id
        self.model_id = model_id
        self.version = version
        self.prefix = version_prefix(model_id, version)
        self._sink = sink
        self.lost = _Pulse(3 * interval)
        """Set when others may soon take the claim over: whoever still writes must stop.

        It looks at the clock each time it is asked, so that a process that was
        stopped for a while knows before it does anything else.
        """
        self._stop = threading.Event()
        self._heart = _Heart(
            sink=sink,
            key=claim_key(claim_id),
            body=self._body(),
            interval=interval,
            stop=self._stop,
            pulse=self.lost,
        )
        self._thread = threading.Thread(
            target=self._heart.beat, name=f"mm-claim-{claim_id[:8]}", daemon=True
        )
        # A claim that nobody holds any more must not look alive.
        weakref.finalize(self, self._stop.set)

    def __repr__(self) -> str:
        return f"Claim({self.id!r}, {self.model_id!r}, {self.version!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Put the first heartbeat and start the thread."""
        self._heart.once()
        self._thread.start()

    def close(self) -> None:
        """Stop the heartbeat. Safe to call again."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    def discard(self) -> None:
        """Stop the heartbeat and delete its object; a failure to delete is logged."""
        self.close()
        discard_heartbeat(self._sink, self.id)

    def _body(self) -> bytes:
        return canonical_json(
            {"claim": self.id, "model_id": self.model_id, "version": self.version}
        )


def discard_heartbeat(sink: Sink, claim_id: str) -> None:
    """Delete the heartbeat of a claim that is closed; a failure is logged."""
    try:
        sink.delete([claim_key(claim_id)])
    except MMError as error:
        logger.warning(
            "the heartbeat of a closed claim was left behind",
            extra={"claim": claim_id, "error": str(error)},
        )


class _Pulse(threading.Event):
    """Set, for good, once the last beat is longer ago than `limit` seconds."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit
        self._last = steady_seconds()

    def beaten(self, began: float) -> None:
        """A beat was put; it was sent at `began`."""
        self._last = began

    def is_set(self) -> bool:
        if steady_seconds() - self._last > self._limit:
            self.set()
        return super().is_set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heart:
    """What beats. It knows no claim, so that a claim that nobody holds can stop it."""

    sink: Sink
    key: str
    body: bytes
    interval: float
    stop: threading.Event
    pulse: _Pulse

    def once(self) -> None:
        """Put one beat. It counts from before it was sent."""
        began = steady_seconds()
        self.sink.put(self.key, self.body)
        self.pulse.beaten(began)

    def beat(self) -> None:
        """Beat every `interval` seconds; after three of them without a beat, the claim is lost."""
        pause = self.interval
        while not self.stop.wait(pause):
            self.pulse.is_set()
            try:
                self.once()
                pause = self.interval
            except Exception as error:  # noqa: BLE001  # a heartbeat outlives what a plugin raises
                pause = self.interval / 4
                facts = {"key": self.key, "error": str(error)}
                logger.warning("a heartbeat failed", extra=facts)


def steady_seconds() -> float:
    """Seconds on a clock that also runs while the machine sleeps, where there is one."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def store_time(sink: Sink) -> datetime | None:
    """What time it is by the store's own clock: that of an object written just now.

    None where somebody else has deleted that object already.
    """
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    try:
        sink.put(key, b"now")
        fresh = sink.stat(key)
    finally:
        sink.delete([key])
    return fresh.modified if fresh else None


def is_silent(sink: Sink, row: Row, *, seconds: float, now: datetime) -> bool:
    """Whether the holder of the row's claim has given no sign of life for `seconds`.

    Nor for twice the claim's time-out, if that is longer. Its heartbeat is older,
    `now` being the time of the store's clock, or gone; or its process ran on this
    machine and has ended.
    """
    claim = open_claim(row)
    if claim is None or is_dead(row.get("owner")):
        return True
    seconds = max(seconds, 2 * _number(row.get("timeout")))
    beat = sink.stat(claim_key(claim))
    return beat is None or now - beat.modified > timedelta(seconds=seconds)


class Watch:
    """Judges whether the claim under which a version is being pulled is still alive.

    For one waiting caller: it remembers since when a heartbeat has been missing.
    """

    def __init__(self, sink: Sink, timeout: float) -> None:
        self._sink = sink
        self._timeout = timeout
        self._next_look: dict[str, float] = {}
        self._missing_since: dict[str, float] = {}

    def is_stale(self, row: Row) -> bool:
        """Whether the row's open claim may be taken over.

        At once if its process ran on this machine and has ended; else if its
        heartbeat, or the lack of one, is older than the time-out (the claim's own
        or ours, whichever is longer).
        """
        claim = open_claim(row)
        if claim is None:
            return False
        if is_dead(row.get("owner")):
            return True
        now = time.monotonic()
        if now < self._next_look.get(claim, 0):
            return False
        timeout = max(self._timeout, _number(row.get("timeout")))
        self._next_look[claim] = now + timeout / 8
        age = self._age(claim)
        if age is None:
            return now - self._missing_since.setdefault(claim, now) > timeout
        self._missing_since.pop(claim, None)
        return age > timedelta(seconds=timeout)

    def is_left(self, row: Row) -> bool:
        """Whether the one who sweeps the row's version has gone: see docs/storage-format.md."""
        sweeper = row.get("sweeper")
        if sweeper is None:
            return False
        if row.get("free") or is_dead(row.get("owner")):
            return True
        now = time.monotonic()
        if now < self._next_look.get(sweeper, 0):
            return False
        self._next_look[sweeper] = now + self._timeout / 8
        commit = self._sink.stat(log_key(row["ended"][0]))
        told = store_time(self._sink)
        if commit is None or told is None:
            return False
        return told - commit.modified > timedelta(seconds=SWEEP_TIMEOUT)

    def _age(self, claim: str) -> timedelta | None:
        beat = self._sink.stat(claim_key(claim))
        if beat is None:
            return None
        now = store_time(self._sink)
        return now - beat.modified if now else timedelta(0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
