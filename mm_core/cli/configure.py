"""Commands about settings: config show, validate, schema, init."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from mm_core.cli import output
from mm_core.cli.base import group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import AlreadyExistsError

TEMPLATE = """\
# yaml-language-server: $schema=./mm.schema.json
# Where models are kept and where they come from. `mm config schema > mm.schema.json`
# lets an editor complete this file; `mm config validate` checks it.
version: 1
defaults:
  backend: local
backends:
  local:
    type: local
    root: ./models
  # lake:
  #   type: s3
  #   root: s3://my-bucket/models
# Secrets never stand here: name an environment variable.
# sources:
#   hf:
#     type: huggingface
#     token: "${HF_TOKEN:-}"
"""


@group(
    "config",
    examples="""
    mm config init
    mm config show --origin
    mm config validate
    """,
)
def config() -> None:
    """Write, check and explain mm.yaml."""


@config.command(
    "show",
    examples="""
    mm config show
    mm config show --origin
    MM_DEFAULTS__JOBS=4 mm config show --origin --json
    """,
)
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@pass_state
def show(state: State, /, origin: bool) -> None:
    """Show the settings that hold, all files and the environment merged. Secrets are masked."""
    settings = state.settings()
    document: dict[str, Any] = {"config": settings.to_json()}
    flat = dict(_flatten(document["config"]))
    origins = {key: settings.origin(key) for key in flat}
    if origin:
        document["origins"] = origins
    rows = [
        (k, json.dumps(v), *([origins[k] or "default"] if origin else [])) for k, v in flat.items()
    ]
    header = ("KEY", "VALUE", "ORIGIN")[: 3 if origin else 2]
    state.emit(document, human=output.table(header, rows), quiet=flat)


@config.command(
    "validate",
    examples="""
    mm config validate
    mm --config ci/mm.yaml config validate --json
    """,
)
@pass_state
def validate(state: State, /) -> None:
    """Check all settings, those of plugins included; say what is wrong and on which line."""
    settings = state.settings()
    checked = check_plugins_settings(settings)
    files = [str(path) for path in settings.files]
    state.emit(
        {"ok": True, "files": files},
        human=[
            *(f"read {output.clean(path)}" for path in files),
            f"the settings are valid: {', '.join(checked) or 'no backends, no sources'}",
        ],
    )


@config.command(
    "schema",
    examples="""
    mm config schema > mm.schema.json
    """,
)
@pass_state
def schema(state: State, /) -> None:
    """Print the JSON schema of mm.yaml, with the settings of all installed plugins."""
    from mm_core.config import json_schema
    from mm_core.plugins import Plugins

    document = json_schema(Plugins.discover())
    text = json.dumps(document, indent=2)
    state.emit({"schema": document}, human=[text], quiet=[text])


@config.command(
    "init",
    examples="""
    mm config init
    mm config init --file conf/mm.yaml
    """,
)
@click.option("--file", "path", type=click.Path(path_type=Path), default=Path("mm.yaml"))
@pass_state
def init(state: State, /, path: Path) -> None:
    """Write a first mm.yaml. A file that is there is never overwritten."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise AlreadyExistsError(
            f"{str(path)!r} is there already", hint="edit it, or choose another --file"
        ) from None
    state.emit({"path": str(path)}, human=[f"wrote {output.clean(path)}"], quiet=[str(path)])


def check_plugins_settings(settings: Any) -> list[str]:
    """Check the settings of each backend and source by its plugin; return their names.

    Raises `ConfigError` or `PluginError`. Nothing is contacted.
    """
    from mm_core.config import build_config
    from mm_core.plugins import Plugins

    plugins = Plugins.discover()
    for name, backend in settings.backends.items():
        build_config(
            plugins.sink_type(backend.type).Config, backend.values, f"backends.{name}", settings
        )
    for name, source in settings.sources.items():
        build_config(
            plugins.source_type(source.type).Config, source.values, f"sources.{name}", settings
        )
    return [*settings.backends, *settings.sources]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
