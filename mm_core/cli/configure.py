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
from mm_core.exceptions import AlreadyExistsError, ConfigError


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
    from mm_core.plugins import Plugins

    settings = state.settings()
    document = settings.to_json(origin=True, plugins=Plugins.discover())
    origins = document.pop("origins")
    files = document.pop("files")
    values = dict(_flatten(document))
    rows = [(key, json.dumps(value)) for key, value in values.items()]
    human = output.table(("KEY", "VALUE"), rows)
    if origin:
        rows_3 = [(key, value, origins.get(key, "default")) for key, value in rows]
        human = output.table(("KEY", "VALUE", "ORIGIN"), rows_3)
    state.emit(
        {"config": document, "files": files, **({"origins": origins} if origin else {})},
        human=human,
        quiet=values,
    )


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
    from mm_core.config import validate as problems_of
    from mm_core.plugins import Plugins

    settings = state.settings()
    files = [str(path) for path in settings.files]
    problems = problems_of(settings, Plugins.discover())
    if problems:
        state.so_far = {"ok": False, "files": files, "problems": problems}
        raise ConfigError("\n".join(problems), hint="see docs/configuration.md")
    state.emit(
        {"ok": True, "files": files, "problems": []},
        human=[f"valid: {', '.join(map(output.clean, files)) or 'no file, defaults alone'}"],
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
    from mm_core.config import starter

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(starter())
    except FileExistsError:
        raise AlreadyExistsError(
            f"{str(path)!r} is there already", hint="edit it, or choose another --file"
        ) from None
    state.emit({"path": str(path)}, human=[f"wrote {output.clean(path)}"], quiet=[str(path)])


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
