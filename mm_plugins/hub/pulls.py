"""Pulls: what is on its way into the backend, for those who began it and those who look on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from mm_core import (
    CancelledError,
    MMError,
    ModelEntry,
    NotFoundError,
    TransferEvent,
    TransientError,
    redact,
    redact_url,
    rfc3339,
)

logger = logging.getLogger(__name__)

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
STATUSES = (WAITING, RUNNING, DONE, FAILED, CANCELLED)

MOST_ENDED = 100
"""How many that have ended are still told of."""

MOST_WAITING = 1000
"""How many may wait until the next is refused."""

_CHANGING = frozenset({"planned", "started", "progress", "stored"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One pull as it is now. `done` and `total` are bytes; `stored` counts finished files.

    `kind` is ``pull`` for one that somebody asked for, or the word of whoever put it
    in. `path` is the file of which was heard last. `message` is why it waits, is slow or
    has failed. `by` is the name of a token.
    """

    id: str
    source: str
    kind: str = "pull"
    status: str = WAITING
    model_id: str | None = None
    version: str | None = None
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    by: str | None = None
    done: int = 0
    total: int | None = None
    stored: int = 0
    path: str | None = None
    message: str | None = None
    hint: str | None = None
    began: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    ended: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.ended is not None

    def to_json(self) -> dict[str, Any]:
        """The pull as JSON data."""
        return {
            "id": self.id,
            "kind": self.kind,
            "status": self.status,
            "source": self.source,
            "model_id": self.model_id,
            "version": self.version,
            "revision": self.revision,
            "aliases": list(self.aliases),
            "by": self.by,
            "done": self.done,
            "total": self.total,
            "stored": self.stored,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
            "began": rfc3339(self.began),
            "ended": None if self.ended is None else rfc3339(self.ended),
        }


class Flight:
    """A pull in the hands of whoever carries it out: they tell here how far it is.

    `cancelled` is set when somebody wants it to stop. Safe among threads.
    """

    def __init__(self, pulls: Pulls, id_: str, cancelled: threading.Event | None = None) -> None:
        self.id = id_
        self.cancelled = threading.Event() if cancelled is None else cancelled
        self._pulls = pulls
        self._files: dict[str, int] = {}

    def start(self) -> None:
        """It runs now."""
        self._pulls.change(self.id, lambda pull: replace(pull, status=RUNNING))

    def hear(self, event: TransferEvent) -> None:
        """Something happened to it: for ``on_event`` of `ModelManager.pull`."""
        self._pulls.change(self.id, lambda pull: self._after(pull, event))

    def note(self, **changes: Any) -> None:
        """Set fields of the `Pull`, such as a model id that was not known before."""
        self._pulls.change(self.id, lambda pull: replace(pull, **changes))

    def end(self, error: BaseException | None = None, *, entry: ModelEntry | None = None) -> None:
        """It is over: well, or by `error`. Whoever ends it twice changes nothing."""
        self._pulls.change(self.id, lambda pull: _ended(pull, error, entry))

    def _after(self, pull: Pull, event: TransferEvent) -> Pull:
        """The pull once `event` has happened to it. Called by one thread at a time."""
        message = redact(event.message) if event.message else None
        changed = replace(pull, model_id=event.model_id, message=message)
        if event.kind == "planned":
            self._files.clear()
            return replace(changed, total=event.total, done=0, stored=0, path=None)
        if event.path is None or event.kind not in _CHANGING:
            return changed
        more = event.done - self._files.get(event.path, 0)
        self._files[event.path] = event.done
        stored = pull.stored + (event.kind == "stored")
        return replace(changed, done=pull.done + more, stored=stored, path=event.path)


Work = Callable[[Flight], ModelEntry]
"""Carries out a pull, hears `Flight.cancelled`, and returns what became AVAILABLE."""


@dataclass(frozen=True)
class _Queued:
    flight: Flight
    work: Work
    owner: object


