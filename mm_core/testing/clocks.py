"""A machine whose clock is wrong, without the right to set one."""

from __future__ import annotations

import datetime as dt
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from typing_extensions import Self

_OURS = ("mm_core", "mm_plugins")
_STORES = ("mm_plugins.sinks.memory",)
"""What stands for a store has a clock of its own."""


def wrong_clock(years: float) -> AbstractContextManager[Any]:
    """Let all that Model Manager has loaded believe that it is `years` later (or earlier).

    Monotonic clocks, and the clocks of disks and servers, are as before.
    """
    shift = years * 365.25 * 86_400
    now = time.time

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Self:
            return super().now(tz) + dt.timedelta(seconds=shift)

    stack = ExitStack()
    stack.enter_context(patch("time.time", lambda: now() + shift))
    for module in _modules():
        if getattr(module, "datetime", None) is dt.datetime:
            stack.enter_context(patch.object(module, "datetime", Shifted))
    return stack


def _modules() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in _OURS and name not in _STORES
    ]
