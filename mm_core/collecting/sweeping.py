"""One sweep: a version is locked by a commit, its files go, and a commit forgets it.

Between the two commits nobody can begin the version, and only the collector that
made the first may make the second. Another may take its place once its process has
ended, or when the store's clock says that the commit is `SWEEP_TIMEOUT` old. So each
batch of deletions is preceded by a look at our own clock: long before that time the
collector says again, by a commit, that it is at work, or learns that it is not wanted
any more.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from mm_core.collecting.folders import Registered
from mm_core.collecting.patience import listed, patiently
from mm_core.collecting.plan import Sweep
from mm_core.equal_files import WORTH_A_HINT
from mm_core.exceptions import (
    ConflictError,
    IntegrityError,
    MMError,
    NotFoundError,
    TransientError,
)
from mm_core.names import version_prefix
from mm_core.registry import ModelRegistry
from mm_core.registry.claims import SWEEP_TIMEOUT, steady_seconds
from mm_core.registry.entries import read_manifest
from mm_core.registry.layout import content_key
from mm_core.registry.operations import operation
from mm_core.registry.processes import this_process
from mm_core.registry.state import Operation
from mm_core.schemas import StoredObject
from mm_core.sink import Sink, read_if_exists

BATCH = 500
"""Keys that are deleted between two looks at the clock."""

_RENEW = SWEEP_TIMEOUT / 6


class LostSweepError(ConflictError):
    """Another collector has taken over: this one must not delete anything more."""


def sweep(
    registry: ModelRegistry, planned: Sweep, *, cut: datetime, registered: Registered
) -> Sweep | None:
    """Carry out `planned`; what was deleted, or None where the version is not what it was.

    Where no version was planned, what is younger than `cut` is left; what is `registered`
    is left, too. Killed at any
    moment, the next collection goes on. After an error of the store that is final, it
    may do so at once; after a passing one, a deletion may still be on its way.
    """
    lease = _Lease.taken(registry, planned)
    if lease is None:
        return None
    try:
        done = _delete(planned, lease, cut=cut, registered=registered)
        lease.finish()
    except LostSweepError:
        return None
    except MMError as error:
        if not isinstance(error, TransientError):
            lease.give_back()
        raise
    return done


def _delete(planned: Sweep, lease: _Lease, *, cut: datetime, registered: Registered) -> Sweep:
    sink = lease.registry.sink
    prefix = version_prefix(planned.model_id, planned.version)
    wanted = {stored.key for stored in planned.objects}
    registered.look_again(lease.registry)
    found = listed(sink, prefix)
    there = [s for s in found if s.key in wanted and not registered.holds(s.key)]
    if planned.status is None:
        there = [stored for stored in there if stored.modified <= cut]
    hints = list(_hints(sink, planned))
    for batch in _batches(there):
        lease.delete([stored.key for stored in batch])
    lease.delete([*hints, *(stored.key for stored in planned.signatures)])
    lease.delete([stored.key for stored in planned.manifests])
    return replace(planned, objects=tuple(there))


def _hints(sink: Sink, planned: Sweep) -> Iterator[str]:
    """The keys of the hints that lead to the files of this version."""
    for manifest in planned.manifests:
        sha256 = manifest.key.rpartition("/")[2].removesuffix(".json")
        try:
            files = patiently(partial(read_manifest, sink, sha256)).files
        except (NotFoundError, IntegrityError):
            continue
        for file in files:
            hint = content_key(file.sha256)
            if file.size >= WORTH_A_HINT and _leads_to(sink, hint, file.key):
                yield hint


def _leads_to(sink: Sink, hint: str, key: str) -> bool:
    try:
        found = patiently(lambda: read_if_exists(sink, hint))
        return bool(json.loads(found or b"{}").get("key") == key)
    except (ValueError, AttributeError):
        return False


def _batches(objects: Sequence[StoredObject]) -> Iterator[Sequence[StoredObject]]:
    for start in range(0, len(objects), BATCH):
        yield objects[start : start + BATCH]


@dataclass(slots=True)
class _Lease:
    """The right to delete the files of one version, and since when it is sure."""

    registry: ModelRegistry
    model_id: str
    version: str
    sweeper: str
    sure: float

    @classmethod
    def taken(cls, registry: ModelRegistry, planned: Sweep) -> _Lease | None:
        """Lock the version, as long as it is what it was; else None."""
        lease = cls(registry, planned.model_id, planned.version, uuid.uuid4().hex, steady_seconds())
        expect = list(planned.ended)
        try:
            lease._commit("sweep", expect=expect, over=planned.sweeper, owner=this_process())
        except (ConflictError, NotFoundError):
            return None
        return lease

    def delete(self, keys: Sequence[str]) -> None:
        """Delete `keys`, as long as it is sure that this is our right."""

        def once() -> None:
            self.confirm()
            self.registry.sink.delete(keys)

        if keys:
            patiently(once)

    def confirm(self) -> None:
        """Say again that we are at work, if that was long ago. `LostSweepError` if we are not."""
        while (now := steady_seconds()) - self.sure > _RENEW:  # also if saying so took long
            self._commit_or_lose("sweep", owner=this_process())
            self.sure = now

    def finish(self) -> None:
        """Forget the version. `LostSweepError` where it is another's by now."""
        self._commit_or_lose("swept")

    def give_back(self) -> None:
        """Let the next collector go on at once, if that can be told."""
        with contextlib.suppress(MMError):
            self._commit("sweep", free=True)

    def _commit_or_lose(self, op: str, **fields: Any) -> None:
        try:
            self._commit(op, **fields)
        except (ConflictError, NotFoundError) as error:
            raise LostSweepError(str(error)) from error

    def _commit(self, op: str, **fields: Any) -> None:
        item: Operation = operation(
            op, self.model_id, version=self.version, sweeper=self.sweeper, **fields
        )
        self.registry.commit([item])
