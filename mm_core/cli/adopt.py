"""The command that makes entries of models that are there already: adopt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command, transfer_options
from mm_core.cli.progress import make_reporter
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import PartialError

if TYPE_CHECKING:
    from mm_core.adopted import Adopted, AdoptedModel


@command(
    "adopt",
    examples="""
    mm adopt s3://ml-models/prod/old/bert --to s3://ml-models/prod --as my-org/bert
    mm adopt s3://ml-models/prod/old --depth 2 --dry-run
    mm adopt ~/.cache/huggingface/hub --to ./models --with-aliases
    mm adopt /srv/models/bert --as my-org/bert --version 3 --alias prod
    """,
)
@click.argument("address", metavar="URL_OR_FOLDER")
@click.option("--to", "to", metavar="B", help="The backend.")
@click.option("--as", "model_id", metavar="ID", help="The model id; by default the folder's name.")
@click.option("--version", metavar="V", help="The version; by default a digest of the content.")
@click.option("--alias", "aliases", multiple=True, metavar="A", help="Point this name at it.")
@click.option("--with-aliases", is_flag=True, help="Take over names such as the refs of a cache.")
@click.option(
    "--depth",
    type=click.IntRange(0, 8),
    default=0,
    metavar="N",
    help="Each folder so many levels below is a model, named by its path.",
)
@click.option(
    "--share/--copy",
    default=True,
    help="On one disk: one copy under two names (the default), or a copy of its own.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be adopted, and stop.")
@transfer_options
@pass_state
def adopt(state: State, /, *, address: str, to: str | None, **wishes: Any) -> None:
    """Make entries of models that are there already.

    What stands below the backend's own root stays where it is and is hashed there.
    From another folder of the same disk, or another bucket of the same store,
    nothing is streamed. All else is brought as by mm pull. A Hugging Face cache is
    known as such: each snapshot becomes a version of its model.
    """
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        adopted = manager.adopt(address, to=to, **wishes)
    failed = adopted.failed
    if not failed:
        rows = ("model", [one.to_json() for one in adopted.models])
        state.emit(adopted.to_json(), human=_lines(adopted), quiet=_quiet(adopted), rows=rows)
        return
    state.so_far = adopted.to_json()
    if len(adopted.models) == 1:
        raise next(iter(failed.values()))
    if not state.wants_json:
        state.emit({}, human=_lines(adopted), quiet=_quiet(adopted))
    raise PartialError(
        f"{len(failed)} of {len(adopted.models)} models were not adopted",
        errors=failed,
        hint="run the same command again: what was adopted is not adopted twice; "
        "one of them alone can be given another name with --as",
    )


def _quiet(adopted: Adopted) -> list[str]:
    return [
        f"{one.entry.model_id}@{one.entry.version}"
        for one in adopted.models
        if one.entry is not None
    ]


def _lines(adopted: Adopted) -> Iterator[str]:
    rows = [
        (
            one.model_id,
            output.short_version(one.version or "by its content"),
            one.how if one.error is None else "failed",
            output.size(one.entry.size_bytes) if one.entry is not None else "",
            one.address,
        )
        for one in adopted.models
    ]
    yield from output.table(("MODEL", "VERSION", "HOW", "SIZE", "FROM"), rows)
    total = _sum(adopted.models)
    done = sum(one.entry is not None for one in adopted.models)
    count = len(adopted.models)
    if adopted.dry_run:
        yield f"{count} model{'s' * (count != 1)}; nothing was done"
        return
    yield (
        f"{done} adopted ({output.size(total[0])} in place, {output.size(total[1])} shared or "
        f"copied by the store, {output.size(total[2])} streamed)"
    )


def _sum(models: tuple[AdoptedModel, ...]) -> tuple[int, int, int]:
    return (
        sum(one.in_place_bytes for one in models),
        sum(one.copied_bytes for one in models),
        sum(one.fetched_bytes for one in models),
    )
