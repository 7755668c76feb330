"""Copies of versions from one registry into another: some, or all of them again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from mm_core.comparing import compare
from mm_core.copies import CopiedAlias, CopiedVersion, Copies, CopyWishes, Outcome
from mm_core.exceptions import CancelledError, ConflictError, MMError, UsageError
from mm_core.names import fold
from mm_core.parallel import run_parallel
from mm_core.place import Place
from mm_core.registry import ModelRegistry
from mm_core.registry.entries import entry_of, read_manifest
from mm_core.registry.state import Record, Row, State, is_available, status_of
from mm_core.schemas import ModelEntry, ModelStatus, Pulled, Request
from mm_core.signatures.making import bring_along
from mm_core.signatures.shelf import all_kept, name_of
from mm_core.sink import read_bytes
from mm_core.stored import COPIED_FROM, StoredSource
from mm_core.street import Street
from mm_core.transfer.stop import Stop

SMALL = 16 << 20
"""Bytes of the largest version of a model that is copied beside others."""

AT_ONCE = 4
"""So many small models are copied at once."""

_Pair = tuple[ModelEntry, ModelEntry | None]
"""A version of the source, and that of the same name in the target."""

_GONE = (ModelStatus.DELETED, ModelStatus.SWEEPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    """Copies from `source` to `target`; several may work at the same, and at any time again."""

    street: Street
    source: Place
    target: Place
    wishes: CopyWishes = field(default_factory=CopyWishes)
    cancelled: threading.Event | None = None

    def copy(
        self, references: Sequence[str], *, all_versions: bool = False, model_id: str | None = None
    ) -> Copies:
        """Copy what `references` name, under `model_id` if one is given.

        With `all_versions` they are model ids. What is there is made whole again.
        Raises `NotFoundError` for a name that the source does not know, and
        `UsageError` for one name that is asked for several.
        """
        entries = _chosen(self.source.registry, references, all_versions=all_versions)
        if len(entries) > 1 and self.wishes.aliases:
            raise UsageError("an alias names one version", hint="copy the versions one by one")
        if model_id is not None and len({entry.model_id for entry in entries}) > 1:
            raise UsageError("one id cannot name several models", hint="copy them one by one")
        versions = [self._copied(entry, model_id) for entry in entries]
        named = [(model_id or e.model_id, a, e.version) for e in entries for a in e.aliases]
        ready = {(model_id or one.model_id, one.version) for one in versions if _is_there(one)}
        aliases = self._aliases_like(named, ready, self.target.registry.state())
        return self._told(versions, aliases)

    def replicate(self, *, prune: bool = False) -> Copies:
        """Copy every AVAILABLE version that is missing in the target.

        Both states are compared, row by row, and no file of what is there is looked
        at: when nothing is new, that is all it costs, and one listing of signatures. With
        `prune`, versions that came from this source, under the name that they have, and are
        gone from it are removed.
        """
        ours, theirs = self.source.registry.state(), self.target.registry.state()
        versions = self._all_copied(ours, theirs)
        versions += self._signatures_carried(ours)
        ready = {(one.model_id, one.version) for one in versions if _is_there(one)}
        aliases = list(self._aliases_like(_aliases_of(ours), ready, theirs))
        removed = list(self._pruned()) if prune else []
        return self._told([*versions, *removed], aliases)

    def _all_copied(self, ours: State, theirs: State) -> list[CopiedVersion]:
        """What became of all versions: several small models at once, since these mostly wait.

        The versions of one model come one after another, so that the newest stays the newest.
        """
        stop = Stop(self.street.cancelled, self.cancelled)
        told: list[CopiedVersion] = []
        models: dict[str, list[_Pair]] = {}
        for record, row in _available(ours):
            other = theirs.record(record.model_id)
            there = None if other is None else other.row(row["version"])
            known = None
            if other is not None and there is not None and is_available(there):
                if _is_marked_same(row, there):
                    told.append(_present(record.model_id, row))
                    continue
                known = entry_of(self.target.sink, other, there)
            pair = entry_of(self.source.sink, record, row), known
            models.setdefault(record.model_id, []).append(pair)

        def copy(pairs: Sequence[_Pair]) -> list[CopiedVersion]:
            return [
                self._copied(entry, None, known, cancelled=stop, looked=True)
                for entry, known in pairs
            ]

        small: list[list[_Pair]] = []
        large: list[list[_Pair]] = []
        for group in models.values():
            fits = max(entry.size_bytes for entry, _ in group) <= SMALL
            (small if fits else large).append(group)
        done = run_parallel(copy, small, jobs=AT_ONCE, cancelled=stop)
        done += map(copy, large)
        return sorted([*told, *chain.from_iterable(done)], key=lambda one: one.model_id)

    def _signatures_carried(self, ours: State) -> list[CopiedVersion]:
        """Bring signatures along that were made since; the versions for which that failed."""
        signed = {} if self.wishes.dry_run else all_kept(self.source.sink)
        if not signed:
            return []
        theirs, there = self.target.registry.state(), all_kept(self.target.sink)
        failed: list[CopiedVersion] = []
        for record, row in _available(ours):
            other = theirs.row(record.model_id, row["version"])
            made = {name_of(s.key): s.key for s in signed.get(row.get("manifest") or "", ())}
            if not made or other is None or not is_available(other) or not other.get("manifest"):
                continue
            known = {name_of(stored.key) for stored in there.get(other["manifest"], ())}
            try:
                self._carry(other["manifest"], [made[name] for name in sorted(made.keys() - known)])
            except MMError as error:
                failed.append(_failure(entry_of(self.source.sink, record, row), error))
        return failed

    def _carry(self, manifest: str, keys: Sequence[str]) -> None:
        bundles = [read_bytes(self.source.sink, key) for key in keys]
        if bundles:
            theirs = read_manifest(self.target.sink, manifest)
            bring_along(self.target.sink, theirs, bundles, self.street.plugins.signers)

    def _copied(
        self,
        entry: ModelEntry,
        model_id: str | None,
        there: ModelEntry | None = None,
        *,
        cancelled: threading.Event | None = None,
        looked: bool = False,
    ) -> CopiedVersion:
        """What became of one version; `there` is the target's, and all of it if `looked`."""
        stop = cancelled or Stop(self.street.cancelled, self.cancelled)
        if entry.manifest is None:
            reason = "it was only registered: its files are kept by somebody else"
            return _outcome(entry, Outcome.SKIPPED, reason=reason)
        if there is not None:
            return self._compared(entry, there)
        if stop.is_set():
            raise CancelledError("stopped")
        if self.wishes.dry_run:
            return _outcome(entry, Outcome.COPIED) if looked else self._foreseen(entry, model_id)
        try:
            pulled = self.street.bring(
                self.target,
                StoredSource.of(self.source.registry, entry),
                self._request(entry, model_id),
                jobs=self.wishes.jobs,
                cancelled=stop,
                read_copies=self.wishes.read_copies,
            )
        except CancelledError:
            raise
        except MMError as error:
            return _failure(entry, error)
        return _success(entry, pulled)

    def _request(self, entry: ModelEntry, model_id: str | None) -> Request:
        return Request(
            url=f"mm://{self.source.name}/{entry.model_id}@{entry.version}",
            model_id=model_id or entry.model_id,
            version=entry.version,
            aliases=self.wishes.aliases,
        )

    def _foreseen(self, entry: ModelEntry, model_id: str | None) -> CopiedVersion:
        there = self.target.registry.get_model(model_id or entry.model_id, entry.version)
        if there is None or there.status is not ModelStatus.AVAILABLE:
            return _outcome(entry, Outcome.COPIED)
        return self._compared(entry, there)

    def _compared(self, entry: ModelEntry, there: ModelEntry) -> CopiedVersion:
        """What is to be said of a version that the target has: it must be the same."""
        try:
            if self._holds_the_same(entry, there):
                return _outcome(entry, Outcome.PRESENT)
        except MMError as error:
            return _failure(entry, error)
        conflict = ConflictError(
            f"{there.model_id}@{there.version} is in {self.target.name} already, but not the same",
            hint="remove one of them, or copy it under another id with --as",
        )
        return _failure(entry, conflict)

    def _holds_the_same(self, entry: ModelEntry, there: ModelEntry) -> bool:
        if there.manifest is None or entry.size_bytes != there.size_bytes:
            return False
        ours, theirs = self.source.registry.manifest(entry), self.target.registry.manifest(there)
        return compare(ours, theirs).same_files

    def _pruned(self) -> Iterator[CopiedVersion]:
        theirs = self.target.registry.state()
        ours = self.source.registry.state()  # later: what is there by now had its source before
        gone = _Gone(self.source.registry, ours)
        for record, row in _available(theirs):
            if _origin_of(row) is None or not gone.holds(record.model_id, row["version"]):
                continue
            entry = entry_of(self.target.sink, record, row)
            try:
                if not self._came_from_source(entry):
                    continue
                if not self.wishes.dry_run:
                    removed = self.target.registry.remove(entry.model_id, entry.version)
                    self.street.notices.hook("mm_removed", entry=removed, backend=self.target.name)
                yield _outcome(entry, Outcome.REMOVED)
            except MMError as error:
                yield _failure(entry, error)

    def _came_from_source(self, entry: ModelEntry) -> bool:
        """Under its own name: a copy that was given another id is the target's own."""
        origin = self.target.registry.manifest(entry).facts.get(COPIED_FROM)
        known = self.source.registry.id
        if known is None or not isinstance(origin, Mapping):
            return False
        named = f"{entry.model_id}@{entry.version}"
        return (origin.get("registry"), origin.get("version")) == (known, named)

    def _told(self, versions: Sequence[CopiedVersion], aliases: Iterable[CopiedAlias]) -> Copies:
        return Copies(
            source=self.source.name,
            target=self.target.name,
            versions=tuple(versions),
            aliases=tuple(aliases),
            dry_run=self.wishes.dry_run,
        )

    def _aliases_like(
        self,
        named: Iterable[tuple[str, str, str]],
        ready: set[tuple[str, str]],
        theirs: State,
    ) -> Iterator[CopiedAlias]:
        """Let the target's versions in `ready` have the aliases that are `named` so, as wished."""
        if not (self.wishes.with_aliases or self.wishes.move_aliases):
            return
        for model_id, alias, version in named:
            record = theirs.record(model_id)
            _, before = (record and record.aliases.get(fold(alias))) or (alias, None)
            if before != version and (model_id, version) in ready:
                yield self._alias(
                    CopiedAlias(
                        model_id=model_id,
                        alias=alias,
                        version=version,
                        before=before,
                        outcome="set" if before is None else "moved",
                    )
                )

    def _alias(self, wanted: CopiedAlias) -> CopiedAlias:
        if wanted.before is not None and not self.wishes.move_aliases:
            return replace(wanted, outcome="differs")
        if self.wishes.dry_run:
            return wanted
        try:
            self.target.registry.set_alias(
                wanted.model_id, wanted.alias, wanted.version, expect=wanted.before
            )
        except MMError as error:
            return replace(wanted, outcome="failed", error=error)
        return wanted


