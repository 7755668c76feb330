"""The survey: what may go, found out without touching anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

from mm_core.collecting.ages import ago, old_commits
from mm_core.collecting.folders import (
    MODELS,
    Owner,
    Registered,
    could_be_a_version,
    lockable,
    owner_of,
)
from mm_core.collecting.patience import listed, patiently
from mm_core.collecting.plan import DeadClaim, GcPlan, Leftover, Strays, Sweep, total
from mm_core.collecting.retention import Retention
from mm_core.exceptions import ConfigError, IntegrityError, NotFoundError
from mm_core.names import version_prefix
from mm_core.registry import ModelRegistry
from mm_core.registry.claims import SWEEP_TIMEOUT, is_silent
from mm_core.registry.entries import read_manifest
from mm_core.registry.layout import (
    CLAIM_PREFIX,
    PROBE_PREFIX,
    claim_key,
    log_key,
    manifest_key,
)
from mm_core.registry.processes import is_dead
from mm_core.registry.state import Row, State, open_claim
from mm_core.schemas import ModelStatus, StoredObject
from mm_core.signatures.shelf import all_kept
from mm_core.sink import ResumableSink, Sink
from mm_core.tally import Tell, say_nothing
from mm_core.upkeep.unfinished import refuse_unfinished_repair

GRACE = 86_400.0
"""Seconds that all waits before it goes, where ``retention.grace`` does not say."""

_MANIFESTS = ".mm/manifests/"
_ENDED = (ModelStatus.DELETED, ModelStatus.FAILED, ModelStatus.SWEEPING)


def refuse_no_folder(sink: Sink, *, addressed: bool) -> None:
    """Raise where `sink` is a path with nothing to collect in, which a typing mistake makes.

    `NotFoundError` for one that is `addressed` and not there (a backend of
    ``mm.yaml`` may be as yet unused), `ConfigError` for one that is no folder.
    """
    if "://" in sink.root:
        return
    folder = Path(sink.root)
    if addressed and not folder.exists():
        raise NotFoundError(
            f"there is no folder {sink.root}", hint="name an existing one; see `mm backends list`"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"{sink.root} is not a folder", hint="name the folder that holds the models"
        )


def make_gc_plan(
    registry: ModelRegistry,
    *,
    grace: float,
    retention: Retention | None = None,
    tell: Tell = say_nothing,
) -> GcPlan:
    """All that has waited for `grace` seconds, by the store's own clock. Changes nothing.

    With `retention`, surplus versions as well. Costs a listing of the models and
    of the registry's small objects, one `stat` for a few commits, and the file list
    of each version in whose folder there is more, or less, than the registry says.
    `ConflictError` while the registry is being repaired; `NotFoundError` where files are
    there and no registry, since nothing says then which of them are wanted.
    """
    refuse_unfinished_repair(registry.sink)
    survey = _Survey(registry, grace)
    for count, stored in enumerate(registry.sink.list(MODELS), 1):
        survey.see(stored)
        if count % 10_000 == 0:
            tell(f"looked at {count:,} files")
    return survey.plan(retention)


@dataclass(slots=True)
class _Folder:
    """What stands in one version's folder."""

    owner: Owner
    objects: list[StoredObject] = field(default_factory=list)


