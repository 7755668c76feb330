"""The command that compares two versions: diff."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state

if TYPE_CHECKING:
    from mm_core.comparing import Comparison, FileChange

_REFERENCE = "ID[@VERSION|:ALIAS]"
_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
_NAMES = {"license": "licence", "model_type": "type"}


@command(
    "diff",
    examples="""
    mm diff my-org/my-model@2 my-org/my-model@3
    mm diff my-org/my-model:prod my-org/my-model:staging --json
    mm diff my-org/my-model:prod my-org/my-model:prod --against dr --exit-code
    """,
)
@click.argument("before", metavar=_REFERENCE)
@click.argument("after", metavar=_REFERENCE)
@click.option("--against", metavar="B", help="Look the second up in this backend.")
@click.option("--exit-code", is_flag=True, help="End with 1 if the files differ.")
@pass_state
def diff(state: State, /, *, before: str, after: str, against: str | None, exit_code: bool) -> None:
    """Show what differs between two versions: files added, removed and changed, with their sizes.

    Sizes and hashes are compared as the registry has them; no file is read.
    """
    from mm_core.comparing import compare

    with state.registry() as registry:
        old = registry.manifest(registry.resolve(before))
        if against is None:
            new = registry.manifest(registry.resolve(after))
    if against is not None:
        with state.registry(against) as registry:
            new = registry.manifest(registry.resolve(after))
    found = compare(old, new)
    differing = [file for file in found.files if file.change != "same"]
    state.emit(
        found.to_json(),
        human=_lines(found, differing),
        quiet=[file.path for file in differing],
    )
    if exit_code and not found.same_files:
        click.get_current_context().exit(1)


def _lines(found: Comparison, differing: list[FileChange]) -> Iterator[str]:
    for file in differing:
        sign, color = _SIGNS[file.change]
        path = output.clean(file.path)
        yield f"{click.style(f'{sign} {path}', fg=color)}  {_sizes(file)}"
    yield ", ".join(_total(found, change) for change in ("added", "removed", "changed", "same"))
    for name, (before, after) in found.facts.items():
        words = f"{_NAMES.get(name, name)}: {before or 'none'} -> {after or 'none'}"
        yield output.clean(words)


def _sizes(file: FileChange) -> str:
    sizes = [output.size(side.size) for side in (file.before, file.after) if side is not None]
    return " -> ".join(dict.fromkeys(sizes))


def _total(found: Comparison, change: str) -> str:
    from mm_core.comparing import bytes_of

    files = found.having(change)
    return f"{len(files)} {change}" + (f" ({output.size(bytes_of(files))})" if files else "")
