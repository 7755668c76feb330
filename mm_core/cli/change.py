"""Commands that change or check what is registered: alias, rm, verify."""

from __future__ import annotations

import sys
from typing import Any

import click

from mm_core.cli import output
from mm_core.cli.base import command, group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import IntegrityError, UsageError

_REFERENCE = "ID[@VERSION|:ALIAS]"


@group(
    "alias",
    examples="""
    mm alias set my-org/my-model@3 prod
    mm alias list
    """,
)
def alias() -> None:
    """Point names such as prod at versions."""


@alias.command(
    "set",
    examples="""
    mm alias set my-org/my-model@3 prod
    mm alias set my-org/my-model:staging prod
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@click.argument("name", metavar="ALIAS")
@pass_state
def alias_set(state: State, /, reference: str, name: str) -> None:
    """Point ALIAS at a version, wherever it pointed before."""
    with state.manager() as manager:
        registry = manager.registry()
        entry = registry.resolve(reference)
        registry.set_alias(entry.model_id, name, entry.version)
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
    with state.manager() as manager:
        manager.registry().remove_alias(model_id, name)
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
    with state.manager() as manager:
        table = manager.registry().aliases(model_id)
    rows = [
        {"model_id": model, "alias": name, "version": version}
        for model, names in sorted(table.items())
        for name, version in sorted(names.items())
    ]
    state.emit(
        {"aliases": rows},
        human=output.table(
            ("MODEL", "ALIAS", "VERSION"), [(r["model_id"], r["alias"], r["version"]) for r in rows]
        ),
        quiet=[f"{r['model_id']}:{r['alias']}" for r in rows],
        rows=("alias", rows),
    )


@command(
    "rm",
    examples="""
    mm rm my-org/my-model@3
    mm rm my-org/my-model@3 --yes
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_state
def rm(state: State, /, reference: str, yes: bool) -> None:
    """Remove a version from the registry.

    It is marked DELETED and no longer offered. Its files stay where they are.
    """
    with state.manager() as manager:
        entry = manager.registry().resolve(reference)
        exact = f"{entry.model_id}@{entry.version}"
        if not yes:
            _confirm(state, f"Remove {exact} ({output.size(entry.size_bytes)})?")
        removed = manager.remove(exact)
    state.emit(
        {"entry": removed.to_json()},
        human=[f"{exact} is {removed.status.value}; its files are still there"],
        quiet=[exact],
    )


@command(
    "verify",
    examples="""
    mm verify
    mm verify my-org/my-model:prod
    mm verify --no-deep --json
    """,
)
@click.argument("reference", metavar="[ID[@VERSION|:ALIAS]]", required=False)
@click.option("--deep/--no-deep", default=True, help="Read every byte, or compare sizes alone.")
@pass_state
def verify(state: State, /, reference: str | None, deep: bool) -> None:
    """Read models back and check every byte against the registry. All models by default."""
    with state.manager() as manager:
        report = manager.verify(reference, deep=deep)
    document = report.to_json()
    bad = [f"{b.model_id}@{b.version} {b.path}: {b.reason}" for b in report.bad]
    if report.ok:
        state.emit(document, human=[f"{report.checked} files are as they should be"], quiet=())
        return
    state.so_far = document
    if not state.wants_json:
        for line in bad:
            click.echo(output.clean(line))
    raise IntegrityError(
        f"{len(report.bad)} of {report.checked} files are not what the registry says",
        hint="pull the model again to fetch what is missing or cut short; for wrong bytes of the "
        "right size, delete those files first",
    )


def _confirm(state: State, question: str) -> None:
    if state.wants_json or not sys.stdin.isatty():
        raise UsageError("removing asks first, and there is no terminal", hint="add --yes")
    if not click.confirm(question, err=True):
        raise click.Abort


def _emit_alias(state: State, model_id: str, name: str, version: str | None) -> None:
    document: dict[str, Any] = {"model_id": model_id, "alias": name, "version": version}
    reference = f"{model_id}:{name}"
    word = f"-> {version}" if version else "is gone"
    state.emit(document, human=[f"{reference} {word}"], quiet=[reference])
