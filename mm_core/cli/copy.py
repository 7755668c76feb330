"""The command that brings versions from one backend into another: copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command, transfer_options
from mm_core.cli.progress import make_reporter
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import PartialError, UsageError

if TYPE_CHECKING:
    from mm_core.copies import Copies
    from mm_core.manager import ModelManager


@command(
    "copy",
    examples="""
    mm copy my-org/my-model:prod --from lake --to dr --with-aliases
    mm copy my-org/my-model --all-versions --from lake --to dr
    mm copy --all --from lake --to dr --with-aliases --dry-run
    mm copy --all --from lake --to dr --move-aliases --prune
    """,
)
@click.argument("references", metavar="[ID[@VERSION|:ALIAS]]...", nargs=-1)
@click.option("--from", "source", metavar="B", help="The backend to copy from.")
@click.option("--to", "to", metavar="B", required=True, help="The backend to copy into.")
@click.option("--all", "all_", is_flag=True, help="All models: what is missing there is copied.")
@click.option("--all-versions", is_flag=True, help="All versions of each ID, not one.")
@click.option("--as", "model_id", metavar="ID", help="Another model id for the copy.")
@click.option("--alias", "aliases", multiple=True, metavar="A", help="Point this name at it there.")
@click.option("--with-aliases", is_flag=True, help="Its aliases, too, where those names are free.")
@click.option("--move-aliases", is_flag=True, help="Also those that name another version there.")
@click.option("--prune", is_flag=True, help="With --all: remove there what is gone here.")
@click.option("--verify", "read_copies", is_flag=True, help="Read back what the store copied.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done, and stop.")
@transfer_options
@pass_state
def copy(
    state: State,
    /,
    *,
    references: tuple[str, ...],
    source: str | None,
    to: str,
    all_: bool,
    **wishes: Any,
) -> None:
    """Copy versions into another backend, with all that is known about them.

    Within one store the store copies by itself; otherwise the bytes are streamed and
    checked on their way. What is there is not copied again. With --all it keeps
    one registry as another is: run it again at any time.
    """
    _check(references, all_=all_, wishes=wishes)
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        source = source or state.backend or manager.settings.defaults.backend
        if source is None:
            raise UsageError("it is not said what to copy from", hint="name a backend with --from")
        copies = _copies(manager, references, source, to, all_=all_, wishes=wishes)
    _end(state, copies)


def _check(references: tuple[str, ...], *, all_: bool, wishes: dict[str, Any]) -> None:
    if all_ == bool(references):
        raise UsageError(
            "it takes either models or --all, not both"
            if all_
            else "it is not said which models to copy",
            hint="write mm copy ID --from B --to B, or mm copy --all --from B --to B",
        )
    single = [name for name in ("all_versions", "model_id", "aliases") if wishes[name]]
    if all_ and single:
        raise UsageError("--all-versions, --as and --alias say nothing together with --all")
    if wishes["prune"] and not all_:
        raise UsageError("--prune needs --all", hint="use `mm rm` for single versions")


def _copies(
    manager: ModelManager,
    references: tuple[str, ...],
    source: str,
    to: str,
    *,
    all_: bool,
    wishes: dict[str, Any],
) -> Copies:
    prune = wishes.pop("prune")
    if all_:
        for name in ("all_versions", "model_id", "aliases"):
            del wishes[name]
        return manager.replicate(source=source, to=to, prune=prune, **wishes)
    return manager.copy(*references, source=source, to=to, **wishes)


def _end(state: State, copies: Copies) -> None:
    """Print what became of all; failures are the exit code."""
    document = copies.to_json()
    failed = copies.failed
    if not failed:
        state.emit(document, human=_lines(copies), quiet=_quiet(copies), rows=_rows(copies))
        return
    state.so_far = document
    if not state.wants_json:
        state.emit(document, human=_lines(copies), quiet=_quiet(copies))
    if len(failed) == 1 == len(copies.versions):
        raise next(iter(failed.values()))
    raise PartialError(
        f"{len(failed)} of {len(copies.versions) + len(copies.aliases)} failed",
        errors=failed,
        hint="run the same command again: what is there already is not copied again",
    )


def _rows(copies: Copies) -> tuple[str, list[dict[str, Any]]]:
    return "version", [one.to_json() for one in copies.versions]


def _quiet(copies: Copies) -> list[str]:
    changed = ("copied", "removed")
    return [one.reference for one in copies.versions if one.outcome.value in changed]


def _lines(copies: Copies) -> Iterator[str]:
    from mm_core.copies import Outcome

    shown = [one for one in copies.versions if one.outcome is not Outcome.PRESENT]
    if shown:
        rows = [
            (
                one.outcome.value,
                one.model_id,
                output.short_version(one.version),
                output.size(one.size_bytes),
                one.reason or "",
            )
            for one in shown
        ]
        yield from output.table(("OUTCOME", "MODEL", "VERSION", "SIZE", "WHY"), rows)
    if copies.aliases:
        rows_of_aliases = [
            (
                one.outcome,
                one.reference,
                output.short_version(one.version),
                output.short_version(one.before or ""),
            )
            for one in copies.aliases
        ]
        yield from output.table(("ALIAS", "NAME", "VERSION", "WAS"), rows_of_aliases)
    words = [f"{copies.count(outcome)} {outcome.value}" for outcome in Outcome]
    streamed = sum(one.fetched_bytes for one in copies.versions)
    moved = sum(one.copied_bytes for one in copies.versions)
    nothing = "; nothing was done" if copies.dry_run else ""
    yield (
        f"{', '.join(word for word in words if not word.startswith('0 ')) or 'nothing to copy'}"
        f" ({output.size(streamed)} streamed, {output.size(moved)} copied by the store){nothing}"
    )
    if any(one.outcome == "differs" for one in copies.aliases):
        yield "aliases that differ were left; --move-aliases moves them"
