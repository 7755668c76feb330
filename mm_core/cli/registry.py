"""The commands that look after the registry itself: check, repair, backup, restore and others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.asking import refuse_nothing
from mm_core.cli.base import group
from mm_core.cli.progress import make_teller
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import IntegrityError, PartialError

if TYPE_CHECKING:
    from mm_core.upkeep.findings import CheckReport, Finding
    from mm_core.upkeep.migrate import Migrated
    from mm_core.upkeep.steps import Repaired

_FILE = click.Path(dir_okay=False, path_type=Path)
_TOLD = 20


@group(
    "registry",
    examples="""
    mm registry check
    mm registry repair --dry-run
    mm registry backup lake.mmbackup --backend lake
    """,
)
def registry() -> None:
    """Check, repair and back up the registry: the log beside the models, not the models."""


@registry.command(
    "check",
    examples="""
    mm registry check
    mm registry check --deep --backend lake
    mm registry check --json
    """,
)
@click.option("--deep", is_flag=True, help="Read and hash every byte of every model, too.")
@pass_state
def check(state: State, /, *, deep: bool) -> None:
    """Look at the log, the checkpoints, the manifests, and at every file that they name.

    Changes nothing. Ends with exit code 6 if anything has to be done.
    """
    from mm_core.upkeep.check import as_remembered
    from mm_core.upkeep.check import check as look

    with state.registry() as found:
        report = look(found.sink, deep=deep, trust=found.trust, tell=make_teller(state))
        if report.ok and not report.commits:
            refuse_nothing(found)
        report = as_remembered(report, found)
    document = report.to_json()
    if report.ok:
        state.emit(document, human=_check_lines(report), rows=("finding", document["findings"]))
        return
    state.so_far = document
    if state.format == "jsonl":
        for finding in state.so_far.pop("findings"):
            output.write_json_line("finding", finding)
    elif not state.wants_json:
        for line in _check_lines(report):
            click.echo(line)
    raise IntegrityError(
        f"{_problems(report)} found",
        hint=_what_to_do(report.problems),
    )


@registry.command(
    "repair",
    examples="""
    mm registry repair --dry-run
    mm registry repair --backend lake
    mm registry repair --from lake.mmbackup
    """,
)
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done, and stop.")
@click.option(
    "--from", "from_", type=_FILE, metavar="FILE", help="Take lost objects from this backup."
)
@pass_state
def repair(state: State, /, *, dry_run: bool, from_: Path | None) -> None:
    """Set aside what is damaged, and make it anew from what is right.

    Nothing is deleted that is not kept below .mm/quarantine/. Others may go on
    working; models' files are mended by `mm verify --repair`.
    """
    from mm_core.upkeep.copies import Copies
    from mm_core.upkeep.repair import repair as mend

    with contextlib.ExitStack() as stack:
        found = stack.enter_context(state.registry())
        copies = stack.enter_context(contextlib.closing(Copies(from_))) if from_ else None
        state.when_interrupted = None if dry_run else output.say_go_on
        done = mend(found.sink, copies=copies, dry_run=dry_run, trust=found.trust)
        if not (done.steps or done.left or done.seq):
            refuse_nothing(found)
        if done.steps and not dry_run:
            found.accept(vouch=False)
    document = done.to_json()
    if not done.left:
        state.emit(document, human=_repair_lines(done), quiet=[step.key for step in done.steps])
        return
    state.so_far = document
    if not state.wants_json:
        for line in _repair_lines(done):
            click.echo(line)
    raise IntegrityError(
        f"{output.counted(len(done.left), 'thing')} cannot be mended from what stands: "
        f"{done.left[0].why}",
        hint=done.left[0].hint,
    )


@registry.command(
    "backup",
    examples="""
    mm registry backup lake.mmbackup
    mm registry backup --force lake.mmbackup --backend lake
    """,
)
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@pass_state
def backup(state: State, /, file: Path, *, force: bool) -> None:
    """Write the registry, without the models' files, into one FILE, and read it back."""
    from mm_core.upkeep.backup import backup as write

    with state.registry() as found:
        written = write(found.sink, file, overwrite=force, tell=make_teller(state))
    state.emit(
        written.to_json(),
        human=[
            (
                f"{file}: {output.counted(written.objects, 'object')} up to commit {written.seq}, "
                f"{output.size(written.size)}"
            )
        ],
        quiet=[str(file)],
    )


@registry.command(
    "restore",
    examples="""
    mm registry restore lake.mmbackup --to s3://bucket/new
    mm registry restore lake.mmbackup --backend lake
    """,
)
@click.argument("file", type=_FILE)
@click.option("--to", metavar="B", help="The backend to restore into: by default --backend.")
@pass_state
def restore(state: State, /, file: Path, *, to: str | None) -> None:
    """Create what FILE holds and the backend lacks. What stands there is never replaced."""
    from mm_core.upkeep.backup import restore as bring_back

    with state.registry(to) as found:
        state.when_interrupted = output.say_go_on
        done = bring_back(found.sink, file, trust=found.trust, tell=make_teller(state))
        found.accept(vouch=False)
    state.emit(
        done.to_json(),
        human=[
            f"{output.counted(done.created, 'object')} restored, {done.present} there already",
            f"the last commit of the backup is {done.seq}",
        ],
        quiet=(),
    )


