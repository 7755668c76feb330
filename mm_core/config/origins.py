"""Where each setting came from, so that every complaint names its file and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]
"""The way to a setting: ``("backends", "lake", "root")``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One place in a file, one environment variable, or one flag.

    `folder` is what relative paths there are relative to. `raw` is the text of
    an unquoted scalar, before YAML made a number, a date or a truth value of it.
    """

    label: str
    line: int | None = None
    folder: Path | None = None
    raw: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.label if self.line is None else f"{self.label}:{self.line}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A tree of settings, and the origin of each part of it."""

    tree: dict[str, Any] = field(repr=False)
    origins: dict[KeyPath, Origin] = field(repr=False)


class Text(str):
    """Text from the environment, which may mean a number or a truth value.

    Where a setting's type is known, that type decides. Where it is free (the
    options of a vendor's library), `typed` makes of it what YAML would.
    """

    __slots__ = ()


def dotted(path: KeyPath) -> str:
    """The way to a setting as people write it: ``models.embed.include[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def merge(below: Layer, above: Layer) -> Layer:
    """A new layer: mappings are merged key by key, all else in `above` replaces what is below.

    An entry of ``backends`` or ``sources`` that names another ``type`` replaces
    the whole entry below: its settings would be of the wrong kind.
    """
    origins = dict(below.origins)
    tree = _merged(below.tree, above.tree, (), origins)
    return Layer(tree, {**above.origins, **origins})


def _merged(
    below: Mapping[str, Any],
    above: Mapping[str, Any],
    path: KeyPath,
    origins: dict[KeyPath, Origin],
) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        here = (*path, key)
        former = result.get(key)
        if isinstance(value, dict) and isinstance(former, dict) and not _retyped(former, value):
            result[key] = _merged(former, value, here, origins)
            continue
        for gone in [p for p in origins if p[: len(here)] == here]:
            del origins[gone]
        result[key] = value
    return result


def _retyped(former: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "type" in former and "type" in value and former["type"] != value["type"]
