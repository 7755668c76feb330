"""Commands about plugins: list, info, new, check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_core.authoring import KINDS
from mm_core.cli import output
from mm_core.cli.base import group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import ConflictError, NotFoundError

if TYPE_CHECKING:
    from mm_core.authoring.check import Check
    from mm_core.authoring.new import Project
    from mm_core.plugins import PluginInfo


@group(
    "plugins",
    examples="""
    mm plugins list
    mm plugins info s3
    mm plugins new my-store --kind sink
    mm plugins check ./mm-my-store
    """,
)
def plugins() -> None:
    """List plugins, begin one, and check it."""


@plugins.command(
    "list",
    examples="""
    mm plugins list
    mm plugins list --json
    """,
)
@pass_state
def list_(state: State, /) -> None:
    """List the plugins: what they offer, and what is broken."""
    infos = _infos()
    rows = [info.to_json() for info in infos]
    state.emit(
        {"plugins": rows},
        human=output.table(
            ("PLUGIN", "DISTRIBUTION", "VERSION", "OFFERS", "STATE"), [_row(info) for info in infos]
        ),
        quiet=[info.name for info in infos],
        rows=("plugin", rows),
    )


@plugins.command(
    "info",
    examples="""
    mm plugins info huggingface
    """,
)
@click.argument("name")
@pass_state
def info(state: State, /, name: str) -> None:
    """Show one plugin: where it comes from, its types and its hooks."""
    for found in _infos():
        if found.name == name:
            break
    else:
        raise NotFoundError(f"there is no plugin {name!r}", hint="see `mm plugins list`")
    human = output.facts(
        [
            ("plugin", found.name),
            ("module", found.module),
            ("distribution", found.distribution),
            ("version", found.version),
            ("offers", _offers(found)),
            ("hooks", ", ".join(found.hooks)),
            ("error", found.error),
        ]
    )
    state.emit({"plugin": found.to_json()}, human=human, quiet=[found.name])


@plugins.command(
    "new",
    examples="""
    mm plugins new my-store --kind sink
    mm plugins new my-hub --kind source -o ./plugins/my-hub
    """,
)
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it adds.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    help="The folder, which must be new or empty; by default ./mm-NAME.",
)
@pass_state
def new(state: State, /, name: str, kind: str, folder: Path | None) -> None:
    """Write the project of a new plugin: one that works, with tests that pass.

    NAME is its word in mm.yaml and in URLs, or its command. Put your own code in
    place of the example, and let the tests tell what is still to do.
    """
    from mm_core.authoring.new import named, write_project

    project = named(name, kind)
    _refuse_taken(project)
    folder = Path(project.distribution) if folder is None else folder
    files = write_project(project, folder)
    path = str(folder)
    state.emit(
        {"path": path, "name": project.name, "kind": kind, "files": list(files)},
        human=[
            *(output.clean(folder / file) for file in files),
            f"next: cd {output.clean(path)}, pip install -e '.[test]', pytest",
        ],
        quiet=[path],
    )


@plugins.command(
    "check",
    examples="""
    mm plugins check ./mm-my-store
    mm plugins check ./mm-my-store --no-tests
    mm plugins check s3 --json
    """,
)
@click.argument("plugin", metavar="FOLDER|NAME")
@click.option("--no-tests", is_flag=True, help="Do not run the tests of the project.")
@pass_state
def check(state: State, /, plugin: str, no_tests: bool) -> None:
    """Say what is wrong with a plugin: with the project in a folder, or an installed one.

    Whether it can be imported, and cheaply; its hooks, types and settings; and, of a
    project, whether its tests pass and hold it to Model Manager's suites. Exit code
    1 if anything is wrong.
    """
    from mm_core.authoring.check import examine, find

    checks = [found for one in find(plugin) for found in examine(one, tests=not no_tests)]
    ok = all(found.state != "failed" for found in checks)
    rows = [asdict(found) for found in checks]
    state.emit(
        {"ok": ok, "checks": rows},
        human=_marked(checks),
        quiet=[f"{c.plugin}: {c.check}: {c.detail}" for c in checks if c.state == "failed"],
        rows=("check", rows),
    )
    if not ok:
        click.get_current_context().exit(1)


def _refuse_taken(project: Project) -> None:
    """Raise `ConflictError` for a word that an installed plugin, or a command, has already."""
    from mm_core.cli.app import COMMANDS
    from mm_core.plugins import Plugins

    installed = Plugins.discover()
    taken = {
        "source": installed.offered("sources"),
        "sink": installed.offered("sinks"),
        "policy": installed.offered("policies"),
        "executor": installed.offered("executors"),
        "command": frozenset(COMMANDS),
    }[project.kind]
    if project.name in taken:
        raise ConflictError(
            f"there is a {project.kind} {project.name!r} already",
            hint=f"take another name than {', '.join(sorted(taken))}",
        )


def _marked(checks: list[Check]) -> Iterator[str]:
    marks = {
        "ok": click.style("\N{CHECK MARK}", fg="green"),
        "failed": click.style("\N{BALLOT X}", fg="red"),
        "skipped": "-",
    }
    width = max(len(check.check) for check in checks)
    for check in checks:
        detail = output.clean(check.detail)
        yield f"{marks[check.state]} {check.plugin}  {check.check.ljust(width)}  {detail}"
        if check.hint:
            yield f"  -> {output.clean(check.hint)}"


def _infos() -> tuple[PluginInfo, ...]:
    from mm_core.plugins import Plugins

    return Plugins.discover().infos()


def _row(info: PluginInfo) -> tuple[object, ...]:
    state = f"broken: {info.error}" if info.error else "ok"
    return info.name, info.distribution or "-", info.version or "-", _offers(info), state


def _offers(info: PluginInfo) -> str:
    return "; ".join(f"{kind}: {', '.join(types)}" for kind, types in info.offers.items())
