"""What may be changed over the network, and by whom: one place for the REST API and the page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

from mm_core import (
    AuthError,
    InvalidNameError,
    ModelEntry,
    ModelStatus,
    NotFoundError,
    PassingSource,
    Request,
    Snapshot,
    Source,
    check_alias,
    check_version,
    redact_url,
)
from mm_plugins.hub import answers
from mm_plugins.hub.access import Caller
from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.hub import Hub
from mm_plugins.hub.origins import may_come_from
from mm_plugins.hub.pulls import Flight, Pull
from mm_plugins.hub.shelf import Shelf

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullWish:
    """What somebody wants to be pulled."""

    source: str
    model_id: str | None = None
    version: str | None = None
    revision: str | None = None
    aliases: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()


class Actions:
    """Moves aliases, removes versions, begins and cancels pulls; refuses who may not.

    Without a token that is a 401, with one that does not fit a 403. Aliases and pulls
    need one of scope ``write`` for that model, removing needs ``admin``.
    """

    def __init__(self, hub: Hub, shelf: Shelf) -> None:
        self._hub = hub
        self._shelf = shelf
        self._pulls = hub.pulls

    async def set_alias(
        self,
        caller: Caller,
        model_id: str,
        alias: str,
        version: str,
        *,
        expect: str | EllipsisType | None = ...,
    ) -> ModelEntry:
        """Let an alias name a version; with `expect`, only if it names that one now."""
        self.need(caller, "write", model_id)
        alias, version = check_alias(alias), check_version(version)
        await self._shelf.model(caller, model_id)
        registry = self._hub.registry
        entry = await self._hub.in_thread(
            lambda: registry.set_alias(model_id, alias, version, expect=expect)
        )
        self._changed(model_id)
        return entry

    async def remove_alias(self, caller: Caller, model_id: str, alias: str) -> None:
        """Forget an alias."""
        self.need(caller, "write", model_id)
        alias = check_alias(alias)
        await self._shelf.model(caller, model_id)
        await self._hub.in_thread(lambda: self._hub.registry.remove_alias(model_id, alias))
        self._changed(model_id)

    async def remove(self, caller: Caller, model_id: str, version: str) -> ModelEntry:
        """Take a version, named by nothing but its own name, out of use."""
        self.need(caller, "admin", model_id)
        version = check_version(version)
        await self._shelf.model(caller, model_id, removed=True)
        removed = await self._hub.in_thread(lambda: self._remove(model_id, version))
        self._changed(model_id)
        return removed

    def begin_pull(self, caller: Caller, wish: PullWish) -> Pull:
        """Begin a pull, which then goes on by itself."""
        self.need(caller, "write", None)
        if not may_come_from(wish.source, self._hub.config.pull_sources):
            raise ProblemError(
                403,
                f"This hub pulls nothing from {redact_url(wish.source)[:200]}",
                hint="the setting serve.pull_sources says from where it may",
            )
        request = Request(
            url=wish.source,
            revision=wish.revision,
            include=wish.include,
            exclude=wish.exclude,
            model_id=wish.model_id,
            version=wish.version,
            aliases=wish.aliases,
        )
        model_id = request.model_id or _likely_id(wish.source)
        if model_id is not None:
            self.need(caller, "write", model_id)

        def work(flight: Flight) -> ModelEntry:
            pulled = self._hub.manager.pull(
                wish.source,
                to=self._hub.config.backend,
                revision=request.revision,
                include=request.include,
                exclude=request.exclude,
                model_id=request.model_id,
                version=request.version,
                aliases=request.aliases,
                cancelled=flight.cancelled,
                on_event=flight.hear,
                through=lambda source: _Guarded(source, caller),
            )
            self._changed(pulled.entry.model_id)
            return pulled.entry

        pull = self._pulls.begin(
            wish.source,
            work,
            owner=self._hub.manager,
            model_id=model_id,
            version=request.version,
            revision=request.revision,
            aliases=request.aliases,
            by=caller.name,
        )
        logger.info("A pull was asked for", extra={"pull": pull.id, "who": caller.name})
        return pull

    def cancel_pull(self, caller: Caller, id_: str) -> Pull:
        """Ask a pull to end."""
        self.need(caller, "write", None)
        pull = self.pull(caller, id_)
        self.need(caller, "write", pull.model_id)
        return self._pulls.cancel(id_)

    def pull(self, caller: Caller, id_: str) -> Pull:
        """A pull that the caller may know of."""
        pull = self._pulls.get(id_)
        if not sees_pull(caller, pull):
            raise NotFoundError(f"there is no pull {id_!r}", hint="it may have ended long ago")
        return pull

    def pulls(self, caller: Caller) -> list[Pull]:
        """All pulls that the caller may know of, the newest first."""
        return [pull for pull in self._pulls.all() if sees_pull(caller, pull)]

    def need(self, caller: Caller, scope: str, model_id: str | None) -> None:
        """Refuse a caller who has no token for `scope` on a model; with None, on any model."""
        token = caller.token
        if token is None:
            raise answers.forbidden(f"That needs a token of scope {scope}", known=False)
        fits = token.has(scope) if model_id is None else token.allows(scope, model_id)
        if not fits:
            what = "" if model_id is None else f" for {model_id[:200]}"
            raise answers.forbidden(f"That needs a token of scope {scope}{what}", known=True)

    def _remove(self, model_id: str, version: str) -> ModelEntry:
        registry = self._hub.registry
        entry = registry.get_model(model_id, version)
        if entry is None:
            raise answers.no_revision(version)
        if entry.status is ModelStatus.AVAILABLE:
            name = f"{model_id}@{version}"
            return self._hub.manager.remove(name, backend=self._hub.config.backend)
        return registry.remove(model_id, version)

    def _changed(self, model_id: str) -> None:
        self._hub.catalog.forget(model_id)
        self._shelf.forget()


def sees_pull(caller: Caller, pull: Pull) -> bool:
    """Whether the caller may know of a pull: as of its model; before that is known, who pulls."""
    if pull.model_id is not None:
        return caller.sees(pull.model_id)
    return caller.token is not None and caller.token.has("write")


class _Guarded(PassingSource):
    """Lets a pull go on only where its caller may write: the source may suggest the id."""

    def __init__(self, source: Source, caller: Caller) -> None:
        super().__init__(source)
        self._caller = caller

    def snapshot(self, request: Request) -> Snapshot:
        """As the other, for a model that the caller may write."""
        snapshot = super().snapshot(request)
        model_id = request.model_id or snapshot.model_id
        token = self._caller.token
        if token is None or not token.allows("write", model_id):
            raise AuthError(
                f"the token is not for {model_id}", hint="name the model_id that it should have"
            )
        return snapshot


def _likely_id(source: str) -> str | None:
    """The id that a model of the Hub gets where nobody names one; None for other sources."""
    if not source.lower().startswith("hf://"):
        return None
    name = source[len("hf://") :].partition("@")[0].strip("/")
    try:
        return Request(url=source, model_id=name).model_id
    except InvalidNameError:
        return None
