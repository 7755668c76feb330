"""The command that finds versions by words."""

from __future__ import annotations

import click

from mm_core.cli.asking import (
    as_of_option,
    filter_options,
    parse_query,
    provenance,
    read,
    sort_options,
)
from mm_core.cli.base import command
from mm_core.cli.look import emit_models
from mm_core.cli.state import State, pass_state


@command(
    "search",
    examples="""
    mm search minilm
    mm search 'llama gguf' --filter 'size<10GB' --sort date:desc
    mm search prod --json
    """,
)
@click.argument("text", metavar="TEXT", nargs=-1, required=True)
@filter_options
@sort_options
@as_of_option
@pass_state
def search(
    state: State,
    /,
    *,
    text: tuple[str, ...],
    filters: tuple[str, ...],
    limit: int | None,
    sort: str,
    removed: bool,
    as_of: str | None,
) -> None:
    """Find versions by words in their names, aliases, type, source, licence and metadata."""
    query = parse_query(filters, text=" ".join(text), sort=sort, limit=limit, removed=removed)
    with state.registry() as registry:
        reading = read(state, registry, as_of)
        found = reading.query(query)
    emit_models(state, found, provenance(reading), nothing="nothing holds all of these words")
