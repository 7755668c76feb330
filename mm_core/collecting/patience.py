"""A passing fault of the store ends no collection: what can be asked again is asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mm_core.registry.deadline import Deadline
from mm_core.schemas import StoredObject
from mm_core.sink import Sink

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for which a store may fail before a collection gives up."""


def patiently(action: Callable[[], T]) -> T:
    """What `action` returns; after a `TransientError` it is tried again, for `PATIENCE` seconds."""
    return Deadline(PATIENCE).persist(action)


def listed(sink: Sink, prefix: str) -> list[StoredObject]:
    """All objects below a prefix that holds few."""
    return patiently(lambda: list(sink.list(prefix)))


def delete(sink: Sink, objects: Sequence[StoredObject]) -> None:
    """Delete `objects`. Not for files of versions: their lease is looked at each time."""
    if objects:
        patiently(lambda: sink.delete([stored.key for stored in objects]))
