"""The command that writes a bill of materials: sbom."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state


@command(
    "sbom",
    examples="""
    mm sbom my-org/my-model:prod > model.cdx.json
    mm sbom my-org/my-model:prod --output model.cdx.json
    mm sbom my-org/my-model@3 --json
    """,
)
@click.argument("reference", metavar="ID[@VERSION|:ALIAS]")
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path), help="Write it into this file."
)
@pass_state
def sbom(state: State, /, reference: str, path: Path | None) -> None:
    """Write a bill of materials of a version: CycloneDX 1.6, as JSON.

    It tells the files with their sha256, the licence, where the model came from, what
    the headers of its weights say, what policies looked at, and who has signed it. The
    same version in the same state gives the same document.
    """
    with state.manager() as manager:
        document = manager.sbom(reference)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if path is None:
        state.emit({"sbom": document}, human=[text], quiet=[text])
        return
    from mm_core.upkeep.files import written_at_once

    with written_at_once(path, overwrite=True) as staged:
        staged.write_text(f"{text}\n", encoding="utf-8")
    shown = str(path)
    state.emit({"path": shown, "sbom": document}, human=[output.clean(shown)], quiet=[shown])