def _chosen(
    registry: ModelRegistry, references: Iterable[str], *, all_versions: bool
) -> list[ModelEntry]:
    """The AVAILABLE versions that `references` name, each once.

    With `all_versions` they are model ids, and all of each are meant, oldest first.
    """
    found: dict[tuple[str, str], ModelEntry] = {}
    for reference in references:
        entries = [registry.resolve(reference)]
        if all_versions:
            if {*reference} & {*"@:"}:
                raise UsageError(
                    f"{reference!r} names one version, and all are asked for",
                    hint="give the model id alone",
                )
            entries = registry.list_models(model_id=reference, status=ModelStatus.AVAILABLE)
        found |= {(entry.model_id, entry.version): entry for entry in entries}
    return list(found.values())


class _Gone:
    """The versions that were removed from a registry: what it never knew is not among them.

    A registry that was taken back to an older state has lost versions without having
    removed any, and a replica is where they still are.
    """

    def __init__(self, registry: ModelRegistry, state: State) -> None:
        self._registry = registry
        self._state = state

    def holds(self, model_id: str, version: str) -> bool:
        row = self._state.row(model_id, version)
        return status_of(row) in _GONE if row is not None else (model_id, version) in self._swept

    @cached_property
    def _swept(self) -> set[tuple[str, str]]:
        """Read out of the whole log, once, where it is needed."""
        return {
            (str(item.get("model_id")), str(item.get("version")))
            for commit in self._registry.commits()
            for item in commit.operations
            if item.get("op") == "swept"
        }


