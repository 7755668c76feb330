"""Read one YAML file, strictly, remembering the line of each key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mm_core.config.origins import KeyPath, Layer, Origin, dotted
from mm_core.exceptions import ConfigError

VERSION = 1
"""The version of the file format that this release reads."""

_MAX_NODES = 100_000  # aliases of aliases can make a small file endless
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, and ``1e10`` is a number, as YAML 1.2 has it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_document(path: Path, label: str) -> Layer:
    """The settings in the file `path`, which messages call `label`.

    Raises `ConfigError`, with line and column, for a file that cannot be read,
    broken YAML, a key that is given twice or is no text, and a newer ``version``.
    No part of the content is ever quoted: it may be a secret.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {label}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: byte {error.start} is not UTF-8") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        layer = _Builder(loader, label, path.parent).layer(node)
    except yaml.MarkedYAMLError as error:
        raise _broken(label, error) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "it cannot be parsed")
        raise ConfigError(f"{label}: broken YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{label}: broken YAML: it is nested too deep") from None
    finally:
        loader.dispose()
    _check_version(layer, label)
    return layer


class _Builder:
    """Makes plain values of YAML nodes, and notes where each stands."""

    def __init__(self, loader: _Loader, label: str, folder: Path) -> None:
        self._loader = loader
        self._label = label
        self._folder = folder
        self._origins: dict[KeyPath, Origin] = {}
        self._count = 0

    def layer(self, node: yaml.Node | None) -> Layer:
        if node is None:
            return Layer({}, {})
        tree = self._value(node, ())
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{self._at(node)}: the file is not a mapping",
                hint="it starts with lines such as `backends:`; see `mm config init`",
            )
        return Layer(tree, self._origins)

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > _MAX_NODES:
            raise ConfigError(f"{self._at(node)}: too many values; do aliases refer to each other?")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{self._at(node)}: the tag {node.tag!r} is not allowed here")
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self._note(path, node)
        return self._value(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                is_list = isinstance(value_node, yaml.SequenceNode)
                merged += value_node.value if is_list else [value_node]
                continue
            key = self._key(key_node, path)
            here = (*path, key)
            if key in result:
                raise ConfigError(
                    f"{self._at(key_node)}: {dotted(here)} is given twice "
                    f"(first at line {self._origins[here].line})"
                )
            self._note(here, key_node, value_node)
            result[key] = self._value(value_node, here)
        for other in merged:
            self._merge(result, other, path)
        return result

    def _merge(self, result: dict[str, Any], node: yaml.Node, path: KeyPath) -> None:
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{self._at(node)}: `<<` takes a mapping or a list of mappings")
        mine = {p: o for p, o in self._origins.items() if p[: len(path)] == path}
        for key, value in self._mapping(node, path).items():
            result.setdefault(key, value)
        self._origins.update(mine)

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{self._at(node)}: a key must be a text")
        key = self._scalar(node, path)
        if not isinstance(key, str):
            raise ConfigError(
                f"{self._at(node)}: YAML reads the key {node.value!r} as {_kind(key)}",
                hint=f'put it in quotes: "{node.value}"',
            )
        return key

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except ValueError:
            where = f"{self._at(node)}: {dotted(path)}: " if path else f"{self._at(node)}: "
            raise ConfigError(
                f"{where}YAML takes it for a date or number that cannot be",
                hint="put it in quotes",
            ) from None

    def _note(self, path: KeyPath, node: yaml.Node, value: yaml.Node | None = None) -> None:
        value = node if value is None else value
        plain = isinstance(value, yaml.ScalarNode) and value.style is None
        self._origins[path] = Origin(
            label=self._label,
            line=node.start_mark.line + 1,
            folder=self._folder,
            raw=value.value if plain else None,
        )

    def _at(self, node: yaml.Node) -> str:
        return f"{self._label}:{node.start_mark.line + 1}"


def _kind(value: object) -> str:
    """What YAML made of an unquoted word, for people."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "nothing" if value is None else "a date"


def _broken(label: str, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    at = label if mark is None else f"{label}:{mark.line + 1}:{mark.column + 1}"
    hint = "YAML is indented with spaces, not tabs" if "\\t" in str(error.problem) else None
    return ConfigError(f"{at}: broken YAML: {error.problem or error.context}", hint=hint)


def _check_version(layer: Layer, label: str) -> None:
    version = layer.tree.pop("version", VERSION)
    origin = layer.origins.pop(("version",), label)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"{origin}: version must be {VERSION}")
    if version > VERSION:
        raise ConfigError(
            f"{origin}: version {version} is newer than this release knows ({VERSION})",
            hint="upgrade with `pip install -U model-manager`",
        )
