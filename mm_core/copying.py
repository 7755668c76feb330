"""Copies of versions from one registry into another: some, or all of them again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mm_core.comparing import compare
from mm_core.copies import CopiedAlias, CopiedVersion, Copies, CopyWishes, Outcome
from mm_core.exceptions import CancelledError, ConflictError, MMError, UsageError
from mm_core.names import fold
from mm_core.place import Place
from mm_core.registry import ModelRegistry
from mm_core.schemas import ModelEntry, ModelStatus, Pulled, Request
from mm_core.stored import COPIED_FROM, StoredSource
from mm_core.street import Street
from mm_core.transfer.pool import run_parallel
from mm_core.transfer.stop import Stop

SMALL = 16 << 20
"""Bytes of the largest version of a model that is copied beside others."""

AT_ONCE = 4
"""So many small models are copied at once."""

_Held = Mapping[tuple[str, str], str]
"""Which version each alias of a backend names, by model id and folded alias."""

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
        aliases: list[CopiedAlias] = []
        if self._wants_aliases:
            models = {model_id or entry.model_id for entry in entries}
            there = [e for name in models for e in self._available(self.target, name)]
            aliases += self._with_aliases(_ready(entries, versions), model_id, _held(there))
        return self._told(versions, aliases)

    def replicate(self, *, prune: bool = False) -> Copies:
        """Copy every AVAILABLE version that is missing in the target.

        Both states are compared, and no file of what is there is looked at: when
        nothing is new, that is all it costs. With `prune`, versions that came
        from this source and are gone from it are removed.
        """
        entries = self._available(self.source)
        there = {(entry.model_id, entry.version): entry for entry in self._available(self.target)}
        versions = self._all_copied(entries, there)
        aliases: list[CopiedAlias] = []
        if self._wants_aliases:
            aliases += self._with_aliases(_ready(entries, versions), None, _held(there.values()))
        removed = list(self._pruned(list(there.values()))) if prune else []
        return self._told([*versions, *removed], aliases)

    def _all_copied(
        self, entries: Sequence[ModelEntry], there: Mapping[tuple[str, str], ModelEntry]
    ) -> list[CopiedVersion]:
        """What became of `entries`: several small models at once, for these wait more than move.

        The versions of one model come one after another, so that the newest stays the newest.
        """
        stop = Stop(self.street.cancelled, self.cancelled)
        models: dict[str, list[ModelEntry]] = {}
        for entry in entries:
            models.setdefault(entry.model_id, []).append(entry)

        def copy(versions: Sequence[ModelEntry]) -> list[CopiedVersion]:
            return [
                self._copied(
                    entry,
                    None,
                    there.get((entry.model_id, entry.version)),
                    cancelled=stop,
                    looked=True,
                )
                for entry in versions
            ]

        small: list[list[ModelEntry]] = []
        large: list[list[ModelEntry]] = []
        for group in models.values():
            fits = max(entry.size_bytes for entry in group) <= SMALL
            (small if fits else large).append(group)
        done = run_parallel(copy, small, jobs=AT_ONCE, cancelled=stop)
        done += map(copy, large)
        found = {(one.model_id, one.version): one for group in done for one in group}
        return [found[entry.model_id, entry.version] for entry in entries]

    @property
    def _wants_aliases(self) -> bool:
        return self.wishes.with_aliases or self.wishes.move_aliases

    @staticmethod
    def _available(place: Place, model_id: str | None = None) -> list[ModelEntry]:
        return place.registry.list_models(model_id=model_id, status=ModelStatus.AVAILABLE)

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
            return self._present(entry, there)
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
        return self._present(entry, there)

    def _present(self, entry: ModelEntry, there: ModelEntry) -> CopiedVersion:
        """What is to be said of a version that the target has: it must be the same."""
        try:
            if _is_marked_same(entry, there) or self._holds_the_same(entry, there):
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

    def _pruned(self, there: Sequence[ModelEntry]) -> Iterator[CopiedVersion]:
        rows = self.source.registry.list_models(include_deleted=True)
        alive = {(entry.model_id, entry.version) for entry in rows if entry.status not in _GONE}
        for entry in there:
            if (entry.model_id, entry.version) in alive or not entry.metadata.get(COPIED_FROM):
                continue
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
        origin = self.target.registry.manifest(entry).facts.get(COPIED_FROM)
        known = self.source.registry.id
        return known is not None and isinstance(origin, Mapping) and origin.get("registry") == known

    def _told(self, versions: Sequence[CopiedVersion], aliases: Sequence[CopiedAlias]) -> Copies:
        return Copies(
            source=self.source.name,
            target=self.target.name,
            versions=tuple(versions),
            aliases=tuple(aliases),
            dry_run=self.wishes.dry_run,
        )

    def _with_aliases(
        self, entries: Sequence[ModelEntry], model_id: str | None, held: _Held
    ) -> Iterator[CopiedAlias]:
        """Give the target's versions the aliases that they have in the source."""
        for entry in entries:
            for alias in entry.aliases:
                id_ = model_id or entry.model_id
                before = held.get((id_, fold(alias)))
                if before != entry.version:
                    yield self._alias(
                        CopiedAlias(
                            model_id=id_,
                            alias=alias,
                            version=entry.version,
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


def _ready(entries: Sequence[ModelEntry], versions: Sequence[CopiedVersion]) -> list[ModelEntry]:
    """Those of `entries` that the target has by now, or would have."""
    there = {
        (one.model_id, one.version)
        for one in versions
        if one.outcome in (Outcome.COPIED, Outcome.PRESENT)
    }
    return [entry for entry in entries if (entry.model_id, entry.version) in there]


def _held(entries: Iterable[ModelEntry]) -> _Held:
    return {
        (entry.model_id, fold(alias)): entry.version for entry in entries for alias in entry.aliases
    }


def _is_marked_same(entry: ModelEntry, there: ModelEntry) -> bool:
    """Whether the rows alone say so: one is a copy of the other, or both are of a third."""
    ours, theirs = entry.metadata.get(COPIED_FROM), there.metadata.get(COPIED_FROM)
    known = {one for one in (there.manifest, theirs) if one is not None}
    return entry.size_bytes == there.size_bytes and bool(known & {entry.manifest, ours})


def _outcome(entry: ModelEntry, outcome: Outcome, *, reason: str | None = None) -> CopiedVersion:
    return CopiedVersion(
        model_id=entry.model_id,
        version=entry.version,
        outcome=outcome,
        size_bytes=entry.size_bytes,
        reason=reason,
    )


def _failure(entry: ModelEntry, error: MMError) -> CopiedVersion:
    return replace(_outcome(entry, Outcome.FAILED, reason=str(error)), error=error)


def _success(entry: ModelEntry, pulled: Pulled) -> CopiedVersion:
    moved = pulled.fetched_bytes + pulled.copied_bytes
    return replace(
        _outcome(entry, Outcome.COPIED if moved else Outcome.PRESENT),
        fetched_bytes=pulled.fetched_bytes,
        copied_bytes=pulled.copied_bytes,
    )