def _available(state: State) -> Iterator[tuple[Record, Row]]:
    return ((record, row) for record, row in state.rows() if is_available(row))


def _aliases_of(state: State) -> Iterator[tuple[str, str, str]]:
    """Model id, alias and version of each alias."""
    for _, record in sorted(state.models.items()):
        for alias, version in sorted(record.aliases.values()):
            yield record.model_id, alias, version


def _is_marked_same(row: Row, there: Row) -> bool:
    """Whether the rows alone say so: one is a copy of the other, or both are of a third."""
    marks = {row.get("manifest"), _origin_of(row)} & {there.get("manifest"), _origin_of(there)}
    return bool(marks - {None}) and row.get("size_bytes") == there.get("size_bytes")


def _origin_of(row: Row) -> str | None:
    """The manifest that a version was copied from; None for one that is no copy."""
    found = (row.get("metadata") or {}).get(COPIED_FROM)
    return found if isinstance(found, str) else None


def _is_there(one: CopiedVersion) -> bool:
    return one.outcome in (Outcome.COPIED, Outcome.PRESENT)


def _present(model_id: str, row: Row) -> CopiedVersion:
    return CopiedVersion(
        model_id=model_id,
        version=row["version"],
        outcome=Outcome.PRESENT,
        size_bytes=row.get("size_bytes", 0),
    )


def _outcome(entry: ModelEntry, outcome: Outcome, *, reason: str | None = None) -> CopiedVersion:
    return CopiedVersion(
        model_id=entry.model_id,
        version=entry.version,
        outcome=outcome,
        size_bytes=entry.size_bytes,
        reason=reason,
    )


def _failure(entry: ModelEntry, error: MMError) -> CopiedVersion:
    reason = " ".join(str(error).split())  # a row of a table has one line
    return replace(_outcome(entry, Outcome.FAILED, reason=reason), error=error)


def _success(entry: ModelEntry, pulled: Pulled) -> CopiedVersion:
    moved = pulled.fetched_bytes + pulled.copied_bytes
    return replace(
        _outcome(entry, Outcome.COPIED if moved else Outcome.PRESENT),
        fetched_bytes=pulled.fetched_bytes,
        copied_bytes=pulled.copied_bytes,
    )
