"""Repair: what is damaged is set aside and made anew from what is right.

A number of the log is never free, not for a moment: what stands under it is
replaced in one step, by the commit's own bytes where a copy is found, else by an
empty commit that stands in for it. Each step can be done again, and the order is
such that a repair which is interrupted goes on from what stands.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence

from mm_core.exceptions import TransientError
from mm_core.registry.layout import (
    HINT_KEY,
    manifest_key,
)
from mm_core.registry.log import Log
from mm_core.registry.signing import Trust
from mm_core.schemas import sha256_hex
from mm_core.sink import Sink
from mm_core.upkeep.backup import verify_backup
from mm_core.upkeep.commits import WRITER
from mm_core.upkeep.copies import Copies, refuse_another
from mm_core.upkeep.plan import knowing, make_plan
from mm_core.upkeep.rebuild import Refused, add_again
from mm_core.upkeep.saving import write_checkpoint
from mm_core.upkeep.steps import Left, Repaired, RepairPlan, Step, folder_of
from mm_core.upkeep.store import Store, in_windows
from mm_core.upkeep.survey import survey
from mm_core.upkeep.unfinished import end_repair, note_repair

_ROUNDS = 5


def repair(
    sink: Sink,
    *,
    copies: Copies | None = None,
    dry_run: bool = False,
    timeout: float = 60.0,
    trust: Trust | None = None,
) -> Repaired:
    """Mend the registry in `sink`; nothing where nothing is wrong. Files are not looked at.

    Others may read and write meanwhile; whoever had read what is lost is stopped by
    an `IntegrityError` and must open the registry anew. What was damaged is kept below
    ``.mm/quarantine/``. `copies` are the registry's objects in a backup. What is written
    is signed where `trust` has a key.

    Raises `StorageError` for a registry of a newer format or with operations that this
    release does not know, `ConfigError` where `trust` would not believe what it signs,
    `IntegrityError` for a damaged backup and `ConflictError` for that of another
    registry, and `TransientError` if others are always quicker.
    """
    store, trust = Store(sink, timeout=timeout), trust or Trust()
    trust.refuse_to_write_unsigned()
    done: list[Step] = []
    refused: list[Refused] = []
    left: dict[str, Left] = {}
    if copies is not None:
        verify_backup(copies)
        refuse_another(store, copies)
    for _ in range(_ROUNDS):
        found = survey(store, trust)
        if copies is not None:
            found = knowing(found, copies.commits())
        plan = make_plan(store, found, copies=copies, refused=refused, trust=trust)
        left |= {one.key: one for one in (*plan.left, *_left(refused))}
        if not dry_run and not plan.steps:
            end_repair(sink)
        if dry_run or not plan.steps:
            return Repaired(
                steps=tuple(plan.steps if dry_run else done),
                left=tuple(left.values()),
                seq=plan.state.seq,
                head=plan.state.head,
                dry_run=dry_run,
            )
        note_repair(sink)
        steps = _Steps(store, plan, refused, trust)
        steps.run()
        done += steps.done
    raise TransientError(
        f"the registry at {sink.root} changes as fast as it is repaired",
        hint="stop those who write to it, or another repair, and try again",
    )


class _Steps:
    """The steps of one plan, done in order; those on the log many at once."""

    def __init__(
        self,
        store: Store,
        plan: RepairPlan,
        refused: list[Refused],
        trust: Trust,
    ) -> None:
        self._store = store
        self._plan = plan
        self._refused = refused
        self._trust = trust
        self.done: list[Step] = []

    def run(self) -> None:
        written = [step for step in self._plan.steps if step.data is not None]
        for last in (False, True):  # a fence goes behind what stands, not behind what was planned
            now = [step for step in written if (step.action == "fence") is last]
            for step, made in in_windows(self._write, now):
                if not made:  # somebody else was here: what to do is to be found out anew
                    return
                self.done.append(step)
        for step in self._plan.steps:
            if step.action == "checkpoint":
                self._store.set_aside(HINT_KEY)
                write_checkpoint(self._store, self._plan.state, self._trust)
                self.done.append(step)
        for step in self._plan.steps:
            if step.action == "set_aside":
                self._store.set_aside(step.key)
                self._store.delete([step.key])
                self.done.append(step)
        if self._plan.lost:
            self._add_again()

    def _write(self, step: Step) -> bool:
        """Put the step's bytes under its key, if what stands there is what was seen."""
        assert step.data is not None
        if step.was is None:
            return self._store.create(step.key, step.data)
        current = self._store.read(step.key)
        if current == step.data:
            return True
        if current is None or sha256_hex(current) != step.was:
            return False
        self._store.put_aside(step.key, current)
        self._store.put(step.key, step.data)
        return True

    def _add_again(self) -> None:
        store, writer = self._store, f"{WRITER} {socket.gethostname()}/{os.getpid()}"
        for lost in self._plan.lost:
            if lost.aliases is not None:
                store.create(manifest_key(lost.sha256), lost.manifest.to_bytes())
        log = Log(store.sink, timeout=store.timeout, writer=writer, trust=self._trust)
        done, refused = add_again(log, self._plan.lost)
        self._refused += refused
        names = {folder_of(lost) for lost in done}
        for step in self._plan.steps:
            if step.action == "add_again" and step.key in names:
                self.done.append(step)


def _left(refused: Sequence[Refused]) -> Iterator[Left]:
    """The lost versions that cannot be added. Of one that is there, the next plan tells."""
    for one in refused:
        if one.lost.aliases is None:
            yield Left(
                key=folder_of(one.lost),
                why=f"{one.lost.name} is complete, but cannot be added: {one.error}",
                hint="pull it again under another name",
            )
