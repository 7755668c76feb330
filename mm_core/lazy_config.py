"""A ``Config`` of a source or sink that is imported when it is asked for, and not before."""

from __future__ import annotations

import importlib
from typing import Any


class LazyConfig:
    """Stands in a class body for the ``Config`` at `home`, such as ``my_plugin.config:Config``.

    A validation library is the dearest import of a short command. A sink whose
    settings were validated in an earlier run (see `Sink.plain_config`) does
    without it, if its module does not import it for the sake of ``Config``::

        class MySink(Sink):
            if TYPE_CHECKING:
                from my_plugin.config import Config
            else:
                Config = LazyConfig("my_plugin.config:Config")
    """

    def __init__(self, home: str) -> None:
        self._home = home

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        module, _, name = self._home.partition(":")
        return getattr(importlib.import_module(module), name)
