"""Commands about the names of versions: alias set, alias rm, alias list, rollback."""

from __future__ import annotations

from typing import Any

import click

from mm_core.cli import output
from mm_core.cli.asking import provenance, read
from mm_core.cli.base import command, group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import UsageError


@group(
    "alias",
    examples="""
    mm alias set my-org/my-model prod 3
    mm alias list
    """,
)
def alias() -> None:
    """Point names such as prod at versions."""


@alias.command(
    "set",
    examples="""
    mm alias set my-org/my-model prod 3
    mm alias set my-org/my-model prod 3 --expect 2
    mm alias set my-org/my-model prod staging
    """,
)
@click.argument("reference", metavar="ID")
@click.argument("name", metavar="ALIAS")
@click.argument("version", metavar="[VERSION]", required=False)
@click.option("--expect", metavar="VERSION", help="Only if ALIAS names this version now.")
@click.option("--expect-none", is_flag=True, help="Only if ALIAS names nothing now.")
@pass_state
def alias_set(
    state: State,
    /,
    *,
    reference: str,
    name: str,
    version: str | None,
    expect: str | None,
    expect_none: bool,
) -> None:
    """Point ALIAS at a version, wherever it pointed before.

    VERSION is a version of the model ID, or another alias of it. In place of ID
    and VERSION one reference also does: ID@VERSION ALIAS, or ID ALIAS for the
    newest version. With --expect, nobody can have moved the alias in between:
    else nothing is changed, and the exit code is 8.
    """
    if expect is not None and expect_none:
        raise UsageError("--expect and --expect-none exclude each other")
    if version is not None and set("@:") & set(reference):
        raise UsageError(
            f"{reference!r} names a version already", hint=f"leave out {version!r}, or write the id"
        )
    with state.registry() as registry:
        entry = registry.resolve(reference if version is None else f"{reference}@{version}")
        registry.set_alias(
            entry.model_id,
            name,
            entry.version,
            expect=None if expect_none else ... if expect is None else expect,
        )
    _emit_alias(state, entry.model_id, name, entry.version)


@alias.command(
    "rm",
    examples="""
    mm alias rm my-org/my-model prod
    """,
)
@click.argument("model_id", metavar="ID")
@click.argument("name", metavar="ALIAS")
@pass_state
def alias_rm(state: State, /, model_id: str, name: str) -> None:
    """Take an alias away. The version stays."""
    with state.registry() as registry:
        registry.remove_alias(model_id, name)
    _emit_alias(state, model_id, name, None)


@alias.command(
    "list",
    examples="""
    mm alias list
    mm alias list my-org/my-model --json
    """,
)
@click.argument("model_id", metavar="[ID]", required=False)
@pass_state
def alias_list(state: State, /, model_id: str | None) -> None:
    """List the aliases and where they point."""
    with state.registry() as registry:
        reading = read(state, registry)
        table = reading.aliases(model_id)
    rows = [
        {"model_id": model, "alias": name, "version": version}
        for model, names in sorted(table.items())
        for name, version in sorted(names.items())
    ]
    state.emit(
        {"aliases": rows, **provenance(reading)},
        human=output.table_or(
            "no aliases" + (f" of {model_id!r}" if model_id else ""),
            ("MODEL", "ALIAS", "VERSION"),
            [(r["model_id"], r["alias"], r["version"]) for r in rows],
        ),
        quiet=[f"{r['model_id']}:{r['alias']}" for r in rows],
        rows=("alias", rows),
    )


@command(
    "rollback",
    examples="""
    mm rollback my-org/my-model prod
    mm rollback my-org/my-model prod --steps 2
    """,
)
@click.argument("model_id", metavar="ID")
@click.argument("name", metavar="ALIAS")
@click.option(
    "--steps", type=click.IntRange(min=1), default=1, metavar="N", help="Go back by so many."
)
@pass_state
def rollback(state: State, /, model_id: str, name: str, steps: int) -> None:
    """Point an alias at the version that it named before.

    What it named is found in the log. Two rollbacks go back two versions: what
    one left behind does not count. A version that is not available any more is
    refused, and the nearest one that is is named. If somebody moves the alias
    meanwhile, nothing is changed, and the exit code is 8.
    """
    with state.registry() as registry:
        moved = registry.rollback(model_id, name, steps=steps)
    reference = f"{moved.model_id}:{moved.alias}"
    left = f", no more at {moved.former}" if moved.former else ""
    state.emit(
        moved.to_json(), human=[f"{reference} -> {moved.version}{left}"], quiet=[moved.version]
    )


def _emit_alias(state: State, model_id: str, name: str, version: str | None) -> None:
    document: dict[str, Any] = {"model_id": model_id, "alias": name, "version": version}
    reference = f"{model_id}:{name}"
    word = f"-> {version}" if version else "is gone"
    state.emit(document, human=[f"{reference} {word}"], quiet=[reference])
