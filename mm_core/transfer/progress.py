"""How far each model is, gathered from the same events that everything else reads."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from mm_core.schemas import TransferEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one model is. Sizes are in bytes; `total` is None while it is unknown.

    `status` is the kind of the newest event: ``planned``, ``started``,
    ``progress``, ``retry``, ``waiting``, ``stored``, ``failed`` or ``committed``.
    """

    model_id: str
    status: str
    done: int = 0
    total: int | None = None
    files: dict[str, int] = field(default_factory=dict)

    @property
    def fraction(self) -> float | None:
        """Between 0 and 1; None while the total is unknown."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    def to_json(self) -> dict[str, Any]:
        """The progress as JSON data."""
        return {
            "model_id": self.model_id,
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "fraction": self.fraction,
            "files": dict(self.files),
        }


class ProgressBook:
    """The progress of every model that this process has transferred. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status: dict[str, str] = {}
        self._total: dict[str, int | None] = {}
        self._files: dict[str, dict[str, int]] = {}

    def note(self, event: TransferEvent) -> None:
        """Take in one event."""
        with self._lock:
            files = self._files.setdefault(event.model_id, {})
            if event.kind == "planned":
                files.clear()
                self._total[event.model_id] = event.total
            if event.path is not None and event.kind != "retry":
                files[event.path] = event.done
            self._status[event.model_id] = event.kind

    def get(self, model_id: str) -> Progress | None:
        """The progress of `model_id`; None if this process knows of none."""
        with self._lock:
            if model_id not in self._status:
                return None
            files = dict(self._files[model_id])
            return Progress(
                model_id=model_id,
                status=self._status[model_id],
                done=sum(files.values()),
                total=self._total.get(model_id),
                files=files,
            )
