"""The registry as one JSON file, for people and scripts to read. Never read back as truth."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path

from mm_core.exceptions import ConfigError, StorageError, UsageError
from mm_core.registry.layout import FORMAT_KEY
from mm_core.schemas import ModelEntry, sha256_hex
from mm_core.sink import Sink

FORMAT = "model-manager-view"


class JsonView:
    """The file at `path`, rewritten as a whole.

    `ConfigError` if something stands there that is not such a view: it is never
    overwritten. Where a registry lies beside it, what is not even JSON is such a
    view that was damaged: it is set aside and written anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.check()

    def check(self) -> None:
        """Raise `ConfigError` unless the file is absent, empty or such a view, whole or damaged."""
        data = self._read()
        if data.strip() and not _is_view(data) and not self._is_damaged(data):
            raise ConfigError(
                f"{self.path} holds something that is not a view of a model registry",
                hint="move the file away, or choose another registry_file; if it is a registry of "
                "another form, `mm registry migrate` brings it over",
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

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from error

    def _is_damaged(self, data: bytes) -> bool:
        return (folder_beside(self.path) / FORMAT_KEY).exists() and not _is_json(data)

    def _replace(self, text: str) -> None:
        data = self._read()
        if data.strip() and not _is_view(data):
            aside = f"{self.path.name}.damaged-{sha256_hex(data)[:12]}"
            self.path.replace(self.path.with_name(aside))
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
    return local(local.Config(root=str(folder_beside(Path(registry_file)))))


def folder_beside(registry_file: Path) -> Path:
    """The folder with the registry whose view is `registry_file`."""
    return Path(f"{registry_file.absolute()}.d")


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _is_view(data: bytes) -> bool:
    try:
        return bool(json.loads(data)["format"] == FORMAT)
    except (ValueError, KeyError, TypeError):
        return False
