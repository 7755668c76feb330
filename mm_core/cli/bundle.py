"""The commands of bundles: ``mm export`` and ``mm import``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.progress import make_reporter
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import PartialError, UsageError

if TYPE_CHECKING:
    from mm_core.bundles import Imported


@command(
    "export",
    examples="""
    mm export my-org/my-model:prod -o model.tar
    mm export my-org/one my-org/two@3 --backend lake -o models/
    mm export my-org/my-model:prod --as oci -o layout
    mm export my-org/my-model:prod -o - > model.tar
    """,
)
@click.argument("references", metavar="ID[@VERSION|:ALIAS]...", nargs=-1, required=True)
@click.option(
    "-o", "--output", "path", required=True, metavar="PATH",
    help="The file, or the folder; - for stdout.",
)  # fmt: skip
@click.option(
    "--as", "form", type=click.Choice(["tar", "folder", "oci"]),
    help="tar, unless PATH is a folder or ends with /; oci is a layout for container registries.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@pass_state
def export(
    state: State, /, *, references: tuple[str, ...], path: str, form: str | None, force: bool
) -> None:
    """Write versions into one file or folder, for places that no network leads to.

    It holds their files, manifests, aliases and signatures. Every byte is hashed on its
    way, and the same versions give the same bytes. Into a folder, an export that was
    stopped goes on. `mm import` reads it.
    """
    if form is None:
        form = "folder" if path.endswith("/") or Path(path).is_dir() else "tar"
    if path == "-":
        if state.wants_json or form != "tar":
            raise UsageError("to stdout goes a tar, and nothing beside it")
        with state.manager() as manager:
            manager.export_bundle(references, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
    with state.manager() as manager:
        if form == "tar":
            from mm_core.upkeep.files import written_at_once

            with written_at_once(Path(path), overwrite=force) as staged, staged.open("wb") as out:
                size = manager.export_bundle(references, out)
        else:
            size = manager.export_bundle_folder(references, path, oci=form == "oci", force=force)
    shown = str(Path(path))
    human = [f"{output.clean(shown)}: {len(references)} versions, {output.size(size)}"]
    state.emit({"path": shown, "form": form, "size_bytes": size}, human=human, quiet=[shown])


@command(
    "import",
    examples="""
    mm import model.tar --to lake
    mm import models/ -n
    mm import models.tar --no-aliases --json
    """,
)
@click.argument("path", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--to", metavar="B", help="The backend.")
@click.option("--no-aliases", is_flag=True, help="Set none of the aliases of the bundle.")
@click.option("--move-aliases", is_flag=True, help="Also those that name another version here.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Files at once.")
@click.option("-n", "--dry-run", is_flag=True, help="Check the bundle, and say what is in it.")
@pass_state
def import_(
    state: State,
    /,
    *,
    path: Path,
    to: str | None,
    no_aliases: bool,
    move_aliases: bool,
    jobs: int | None,
    dry_run: bool,
) -> None:
    """Bring the versions of a bundle into a backend.

    Each comes as a pull would bring it: policies are asked, every byte is verified, and
    one commit makes it available. What is there already is not moved again.
    """
    if str(path) == "-":
        raise UsageError(
            "a bundle is not read from a pipe: several of its members are read at once",
            hint="write it to a file first",
        )
    if dry_run:
        _look(state, path)
        return
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        done = manager.import_bundle(
            path, to=to, aliases=not no_aliases, move_aliases=move_aliases, jobs=jobs
        )
    document = {"results": [one.to_json() for one in done]}
    failed = {one.reference: one.error for one in done if one.error is not None}
    rows = ("version", document["results"])
    quiet = [one.reference for one in done if one.outcome == "imported"]
    if not failed:
        state.emit(document, human=_lines(done), quiet=quiet, rows=rows)
        return
    state.so_far = document
    if not state.wants_json:
        state.emit(document, human=_lines(done), quiet=quiet)
    if len(done) == 1:
        raise next(iter(failed.values()))
    raise PartialError(
        f"{len(failed)} of {len(done)} failed",
        errors=failed,
        hint="import it again: what is there already is not moved again",
    )


def _look(state: State, path: Path) -> None:
    import contextlib

    from mm_core.bundles import Bundle

    with contextlib.closing(Bundle(path)) as bundle:
        table = [
            (
                f"{one.manifest.model_id}@{one.manifest.version}",
                output.size(one.manifest.size_bytes),
                ", ".join(one.aliases),
            )
            for one in bundle.versions
        ]
        rows = [
            {
                "reference": f"{one.manifest.model_id}@{one.manifest.version}",
                "size_bytes": one.manifest.size_bytes,
                "aliases": list(one.aliases),
                "signatures": len(one.signatures),
            }
            for one in bundle.versions
        ]
    state.emit(
        {"versions": rows},
        human=output.table(("VERSION", "SIZE", "ALIASES"), table),
        quiet=[str(row["reference"]) for row in rows],
        rows=("version", rows),
    )


def _lines(done: tuple[Imported, ...]) -> Iterator[str]:
    rows = [
        (one.outcome, one.reference, output.size(one.size_bytes), ", ".join(one.aliases))
        for one in done
    ]
    yield from output.table(("OUTCOME", "VERSION", "SIZE", "ALIASES"), rows)
    for one in done:
        if one.left:
            yield f"{one.reference}: {', '.join(one.left)} name another version here, and stay"
