"""What all routes share: who asks, which model is meant, and threads to ask the backend in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.requests import Request

from mm_core import ModelEntry, ModelManager, ModelRegistry, Sink, StoredFile
from mm_plugins.hub import answers
from mm_plugins.hub.access import Caller, Failures
from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.catalog import MAIN, Catalog, Model, Version, empty
from mm_plugins.hub.config import HubConfig
from mm_plugins.hub.pulls import Pulls
from mm_plugins.hub.reading import FileBytes, RangedBytes
from mm_plugins.hub.staging import Stage
from mm_plugins.hub.tokens import Token, TokenBook, looks_like_ours
from mm_plugins.hub.upstream import Upstream

T = TypeVar("T")

SENT_ELSEWHERE = 1 << 20
"""Files below this size are answered at once: two answers would take longer."""

BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105  # the Hub's words


@dataclass
class Hub:
    """One backend, as it is served."""

    manager: ModelManager
    config: HubConfig
    pulls: Pulls = field(default_factory=Pulls)
    failures: Failures = field(init=False)

    def __post_init__(self) -> None:
        self.failures = Failures(self.config.failures)

    @cached_property
    def registry(self) -> ModelRegistry:
        """The registry of what is served."""
        return self.manager.registry(self.config.backend)

    @cached_property
    def sink(self) -> Sink:
        """Where its bytes are."""
        return self.manager.sink(self.config.backend)

    @cached_property
    def catalog(self) -> Catalog:
        """What is in it."""
        return Catalog(self.registry, refresh=self.config.refresh)

    @cached_property
    def tokens(self) -> TokenBook:
        """The tokens that are kept beside it."""
        return TokenBook(self.sink, refresh=self.config.token_refresh)

    @cached_property
    def upstream(self) -> Upstream | None:
        """Where missing models are looked for, if anywhere."""
        wanted = self.config.pull_through
        return None if wanted is None else Upstream(self, wanted)

    @cached_property
    def stage(self) -> Stage:
        """Where what clients send waits for its commit."""
        return Stage(self)

    @cached_property
    def readers(self) -> ThreadPoolExecutor:
        """Threads that read files."""
        return ThreadPoolExecutor(self.config.readers, thread_name_prefix="mm-hub-read")

    @cached_property
    def askers(self) -> ThreadPoolExecutor:
        """Threads that ask the registry; apart from the readers, who may be long."""
        return ThreadPoolExecutor(16, thread_name_prefix="mm-hub-ask")

    def close(self) -> None:
        """Let go of all threads; those that still work end on their own."""
        self.pulls.close()
        if self.upstream is not None:
            self.upstream.close()
        for pool in (self.readers, self.askers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns, which may block."""
        return await asyncio.get_running_loop().run_in_executor(self.askers, work)

    # -- who asks --------------------------------------------------------------------

    async def caller(self, request: Request) -> Caller:
        """Whoever asks. A token of another hub counts as none, where one may do without."""
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        text = text.strip()
        if not text or kind.lower() != "bearer":
            return Caller(self.config)
        if not looks_like_ours(text) and self.config.anybody_reads:
            return Caller(self.config)
        token = await self.check_token(text, address_of(request))
        return Caller(self.config, token)

    async def check_token(self, text: str, address: str) -> Token:
        """The token of this text; `ProblemError` where there is none, or too many were tried."""
        wait = self.failures.wait(address)
        if wait > 0:
            after = {"Retry-After": str(int(wait) + 1)}
            raise ProblemError(429, "Too many wrong tokens came from this address", None, after)
        if self.tokens.knows(text):
            token = self.tokens.find(text)
        else:
            token = await self.in_thread(lambda: self.tokens.find(text))
        if token is None:
            self.failures.note(address)
            raise ProblemError(401, BAD_TOKEN, headers={"WWW-Authenticate": "Bearer"})
        return token

    # -- what is meant ---------------------------------------------------------------

    async def look_up(self, model_id: str) -> Model | None:
        """The model of this id, if there is one."""
        if self.catalog.knows(model_id):
            return self.catalog.model(model_id)
        return await self.in_thread(lambda: self.catalog.model(model_id))

    async def model(self, caller: Caller, model_id: str) -> Model:
        """The model of this id, if the caller may know of it."""
        if not caller.sees(model_id):
            raise answers.no_repo(model_id, known=caller.token is not None)
        found = await self.look_up(model_id)
        return found or (await self._elsewhere(caller, model_id, MAIN)).model

    async def version(self, caller: Caller, model_id: str, revision: str = MAIN) -> Version:
        """That version of it, with its files."""
        if not caller.sees(model_id):
            raise answers.no_repo(model_id, known=caller.token is not None)
        model = await self.look_up(model_id)
        entry = None if model is None else model.find(revision)
        if model is None or entry is None:
            return await self._elsewhere(caller, model_id, revision)
        return await self.with_files(model, entry)

    async def _elsewhere(self, caller: Caller, model_id: str, revision: str) -> Version:
        """What is no version of the registry: announced by who uploads it, or upstream."""
        known = caller.token is not None
        if revision == MAIN and await self.is_announced(model_id):
            return empty(model_id, self.sink.root)
        if self.upstream is not None and self.upstream.fits(model_id):
            name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
            return (await self.upstream.find(model_id, name, known=known)).version
        if await self.look_up(model_id) is None:
            raise answers.no_repo(model_id, known=known)
        raise answers.no_revision(revision)

    async def is_announced(self, model_id: str) -> bool:
        """Whether somebody is about to upload a model of this id, which has no version yet."""
        if not self.config.uploads or await self.look_up(model_id) is not None:
            return False
        return await self.in_thread(partial(self.stage.is_announced, model_id))

    async def with_files(self, model: Model, entry: ModelEntry) -> Version:
        """A version of a model, with its files."""
        if self.catalog.knows_files(entry):
            return self.catalog.version(model, entry)
        return await self.in_thread(lambda: self.catalog.version(model, entry))

    async def file(
        self, caller: Caller, model_id: str, revision: str, path: str
    ) -> tuple[Version, StoredFile, FileBytes]:
        """One file, and where its bytes are, if the caller may have them."""
        version = await self.version(caller, model_id, revision)
        if not caller.reads(model_id):
            raise answers.gated(model_id, known=caller.token is not None)
        file = version.files.get(path)
        if file is None:
            raise answers.no_entry(path, version.commit)
        if version.coming is None:
            return version, file, self.stored_bytes(file)
        file = await version.coming.settle(file)
        return version, file, version.coming.bytes_of(file)

    def stored_bytes(self, file: StoredFile) -> RangedBytes:
        """The bytes of a file that stands in the backend."""
        place = self.sink.url(file.key)
        path = None if "://" in place else Path(place)
        return RangedBytes(file, partial(self.sink.read, file.key), self.readers, path=path)

    async def address(self, version: Version, file: StoredFile) -> str | None:
        """Where the store itself gives out a file, if clients are to be sent there."""
        if self.config.bytes != "redirect" or file.size < SENT_ELSEWHERE or version.coming:
            return None
        seconds = int(self.config.redirect_for)
        return await self.in_thread(lambda: self.sink.signed_url(file.key, seconds=seconds))

    def origin(self, request: Request) -> str:
        """What the client calls this hub by."""
        if self.config.url:
            return self.config.url
        base = urlsplit(str(request.base_url))
        return f"{base.scheme}://{base.netloc}"


def address_of(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client else "unknown"
