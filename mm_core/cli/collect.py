"""The command that clears away what nobody uses any more: gc."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.progress import make_teller
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import UsageError

if TYPE_CHECKING:
    from mm_core.collecting import GcPlan

DELETED = "deleted"


@command(
    "gc",
    examples="""
    mm gc --dry-run
    mm gc --backend lake --grace 7d
    mm gc --retention --dry-run
    mm gc --json
    """,
)
@click.option("-n", "--dry-run", is_flag=True, help="Print what would go, and stop.")
@click.option(
    "--grace", metavar="TIME", help="Leave what is younger: by default retention.grace, else 24h."
)
@click.option(
    "--retention",
    is_flag=True,
    help="Also remove the versions that retention.keep_last and keep_aliases do not keep.",
)
@pass_state
def gc(state: State, /, *, dry_run: bool, grace: str | None, retention: bool) -> None:
    """Delete what nobody uses any more, once it is older than the grace.

    That is: the files of removed and failed versions, files that no version
    names, uploads that were begun and never finished, and what pulls left that were
    killed. Ages are by the store's own clock. A version that is offered, or being
    pulled, is never touched; it can be run at any time, and beside others.
    """
    seconds = _seconds(grace)
    with state.manager() as manager:
        tell = make_teller(state)
        plan = manager.plan_gc(grace=seconds, retention=retention, tell=tell)
        if dry_run:
            done, left = plan, 0
            document = plan.to_json()
        else:
            state.when_interrupted = output.say_go_on
            collected = manager.gc(plan, tell=tell)
            done, left = collected.done, collected.left
            document = collected.to_json()
    state.emit(
        {"dry_run": dry_run, **document},
        human=_lines(done, "nothing was done" if dry_run else DELETED, left),
        quiet=_keys(done),
    )


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from mm_core.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--grace: {error}") from None


def _keys(plan: GcPlan) -> Iterator[str]:
    yield from (output.clean(f"{one.model_id}@{one.version}") for one in plan.retired)
    yield from (output.clean(stored.key) for stored in plan.objects)
    yield from (output.clean(found.upload.key) for found in plan.uploads)


def _lines(plan: GcPlan, done: str, left: int) -> Iterator[str]:
    stay = f"; {plan.kept} younger or in use" if plan.kept else ""
    stay += f"; {left} changed meanwhile and left" if left else ""
    if plan.is_empty:
        yield f"nothing to do{stay}"
        return
    yield from output.table(("WHAT", "NAME", "FILES", "SIZE"), _rows(plan))
    *sums, last = _sums(plan, done)
    yield from sums
    yield last + stay


def _sums(plan: GcPlan, done: str) -> Iterator[str]:
    if plan.retired:
        removed = "removed; the files wait for the grace" if done == DELETED else done
        yield f"{output.counted(len(plan.retired), 'surplus version')}: {removed}"
    counts = {"object": sum(1 for _ in plan.objects), "unfinished upload": len(plan.uploads)}
    what = [output.counted(count, name) for name, count in counts.items() if count]
    if what:
        yield f"{', '.join(what)}, {output.size(plan.total_bytes)}: {done}"
    elif not plan.retired:
        yield done


def _rows(plan: GcPlan) -> Iterator[tuple[str, str, str, str]]:
    for one in plan.retired:
        name = f"{one.model_id}@{output.short_version(one.version)}"
        aliases = f" ({', '.join(one.aliases)})" if one.aliases else ""
        yield "surplus", f"{name}{aliases}", "-", output.size(one.size_bytes)
    for dead in plan.claims:
        yield "dead pull", f"{dead.model_id}@{output.short_version(dead.version)}", "-", "-"
    for sweep in plan.versions:
        assert sweep.status is not None
        name = f"{sweep.model_id}@{output.short_version(sweep.version)}"
        size = sum(stored.size for stored in sweep.objects)
        yield sweep.status.value.lower(), name, str(len(sweep.objects)), output.size(size)
    orphans = chain(
        (stored for sweep in plan.orphans for stored in sweep.all_objects),
        (stored for stray in plan.strays for stored in stray.objects),
        plan.loose,
    )
    for stored in orphans:
        yield "orphan", stored.key, "1", output.size(stored.size)
    for found in plan.uploads:
        age = output.duration(found.age)
        yield "unfinished", f"{found.upload.key} ({age})", "1", output.size(found.upload.size)
    if plan.litter:
        size = sum(stored.size for stored in plan.litter)
        yield "litter", "heartbeats and probes", str(len(plan.litter)), output.size(size)
