"""What a plugin is, told by an interpreter of its own: ``python -m mm_core.authoring.probe``.

A stranger's module may do anything when it is imported, also print; so what is
found out goes into a file, and what was imported is told by ``-X importtime``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from mm_core.hookspecs import PROJECT
from mm_core.plugins import Plugins
from mm_core.redaction import is_secret_name, redact


def main(arguments: list[str]) -> None:
    """Write what there is to know of the plugin `value`, such as ``my_plugin``, into a file."""
    value, file = arguments
    Path(file).write_text(json.dumps(found_out(value)), encoding="utf-8")


def found_out(value: str) -> dict[str, Any]:
    """Its error, if it cannot be imported, or what it offers, and who offers the same."""
    entry_point = importlib.metadata.EntryPoint("plugin", value, PROJECT)
    try:
        __import__(entry_point.module)  # the times of importlib.import_module are not told
        plugin = entry_point.load()
    except BaseException as error:  # noqa: BLE001  # a stranger's import may do anything
        return {"error": redact(f"{type(error).__name__}: {error}")}
    plugins = Plugins([plugin])
    broken = "; ".join(plugins.broken.values())
    offered = {
        "sources": plugins.sources(),
        "sinks": plugins.sinks(),
        "policies": plugins.policies(),
        "executors": plugins.executors(),
    }
    kinds = {
        kind: [_told(found) for found in types.values()] for kind, types in offered.items() if types
    }
    hooks = [name for info in plugins.infos() for name in info.hooks]
    return {"broken": broken, "hooks": hooks, "offers": kinds, "others": _others(value)}


def _told(found: type[Any]) -> dict[str, Any]:
    try:
        fields = found.Config.model_fields
        found.Config.model_json_schema()
    except Exception as error:  # noqa: BLE001  # a stranger's class may raise anything
        return {"type": found.type, "schemes": [], "settings": [], "schema": _words(error)}
    settings = [
        {
            "name": name,
            "described": bool(field.description),
            "bare_secret": is_secret_name(name) and "SecretStr" not in str(field.annotation),
        }
        for name, field in fields.items()
    ]
    schemes = list(getattr(found, "schemes", ()))
    return {"type": found.type, "schemes": schemes, "settings": settings, "schema": None}


def _others(value: str) -> dict[str, dict[str, list[str]]]:
    """For each kind: types and schemes of the other installed plugins, and whose they are."""
    taken: dict[str, dict[str, list[str]]] = {}
    for entry_point in importlib.metadata.entry_points(group=PROJECT):
        if entry_point.value == value:
            continue
        try:
            plugins = Plugins([entry_point.load()])
        except BaseException:  # noqa: BLE001, S112  # broken ones are not what is asked for
            continue
        for kind, types in (
            ("sources", plugins.sources()),
            ("sinks", plugins.sinks()),
            ("policies", plugins.policies()),
            ("executors", plugins.executors()),
        ):
            for name, found in types.items():
                for word in (name, *(f"{s}://" for s in getattr(found, "schemes", ()))):
                    taken.setdefault(kind, {}).setdefault(word, []).append(entry_point.name)
    return taken


def _words(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
