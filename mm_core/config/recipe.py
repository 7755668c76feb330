"""What settings are made of, so that another process can make them anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_core.config import layers
from mm_core.config.origins import KeyPath, Layer, Origin
from mm_core.exceptions import ConfigError
from mm_core.redaction import is_secret_name, redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings as they were written, with ``${…}`` for what stands elsewhere.

    It can be pickled and carried to another machine, where the same references are
    looked up. Secrets that stand in ``MM_…`` variables are left out: `variables` are
    their names, and the other machine must have them, too. `files` and `dotenv` are
    where the settings were read; only ``.env`` is read again, where it is there.
    """

    layer: Layer
    files: tuple[Path, ...]
    dotenv: Path
    variables: tuple[str, ...] = ()


def write_down(layer: Layer, files: tuple[Path, ...], dotenv: Path) -> Recipe:
    """The recipe of settings that are made of `layer`."""
    secrets = dict(_secrets_of_variables(layer.tree, (), layer.origins, None))
    kept = {path: origin for path, origin in layer.origins.items() if path not in secrets}
    return Recipe(
        layer=Layer(_without(layer.tree, (), secrets), kept),
        files=files,
        dotenv=dotenv,
        variables=tuple(sorted(set(secrets.values()))),
    )


def follow(recipe: Recipe, environ: Mapping[str, str], cwd: Path) -> Layer:
    """The layer that `recipe` was made of, with the secrets of this process's environment.

    Raises `ConfigError` where a variable that holds one is not set here.
    """
    for name in recipe.variables:
        if name not in environ:
            raise ConfigError(
                f"the variable {name} is not set here; it holds a secret, which is not carried",
                hint=f"set {name} wherever jobs run, or write ${{…}} in mm.yaml",
            )
    secrets = {name: environ[name] for name in recipe.variables}
    return layers.merged(recipe.layer, layers.environ_layer(secrets, recipe.layer, cwd))


def _secrets_of_variables(
    value: Any, path: KeyPath, origins: Mapping[KeyPath, Origin], origin: Origin | None
) -> list[tuple[KeyPath, str]]:
    """The settings that came from ``MM_…`` variables and are secret, with the variables' names."""
    origin = origins.get(path, origin)
    if isinstance(value, dict):
        inner = (_secrets_of_variables(v, (*path, k), origins, origin) for k, v in value.items())
        return [found for several in inner for found in several]
    if origin is None or origin.line is not None or not origin.label.startswith("MM_"):
        return []
    named = any(isinstance(part, str) and is_secret_name(part) for part in path)
    return [(path, origin.label)] if named or redact(str(value)) != str(value) else []


def _without(value: Any, path: KeyPath, gone: Mapping[KeyPath, str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _without(inner, (*path, key), gone)
        for key, inner in value.items()
        if (*path, key) not in gone
    }
