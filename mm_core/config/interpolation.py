"""Replace ``${VAR}`` in the values of files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mm_core.config.origins import KeyPath, Layer, Origin, Text, dotted
from mm_core.exceptions import ConfigError
from mm_core.redaction import is_secret_name, remember_secret

_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?:file:(?P<file>[^}]+)|(?P<name>[A-Za-z_]\w*)(?P<default>:-(?:[^}]*))?)\}|(?P<bad>\$\{)"
)
_GONE = object()


def interpolate(layer: Layer, environ: Mapping[str, str]) -> Layer:
    """`layer` with ``${VAR}``, ``${VAR:-default}`` and ``${file:PATH}`` replaced.

    A value that is nothing but references, and comes out empty, is as if it
    were not there. ``$${`` stands for ``${``. Values from the environment and
    flags are taken as they are. What goes into a setting or comes from a
    variable that sounds secret, and every file, is remembered as a secret.

    Raises `ConfigError`, with file and line, for a variable that is not set and
    has no default, and for a file that cannot be read.
    """
    worker = _Interpolation(layer.origins, environ)
    tree = worker.value(layer.tree, ())
    return Layer(tree, layer.origins)


def references(layer: Layer) -> frozenset[KeyPath]:
    """The settings of `layer` that hold a reference, before `interpolate` replaces it."""
    return frozenset(_with_references(layer.tree, ()))


def _with_references(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _with_references(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _with_references(inner, (*path, index))
    elif isinstance(value, str) and "${" in value:
        yield path


class _Interpolation:
    def __init__(self, origins: Mapping[KeyPath, Origin], environ: Mapping[str, str]) -> None:
        self._origins = origins
        self._environ = environ

    def value(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            pairs = ((key, self.value(inner, (*path, key))) for key, inner in value.items())
            return {key: inner for key, inner in pairs if inner is not _GONE}
        if isinstance(value, list):
            items = (self.value(inner, (*path, i)) for i, inner in enumerate(value))
            return [item for item in items if item is not _GONE]
        origin = self._origin(path)
        if not isinstance(value, str) or origin is None or origin.line is None or "${" not in value:
            return value
        text = _REFERENCE.sub(lambda match: self._replacement(match, path, origin), value)
        whole = _REFERENCE.sub("", value) == "" and "$${" not in value
        return (Text(text) if text else _GONE) if whole else text

    def _origin(self, path: KeyPath) -> Origin | None:
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path)

    def _replacement(self, match: re.Match[str], path: KeyPath, origin: Origin) -> str:
        if match[0] == "$${":
            return "${"
        where = f"{origin}: {dotted(path)}"
        if match["bad"]:
            raise ConfigError(
                f"{where} holds a '${{' that is not a reference",
                hint="write ${NAME}, ${NAME:-default} or ${file:PATH}; $${ stands for a plain ${",
            )
        if match["file"]:
            return self._from_file(match["file"].strip(), origin, where)
        value = self._environ.get(match["name"]) or None
        if value is None and match["default"] is None:
            raise ConfigError(
                f"{where} needs the variable {match['name']}, which is not set",
                hint=f"set {match['name']}, or write ${{{match['name']}:-default}}",
            )
        if value is not None and (_secret(path) or is_secret_name(match["name"])):
            remember_secret(value)
        return match["default"][2:] if value is None else value

    def _from_file(self, name: str, origin: Origin, where: str) -> str:
        path = (origin.folder or Path()) / Path(name).expanduser()
        try:
            value = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"{where}: cannot read the file {name!r}: {reason}") from None
        remember_secret(value)
        return value


def _secret(path: KeyPath) -> bool:
    return any(isinstance(part, str) and is_secret_name(part) for part in path)
