"""The registry as one JSON file, for people and scripts to read. Never read back as truth."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path

from mm_core.exceptions import ConfigError, StorageError, UsageError
from mm_core.schemas import ModelEntry
from mm_core.sink import Sink

FORMAT = "model-manager-view"


class JsonView:
    """The file at `path`, rewritten as a whole.

    `ConfigError` if something stands there that is not such a view: it is never
    overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.check()

    def check(self) -> None:
        """Raise `ConfigError` unless the file is absent, empty or such a view."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from error
        if data.strip() and not _is_view(data):
            raise ConfigError(
                f"{self.path} holds something that is not a view of a model registry",
                hint="move the file away, or choose another registry_file",
            )

    def write(self, entries: Iterable[ModelEntry]) -> None:
        """Replace the file: atomic. `StorageError` if that fails."""
        self.check()
        view = {"format": FORMAT, "models": [entry.to_json() for entry in entries]}
        text = json.dumps(view, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        try:
            self._replace(text)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error

    def _replace(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        try:
            with staged.open("x", encoding="utf-8") as file:
                file.write(text)
            staged.replace(self.path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def sink_beside(registry_file: Path | str | None) -> Sink:
    """The local store in the folder named like the file with ``.d`` added."""
    if registry_file is None:
        raise UsageError(
            "a registry needs a sink or a registry_file",
            hint="ModelRegistry(registry_file='models.json') keeps one on this disk",
        )
    from mm_core.plugins import Plugins

    local = Plugins.discover().sink_type("local")
    folder = Path(registry_file).absolute()
    return local(local.Config(root=f"{folder}.d"))


def _is_view(data: bytes) -> bool:
    try:
        return bool(json.loads(data)["format"] == FORMAT)
    except (ValueError, KeyError, TypeError):
        return False
