"""What commands that ask the registry have in common: their options, and what they say with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mm_core.cli import output
from mm_core.cli.state import State

if TYPE_CHECKING:
    from mm_core.registry import ModelRegistry
    from mm_core.registry.queries import Query
    from mm_core.registry.reading import Reading

F = TypeVar("F", bound=Callable[..., Any])

_AS_OF = "As it was after a commit: its number, a time as writers noted it, or an age such as 7d."


def filter_options(function: F) -> F:
    """Give a command the options that say which versions are wanted."""
    options = (
        click.option(
            "--filter", "filters", multiple=True, metavar="E", help="Only what fits: size>1GB,…"
        ),
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many."),
    )
    return _with(function, options)


def sort_options(function: F) -> F:
    """Give a command the options that say in which order, and whether removed ones count."""
    options = (
        click.option("--sort", default="", metavar="K", help="In this order: size:desc,model"),
        click.option("--all", "removed", is_flag=True, help="Removed versions, too."),
    )
    return _with(function, options)


def as_of_option(function: F) -> F:
    """Give a command the option that says of which moment."""
    return _with(function, (click.option("--as-of", metavar="COMMIT|TIME", help=_AS_OF),))


def parse_query(filters: tuple[str, ...], **options: Any) -> Query:
    """The query in the options of a command."""
    from mm_core.registry.queries import Query

    return Query.parse(filters, **options)


def read(state: State, registry: ModelRegistry, as_of: str | None = None) -> Reading:
    """The registry to ask, as ``--offline`` and ``--as-of`` say; for people, with a word on it."""
    reading = registry.reading(as_of=as_of, offline=state.offline)
    if state.format == "human" and not state.quiet:
        if reading.freshness is not None:
            age = output.duration(reading.freshness.age)
            commit = reading.freshness.commit
            click.echo(f"offline: as the registry was {age} ago, at commit {commit}", err=True)
        if reading.as_of is not None:
            noted = f", noted {reading.as_of.time}" if reading.as_of.time else ""
            click.echo(f"as of commit {reading.as_of.commit}{noted}", err=True)
    return reading


def refuse_nothing(registry: ModelRegistry) -> None:
    """Raise `NotFoundError` if there is no registry: nothing that can be said to be well."""
    from mm_core.exceptions import NotFoundError

    if registry.id is None:
        raise NotFoundError(
            f"there is no registry at {registry.sink.root}",
            hint="nothing was ever written to it, or all of it is gone: `mm registry restore` "
            "brings a backup back, `mm adopt` makes entries of models that are there",
        )


def provenance(reading: Reading) -> dict[str, Any]:
    """What a JSON document says about how old its answers are."""
    found: dict[str, Any] = {}
    if reading.as_of is not None:
        found["as_of"] = reading.as_of.to_json()
    if reading.freshness is not None:
        found["cache"] = reading.freshness.to_json()
    return found


def _with(function: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        function = option(function)
    return function