@registry.command(
    "accept",
    examples="""
    mm registry accept
    mm registry accept --backend lake
    """,
)
@pass_state
def accept(state: State, /) -> None:
    """Take the registry as it is now, though this machine has seen a later or another commit.

    Only after it was found out why: it was restored from a backup, repaired, or
    tampered with.
    """
    with state.registry() as found:
        seq = found.accept()
    state.emit({"seq": seq}, human=[f"accepted as it is, with commit {seq} as its last"])


@registry.command(
    "export",
    examples="""
    mm registry export --as csv -o models.csv
    mm registry export --as jsonl --backend lake
    """,
)
@click.option(
    "--as", "as_", type=click.Choice(("jsonl", "csv")), default="jsonl", help="JSON lines or CSV."
)
@click.option("-o", "--output", "file", type=_FILE, metavar="FILE", help="By default stdout.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@pass_state
def export(state: State, /, *, as_: str, file: Path | None, force: bool) -> None:
    """Write one row for each version, removed ones included."""
    from mm_core.upkeep.export import rows_of

    with state.registry() as found:
        entries = found.list_models(include_deleted=True)
    lines = rows_of(entries, as_)
    if file is None:
        for line in lines:
            click.echo(line.encode(), nl=False)
        return
    from mm_core.upkeep.files import written_at_once

    with written_at_once(file, overwrite=force) as staged, staged.open("xb") as target:
        target.writelines(line.encode() for line in lines)
    state.emit(
        {"path": str(file), "rows": len(entries)},
        human=[f"{file}: {output.counted(len(entries), 'version')}"],
        quiet=[str(file)],
    )


@registry.command(
    "migrate",
    examples="""
    mm registry migrate models.json --dry-run
    mm registry migrate models.json --backend lake
    """,
)
@click.argument("file", type=_FILE)
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be added, and stop.")
@click.option("--skip-bad", is_flag=True, help="Leave out entries that cannot be brought over.")
@pass_state
def migrate(state: State, /, file: Path, *, dry_run: bool, skip_bad: bool) -> None:
    """Register the models of a JSON registry file. Doing it again adds nothing."""
    from mm_core.upkeep.migrate import migrate as bring_over

    with state.registry() as found:
        done = bring_over(found.sink, file, skip_bad=skip_bad, dry_run=dry_run, trust=found.trust)
    if not done.bad:
        state.emit(done.to_json(), human=_migrate_lines(done), quiet=done.added)
        return
    state.so_far = done.to_json()
    if not state.wants_json:
        for line in _migrate_lines(done):
            click.echo(line)
    raise PartialError(
        f"left out of {file}: {output.counted(len(done.bad), 'entry', 'entries')}",
        hint="mend them in the file, and do it again: what is there is not added twice",
    )


def _check_lines(report: CheckReport) -> Iterator[str]:
    findings = report.findings
    for severity in ("error", "warning", "note"):
        some = [f for f in findings if f.severity.value == severity]
        told = some if severity != "note" else some[:_TOLD]
        for finding in told:
            yield output.clean(f"{severity}: {finding.code}: {finding.key}: {_about(finding)}")
        if len(some) > len(told):
            yield f"note: {len(some) - len(told)} more notes; --json tells all"
    how = "hashes" if report.deep else "sizes"
    looked = (
        f"{output.counted(report.commits, 'commit')}, "
        f"{output.counted(report.checkpoints, 'checkpoint')}, "
        f"{output.counted(report.versions, 'version')}, "
        f"{how} of {output.counted(report.files, 'file')}"
    )
    yield f"{looked}: " + ("all is well" if report.ok else _problems(report))


def _problems(report: CheckReport) -> str:
    return output.counted(len(report.problems), "problem")


def _about(finding: Finding) -> str:
    name = f"{finding.model_id}@{finding.version}: " if finding.model_id else ""
    return f"{name}{finding.message}"


def _what_to_do(problems: Iterable[Finding]) -> str:
    remedies = dict.fromkeys(finding.remedy for finding in problems if finding.remedy)
    return " and ".join(f"`{remedy}`" for remedy in remedies)


def _repair_lines(done: Repaired) -> Iterator[str]:
    steps = done.steps
    for step in steps[:_TOLD]:
        yield output.clean(f"{step.action}: {step.key}: {step.why}")
    if len(steps) > _TOLD:
        yield f"{len(steps) - _TOLD} more; --json tells all"
    for left in done.left:
        yield output.clean(f"left: {left.key}: {left.why}")
    if not steps:
        yield "nothing to do"
    else:
        count = output.counted(len(steps), "step")
        yield f"{count}: " + ("nothing was done" if done.dry_run else "done")


def _migrate_lines(done: Migrated) -> Iterator[str]:
    for bad in done.bad:
        yield output.clean(f"left out: {bad.where}: {bad.why}")
    would = " would be" if done.dry_run else ""
    added = output.counted(len(done.added), "version")
    yield f"{added}{would} added, {len(done.present)} there already"
