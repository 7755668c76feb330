"""A backend as the manager meets it: opened once, its registry beside its models."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_core.config import locations
from mm_core.exceptions import ConfigError
from mm_core.folders import memory_of, registry_cache
from mm_core.registry import Keys, ModelRegistry
from mm_core.sink import Sink

if TYPE_CHECKING:
    from mm_core.config import Settings
    from mm_core.plugins import Plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One backend: the name it was asked for by, its sink, and the registry in it."""

    name: str
    sink: Sink
    registry: ModelRegistry


class Places:
    """The backends of one manager, each opened when it is first asked for. Safe among threads.

    `default` is the one that is meant where no name is given; without it,
    ``defaults.backend``, and None without that.
    """

    def __init__(self, settings: Settings, plugins: Plugins, default: str | None) -> None:
        self._settings = settings
        self._plugins = plugins
        self.default = default or settings.defaults.backend
        self._lock = threading.RLock()
        self._open: dict[str, Place] = {}

    def open(self, name: str | None) -> Place:
        """The backend called `name`: one from ``mm.yaml``, a URL or a folder.

        Raises the errors of `open_sink`, and `ConfigError` where no name is
        given and there is no default.
        """
        name = name or self.default
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

    def registry(self, backend: str) -> ModelRegistry:
        """The registry of the backend called `backend`, as all of this manager see it."""
        return self.open(backend).registry

    def close(self) -> None:
        """Give back all connections."""
        with self._lock:
            for place in self._open.values():
                place.sink.close()
            self._open.clear()

    def _opened(self, name: str) -> Place:
        from mm_core.backends import open_sink
        from mm_core.redaction import redact_url

        sink = open_sink(self._settings, self._plugins, name)
        shown = redact_url(name) if "://" in name else name  # hooks, records and output have it
        return make_place(shown, sink, registry_options(self._settings))


def registry_options(settings: Settings) -> dict[str, Any]:
    """What a `ModelRegistry` is made with, beside its sink, as `settings` say.

    Everything that is decided by settings stands here: a later run may take plain
    values (text, numbers, truth values, paths) from memory, see `mm_core.recall`.
    """
    defaults = settings.defaults
    return {
        "claim_timeout": defaults.claim_timeout,
        "commit_timeout": defaults.commit_timeout,
        "writer": defaults.writer,
        "memory": memory_folder() if settings.registry.get("remember", True) else None,
        "keys": _keys(settings.registry),
    }


def make_place(name: str, sink: Sink, options: Mapping[str, Any]) -> Place:
    """The backend called `name`, with the registry in `sink`."""
    memory = options["memory"] and memory_of(sink, options["memory"])
    registry = ModelRegistry(sink, cache=registry_cache(sink), **{**options, "memory": memory})
    return Place(name=name, sink=sink, registry=registry)


def memory_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this machine remembers what its user has seen of registries."""
    return locations.state_folder(environ) / "registries"


def _keys(values: Mapping[str, Any]) -> Keys | None:
    signing, trusted = values.get("signing_key"), tuple(values.get("trusted_keys", ()))
    return Keys(signing_key=signing, trusted_keys=trusted) if signing or trusted else None
