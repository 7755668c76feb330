"""The command that says what takes how much room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.asking import filter_options, parse_query, provenance, read
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import MMError, PartialError, UsageError

if TYPE_CHECKING:
    from mm_core.registry.queries import Query, Usage


@command(
    "du",
    examples="""
    mm du
    mm du lake --limit 10
    mm du lake dr
    mm du --backends --json
    """,
)
@click.argument("names", metavar="[BACKEND]...", nargs=-1)
@filter_options
@click.option("--backends", "all_", is_flag=True, help="By backend: all of mm.yaml.")
@pass_state
def du(
    state: State,
    /,
    *,
    names: tuple[str, ...],
    filters: tuple[str, ...],
    limit: int | None,
    all_: bool,
) -> None:
    """Show how much each model takes, or of several backends how much each of them holds."""
    if all_ and names:
        raise UsageError("--backends means all: name none beside it")
    query = parse_query(filters, limit=limit)
    if all_:
        names = tuple(state.settings().backends)
    if all_ or len(names) > 1:
        _by_backend(state, names, query)
    else:
        _by_model(state, names[0] if names else None, query)


def _by_model(state: State, name: str | None, query: Query) -> None:
    with state.registry(name) as registry:
        reading = read(state, registry)
        usages = reading.usage(query)
    rows = [usage.to_json() for usage in usages]
    state.emit(
        {"models": rows, **_sums(usages), **provenance(reading)},
        human=_lines("MODEL", [(u.model_id, u) for u in usages]),
        quiet=[f"{u.bytes + u.removed_bytes}\t{u.model_id}" for u in usages],
        rows=("model", rows),
    )


def _by_backend(state: State, names: Sequence[str], query: Query) -> None:
    rows: list[dict[str, Any]] = []
    sums: list[tuple[str, Usage]] = []
    errors: dict[str, MMError] = {}
    for name in names:
        try:
            with state.registry(name) as registry:
                reading = read(state, registry)
                usages = reading.usage(query)
        except MMError as error:
            errors[name] = error
            rows.append({"backend": name, "error": {"code": error.code, "message": str(error)}})
            continue
        sums.append((name, _sum(name, usages)))
        rows.append(
            {"backend": name, "models": len(usages), **_sums(usages), **provenance(reading)}
        )
    state.emit(
        {"backends": rows},
        human=_lines("BACKEND", sums),
        quiet=[f"{usage.bytes + usage.removed_bytes}\t{name}" for name, usage in sums],
        rows=("backend", rows),
    )
    if errors:
        raise PartialError(f"{len(errors)} of {len(names)} could not be read", errors=errors)


def _sum(name: str, usages: Sequence[Usage]) -> Usage:
    from mm_core.registry.queries import Usage

    sums = _sums(usages)
    return Usage(name, **sums)


def _sums(usages: Sequence[Usage]) -> dict[str, int]:
    return {
        "versions": sum(u.versions for u in usages),
        "bytes": sum(u.bytes for u in usages),
        "removed_versions": sum(u.removed_versions for u in usages),
        "removed_bytes": sum(u.removed_bytes for u in usages),
    }


def _lines(what: str, named: Sequence[tuple[str, Usage]]) -> Iterator[str]:
    rows: list[tuple[object, ...]] = [
        (name, u.versions, output.size(u.bytes), u.removed_versions, output.size(u.removed_bytes))
        for name, u in named
    ]
    if len(named) > 1:
        total = _sums([usage for _, usage in named])
        rows.append(
            (
                "total",
                total["versions"],
                output.size(total["bytes"]),
                total["removed_versions"],
                output.size(total["removed_bytes"]),
            )
        )
    yield from output.table((what, "VERSIONS", "SIZE", "REMOVED", "TO BE FREED"), rows)