class _Survey:
    """One look at a store."""

    def __init__(self, registry: ModelRegistry, grace: float) -> None:
        self._registry = registry
        self._sink = registry.sink
        self._grace = grace
        self._state: State = registry.state()
        self._registered = Registered(self._sink.root)
        self._registered.look(self._state)
        self._folder: _Folder | None = None
        self._prefix = ""
        self._ended: dict[str, list[StoredObject]] = {}
        self._nobodys: list[StoredObject] = []
        self._strays: list[Strays] = []
        self._signatures: dict[str, list[StoredObject]] = {}
        self._kept = 0

    @cached_property
    def _now(self) -> datetime:
        """The store's time; asking costs a write, so nobody asks where nothing is to be judged."""
        return self._registry.store_time()

    @cached_property
    def _cut(self) -> datetime:
        """What was there by then may go."""
        return ago(self._now, self._grace)

    @cached_property
    def _born(self) -> datetime:
        """When the first commit was made here. No file of this registry's is older.

        One that is belongs to a registry that was lost, or to what was added after
        the backup that this one was restored from.
        """
        first = patiently(lambda: self._sink.stat(log_key(1)))
        return self._now if first is None else first.modified

    # -- what stands under models/, one by one, in the order of the keys ---------------

    def see(self, stored: StoredObject) -> None:
        """Take one object into account."""
        if not self._state.seq:
            raise _no_registry(self._sink.root)
        if self._folder is None or not stored.key.startswith(self._prefix):
            self._close_folder()
            owner = owner_of(self._state, stored.key)
            if owner is None:
                if not self._registered.holds(stored.key):
                    self._nobodys.append(stored)
                return
            self._prefix = _prefix_of(owner)
            self._folder = _Folder(owner)
        self._folder.objects.append(stored)

    def _close_folder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is None:
            return
        row = folder.owner[1]
        if row["status"] in _ENDED:
            self._ended[self._prefix] = self._unregistered(folder.objects)
        elif row["status"] == ModelStatus.AVAILABLE and row.get("manifest"):
            self._look_for_strays(folder)

    def _look_for_strays(self, folder: _Folder) -> None:
        """Only where the sum of the sizes is wrong: else each version would cost a read."""
        record, row = folder.owner
        if total(folder.objects) == row.get("size_bytes"):
            return
        try:
            manifest = patiently(lambda: read_manifest(self._sink, row["manifest"]))
        except (NotFoundError, IntegrityError):  # `mm verify` tells of those
            return
        named = {file.key for file in manifest.files}
        strays = [s for s in self._unregistered(folder.objects) if s.key not in named]
        old = tuple(self._old(strays))
        if old:
            self._strays.append(
                Strays(
                    model_id=record.model_id,
                    version=row["version"],
                    added=tuple(row["added"]),
                    manifest=row["manifest"],
                    objects=old,
                )
            )

    # -- the plan --------------------------------------------------------------------

    def plan(self, retention: Retention | None) -> GcPlan:
        """What the look led to."""
        self._close_folder()
        self._signatures = all_kept(self._sink)
        lists = self._unnamed_manifests()
        versions = tuple(self._versions(lists))
        return GcPlan(
            grace=self._grace,
            retention=retention,
            retired=() if retention is None else tuple(retention.surplus(self._state)),
            claims=tuple(self._dead_claims()),
            versions=versions,
            orphans=tuple(self._orphans(lists)),
            strays=tuple(self._strays),
            loose=tuple(self._ours([s for s in self._nobodys if not could_be_a_version(s.key)])),
            litter=tuple(self._litter()),
            uploads=tuple(self._uploads()),
            kept=self._kept,
        )

    def _versions(self, lists: dict[tuple[str, str], list[StoredObject]]) -> Iterator[Sweep]:
        """The versions that ended, and are old enough or were left half swept."""
        rows = [
            (record, row)
            for record, row in self._state.rows()
            if row["status"] in _ENDED and "path" not in row
        ]
        old = self._old_enough([row for _, row in rows])
        for record, row in rows:
            if not self._may_sweep(row, old):
                self._kept += 1
                continue
            name = record.model_id, row["version"]
            yield Sweep(
                model_id=record.model_id,
                version=row["version"],
                status=ModelStatus(row["status"]),
                ended=tuple(row.get("ended", ())),
                sweeper=row.get("sweeper"),
                objects=tuple(self._ended.get(_prefix_of((record, row)), ())),
                manifests=(*self._manifest_of(row), *lists.pop(name, ())),
                signatures=tuple(self._signatures.get(row.get("manifest") or "", ())),
            )

    def _old_enough(self, rows: Sequence[Row]) -> dict[float, set[int]]:
        """By the time that must have passed: the commits that are as old as that."""
        if not rows:
            return {}
        ended = self._ends(rows)
        waits = {self._grace, SWEEP_TIMEOUT}
        return {wait: old_commits(self._sink, ended, before=ago(self._now, wait)) for wait in waits}

    def _ends(self, rows: Sequence[Row]) -> set[int]:
        """The commits in which versions ended; the newest of all for rows that do not say."""
        return {row["ended"][0] if "ended" in row else self._state.seq for row in rows}

    def _may_sweep(self, row: Row, old: dict[float, set[int]]) -> bool:
        ended = row["ended"][0] if "ended" in row else self._state.seq
        if row["status"] == ModelStatus.FAILED and row.get("manifest"):
            return False  # it was complete: somebody has set it aside, and may want it back
        if row["status"] != ModelStatus.SWEEPING:
            return ended in old[self._grace]
        if "sweeper" not in row:
            return ended in old[self._grace]
        return bool(row.get("free")) or is_dead(row.get("owner")) or ended in old[SWEEP_TIMEOUT]

    def _orphans(self, lists: dict[tuple[str, str], list[StoredObject]]) -> Iterator[Sweep]:
        """Old keys that no version names, by the name under which they can be locked."""
        found: dict[tuple[str, str], list[StoredObject]] = defaultdict(list)
        name: tuple[str, str] | None = None
        for stored in self._ours([s for s in self._nobodys if could_be_a_version(s.key)]):
            if name is None or not stored.key.startswith(version_prefix(*name)):
                name = lockable(self._state, stored.key, lists)
            if name is None:
                self._kept += 1
            else:
                found[name].append(stored)
        for model_id, version in sorted({*found, *lists}):
            if self._state.row(model_id, version) is None:
                yield Sweep(
                    model_id=model_id,
                    version=version,
                    objects=tuple(found[model_id, version]),
                    manifests=tuple(lists.get((model_id, version), ())),
                )

    def _manifest_of(self, row: Row) -> Iterator[StoredObject]:
        sha256 = row.get("manifest")
        if sha256:
            stored = patiently(lambda: self._sink.stat(manifest_key(sha256)))
            yield from [] if stored is None else [stored]

    def _unnamed_manifests(self) -> dict[tuple[str, str], list[StoredObject]]:
        """The old file lists that no row names, by the version that they are of."""
        named = {row.get("manifest") for _, row in self._state.rows()}
        found: dict[tuple[str, str], list[StoredObject]] = defaultdict(list)
        unnamed = [s for s in listed(self._sink, _MANIFESTS) if _name_of(s) not in named]
        if unnamed and not self._state.seq:
            raise _no_registry(self._sink.root)
        for stored in self._ours(unnamed):
            try:
                manifest = patiently(partial(read_manifest, self._sink, _name_of(stored)))
            except (NotFoundError, IntegrityError):  # not ours to judge
                continue
            found[manifest.model_id, manifest.version].append(stored)
        return found

    def _dead_claims(self) -> Iterator[DeadClaim]:
        for record, row in self._state.rows():
            claim = open_claim(row)
            if claim is None:
                continue
            silent = partial(is_silent, self._sink, row, seconds=self._grace, now=self._now)
            if patiently(silent):
                yield DeadClaim(model_id=record.model_id, version=row["version"], claim=claim)
            else:
                self._kept += 1

    def _litter(self) -> Iterator[StoredObject]:
        open_claims = {claim_key(c) for _, row in self._state.rows() if (c := open_claim(row))}
        beats = [s for s in listed(self._sink, CLAIM_PREFIX) if s.key not in open_claims]
        yield from self._old([*beats, *listed(self._sink, PROBE_PREFIX)], count=False)
        yield from self._ours(list(self._nobodys_signatures()))

    def _nobodys_signatures(self) -> Iterator[StoredObject]:
        """Those over versions of which no row, and no file list, is left."""
        named = {row.get("manifest") for _, row in self._state.rows()}
        lists = {_name_of(s) for s in listed(self._sink, _MANIFESTS)} if self._signatures else set()
        for manifest, signatures in self._signatures.items():
            if manifest not in named and manifest not in lists:
                yield from signatures

    def _uploads(self) -> Iterator[Leftover]:
        """Parts that are old, of versions that nobody alive is pulling.

        Their age counts from the latest part, on S3 from the begin, since S3 lists
        nothing else: a pull that ran there for longer than the grace and was then
        interrupted may lose its parts to the next collection, before it comes back.
        """
        sink = self._sink
        if not isinstance(sink, ResumableSink):
            return
        uploads = patiently(lambda: list(sink.unfinished(MODELS)))
        if not uploads:
            return
        in_use = tuple(patiently(self._claimed))
        for upload in uploads:
            age = (self._now - upload.modified).total_seconds()
            if age >= self._grace and not upload.key.startswith(in_use):
                yield Leftover(upload=upload, age=age)
            else:
                self._kept += 1

    def _claimed(self) -> list[str]:
        return self._registry.claimed_prefixes(silent_for=self._grace)

    # -- small things ----------------------------------------------------------------

    def _ours(self, objects: Sequence[StoredObject]) -> list[StoredObject]:
        """The old ones of `objects` that were not there before this registry was."""
        old = self._old(objects)
        ours = [stored for stored in old if stored.modified >= self._born]
        self._kept += len(old) - len(ours)
        return ours

    def _old(self, objects: Sequence[StoredObject], *, count: bool = True) -> list[StoredObject]:
        if not objects:
            return []
        old = [stored for stored in objects if stored.modified <= self._cut]
        self._kept += (len(objects) - len(old)) * count
        return old

    def _unregistered(self, objects: Iterable[StoredObject]) -> list[StoredObject]:
        return [stored for stored in objects if not self._registered.holds(stored.key)]


def _no_registry(root: str) -> NotFoundError:
    return NotFoundError(
        f"there are files of models at {root}, but no registry that has a commit: nothing says "
        "which of them are wanted",
        hint="if it was lost, restore it from a backup, or see `mm registry repair` and `mm adopt`",
    )


def _prefix_of(owner: Owner) -> str:
    record, row = owner
    return version_prefix(record.model_id, row["version"])


def _name_of(manifest: StoredObject) -> str:
    return manifest.key.removeprefix(_MANIFESTS).removesuffix(".json")
