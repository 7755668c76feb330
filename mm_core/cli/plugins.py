"""Commands about plugins: list, info."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.base import group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import NotFoundError

if TYPE_CHECKING:
    from mm_core.plugins import PluginInfo


@group(
    "plugins",
    examples="""
    mm plugins list
    mm plugins info s3
    """,
)
def plugins() -> None:
    """See which plugins are installed."""


@plugins.command(
    "list",
    examples="""
    mm plugins list
    mm plugins list --json
    """,
)
@pass_state
def list_(state: State, /) -> None:
    """List the plugins: what they offer, and what is broken."""
    infos = _infos()
    rows = [info.to_json() for info in infos]
    state.emit(
        {"plugins": rows},
        human=output.table(
            ("PLUGIN", "DISTRIBUTION", "VERSION", "OFFERS", "STATE"), [_row(info) for info in infos]
        ),
        quiet=[info.name for info in infos],
        rows=("plugin", rows),
    )


@plugins.command(
    "info",
    examples="""
    mm plugins info huggingface
    """,
)
@click.argument("name")
@pass_state
def info(state: State, /, name: str) -> None:
    """Show one plugin: where it comes from, its types and its hooks."""
    for found in _infos():
        if found.name == name:
            break
    else:
        raise NotFoundError(f"there is no plugin {name!r}", hint="see `mm plugins list`")
    human = output.facts(
        [
            ("plugin", found.name),
            ("module", found.module),
            ("distribution", found.distribution),
            ("version", found.version),
            ("offers", _offers(found)),
            ("hooks", ", ".join(found.hooks)),
            ("error", found.error),
        ]
    )
    state.emit({"plugin": found.to_json()}, human=human, quiet=[found.name])


def _infos() -> tuple[PluginInfo, ...]:
    from mm_core.plugins import Plugins

    return Plugins.discover().infos()


def _row(info: PluginInfo) -> tuple[object, ...]:
    state = f"broken: {info.error}" if info.error else "ok"
    return info.name, info.distribution or "-", info.version or "-", _offers(info), state


def _offers(info: PluginInfo) -> str:
    return "; ".join(f"{kind}: {', '.join(types)}" for kind, types in info.offers.items())
