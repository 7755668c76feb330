"""The wanted state: resolved into a lock, and made true on every backend that is named."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mm_core.exceptions import CancelledError, ConfigError, MMError, NotFoundError, UsageError
from mm_core.lockfile import LockedModel, Lockfile, asked_of, locked
from mm_core.planning import make_plan
from mm_core.registry.queries import Query
from mm_core.schemas import ModelEntry, ModelStatus, ModelType, Request, RequestOptions
from mm_core.weights import ALL

if TYPE_CHECKING:
    from mm_core.executor import Executor
    from mm_core.manager import ModelManager
    from mm_core.pulling import PullEnd

_AT_ONCE = 8


class Step(str, enum.Enum):
    """What is to be done, or was done, with a model on a backend."""

    PRESENT = "present"
    FETCH = "fetch"
    ALIAS = "alias"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStep:
    """One model on one backend. `aliases` are those that are set; `error` is why it failed.

    `moved` are the bytes that came from the source.
    """

    step: Step
    model_id: str
    version: str
    backend: str
    size_bytes: int | None = None
    aliases: tuple[str, ...] = ()
    moved: int = 0
    done: bool = False
    error: MMError | None = None

    @property
    def name(self) -> str:
        """The model and the backend, for people."""
        return f"{self.model_id} on {self.backend}"

    def to_json(self) -> dict[str, Any]:
        """The step as JSON data."""
        return {
            "step": self.step.value,
            "model_id": self.model_id,
            "version": self.version,
            "backend": self.backend,
            "size_bytes": self.size_bytes,
            "aliases": list(self.aliases),
            "moved_bytes": self.moved,
            "done": self.done,
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a sync did, or with `dry_run` would do, in the order of models and backends."""

    steps: tuple[SyncStep, ...]
    dry_run: bool = False

    @property
    def failed(self) -> dict[str, MMError]:
        """The errors, by model and backend."""
        return {step.name: step.error for step in self.steps if step.error is not None}

    @property
    def changes(self) -> tuple[SyncStep, ...]:
        """All but what was there as it should be."""
        return tuple(step for step in self.steps if step.step is not Step.PRESENT)

    def count(self, step: Step) -> int:
        """How many steps of a kind there are."""
        return sum(1 for one in self.steps if one.step is step)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "dry_run": self.dry_run,
            "changed": bool(self.changes),
            "failed": len(self.failed),
            "moved_bytes": sum(step.moved for step in self.steps),
            "steps": [step.to_json() for step in self.steps],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocked:
    """A new lock beside the former one. `errors` are of models that could not be resolved.

    Those keep what was locked of them before, if anything was.
    """

    lock: Lockfile
    resolved: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    errors: Mapping[str, MMError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """A locked model, and the version that its source has for the same wish now."""

    model_id: str
    locked: str
    current: str | None = None
    error: MMError | None = None

    @property
    def is_behind(self) -> bool:
        """Whether the source has another version by now."""
        return self.current is not None and self.current != self.locked

    def to_json(self) -> dict[str, Any]:
        """Both as JSON data."""
        return {
            "model_id": self.model_id,
            "locked": self.locked,
            "current": self.current,
            "behind": self.is_behind,
            "error": None if self.error is None else str(self.error),
        }


def stale(wanted: Mapping[str, Any], lock: Lockfile) -> dict[str, str]:
    """Why `lock` is not that of the `wanted` models, by model id; empty where it is."""
    told = {}
    for model_id in sorted({*wanted, *lock.models}):
        if model_id not in wanted:
            told[model_id] = "is locked, and not wanted any more"
        elif model_id not in lock.models:
            told[model_id] = "is wanted, and not locked"
        elif lock.models[model_id].asked != asked_of(wanted[model_id]):
            told[model_id] = "was asked for in other words when it was locked"
        elif lock.models[model_id].aliases != _aliases(wanted[model_id]):
            told[model_id] = "had other aliases when it was locked"
    return told


def _aliases(wanted: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(wanted.get("aliases", ()))


class Syncer:
    """Locks and syncs the models that the settings of `manager` name."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._wanted: Mapping[str, Any] = manager.settings.models

    # -- the lock --------------------------------------------------------------------

    def relock(self, former: Lockfile | None, upgrade: Collection[str] | None) -> Relocked:
        """Resolve what `former` does not have; with `upgrade`, these models anew (empty: all)."""
        former = former or Lockfile()
        unknown = sorted(set(upgrade or ()) - self._wanted.keys())
        if unknown:
            raise NotFoundError(
                f"{unknown[0]} is not among the models of mm.yaml",
                hint=f"there are: {', '.join(sorted(self._wanted)) or 'none'}",
            )
        again = set(self._wanted if upgrade is not None and not upgrade else upgrade or ())
        changed = {
            name
            for name, wanted in self._wanted.items()
            if name not in former.models or former.models[name].asked != asked_of(wanted)
        }
        due = sorted(again | changed)
        models, errors = dict(former.models), dict[str, MMError]()
        for model_id, found in self._resolve_all(due):
            if isinstance(found, MMError):
                errors[model_id] = found
            else:
                models[model_id] = found
        dropped = sorted(former.models.keys() - self._wanted.keys())
        gone = {name: aliases for name, aliases in former.gone.items() if name not in self._wanted}
        for model_id in dropped:
            gone[model_id] = models.pop(model_id).aliases
        for model_id, model in models.items():
            models[model_id] = replace(model, aliases=_aliases(self._wanted[model_id]))
        lock = Lockfile(models=models, gone=gone)
        resolved = tuple(m for m in due if m not in errors and models[m] != former.models.get(m))
        return Relocked(lock=lock, resolved=resolved, dropped=tuple(dropped), errors=errors)

    def outdated(self, lock: Lockfile) -> tuple[Outdated, ...]:
        """What the sources have by now for each locked model; nothing is changed."""
        found = self._resolve_all(sorted(lock.models.keys() & self._wanted.keys()))
        return tuple(
            Outdated(model_id=name, locked=lock.models[name].version, error=told)
            if isinstance(told, MMError)
            else Outdated(model_id=name, locked=lock.models[name].version, current=told.version)
            for name, told in found
        )

    def _resolve_all(self, names: Sequence[str]) -> list[tuple[str, LockedModel | MMError]]:
        def one(name: str) -> tuple[str, LockedModel | MMError]:
            try:
                return name, self._resolve(name)
            except MMError as error:
                return name, error

        if not names:
            return []
        with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
            return list(pool.map(one, names))

    def _resolve(self, model_id: str) -> LockedModel:
        wanted = self._wanted[model_id]
        options: RequestOptions = {"model_id": model_id}
        for name in ("revision", "include", "exclude", "version", "weights"):
            if wanted.get(name):
                options[name] = wanted[name]
        if wanted.get("type"):
            options["model_type"] = ModelType(wanted["type"])
        with self._manager.open_source(wanted["source"], **options) as (source, request):
            plan = make_plan(request, source.snapshot(request), present={}, known={})
        return locked(model_id, asked_of(wanted), plan)

    # -- the sync --------------------------------------------------------------------

    def plan(self, lock: Lockfile, *, shard: Shard | None, prune: bool) -> tuple[SyncStep, ...]:
        """What is to be done so that all is as `lock` says. Asks each backend once."""
        models = shard.of(lock.models) if shard else dict(lock.models)
        places: dict[str, list[LockedModel]] = {}
        for model in models.values():
            for backend in self._backends(model.model_id):
                places.setdefault(backend, []).append(model)
        gone = lock.gone if prune and (shard is None or shard.index == 1) else {}
        if gone:
            for backend in {b for m in self._wanted for b in self._backends(m)}:
                places.setdefault(backend, [])
        steps: list[SyncStep] = []
        for backend, wanted in places.items():
            entries = self._manager.registry(backend).query(Query())
            steps += [self._step(model, backend, entries) for model in wanted]
            if prune:
                steps += self._doomed(backend, wanted, gone, entries)
        order = {Step.REMOVE: 1}
        return tuple(
            sorted(steps, key=lambda s: (order.get(s.step, 0), s.model_id, s.backend, s.version))
        )

    def run(
        self,
        lock: Lockfile,
        steps: Sequence[SyncStep],
        *,
        how: How,
        tell: Callable[[SyncStep], None],
    ) -> Synced:
        """Do all `steps`; one that fails keeps no other from being done."""
        done: dict[int, SyncStep] = {}

        def note(index: int, step: SyncStep) -> None:
            done[index] = step
            if step.step is not Step.PRESENT:
                tell(step)

        for index, step in enumerate(steps):
            if step.step is Step.PRESENT:
                note(index, replace(step, done=True))
        self._fetch(lock, steps, how, note)
        failed = {step.model_id for step in done.values() if step.error is not None}
        for index, step in enumerate(steps):
            if step.step in (Step.ALIAS, Step.REMOVE) and not how.cancelled.is_set():
                if step.step is Step.REMOVE and step.model_id in failed:
                    why = ConfigError("its successor did not come, so it stays")
                    note(index, replace(step, error=why))
                else:
                    note(index, self._do(step))
        if len(done) < len(steps):
            raise CancelledError("stopped", hint="sync again: what is there is not moved again")
        for backend in {step.backend for step in done.values() if step.step is not Step.PRESENT}:
            with contextlib.suppress(MMError):  # the next sync then finds all of it on this machine
                self._manager.registry(backend).query(Query(limit=1))
        return Synced(steps=tuple(done[index] for index in range(len(steps))))

    def _fetch(
        self,
        lock: Lockfile,
        steps: Sequence[SyncStep],
        how: How,
        note: Callable[[int, SyncStep], None],
    ) -> None:
        from mm_core.pulling import make_jobs, pull_all
        from mm_core.spreading import spread

        places = [index for index, step in enumerate(steps) if step.step is Step.FETCH]
        pulls = [
            job
            for index in places
            for job in make_jobs(
                self._manager,
                [_request_of(lock.models[steps[index].model_id], steps[index].aliases)],
                to=steps[index].backend,
                jobs=how.jobs,
                wait=True,
            )
        ]

        def ended(place: int, end: PullEnd) -> None:
            step = steps[places[place]]
            pulled = end.pulled
            moved = 0 if pulled is None else pulled.fetched_bytes
            size = step.size_bytes if pulled is None else pulled.entry.size_bytes
            done = replace(
                step, moved=moved, size_bytes=size, done=pulled is not None, error=end.error
            )
            note(places[place], done)

        least = how.executor.split_bytes
        if least is not None:
            sizes = [lock.models[steps[index].model_id].largest for index in places]
            large = [pull for pull, size in zip(pulls, sizes, strict=True) if size >= least]
            spread(self._manager, large, how.executor, how.cancelled)
        if pulls:
            pull_all(pulls, how.executor, cancelled=how.cancelled, tell=lambda _: None, ended=ended)

    def _do(self, step: SyncStep) -> SyncStep:
        try:
            if step.step is Step.REMOVE:
                self._manager.remove(f"{step.model_id}@{step.version}", backend=step.backend)
            for alias in step.aliases:
                self._manager.registry(step.backend).set_alias(step.model_id, alias, step.version)
        except MMError as error:
            return replace(step, error=error)
        return replace(step, done=True)

    def _backends(self, model_id: str) -> list[str]:
        wanted = self._wanted.get(model_id)
        named = list(wanted.get("to", ())) if wanted else []
        return list(dict.fromkeys(named)) or [self._manager.backend_name()]

    def _step(self, model: LockedModel, backend: str, entries: Iterable[ModelEntry]) -> SyncStep:
        wanted = model.aliases
        step = SyncStep(
            step=Step.FETCH,
            model_id=model.model_id,
            version=model.version,
            backend=backend,
            size_bytes=model.size_bytes,
            aliases=wanted,
        )
        for entry in entries:
            if (entry.model_id, entry.version) != (model.model_id, model.version):
                continue
            if entry.status is not ModelStatus.AVAILABLE or not entry.manifest:
                continue
            if model.size_bytes not in (None, entry.size_bytes):
                continue  # a pull says in what it is another
            missing = tuple(alias for alias in wanted if alias not in entry.aliases)
            kind = Step.ALIAS if missing else Step.PRESENT
            return replace(step, step=kind, aliases=missing, size_bytes=entry.size_bytes)
        return step

    def _doomed(
        self,
        backend: str,
        wanted: Sequence[LockedModel],
        gone: Mapping[str, Collection[str]],
        entries: Iterable[ModelEntry],
    ) -> Iterator[SyncStep]:
        """Former versions of models that are locked, and those of models that were once.

        What an alias names that is not among those of ``mm.yaml`` is somebody's, and stays.
        """
        kept = {model.model_id: model.version for model in wanted}
        own = {**gone, **{model.model_id: model.aliases for model in wanted}}
        for entry in entries:
            if entry.model_id not in own or entry.status is not ModelStatus.AVAILABLE:
                continue
            others = set(entry.aliases) - set(own[entry.model_id])
            if kept.get(entry.model_id) == entry.version or others:
                continue
            yield SyncStep(
                step=Step.REMOVE,
                model_id=entry.model_id,
                version=entry.version,
                backend=backend,
                size_bytes=entry.size_bytes,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a sync is carried out: where its pulls run, with how many files of each at once."""

    executor: Executor
    jobs: int | None
    cancelled: threading.Event


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 1) of `count`: the same models on every machine that has the same lock."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/4``. Raises `UsageError`."""
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal():
            found = cls(int(index), int(count))
            if 1 <= found.index <= found.count:
                return found
        raise UsageError(f"{text!r} is no shard", hint="write I/N with 1 <= I <= N, such as 2/4")

    def of(self, models: Mapping[str, LockedModel]) -> dict[str, LockedModel]:
        """Its models: the largest first, each to the part that has the fewest bytes so far."""
        loads, mine = [0] * self.count, {}
        ranked = sorted(models.values(), key=lambda m: (-(m.size_bytes or 0), m.model_id))
        for model in ranked:
            part = loads.index(min(loads))
            loads[part] += max(1, model.size_bytes or 0)
            if part == self.index - 1:
                mine[model.model_id] = model
        return mine


def _request_of(model: LockedModel, aliases: Sequence[str]) -> Request:
    """A pull of exactly what is locked."""
    return Request(
        url=model.asked["source"],
        revision=model.revision or model.asked.get("revision"),
        model_id=model.model_id,
        version=model.version,
        aliases=aliases,
        model_type=None if model.model_type is ModelType.OTHER else model.model_type,
        weights=ALL,
        expected=dict(model.files),
    )
