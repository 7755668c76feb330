"""Reading: everything that is asked of a registry and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from mm_core.exceptions import OfflineError
from mm_core.names import fold
from mm_core.registry.cache import CacheAlone, Cached, CacheFile, Freshness
from mm_core.registry.chain import Patience
from mm_core.registry.entries import entry_of
from mm_core.registry.manifests import KeptManifests
from mm_core.registry.queries import Query, Usage, matching, usage
from mm_core.registry.references import find_available, model_in
from mm_core.registry.rows import Rows
from mm_core.registry.state import State
from mm_core.schemas import Manifest, ModelEntry
from mm_core.sink import Sink

if TYPE_CHECKING:
    from mm_core.registry.log import Log
    from mm_core.registry.past import AsOf

T = TypeVar("T")


class Answers(Protocol):
    """Where rows come from: the newest state, a former one, or the cache alone."""

    def answer(self, ask: Callable[[Rows], T]) -> T:
        """What `ask` finds in rows of one moment."""

    def state_with(self, key: str) -> State:
        """A state that has at least the model of this folded id, if there is one."""


class Manifests(NamedTuple):
    """Where file lists come from: those that are kept, else the store."""

    kept: KeptManifests
    load: Callable[[ModelEntry], Manifest]


class Reading:
    """The questions, put to one state of a registry.

    `as_of` says which commit, where it is a former one; `freshness` how old the
    answers are at most, where the network is not used; `alone` whether the store
    is not asked at all.
    """

    def __init__(
        self,
        sink: Sink,
        answers: Answers,
        manifests: Manifests,
        *,
        as_of: AsOf | None = None,
        freshness: Freshness | None = None,
        alone: bool = False,
    ) -> None:
        self.sink = sink
        self.as_of = as_of
        self.freshness = freshness
        self.alone = alone
        self._answers = answers
        self._manifests = manifests

    def query(self, query: Query) -> list[ModelEntry]:
        """The versions that `query` wants, in its order."""

        def ask(rows: Rows) -> list[ModelEntry]:
            found = rows.versions(matching(rows, query))
            return [entry_of(self.sink, record, row) for record, row in found]

        return self._answers.answer(ask)

    def usage(self, query: Query) -> list[Usage]:
        """What each model takes whose versions `query` wants, removed ones included."""
        return self._answers.answer(lambda rows: usage(rows, query))

    def resolve(self, reference: str) -> ModelEntry:
        """The AVAILABLE version that a reference names: see `ModelRegistry.resolve`."""
        state = self._answers.state_with(fold(model_in(reference)))
        return entry_of(self.sink, *find_available(state, reference, self._model_ids))

    def _model_ids(self) -> list[str]:
        return [found.model_id for found in self.usage(Query())]

    def aliases(self, model_id: str | None = None) -> dict[str, dict[str, str]]:
        """The aliases of one model or of all: model id -> alias -> version."""
        return self._answers.answer(lambda rows: rows.aliases(model_id))

    def manifest(self, entry: ModelEntry) -> Manifest:
        """The file list of a version, read once and then kept: see `ModelRegistry.manifest`.

        `OfflineError` where it is not kept and the store is not asked.
        """
        kept = self._manifests.kept.get(entry)
        if kept is not None:
            return kept
        if self.alone:
            raise OfflineError(
                f"the file list of {entry.model_id}@{entry.version} is not kept on this machine",
                hint="run `mm show` once without --offline",
            )
        manifest = self._manifests.load(entry)
        self._manifests.kept.keep(entry, manifest)
        return manifest


class Readings:
    """How one registry is read: as it is now, as it once was, or without asking its store.

    `folder` is that of its read cache; None where there should be none.
    """

    def __init__(
        self,
        log: Log,
        folder: Path | None,
        patience: Patience,
        load_manifest: Callable[[ModelEntry], Manifest],
    ) -> None:
        self._sink = log.sink
        self._trust = log.trust
        self._patience = patience
        self._file = None if folder is None else CacheFile(folder, self._sink.root)
        kept = KeptManifests(None if folder is None else folder / "manifests")
        self._manifests = Manifests(kept, load_manifest)
        self.cached = Cached(log, self._file, patience)
        self.now = Reading(self._sink, self.cached, self._manifests)

    def at(self, point: int | str | datetime | None, *, offline: bool) -> Reading:
        """The registry after a former commit, where `point` names one: see `look_back`.

        With `offline`, a store on this disk is asked all the same; of another, only
        the cache answers: `OfflineError` where there is none, or where a former
        commit is asked for.
        """
        alone = offline and not self._is_here()
        if point is None:
            return self._alone() if alone else self._fresh(offline=offline)
        if alone:
            raise OfflineError(
                f"the cache of {self._sink.root} holds the newest commit only, and the store "
                "is not asked",
                hint="leave out --offline, or --as-of",
            )
        newest = self.cached.answer(lambda rows: rows.position())
        from mm_core.registry.past import look_back

        past = look_back(self._sink, point, newest, self._patience, self._trust)
        return Reading(self._sink, past, self._manifests, as_of=past.as_of)

    def _fresh(self, *, offline: bool) -> Reading:
        if not offline:
            return self.now
        seq = self.cached.answer(lambda rows: rows.position().seq)
        freshness = Freshness(commit=seq, age=0.0)
        return Reading(self._sink, self.cached, self._manifests, freshness=freshness)

    def _alone(self) -> Reading:
        alone = CacheAlone(self._file, self._sink.root)
        freshness = alone.freshness()
        return Reading(self._sink, alone, self._manifests, freshness=freshness, alone=True)

    def _is_here(self) -> bool:
        return "://" not in self._sink.root and Path(self._sink.root).is_dir()
