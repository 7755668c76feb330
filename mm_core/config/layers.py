"""Gather the settings from files, the environment and flags, the stronger over the weaker."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mm_core.config.documents import read_document
from mm_core.config.origins import KeyPath, Layer, Origin, Text, dotted, merge
from mm_core.exceptions import ConfigError
from mm_core.redaction import redact, remember_secret

logger = logging.getLogger(__name__)

_SECTIONS = (
    "defaults",
    "backends",
    "sources",
    "policies",
    "models",
    "retention",
    "registry",
    "signing",
)
_VENDOR = re.compile(
    r"(?:HF|AWS|AZURE|GOOGLE|GCLOUD|GCSFS|CLOUDSDK|HUGGING_FACE|HUGGINGFACE)_\w+"
    r"|STORAGE_EMULATOR_HOST|SSL_CERT_(?:FILE|DIR)|(?:REQUESTS|CURL)_CA_BUNDLE"
    r"|(?:HTTPS?|NO|ALL|FTP)_PROXY|(?:https?|no|all|ftp)_proxy"
)


def file_layer(path: Path, cwd: Path) -> Layer:
    """The settings in one file; secrets that stand in it in plain are pointed out."""
    layer = read_document(path, _label(path, cwd))
    for key_path, value in _leaves(layer.tree):
        if isinstance(value, str) and "${" not in value and redact(value) != value:
            remember_secret(value)
            logger.warning(
                "%s: %s holds a secret in plain text; use ${VARIABLE} or ${file:PATH}",
                layer.origins.get(key_path, layer),
                dotted(key_path),
            )
    return layer


def with_dotenv(
    path: Path, environ: Mapping[str, str], export_to: MutableMapping[str, str] | None
) -> dict[str, str]:
    """`environ` and below it what ``.env`` says.

    The names that vendors' libraries look up by themselves are set in
    `export_to`, where they are not set yet.
    """
    if not path.is_file():
        return dict(environ)
    import dotenv

    try:
        values = dotenv.dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {type(error).__name__}") from None
    found = {name: value for name, value in values.items() if value is not None}
    if export_to is not None:
        for name in filter(_VENDOR.fullmatch, found):
            export_to.setdefault(name, found[name])
    return {**found, **environ}


def environ_layer(environ: Mapping[str, str], below: Layer, cwd: Path) -> Layer:
    """The settings in ``MM_SECTION__KEY__SUB`` variables, and ``MM_OFFLINE``.

    Names are matched with the keys in `below` regardless of case and of ``-``,
    ``.`` and ``_``; new keys are lower case. A value is text, unless it starts
    with ``[`` or ``{``: then it is YAML.
    """
    layer = Layer({}, {})
    if environ.get("MM_OFFLINE", "") != "":
        _put(
            layer,
            ("defaults", "offline"),
            Text(environ["MM_OFFLINE"]),
            _from_environ("MM_OFFLINE", cwd),
        )
    for name in sorted(environ):
        first, *rest = name.removeprefix("MM_").split("__")
        if not name.startswith("MM_") or not rest or not all([first, *rest]):
            continue
        path = _matched([first, *rest], below.tree)
        if path[0] not in _SECTIONS:
            raise ConfigError(
                f"{name}: {path[0]!r} is not a section of mm.yaml",
                hint=f"the sections are {', '.join(_SECTIONS)}",
            )
        _put(layer, path, _parsed(name, environ[name]), _from_environ(name, cwd))
    return layer


def flag_layer(overrides: Mapping[str, Any], cwd: Path) -> Layer:
    """The settings that flags gave, as ``{"defaults.jobs": 4}`` or nested; None is "not given"."""
    layer = Layer({}, {})
    for key, value in overrides.items():
        for path, leaf in _settings(value, tuple(key.split("."))):
            if leaf is not None:
                flag = str(path[-1]).replace("_", "-")
                _put(layer, path, leaf, Origin(label=f"--{flag} flag", folder=cwd))
    return layer


def merged(*layers: Layer) -> Layer:
    """All `layers` as one; the later are the stronger."""
    result = Layer({}, {})
    for layer in layers:
        result = merge(result, layer)
    return result


def _label(path: Path, cwd: Path) -> str:
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)


def _from_environ(name: str, cwd: Path) -> Origin:
    return Origin(label=name, folder=cwd)


def _parsed(name: str, value: str) -> Any:
    if not value.lstrip().startswith(("[", "{")):
        return Text(value)
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{name}: the value starts like a list or mapping but is none") from None


def _matched(names: list[str], tree: Any) -> tuple[str, ...]:
    path: list[str] = []
    for name in names:
        keys = tree if isinstance(tree, dict) else {}
        key = next((k for k in keys if _loose(k) == _loose(name)), name.lower())
        path.append(key)
        tree = keys.get(key)
    return tuple(path)


def _loose(name: str) -> str:
    return re.sub(r"[-.]", "_", name).lower()


def _put(layer: Layer, path: KeyPath, value: Any, origin: Origin) -> None:
    here: Any = layer.tree
    for depth, part in enumerate(path[:-1], start=1):
        here = here.setdefault(part, {})
        layer.origins.setdefault(path[:depth], origin)
        if not isinstance(here, dict):
            raise ConfigError(f"{origin}: {dotted(path[:depth])} is set as a whole and in part")
    here[path[-1]] = value
    layer.origins[path] = origin


def _settings(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Like `_leaves`, with a list as one value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _settings(inner, (*path, str(key)))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value
