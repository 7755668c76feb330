"""Commands that change or check what is registered: rm, verify."""

from __future__ import annotations

import sys

import click

from mm_core.cli import output
from mm_core.cli.asking import refuse_nothing
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import IntegrityError, UsageError

_REFERENCE = "ID[@VERSION|:ALIAS]"


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

    It is marked DELETED and no longer offered. Its files stay until mm gc finds
    that this is longer ago than the grace; until then, pulling it again is cheap.
    """
    with state.manager() as manager:
        entry = manager.registry().resolve(reference)
        exact = f"{entry.model_id}@{entry.version}"
        if not yes:
            _confirm(state, f"Remove {exact} ({output.size(entry.size_bytes)})?")
        removed = manager.remove(exact)
    state.emit(
        {"entry": removed.to_json()},
        human=[f"{exact} is {removed.status.value}; its files stay until mm gc"],
        quiet=[exact],
    )


@command(
    "verify",
    examples="""
    mm verify
    mm verify my-org/my-model:prod
    mm verify --no-deep --json
    mm verify --repair
    """,
)
@click.argument("reference", metavar="[ID[@VERSION|:ALIAS]]", required=False)
@click.option("--deep/--no-deep", default=True, help="Read every byte, or compare sizes alone.")
@click.option("--repair", is_flag=True, help="Bring what is missing or wrong again.")
@pass_state
def verify(state: State, /, reference: str | None, deep: bool, repair: bool) -> None:
    """Read models back and check every byte against the registry. All models by default.

    With --repair, what is wrong is set aside, and comes again from equal bytes in the
    backend or from where the version came from.
    """
    with state.manager() as manager:
        state.when_interrupted = output.say_go_on if repair else None
        report = manager.verify(reference, deep=deep, repair=repair)
        if not report.checked:
            refuse_nothing(manager.registry())
    mended = [f"{m.model_id}@{m.version} {m.path}: mended" for m in report.mended]
    document = report.to_json()
    bad = [f"{b.model_id}@{b.version} {b.path}: {b.reason}" for b in report.bad]
    if report.ok:
        whole = output.counted(report.checked, "file is as it", "files are as they") + " should be"
        state.emit(document, human=[*map(output.clean, mended), whole], quiet=())
        return
    state.so_far = document
    if not state.wants_json:
        for line in (*mended, *bad):
            click.echo(output.clean(line))
    raise IntegrityError(
        f"{len(report.bad)} of {report.checked} files are not what the registry says",
        hint="`mm gc` takes what belongs to no version; the rest has to be pulled or pushed again"
        if repair
        else "`mm verify --repair` brings what is missing or wrong again",
    )


def _confirm(state: State, question: str) -> None:
    if state.wants_json or not sys.stdin.isatty():
        raise UsageError("removing asks first, and there is no terminal", hint="add --yes")
    if not click.confirm(question, err=True):
        raise click.Abort
