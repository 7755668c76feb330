"""The command that clears away what failed pulls left: gc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import UsageError

if TYPE_CHECKING:
    from mm_core.leftovers import Collected


@command(
    "gc",
    examples="""
    mm gc --dry-run
    mm gc --backend lake --grace 7d
    mm gc --json
    """,
)
@click.option("-n", "--dry-run", is_flag=True, help="Print what would go, and stop.")
@click.option(
    "--grace", metavar="TIME", help="Leave what is younger: by default retention.grace, else 24h."
)
@pass_state
def gc(state: State, /, *, dry_run: bool, grace: str | None) -> None:
    """Discard uploads that were begun and never finished.

    A pull that was killed leaves the parts of its large files, so that the next
    one goes on from them; in a bucket they cost money until they go. Those that
    are older than the grace, by the store's own clock, and of no version that is
    being pulled, are discarded. Nothing else is touched: the files of removed
    models (mm rm) are not swept yet.
    """
    with state.manager() as manager:
        collected = manager.gc(grace=_seconds(grace), dry_run=dry_run)
    state.emit(
        collected.to_json(),
        human=_lines(collected),
        quiet=[found.upload.key for found in collected.leftovers],
    )


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from mm_core.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--grace: {error}") from None


def _lines(collected: Collected) -> Iterator[str]:
    done = "nothing was done" if collected.dry_run else "discarded"
    stay = f"; {collected.kept} younger or in use" if collected.kept else ""
    if not collected.leftovers:
        yield f"nothing to do{stay}"
        return
    rows = [
        (found.upload.key, output.duration(found.age), output.size(found.upload.size))
        for found in collected.leftovers
    ]
    yield from output.table(("UNFINISHED", "AGE", "SIZE"), rows)
    count = len(collected.leftovers)
    uploads = f"{count} unfinished upload{'s' * (count > 1)}"
    yield f"{uploads}, {output.size(collected.total_bytes)}: {done}{stay}"
