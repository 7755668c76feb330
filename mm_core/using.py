"""Models by name, in one call each: for a program that uses them and manages none."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from mm_core.config import load_settings
from mm_core.manager import ModelManager


def get(
    reference: str,
    *,
    backend: str | None = None,
    config: str | Path | None = None,
    offline: bool | None = None,
) -> Path:
    """The folder on this machine with the verified files of ``ID``, ``ID@VERSION`` or ``ID:ALIAS``.

    As `ModelManager.get`: what is in a bucket is brought once, for all processes of this
    machine; a full version that is here needs no request. `config` names another ``mm.yaml``.

    Raises `NotFoundError`, `OfflineError`, `TransientError`, `IntegrityError`.
    """
    with _manager(backend, config) as manager:
        return manager.get(reference, offline=offline).path


def open(  # noqa: A001  # mm_core.open, beside get and url
    path: str,
    mode: str = "rb",
    *,
    backend: str | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> IO[Any]:
    """A file of a stored version, to read from, where it stands: ``ID@ALIAS/config.json``.

    It is seekable, and reads ranges. `mode` is ``rb``, or ``r`` for text; `options` such as
    ``encoding`` and ``block_size`` are those of fsspec's ``open``. ``mm://`` may stand before
    the path. Raises `FileNotFoundError`, and `PermissionError` for any other mode.
    """
    import fsspec

    config = None if config is None else str(config)
    system = fsspec.filesystem("mm", backend=backend, config=config)
    opened: IO[Any] = system.open(path, mode, **options)
    return opened


def url(reference: str, *, backend: str | None = None, config: str | Path | None = None) -> str:
    """What transformers, vLLM or another loader opens to use a version where it stands."""
    with _manager(backend, config) as manager:
        return manager.url(reference)


def _manager(backend: str | None, config: str | Path | None) -> ModelManager:
    settings = None if config is None else load_settings(Path(config))
    return ModelManager(settings, backend=backend)
