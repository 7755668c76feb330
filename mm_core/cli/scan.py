"""The command that looks for what is dangerous in a model: scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.policy import finding_row
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import PolicyError

if TYPE_CHECKING:
    from mm_core.policing import Verdict


@command(
    "scan",
    examples="""
    mm scan my-org/my-model:prod
    mm scan hf://org/name --revision v1.0
    mm scan ./my-model --json
    """,
)
@click.argument("target", metavar="ID[@VERSION|:ALIAS]|SOURCE")
@click.option("--revision", metavar="R", help="A branch, tag or commit of the source.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No files that match.")
@pass_state
def scan(state: State, /, *, target: str, **request: Any) -> None:
    """Look for dangerous pickles in a model.

    It may be a stored version or stand at its source, from which as little is read as it
    takes. What files are is told by their content, and what is packed in them is looked
    through. Ends with exit code 7 if anything is found, or cannot be looked through.
    """
    with state.manager() as manager:
        verdict = manager.scan(target, **request)
    document = verdict.to_json()
    if verdict.ok:
        state.emit(document, human=_lines(verdict))
        return
    state.so_far = document
    if not state.wants_json:
        state.emit(document, human=_lines(verdict))
    raise PolicyError(
        f"something was found in {verdict.plan.model_id}@{verdict.plan.version}",
        hint="what it is is told above; `mm rm` takes a version out of use",
        findings=[ruling.to_json() for ruling in verdict.rulings],
    )


def _lines(verdict: Verdict) -> Iterator[str]:
    if verdict.rulings:
        header = ("VERDICT", "RULE", "WHERE", "FILE", "WHY", "TO ALLOW IT")
        yield from output.table(header, [finding_row(ruling) for ruling in verdict.rulings])
    for path in verdict.unread:
        yield f"{output.clean(path)} was not looked into: its source does not state its size"
    scanned = verdict.checks.get("scan", {})
    pickles = output.counted(int(scanned.get("pickles", 0)), "pickle")
    by = f", by {scanned['scanner']} {scanned['version']}" if scanned.get("scanner") else ""
    files = output.counted(len(verdict.plan.files), "file")
    yield f"{files} looked through, {pickles} scanned{by}" + ("" if verdict.rulings else ": fine")
