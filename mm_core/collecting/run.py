"""The run: what the plan says, each part looked at again right before it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mm_core.collecting.ages import ago
from mm_core.collecting.folders import FRESH, Registered
from mm_core.collecting.patience import delete, patiently
from mm_core.collecting.plan import DeadClaim, GcPlan, Leftover, Strays, Sweep
from mm_core.collecting.retention import Retention, Retired
from mm_core.collecting.sweeping import sweep
from mm_core.exceptions import ConflictError, NotFoundError
from mm_core.parallel import run_parallel
from mm_core.registry import ModelRegistry
from mm_core.registry.claims import is_silent, steady_seconds
from mm_core.registry.layout import claim_key
from mm_core.registry.operations import operation
from mm_core.registry.state import Row, is_available, open_claim
from mm_core.schemas import StoredObject
from mm_core.signatures.shelf import manifest_of_key
from mm_core.sink import ResumableSink
from mm_core.tally import Tell, say_nothing
from mm_core.upkeep.unfinished import refuse_unfinished_repair

AT_ONCE = 8
"""Versions that are swept at once; their commits are shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a run did: a part of its plan. `left` counts what was not any more as planned."""

    done: GcPlan
    left: int = 0

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {**self.done.to_json(), "left": self.left}


def collect(
    registry: ModelRegistry,
    plan: GcPlan,
    *,
    jobs: int = AT_ONCE,
    cancelled: threading.Event | None = None,
    tell: Tell = say_nothing,
) -> Collected:
    """Carry out `plan`, and never more than that.

    What has changed since is left alone. Any number of collectors may run at
    once. One that was killed has done a part, and the next goes on. Raises the first
    error of the store, and `ConflictError` while the registry is being repaired.
    """
    refuse_unfinished_repair(registry.sink)
    run = _Run(registry, plan, tell)
    retired = () if plan.retention is None else run.retire(plan.retention)
    claims = run.abandon()
    versions = run.sweep(plan.versions, jobs, cancelled)
    orphans = run.sweep(plan.orphans, jobs, cancelled)
    done = replace(
        plan,
        retired=retired,
        claims=claims,
        versions=versions,
        orphans=orphans,
        strays=tuple(run.strays()),
        loose=tuple(run.loose()),
        litter=tuple(run.litter()),
        uploads=tuple(run.uploads()),
    )
    return Collected(done=done, left=_count(plan) - _count(done))


def _is_same(row: Row | None, stray: Strays) -> bool:
    if row is None or not is_available(row) or "path" in row:
        return False
    return (tuple(row["added"]), row.get("manifest")) == (stray.added, stray.manifest)


def _count(plan: GcPlan) -> int:
    rows = len(plan.retired) + len(plan.claims) + len(plan.sweeps)
    return rows + len(plan.uploads) + sum(1 for _ in plan.objects)


class _Run:
    def __init__(self, registry: ModelRegistry, plan: GcPlan, tell: Tell) -> None:
        self._registry = registry
        self._sink = registry.sink
        self._plan = plan
        self._tell = tell
        self._registered = Registered(registry.sink.root)
        self._lock = threading.Lock()
        self._swept = 0

    def retire(self, retention: Retention) -> tuple[Retired, ...]:
        """Remove what is still surplus, and whose aliases are still those that were told."""
        surplus = set(retention.surplus(self._registry.state()))
        return tuple(one for one in self._plan.retired if one in surplus and self._remove(one))

    def _remove(self, one: Retired) -> bool:
        remove = operation(
            "remove",
            one.model_id,
            version=one.version,
            expect=list(one.aliases),
            reason="retention",
        )
        return self._may_commit(remove)

    def abandon(self) -> tuple[DeadClaim, ...]:
        """Give up the claims that are still silent."""
        return tuple(dead for dead in self._plan.claims if self._give_up(dead))

    def _give_up(self, dead: DeadClaim) -> bool:
        row = self._registry.state().row(dead.model_id, dead.version)
        now = self._registry.store_time()
        if open_claim(row) != dead.claim or row is None:
            return False
        silent = partial(is_silent, self._sink, row, seconds=self._plan.grace, now=now)
        if not patiently(silent):
            return False
        names = {"version": dead.version, "claim": dead.claim}
        return self._may_commit(
            operation("abandon", dead.model_id, **names, reason="nobody is at work on it")
        )

    def sweep(
        self, planned: Sequence[Sweep], jobs: int, cancelled: threading.Event | None
    ) -> tuple[Sweep, ...]:
        """Sweep the versions that are as they were."""
        if not planned:
            return ()
        cut = ago(self._registry.store_time(), self._plan.grace)

        def one(version: Sweep) -> Sweep | None:
            done = sweep(self._registry, version, cut=cut, registered=self._registered)
            with self._lock:
                self._swept += 1
                self._tell(f"swept {self._swept:,} of {len(self._plan.sweeps):,} versions")
            return done

        stop = threading.Event() if cancelled is None else cancelled
        done = run_parallel(one, planned, jobs=jobs, cancelled=stop)
        return tuple(version for version in done if version is not None)

    def strays(self) -> Iterator[Strays]:
        """Delete strays from the folders of versions that are still the same."""
        for stray in self._plan.strays:
            objects = self._unchanged(stray.objects)
            asked = steady_seconds()
            row = self._registry.state().row(stray.model_id, stray.version)
            if not _is_same(row, stray) or steady_seconds() - asked > FRESH:
                continue
            self._sink.delete([stored.key for stored in objects])  # now, or not at all
            yield replace(stray, objects=tuple(objects))

    def loose(self) -> list[StoredObject]:
        """Delete what no version could ever hold."""
        objects = self._unchanged(self._plan.loose)
        delete(self._sink, objects)
        return objects

    def litter(self) -> list[StoredObject]:
        """Delete heartbeats whose claims are still closed, probes, and nobody's signatures."""
        objects = self._unchanged(self._plan.litter)
        rows = [row for _, row in self._registry.state().rows()] if objects else []
        in_use = {claim_key(claim) for row in rows if (claim := open_claim(row))}
        named = {row["manifest"] for row in rows if row.get("manifest")}
        objects = [
            stored
            for stored in objects
            if stored.key not in in_use and manifest_of_key(stored.key) not in named
        ]
        delete(self._sink, objects)
        return objects

    def uploads(self) -> Iterator[Leftover]:
        """Discard the parts of those whom still nobody is pulling."""
        if not self._plan.uploads or not isinstance(self._sink, ResumableSink):
            return
        grace = self._plan.grace
        in_use = tuple(patiently(lambda: self._registry.claimed_prefixes(silent_for=grace)))
        for found in self._plan.uploads:
            if not found.upload.key.startswith(in_use) and self._sink.discard_unfinished(
                found.upload
            ):
                yield found

    def _unchanged(self, objects: Sequence[StoredObject]) -> list[StoredObject]:
        """Those that stand as they were, and are not a registered entry's by now."""
        if not objects:
            return []
        self._registered.look_again(self._registry)
        return [
            stored
            for stored in objects
            if not self._registered.holds(stored.key)
            and patiently(partial(self._sink.stat, stored.key)) == stored
        ]

    def _may_commit(self, item: dict[str, Any]) -> bool:
        try:
            self._registry.commit([item])
        except (ConflictError, NotFoundError):
            return False
        return True
