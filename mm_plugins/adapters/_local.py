"""What all adapters do: a reference becomes a folder on this machine."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from mm_core import IntegrityError, MMError, ModelManager, load_settings, verify_file_integrity
from mm_plugins.filesystem import MMFileSystem


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


def bring_file(system: MMFileSystem, place: str, target: Path) -> None:
    """Let the file at `place` stand at `target`, verified before it does. `IntegrityError`."""
    with TemporaryDirectory(dir=target.parent, prefix=".mm-") as folder:
        staged = Path(folder, "file")
        system.get_file(place, staged)
        if not verify_file_integrity(staged, system.checksum(place)):
            raise IntegrityError(
                f"mm://{place} is not what was stored",
                hint="`mm verify --repair` mends what is damaged",
            )
        staged.replace(target)
