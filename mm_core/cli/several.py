"""What came of several things: each is printed as it ends, and the failures are the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm_core.cli.state import State
from mm_core.exceptions import MMError, PartialError


class Several:
    """The results and errors of several `what` (``backends``)."""

    def __init__(self, state: State, what: str) -> None:
        self._state = state
        self._what = what
        self._results: list[dict[str, Any]] = []
        self._errors: dict[str, MMError] = {}

    def add(self, result: dict[str, Any]) -> None:
        """Take a result in; it is printed now, unless all go into one document."""
        self._results.append(result)
        if self._state.format != "json":
            emit_one(self._state, result)

    def add_error(self, name: str, error: MMError) -> None:
        """Take a failure in."""
        self._errors[name] = error

    def end(self) -> None:
        """Print the document. Raises `PartialError` where some failed."""
        document = {"results": [data_of(result) for result in self._results]}
        if not self._errors:
            if self._state.format == "json":
                self._state.emit(document, human=())
            return
        self._state.so_far = document
        count = len(self._errors) + len(self._results)
        raise PartialError(
            f"{len(self._errors)} of {count} {self._what} failed",
            errors=self._errors,
            hint="run the same command again: what is there already is not moved again",
        )


def emit_one(state: State, result: Mapping[str, Any]) -> None:
    """Print one result, which has its lines for people under ``human`` and ``quiet``."""
    state.emit(data_of(result), human=result["human"], quiet=result["quiet"])


def data_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result without the lines for people."""
    return {key: value for key, value in result.items() if key not in ("human", "quiet")}
