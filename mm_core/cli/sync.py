"""The commands of the wanted state: ``mm lock``, ``mm sync`` and ``mm outdated``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.executing import executor_of, executor_options
from mm_core.cli.progress import make_reporter
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import ConfigError, MMError, NoChangeError, PartialError, UsageError

if TYPE_CHECKING:
    from mm_core.config import Settings
    from mm_core.lockfile import Lockfile
    from mm_core.manager import ModelManager
    from mm_core.syncing import Relocked, Synced, SyncStep

lock_option = click.option(
    "--lockfile",
    "lockfile",
    type=click.Path(path_type=Path),
    metavar="F",
    help="The lock; mm.lock beside the mm.yaml that names the models if not given.",
)


@command(
    "lock",
    examples="""
    mm lock
    mm lock --upgrade
    mm lock --upgrade embed/minilm --json
    mm lock --check
    """,
)
@click.argument("names", metavar="[ID]...", nargs=-1)
@click.option("--upgrade", is_flag=True, help="Resolve anew: these models, or all.")
@click.option("--check", is_flag=True, help="Write nothing; fail if the lock is out of date.")
@lock_option
@pass_state
def lock(
    state: State,
    /,
    *,
    names: tuple[str, ...],
    upgrade: bool,
    check: bool,
    lockfile: Path | None,
) -> None:
    """Resolve the models of mm.yaml to commits, files, sizes and hashes.

    They are written to mm.lock, which belongs into version control. What is locked
    stays as it is until its words in mm.yaml change, or --upgrade asks for what its
    source has now.
    """
    from mm_core.lockfile import read_lockfile, write_lockfile

    if names and not upgrade:
        raise UsageError("models are named for --upgrade alone", hint=f"--upgrade {names[0]}")
    if check and upgrade:
        raise UsageError("--check changes nothing, so it cannot --upgrade")
    with state.manager() as manager:
        path = _path(manager.settings, lockfile)
        former = read_lockfile(path)
        if check:
            _refuse_stale(manager.settings, former, path)
            state.emit({"lockfile": str(path), "fresh": True}, human=[f"{path} is up to date"])
            return
        found = manager.lock(former, upgrade=names if upgrade else None)
        changed = write_lockfile(path, found.lock)
    document = {
        "lockfile": str(path),
        "changed": changed,
        "models": {name: model.version for name, model in sorted(found.lock.models.items())},
        "resolved": list(found.resolved),
        "dropped": list(found.dropped),
    }
    if found.errors:
        state.so_far = document
        _raise(found.errors, len(found.lock.models) + len(found.errors))
    state.emit(document, human=_lock_lines(found, path, changed=changed), quiet=found.resolved)


@command(
    "sync",
    examples="""
    mm sync
    mm sync --locked --prune
    mm sync --locked --shard 2/4
    mm sync -n
    mm sync --locked --executor dask --scheduler tcp://127.0.0.1:8786
    mm sync --locked --error-on-no-change --json
    """,
)
@click.option("--locked", is_flag=True, help="Take mm.lock as it is; fail if it is out of date.")
@click.option("--shard", metavar="I/N", help="Only this part of the models, of N by bytes.")
@click.option("--prune", is_flag=True, help="Remove former versions of these models.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--error-on-no-change", is_flag=True, help="Fail if there was nothing to do.")
@executor_options
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Files of a model at once.")
@lock_option
@pass_state
def sync(
    state: State,
    /,
    *,
    locked: bool,
    shard: str | None,
    prune: bool,
    dry_run: bool,
    error_on_no_change: bool,
    executor: str | None,
    scheduler: str | None,
    split: str | None,
    jobs: int | None,
    lockfile: Path | None,
) -> None:
    """Make what is locked true on every backend that mm.yaml names for each model.

    Without --locked, what is new in mm.yaml is locked first. No source is asked for
    what is there already. Models that fail keep no others from being synced.
    """
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        found = _lock_for(manager, lockfile, locked=locked, write=not dry_run)
        if dry_run:
            synced = manager.plan_sync(found, shard=shard, prune=prune)
        else:
            with executor_of(manager, executor, scheduler, split) as where:
                synced = manager.sync(found, shard=shard, prune=prune, executor=where, jobs=jobs)
    if error_on_no_change and not synced.changes:
        state.so_far = synced.to_json()
        raise NoChangeError("all is there already: there was nothing to sync")
    _end(state, synced)


@command(
    "outdated",
    examples="""
    mm outdated
    mm outdated --json
    """,
)
@lock_option
@pass_state
def outdated(state: State, /, *, lockfile: Path | None) -> None:
    """Show which models of mm.lock have another version at their source by now.

    Nothing is changed: `mm lock --upgrade ID` takes it up.
    """
    from mm_core.lockfile import read_lockfile

    with state.manager() as manager:
        path = _path(manager.settings, lockfile)
        former = read_lockfile(path)
        if former is None:
            raise ConfigError(f"there is no {path}", hint="`mm lock` makes it")
        found = manager.outdated(former)
    rows = [one.to_json() for one in found]
    behind = [one for one in found if one.is_behind]
    table = [
        (one.model_id, output.short_version(one.locked), output.short_version(one.current or ""))
        for one in behind
    ]
    human = (
        output.table(("MODEL", "LOCKED", "CURRENT"), table) if table else ["nothing is outdated"]
    )
    document = {"models": rows}
    errors = {one.model_id: one.error for one in found if one.error is not None}
    if errors:
        state.so_far = document
        if not state.wants_json:
            state.emit(document, human=human)
        _raise(errors, len(found))
    state.emit(document, human=human, quiet=[o.model_id for o in behind], rows=("model", rows))


def _path(settings: Settings, given: Path | None) -> Path:
    """The lock: that which was given, else the one beside the file that names the models."""
    from mm_core.lockfile import NAME

    if given is not None:
        return given
    for model_id in settings.models:
        origin = settings.origin_near(("models", model_id))
        if origin is not None and origin.folder is not None:
            return Path(origin.folder) / NAME
    if settings.models:
        return Path(NAME)
    raise ConfigError(
        "mm.yaml names no models", hint="write them under `models:`; see docs/sync.md"
    )


def _refuse_stale(settings: Settings, former: Lockfile | None, path: Path) -> Lockfile:
    from mm_core.syncing import stale

    if former is None:
        raise ConfigError(f"there is no {path}", hint="`mm lock` makes it")
    why = stale(settings.models, former)
    if why:
        name, reason = next(iter(why.items()))
        more = f", and {len(why) - 1} more" if len(why) > 1 else ""
        raise ConfigError(f"{path} is out of date: {name} {reason}{more}", hint="run `mm lock`")
    return former


def _lock_for(
    manager: ModelManager, lockfile: Path | None, *, locked: bool, write: bool
) -> Lockfile:
    """The lock to sync by; without `locked`, with what is new in mm.yaml resolved."""
    from mm_core.lockfile import read_lockfile, write_lockfile

    path = _path(manager.settings, lockfile)
    former = read_lockfile(path)
    if locked:
        return _refuse_stale(manager.settings, former, path)
    found = manager.lock(former)
    if found.errors:
        _raise(found.errors, len(found.lock.models) + len(found.errors))
    if write:
        write_lockfile(path, found.lock)
    return found.lock


def _raise(errors: Any, count: int) -> None:
    """One error as itself; several of `count` as what they are."""
    failed: dict[str, MMError] = dict(errors)
    if count == 1 and len(failed) == 1:
        raise next(iter(failed.values()))
    raise PartialError(f"{len(failed)} of {count} models failed", errors=failed)


def _lock_lines(found: Relocked, path: Path, *, changed: bool) -> Iterator[str]:
    rows = [
        (name, output.short_version(model.version), len(model.files), output.size(model.size_bytes))
        for name, model in sorted(found.lock.models.items())
        if name in found.resolved
    ]
    if rows:
        yield from output.table(("LOCKED", "VERSION", "FILES", "SIZE"), rows)
    for name in found.dropped:
        yield f"dropped {name}"
    yield f"{path}: {len(found.lock.models)} models{'' if changed else ', nothing changed'}"


def _end(state: State, synced: Synced) -> None:
    """Print what became of all; failures are the exit code."""
    document, failed = synced.to_json(), synced.failed
    rows = ("step", [step.to_json() for step in synced.steps])
    quiet = [step.name for step in synced.changes]
    if not failed:
        state.emit(document, human=_lines(synced), quiet=quiet, rows=rows)
        return
    state.so_far = document
    if not state.wants_json:
        state.emit(document, human=_lines(synced), quiet=quiet)
    if len(synced.steps) == 1:
        raise next(iter(failed.values()))
    raise PartialError(
        f"{len(failed)} of {len(synced.steps)} failed",
        errors=failed,
        hint="sync again: what is there already is not moved again",
    )


def _lines(synced: Synced) -> Iterator[str]:
    if synced.changes:
        rows = [
            (
                "failed" if step.error is not None else step.step.value,
                step.model_id,
                output.short_version(step.version),
                step.backend,
                output.size(step.size_bytes),
                ", ".join(step.aliases),
            )
            for step in synced.changes
        ]
        header = ("STEP", "MODEL", "VERSION", "BACKEND", "SIZE", "ALIASES")
        yield from output.table(header, rows)
    yield _summary(synced.steps, dry_run=synced.dry_run)


def _summary(steps: tuple[SyncStep, ...], *, dry_run: bool) -> str:
    from mm_core.syncing import Step

    kinds = {
        "present": Step.PRESENT,
        "fetched": Step.FETCH,
        "given aliases": Step.ALIAS,
        "removed": Step.REMOVE,
    }
    if dry_run:
        kinds = {
            word if kind is Step.PRESENT else f"to be {word}": kind for word, kind in kinds.items()
        }
    fine = [step for step in steps if step.error is None]
    counts = {word: sum(1 for s in fine if s.step is kind) for word, kind in kinds.items()}
    counts["failed"] = len(steps) - len(fine)
    words = [f"{count} {word}" for word, count in counts.items() if count]
    moved = sum(step.moved for step in steps)
    return ", ".join(words or ["nothing is wanted"]) + (f" ({output.size(moved)})" if moved else "")
