"""What all adapters do: a reference becomes a folder on this machine."""

from __future__ import annotations

from pathlib import Path

from mm_core import MMError, ModelManager, load_settings


def local_path(reference: str, backend: str | None = None, config: str | None = None) -> Path:
    """The folder with the verified files of a stored version, as `ModelManager.get` gives it.

    Without `backend`, the default one of the settings; `config` names another ``mm.yaml``.
    """
    with open_manager(backend, config) as manager:
        return manager.get(reference).path


def open_manager(backend: str | None = None, config: str | None = None) -> ModelManager:
    """A manager whose default backend is `backend`, with the settings of `config`."""
    settings = load_settings(Path(config)) if config else None
    return ModelManager(settings, backend=backend)


def in_words(error: MMError) -> str:
    """What happened, and what to do about it."""
    return f"{error.message}\n{error.hint}" if error.hint else error.message
