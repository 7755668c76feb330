"""The store as upkeep sees it: patient reads, and objects that are set aside, never lost."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from mm_core.exceptions import IntegrityError, NotFoundError, TransientError
from mm_core.parallel import run_parallel
from mm_core.registry.deadline import Deadline
from mm_core.registry.layout import create_once
from mm_core.schemas import StoredObject, sha256_hex
from mm_core.sink import Sink, read_if_exists
from mm_core.tally import Tally

T = TypeVar("T")
R = TypeVar("R")

QUARANTINE_PREFIX = ".mm/quarantine/"
MANIFEST_PREFIX = ".mm/manifests/"

READERS = 16
WINDOW = 256
_TRIES = 3
_ASIDE = re.compile(re.escape(QUARANTINE_PREFIX) + r"(?P<key>.+)-[0-9a-f]{12}")


def quarantine_key(key: str, sha256: str) -> str:
    """Where an object that stood under `key`, with bytes of this hash, is set aside."""
    return f"{QUARANTINE_PREFIX}{key}-{sha256[:12]}"


def original_key(key: str) -> str | None:
    """Where an object in quarantine stood; None for a key that is no such object's."""
    match = _ASIDE.fullmatch(key)
    return match["key"] if match else None


class Store:
    """A sink whose faults that may pass are met by trying again, up to `timeout` seconds each."""

    def __init__(self, sink: Sink, *, timeout: float = 60.0) -> None:
        self.sink = sink
        self.timeout = timeout

    def deadline(self) -> Deadline:
        """Until when to try one thing."""
        return Deadline(self.timeout)

    def persist(self, action: Callable[[], T]) -> T:
        """What `action` returns, in the end."""
        return self.deadline().persist(action)

    def read(self, key: str) -> bytes | None:
        """The whole small object under `key`; None if there is none."""
        return self.persist(lambda: read_if_exists(self.sink, key))

    def list(self, prefix: str) -> list[StoredObject]:
        """All objects below `prefix`, ordered by key."""
        return self.persist(lambda: list(self.sink.list(prefix)))

    def create(self, key: str, data: bytes) -> bool:
        """Make an object; whether it holds `data` now, or else another's bytes."""
        return create_once(self.sink, key, data, self.deadline())

    def put(self, key: str, data: bytes) -> None:
        """Replace an object, and read it back. Raises `IntegrityError` where it is another's."""
        self.persist(lambda: self.sink.put(key, data))
        if self.read(key) != data:
            raise IntegrityError(
                f"{key} at {self.sink.root} does not hold what was just written to it",
                hint="is another repair at work? look at `mm registry check` when it is done",
            )

    def sha256(self, key: str, tally: Tally | None = None) -> str | None:
        """The hash of all bytes under `key`, read in buffers; None if there is no such object.

        `tally` counts them as they are read.
        """

        def look() -> str | None:
            digest, count = hashlib.sha256(), 0
            try:
                for buffer in self.sink.read(key):
                    digest.update(buffer)
                    count += _counted(tally, memoryview(buffer).nbytes)
            except NotFoundError:
                return None
            except BaseException:
                _counted(tally, -count)  # it may be read again
                raise
            return digest.hexdigest()

        return self.persist(look)

    def set_aside(self, key: str) -> str | None:
        """Copy what stands under `key` into the quarantine, and make sure that it is there.

        Returns the key of the copy; None if nothing stands there. The object itself
        stays, whatever happens: who replaces or deletes it does so afterwards.
        """
        for _ in range(_TRIES):
            found = self.sha256(key)
            if found is None:
                return None
            aside = quarantine_key(key, found)
            if self.sha256(aside) == found:
                return aside
            self.persist(lambda aside=aside: self.sink.copy(key, aside))  # type: ignore[misc]
            if self.sha256(aside) == found:
                return aside
        raise TransientError(
            f"{key} at {self.sink.root} changes while it is being set aside",
            hint="try again when nobody else repairs this registry",
        )

    def put_aside(self, key: str, data: bytes) -> str:
        """Keep small bytes that were read from `key` in the quarantine; where they are now."""
        aside = quarantine_key(key, sha256_hex(data))
        if not self.create(aside, data):
            self.put(aside, data)
        return aside

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; absent ones are fine."""
        self.persist(lambda: self.sink.delete(keys))


def _counted(tally: Tally | None, count: int) -> int:
    if tally is not None:
        tally.add(count)
    return count


def in_windows(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, in order, many at once, few in memory."""
    window: list[T] = []
    for item in items:
        window.append(item)
        if len(window) == WINDOW:
            yield from _one_window(work, window)
            window = []
    yield from _one_window(work, window)


def _one_window(work: Callable[[T], R], window: list[T]) -> Iterator[tuple[T, R]]:
    done = run_parallel(work, window, jobs=READERS, cancelled=threading.Event())
    yield from zip(window, done, strict=True)
