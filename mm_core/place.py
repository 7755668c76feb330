"""A backend as the manager meets it: opened once, its registry beside its models."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from mm_core.backends import open_sink
from mm_core.config import Settings
from mm_core.exceptions import ConfigError
from mm_core.plugins import Plugins
from mm_core.registry import ModelRegistry
from mm_core.sink import Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One backend: the name it was asked for by, its sink, and the registry in it."""

    name: str
    sink: Sink
    registry: ModelRegistry


class Places:
    """The backends of one manager, each opened when it is first asked for. Safe among threads.

    `default` is the one that is meant where no name is given; without it,
    ``defaults.backend``.
    """

    def __init__(self, settings: Settings, plugins: Plugins, default: str | None) -> None:
        self._settings = settings
        self._plugins = plugins
        self._default = default or settings.defaults.backend
        self._lock = threading.RLock()
        self._open: dict[str, Place] = {}

    def open(self, name: str | None) -> Place:
        """The backend called `name`: one from ``mm.yaml``, a URL or a folder.

        Raises the errors of `open_sink`, and `ConfigError` where no name is
        given and there is no default.
        """
        name = name or self._default
        if name is None:
            raise ConfigError(
                "no backend is named, and there is no default",
                hint="use --to NAME, or set defaults.backend in mm.yaml",
            )
        with self._lock:
            if name not in self._open:
                self._open[name] = self._opened(name)
            return self._open[name]

    def sink(self, backend: str) -> Sink:
        """The sink of the backend called `backend`, for a source that asks for it."""
        return self.open(backend).sink

    def close(self) -> None:
        """Give back all connections."""
        with self._lock:
            for place in self._open.values():
                place.sink.close()
            self._open.clear()

    def _opened(self, name: str) -> Place:
        sink = open_sink(self._settings, self._plugins, name)
        defaults = self._settings.defaults
        registry = ModelRegistry(
            sink,
            claim_timeout=defaults.claim_timeout,
            commit_timeout=defaults.commit_timeout,
            writer=defaults.writer,
        )
        return Place(name=name, sink=sink, registry=registry)
