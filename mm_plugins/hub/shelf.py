"""The shelf: all versions of all models, whatever their state, for the REST API and the page.

The catalogue, for clients that load models, has only what can be loaded.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from cachetools import TTLCache

from mm_core import (
    InvalidNameError,
    ModelEntry,
    ModelStatus,
    NotFoundError,
    Query,
    Shown,
    UsageError,
)
from mm_plugins.hub import answers
from mm_plugins.hub.access import Caller
from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.catalog import Model, by_model
from mm_plugins.hub.hub import Hub

T = TypeVar("T")
Key = tuple[int, str]

SORTS = ("id", "-id", "updated", "-updated", "size", "-size")
_TOLD = ("op", "version", "alias", "reason", "aliases")
_MOST_LISTINGS = 64
_MOST_SHOWN = 256
_SHOWN_FOR = 30.0  # signatures may come later; all else of a version stays as it is

LOOK_BACK = 1000
"""The most commits that are looked through for a history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which models are wanted. `type`, `status` and `license` are held against their versions."""

    search: str = ""
    id: str = ""
    type: str = ""
    status: str = ""
    license: str = ""
    sort: str = "id"
    limit: int = 100
    cursor: str = ""

    def query(self) -> Query:
        """The versions that are wanted. `UsageError` where a word of it is none."""
        named = {"type": self.type, "status": self.status, "licence": self.license}
        filters = [f"{field}={_plain(value)}" for field, value in named.items() if value]
        return Query.parse(filters, text=self.search)


@dataclass(frozen=True, slots=True)
class Page:
    """Some models, how many there are in all, and the cursor of the next page."""

    models: tuple[Model, ...]
    total: int
    next: str | None


class Shelf:
    """Asks the registry, and keeps the answers for a moment. Safe among threads."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        refresh = hub.config.refresh
        self._listings: TTLCache[Hashable, tuple[Model, ...]] = TTLCache(_MOST_LISTINGS, refresh)
        self._shown: TTLCache[Hashable, Shown] = TTLCache(_MOST_SHOWN, _SHOWN_FOR)
        self._commits: TTLCache[Hashable, list[dict[str, Any]]] = TTLCache(1, refresh + _SHOWN_FOR)
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Something was changed by this process."""
        with self._lock:
            self._listings.clear()
            self._commits.clear()

    async def page(self, caller: Caller, wish: Wish) -> Page:
        """The models that fit and that the caller may know of, in order."""
        return await self._hub.in_thread(lambda: self._page(caller, wish))

    async def facets(self, caller: Caller) -> tuple[list[str], list[str]]:
        """The types and the licences that there are, of models that the caller may know of."""
        return await self._hub.in_thread(lambda: self._facets(caller))

    async def model(self, caller: Caller, model_id: str, *, removed: bool = False) -> Model:
        """All versions of a model, also those that failed or are on their way."""
        found = None
        if caller.sees(model_id):
            found = await self._hub.in_thread(lambda: self._model(model_id, removed=removed))
        if found is None:
            raise answers.no_repo(model_id, known=caller.token is not None)
        return found

    async def version(self, caller: Caller, model_id: str, name: str) -> ModelEntry:
        """The version, of any state, that a version, an alias or a commit names."""
        model = await self.model(caller, model_id, removed=True)
        entry = model.find(name)
        if entry is None:
            raise answers.no_revision(name)
        return entry

    async def shown(self, entry: ModelEntry) -> Shown | None:
        """All that is known of a version; None for one without a list of files."""
        if entry.manifest is None:
            return None
        return await self._hub.in_thread(lambda: self._show(entry))

    async def history(
        self, caller: Caller, model_id: str, limit: int, version: str | None = None
    ) -> tuple[list[dict[str, Any]], bool]:
        """What was done to a model, or to one version of it, the newest first; and if that is all.

        Looked for in the registry's newest `LOOK_BACK` commits, of all models together.
        """
        commits = await self._hub.in_thread(lambda: self._kept(self._commits, "", self._ask))
        found = (_told(commit, model_id, version) for commit in commits)
        wanted = [commit for commit in found if commit["operations"]]
        if caller.token is None and not self._hub.config.is_local:
            wanted = [{**commit, "writer": None} for commit in wanted]  # it names users and hosts
        is_whole = len(commits) < LOOK_BACK and len(wanted) <= limit
        return wanted[:limit], is_whole

    # -- in a thread -----------------------------------------------------------------

    def _page(self, caller: Caller, wish: Wish) -> Page:
        models = self._kept(self._listings, wish.query(), self._listing)
        key = _KEYS[wish.sort.removeprefix("-")]
        fitting = {
            key(model): model
            for model in models
            if caller.sees(model.id) and (not wish.id or fnmatchcase(model.id, wish.id))
        }
        down = wish.sort.startswith("-")
        keys = sorted(fitting, reverse=down)
        if wish.cursor:
            after = _read_cursor(wish.cursor)
            keys = [k for k in keys if (k < after if down else k > after)]
        taken = keys[: wish.limit]
        more = len(keys) > len(taken)
        return Page(
            tuple(fitting[k] for k in taken),
            len(fitting),
            _cursor(taken[-1]) if more and taken else None,
        )

    def _facets(self, caller: Caller) -> tuple[list[str], list[str]]:
        models = self._kept(self._listings, Query(), self._listing)
        entries = [e for model in models if caller.sees(model.id) for e in model.versions]
        licences = {licence for e in entries if (licence := licence_of(e))}
        return sorted({e.model_type.value for e in entries}), sorted(licences)

    def _listing(self, query: Query) -> tuple[Model, ...]:
        return by_model(self._hub.registry.query(query))

    def _model(self, model_id: str, *, removed: bool) -> Model | None:
        try:
            query = Query.parse(f"model={_plain(model_id)}", removed=removed)
        except (UsageError, InvalidNameError):
            return None
        found = [e for e in self._hub.registry.query(query) if e.model_id == model_id]
        return Model(model_id, tuple(found)) if found else None

    def _show(self, entry: ModelEntry) -> Shown:
        manager, registry = self._hub.manager, self._hub.registry

        def show(_: Hashable) -> Shown:
            if entry.status is ModelStatus.AVAILABLE:
                try:
                    name = f"{entry.model_id}@{entry.version}"
                    return manager.show(name, backend=self._hub.config.backend)
                except NotFoundError:  # it was removed meanwhile
                    pass
            return Shown(entry=entry, manifest=registry.manifest(entry))

        return self._kept(self._shown, (entry.manifest, entry.status), show)

    def _ask(self, _: Hashable) -> list[dict[str, Any]]:
        newest = self._hub.registry.history(limit=LOOK_BACK)
        return [commit.to_json() for commit in reversed(newest)]

    def _kept(self, cache: TTLCache[Hashable, T], key: Any, make: Callable[[Any], T]) -> T:
        with self._lock:
            if key in cache:
                return cache[key]
        made = make(key)
        with self._lock:
            cache[key] = made
        return made


def licence_of(entry: ModelEntry) -> str | None:
    """The licence that a version states."""
    stated = entry.metadata.get("license")
    return stated if isinstance(stated, str) else None


def _told(commit: dict[str, Any], model_id: str, version: str | None) -> dict[str, Any]:
    """A commit as far as it is about one model: who asks may not know of the others."""
    operations = [
        {k: v for k, v in one.items() if k in _TOLD}
        for one in commit["operations"]
        if one.get("model_id") == model_id and version in (None, one.get("version"))
    ]
    return {k: commit[k] for k in ("seq", "time", "writer")} | {"operations": operations}


def _updated(model: Model) -> Key:
    return max(_microseconds(entry.download_date) for entry in model.versions), model.id


_KEYS: dict[str, Callable[[Model], Key]] = {
    "id": lambda model: (0, model.id),
    "updated": _updated,
    "size": lambda model: (model.main.size_bytes, model.id),
}


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)


def _plain(value: str) -> str:
    """`value` in the words of a filter, where a comma ends a part."""
    return value.replace(",", "\\,")


def _cursor(key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _read_cursor(text: str) -> Key:
    try:
        number, name = json.loads(base64.urlsafe_b64decode(text.encode()))
        return int(number), str(name)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ProblemError(400, "The cursor is not one that this hub gave") from None
