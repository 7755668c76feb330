"""Measure how long a function takes, and say so in the log."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


def track_performance(func: Callable[P, R]) -> Callable[P, R]:
    """Log "Function performance" after each call of `func`, which may be async.

    The log record carries ``function``, ``duration`` (seconds, by a clock that
    never jumps), ``outcome`` (``ok``, ``error`` or ``cancelled``),
    ``args_count`` and ``kwargs_keys``. Values of arguments are never logged.
    What `func` returns or raises is passed on untouched.

        @track_performance
        async def fetch(url: str) -> bytes: ...
    """
    if inspect.iscoroutinefunction(func):

        @functools.wraps(func)
        async def async_wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            with _measured(func, args, kwargs):
                return await func(*args, **kwargs)

        return cast("Callable[P, R]", async_wrapper)

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _measured(func, args, kwargs):
            return func(*args, **kwargs)

    return wrapper


@contextmanager
def _measured(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    outcome = "error"
    start = time.perf_counter()
    try:
        yield
        outcome = "ok"
    except (asyncio.CancelledError, KeyboardInterrupt):
        outcome = "cancelled"
        raise
    finally:
        logger.info(
            "Function performance",
            extra={
                "function": getattr(func, "__name__", type(func).__name__),
                "duration": time.perf_counter() - start,
                "outcome": outcome,
                "args_count": len(args),
                "kwargs_keys": sorted(kwargs),
            },
        )
