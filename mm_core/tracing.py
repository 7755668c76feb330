"""Spans for OpenTelemetry, in a process that uses it; in any other, nothing.

Nothing is imported here: whoever has set up a provider has imported the API. The current
span is a context variable, and every thread of ours runs in the context of whoever started it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mm_core.redaction import redact, redact_url
from mm_core.version import __version__

Value = str | int | bool | None
"""What an attribute may be; None is left out."""


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """A span called `name` around the block, below the one that is current.

    The attributes get the prefix ``mm.``. An exception is recorded and makes the status an
    error; an interrupt does not. Neither has a secret.
    """
    trace = _trace()
    if trace is None:
        yield
        return
    tracer = trace.get_tracer("mm_core", __version__)
    with tracer.start_as_current_span(
        name, attributes=_told(attributes), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            _record(trace, current, error)
            raise


def note(**attributes: Value) -> None:
    """Add what was found out meanwhile to the span of the innermost block. Only within one."""
    trace = _trace()
    if trace is not None:
        trace.get_current_span().set_attributes(_told(attributes))


def _trace() -> Any:
    return sys.modules.get("opentelemetry.trace")


def _told(attributes: dict[str, Value]) -> dict[str, Any]:
    return {
        f"mm.{name}": _safe(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }


def _safe(text: str) -> str:
    return redact_url(text) if "://" in text else redact(text)


def _record(trace: Any, current: Any, error: Exception) -> None:
    kind, message = type(error), redact(str(error))
    current.add_event(
        "exception",
        {
            "exception.type": f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": message,
            "exception.stacktrace": redact("".join(traceback.format_exception(error))),
        },
    )
    current.set_status(trace.StatusCode.ERROR, f"{kind.__name__}: {message}")