class Watch:
    """What changes, for one who looks on from asyncio: of many changes to a pull, the last."""

    def __init__(self, lock: threading.Lock) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = lock
        self._changed: dict[str, Pull] = {}
        self._wake = asyncio.Event()
        self.is_over = False

    async def changes(self, patience: float) -> list[Pull]:
        """The pulls that have changed since; none where that is so for `patience` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), patience)
        self._wake.clear()
        with self._lock:
            found = list(self._changed.values())
            self._changed.clear()
        return found

    def tell(self, pull: Pull | None) -> None:
        """A pull is now like this, or with None: there will be no more. With the lock held."""
        is_first = not self._changed
        if pull is None:
            self.is_over = True
        else:
            self._changed[pull.id] = pull
        if is_first or pull is None:
            with contextlib.suppress(RuntimeError):  # its loop is gone, and so is the watcher
                self._loop.call_soon_threadsafe(self._wake.set)


class Pulls:
    """All pulls of this process: those that run, those that wait, the last that have ended.

    At most `at_once` of those that were begun here run; what others put in by `enter`
    does not count. Safe among threads.
    """

    def __init__(self, at_once: int = 2) -> None:
        self.at_once = at_once
        self._lock = threading.Lock()
        self._pulls: OrderedDict[str, Pull] = OrderedDict()
        self._flights: dict[str, Flight] = {}
        self._queue: deque[_Queued] = deque()
        self._owners: dict[str, object] = {}
        self._leaving: list[tuple[object, Callable[[], None]]] = []
        self._watches: set[Watch] = set()
        self._is_closed = False

    def begin(
        self,
        source: str,
        work: Work,
        *,
        owner: object = None,
        model_id: str | None = None,
        version: str | None = None,
        revision: str | None = None,
        aliases: Sequence[str] = (),
        by: str | None = None,
    ) -> Pull:
        """Carry out `work` in a thread, as soon as there is room.

        `owner` is what it works with: see `when_free`. `TransientError` where too many
        wait, or all is about to end.
        """
        pull = _new(
            source, "pull", model_id=model_id, version=version, revision=revision, by=by,
            aliases=tuple(aliases),
        )  # fmt: skip
        flight = Flight(self, pull.id)
        with self._lock:
            if self._is_closed:
                raise TransientError("this hub is about to stop")
            if len(self._queue) >= MOST_WAITING:
                raise TransientError(f"{MOST_WAITING} pulls wait already", retry_after=60)
            self._add(pull, flight)
            self._owners[pull.id] = owner
            self._queue.append(_Queued(flight, work, owner))
        self._start_some()
        return pull

    def enter(
        self, source: str, *, kind: str, cancelled: threading.Event | None = None, **known: Any
    ) -> Flight:
        """Show a pull that somebody else carries out, who tells the `Flight` how far it is.

        `cancelled` is set if somebody cancels it here; `close` leaves that to its owner.
        """
        pull = replace(_new(source, kind, **known), status=RUNNING)
        flight = Flight(self, pull.id, cancelled)
        with self._lock:
            self._add(pull, flight)
        return flight

    def all(self) -> list[Pull]:
        """All that are known, the newest first."""
        with self._lock:
            return list(reversed(self._pulls.values()))

    def get(self, id_: str) -> Pull:
        """The pull of this id; `NotFoundError` where there is none."""
        with self._lock:
            if id_ in self._pulls:
                return self._pulls[id_]
        raise NotFoundError(f"there is no pull {id_[:100]!r}", hint="it may have ended long ago")

    def cancel(self, id_: str) -> Pull:
        """Ask for its end; one that waits ends at once. What is over stays as it is."""
        pull = self.get(id_)
        with self._lock:
            flight = self._flights.get(id_)
            waits = [queued for queued in self._queue if queued.flight.id == id_]
            for queued in waits:
                self._queue.remove(queued)
        if flight is not None:
            flight.cancelled.set()
            if waits:
                flight.end(CancelledError("it was cancelled before it began"))
                self._leave(id_)
        return self.get(id_) if flight is not None else pull

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        """Look on, from a running event loop. All that is known counts as changed."""
        watch = Watch(self._lock)
        with self._lock:
            for pull in self._pulls.values():
                watch.tell(pull)
            if self._is_closed:
                watch.tell(None)
            self._watches.add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)

    def when_free(self, owner: object, then: Callable[[], None]) -> None:
        """Call `then` once nothing that was begun needs `owner` any more: at once, or later."""
        with self._lock:
            if owner in self._owners.values():
                self._leaving.append((owner, then))
                return
        then()

    def close(self) -> None:
        """Cancel all that were begun here, and let all watchers go. Does not wait."""
        with self._lock:
            self._is_closed = True
            waiting = [queued.flight.id for queued in self._queue]
            for id_, flight in self._flights.items():
                if id_ in self._owners:
                    flight.cancelled.set()
            for watch in self._watches:
                watch.tell(None)
        for id_ in waiting:
            self.cancel(id_)

    def change(self, id_: str, make: Callable[[Pull], Pull]) -> None:
        """Put what `make` returns in the place of a pull that is not over."""
        with self._lock:
            pull = self._pulls.get(id_)
            if pull is None or pull.is_over:
                return
            self._pulls[id_] = changed = make(pull)
            if changed.is_over:
                self._flights.pop(id_, None)
                self._forget_some()
            if changed != pull:
                for watch in self._watches:
                    watch.tell(changed)

    # -- within ----------------------------------------------------------------------

    def _add(self, pull: Pull, flight: Flight) -> None:
        self._pulls[pull.id] = pull
        self._flights[pull.id] = flight
        for watch in self._watches:
            watch.tell(pull)

    def _forget_some(self) -> None:
        over = [id_ for id_, pull in self._pulls.items() if pull.is_over]
        for id_ in over[:-MOST_ENDED]:
            del self._pulls[id_]

    def _start_some(self) -> None:
        while True:
            with self._lock:
                running = len(self._owners) - len(self._queue)
                if not self._queue or running >= self.at_once:
                    return
                queued = self._queue.popleft()
            name = f"mm-hub-pull-{queued.flight.id}"
            threading.Thread(target=self._run, args=(queued,), name=name).start()

    def _run(self, queued: _Queued) -> None:
        flight = queued.flight
        flight.start()
        try:
            entry = queued.work(flight)
        except MMError as error:
            flight.end(error)
        except Exception as error:  # a fault of ours ends this pull, and is told to whoever runs us
            logger.error(  # noqa: TRY400  # the traceback is for -vv
                "A pull failed: %s: %s", type(error).__name__, redact(str(error))
            )
            logger.debug("Where it failed", exc_info=error)
            flight.end(MMError("Internal error of this hub"))
        else:
            flight.end(entry=entry)
        finally:
            self._leave(flight.id)
            self._start_some()

    def _leave(self, id_: str) -> None:
        with self._lock:
            self._owners.pop(id_, None)
            kept = list(self._owners.values())
            free = [one for one in self._leaving if one[0] not in kept]
            self._leaving = [one for one in self._leaving if one[0] in kept]
        for _, then in free:
            then()


def _new(source: str, kind: str, **known: Any) -> Pull:
    return Pull(id=secrets.token_hex(8), source=redact_url(source), kind=kind, **known)


def _ended(pull: Pull, error: BaseException | None, entry: ModelEntry | None) -> Pull:
    now = datetime.now(timezone.utc)
    if error is None:
        if entry is not None:
            pull = replace(pull, model_id=entry.model_id, version=entry.version)
        return replace(pull, status=DONE, message=None, ended=now)
    status = CANCELLED if isinstance(error, CancelledError) else FAILED
    hint = getattr(error, "hint", None)
    return replace(
        pull,
        status=status,
        message=redact(str(error)),
        hint=redact(hint) if hint else None,
        ended=now,
    )
