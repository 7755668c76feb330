"""Commands about policies: check, list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import PolicyError

if TYPE_CHECKING:
    from mm_core.policing import Rule, Ruling, Verdict


@group(
    "policy",
    examples="""
    mm policy check hf://org/name
    mm policy list
    """,
)
def policy() -> None:
    """Say which models may enter a backend, and why."""


@policy.command(
    "check",
    examples="""
    mm policy check hf://sentence-transformers/all-MiniLM-L6-v2
    mm policy check hf://org/name --revision v1.0 --to lake --to dr
    mm policy check ./my-model --no-content --json
    """,
)
@click.argument("source")
@click.option(
    "--to", "to", multiple=True, metavar="B", help="A backend; may be given several times."
)
@click.option("--as", "model_id", metavar="ID", help="The model id to keep it under.")
@click.option("--revision", metavar="R", help="A branch, tag or commit of the source.")
@click.option("--version", metavar="V", help="The version, where the source states none.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No files that match.")
@click.option(
    "--weights", metavar="F", help="One format of the weights: safetensors, gguf:Q4_K_M, onnx, all."
)
@click.option(
    "--content/--no-content", default=True, help="Look into the files, or at names alone."
)
@pass_state
def check(
    state: State, /, *, source: str, to: tuple[str, ...], content: bool, **request: Any
) -> None:
    """Say what a pull of SOURCE would be refused for, and move nothing.

    The files are looked into where they are, by as few bytes as the policies need.
    Nothing is written, and the backend is not asked for anything.
    """
    with state.manager() as manager:
        backends: list[str | None] = [*dict.fromkeys(to)] or [None]
        verdicts = [
            manager.check_policies(source, to=backend, content=content, **request)
            for backend in backends
        ]
    documents = [verdict.to_json() for verdict in verdicts]
    document = documents[0] if len(documents) == 1 else {"results": documents}
    lines = [line for verdict in verdicts for line in _told(verdict)]
    if all(verdict.ok for verdict in verdicts):
        state.emit(document, human=lines)
        return
    state.so_far = document
    if not state.wants_json:
        state.emit(document, human=lines)
    raise _refusal(verdicts)


@policy.command(
    "list",
    examples="""
    mm policy list
    mm policy list --backend lake --json
    """,
)
@pass_state
def list_(state: State, /) -> None:
    """List the policies that hold for a backend, and where each is set."""
    with state.manager() as manager:
        rules = manager.policies()
    rows = [rule.to_json() for rule in rules]
    state.emit(
        {"policies": rows},
        human=output.table_or(
            "no policy holds: everything may enter",
            ("SET", "POLICY", "SETTINGS", "BACKENDS", "WHERE"),
            [_row(rule) for rule in rules],
        ),
        quiet=[f"{rule.set}.{rule.policy.type}" for rule in rules],
        rows=("policy", rows),
    )


def _row(rule: Rule) -> tuple[object, ...]:
    settings = json.dumps(rule.to_json()["settings"])
    return rule.set, rule.policy.type, settings, ", ".join(rule.backends or ("all",)), rule.where


def _told(verdict: Verdict) -> Iterator[str]:
    plan = verdict.plan
    name = f"{plan.model_id}@{output.short_version(plan.version)}"
    yield f"{name} from {output.clean(plan.snapshot.source)} into {output.clean(verdict.backend)}"
    if verdict.rulings:
        header = ("VERDICT", "RULE", "WHERE", "FILE", "WHY", "TO ALLOW IT")
        yield from output.table(header, [finding_row(ruling) for ruling in verdict.rulings])
    for path in verdict.unread if verdict.read else ():
        yield f"{output.clean(path)} was not looked into: its source does not state its size"
    yield "it may enter" if verdict.ok else "it may not enter"


def finding_row(ruling: Ruling) -> tuple[object, ...]:
    """The row of a table that tells a finding."""
    found = ruling.to_json()
    word = "refused" if found["refused"] else "warning"
    path = found["path"] or ""
    return word, found["setting"], found["where"], path, found["message"], found["allow"]


def _refusal(verdicts: list[Verdict]) -> PolicyError:
    refusing = [verdict for verdict in verdicts if not verdict.ok]
    model, where = refusing[0].plan.model_id, ", ".join(verdict.backend for verdict in refusing)
    return PolicyError(
        f"{model} may not enter {where}",
        hint="what is found, and how to allow it, is told above",
        findings=[ruling.to_json() for verdict in refusing for ruling in verdict.rulings],
    )
