"""A repair that is under way: known to all, so that nobody takes for garbage what it will name."""

from __future__ import annotations

from mm_core.exceptions import ConflictError
from mm_core.registry.deadline import Deadline
from mm_core.registry.writer import default_writer
from mm_core.schemas import canonical_json
from mm_core.sink import Sink

REPAIR_KEY = ".mm/repair.json"
"""Stands from the first write of a repair until one has found nothing more to do."""

_PATIENCE = 60.0


def note_repair(sink: Sink) -> None:
    """Say that a repair is under way."""
    data = canonical_json({"writer": default_writer()})
    Deadline(_PATIENCE).persist(lambda: sink.put(REPAIR_KEY, data))


def end_repair(sink: Sink) -> None:
    """Say that there is nothing more to do."""
    if is_unfinished(sink):
        Deadline(_PATIENCE).persist(lambda: sink.delete([REPAIR_KEY]))


def is_unfinished(sink: Sink) -> bool:
    """Whether a repair is under way, or was interrupted."""
    return Deadline(_PATIENCE).persist(lambda: sink.stat(REPAIR_KEY)) is not None


def refuse_unfinished_repair(sink: Sink) -> None:
    """Raise `ConflictError` while a repair is under way: what is lost looks like nobody's."""
    if is_unfinished(sink):
        raise ConflictError(
            f"a repair of the registry at {sink.root} is under way or was interrupted: what it "
            "has not named yet must not be deleted",
            hint="`mm registry repair` goes on with it",
        )
