"""Pull-through: what is missing is looked up where models come from, and served while it comes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from cachetools import TLRUCache

from mm_core import (
    AuthError,
    Buffer,
    ConfigError,
    GatedError,
    IntegrityError,
    InvalidNameError,
    Manifest,
    MissingExtraError,
    MMError,
    ModelEntry,
    ModelStatus,
    NotFoundError,
    Plan,
    PlannedFile,
    PluginError,
    PolicyError,
    RemoteFile,
    Source,
    StoredFile,
    TransferEvent,
    UsageError,
    check_alias,
)
from mm_plugins.hub import answers
from mm_plugins.hub.answers import ProblemError, problem_of
from mm_plugins.hub.catalog import HEX40, MAIN, Model, Version, commit_of
from mm_plugins.hub.config import PullThrough
from mm_plugins.hub.passing import Tee, Window
from mm_plugins.hub.reading import CHUNK, FileBytes, RangedBytes

if TYPE_CHECKING:
    from mm_plugins.hub.hub import Hub

logger = logging.getLogger(__name__)

SMALL = 4 << 20
"""Files up to this size are fetched at once, when they are asked for, and verified first."""

_KNOWN_SECONDS = 60.0
_MISSING_SECONDS = 20.0
_FAILED_SECONDS = 5.0
_SMALL_IN_ALL = 64 << 20
_STEP = 8 << 20
_LOOK = 0.01
_LOOK_ELSEWHERE = 1.0
_LATER = {"Retry-After": "5"}
_ANSWER_SECONDS = 8.0  # clients of the Hub wait for ten


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What upstream said, and for how many seconds that is taken as known."""

    seconds: float
    coming: Coming | None = None
    error: MMError | None = None


def _until(_key: object, outcome: _Outcome, now: float) -> float:
    return now + outcome.seconds


class Upstream:
    """Looks for models where they come from. All of it is for the thread of the event loop."""

    def __init__(self, hub: Hub, config: PullThrough) -> None:
        self.hub = hub
        self.config = config
        self.running = 0
        self._known: TLRUCache[tuple[str, str], _Outcome] = TLRUCache(4096, _until, time.monotonic)
        self._asked: dict[tuple[str, str], asyncio.Task[_Outcome]] = {}
        self._coming: dict[tuple[str, str], Coming] = {}
        self._open = contextlib.ExitStack()
        self._source: Source | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Stop what is on its way; what is stored by then is found again."""
        for coming in list(self._coming.values()):
            coming.cancelled.set()
        self._open.close()

    def fits(self, model_id: str) -> bool:
        """Whether models of this id are looked for."""
        return any(fnmatchcase(model_id, glob) for glob in self.config.models)

    async def find(self, model_id: str, revision: str, *, known: bool) -> Coming:
        """That version, as upstream has it. Each is asked for once, however many want it.

        Raises `ProblemError`; `known` tells whether the caller has a token.
        """
        outcome = await self._outcome(model_id, revision)
        if outcome.coming is not None:
            return outcome.coming
        match outcome.error:
            case GatedError():
                raise answers.gated(model_id, known=known)
            case NotFoundError() | AuthError():
                raise await self._missing(model_id, revision, known=known)
            case ConfigError() | PluginError() | MissingExtraError() as error:
                raise problem_of(error)
            case UsageError():  # no id or revision that could be there
                raise await self._missing(model_id, revision, known=known)
            case error:
                assert error is not None
                raise problem_of(error)

    async def _missing(self, model_id: str, revision: str, *, known: bool) -> ProblemError:
        if revision != MAIN and (await self._outcome(model_id, MAIN)).coming is not None:
            return answers.no_revision(revision)
        return answers.no_repo(model_id, known=known)

    async def _outcome(self, model_id: str, revision: str) -> _Outcome:
        key = (model_id, revision)
        outcome = self._known.get(key)
        if outcome is not None:
            return outcome
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(self._ask(model_id, revision))
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            return await asyncio.wait_for(asyncio.shield(task), _ANSWER_SECONDS)
        except asyncio.TimeoutError:
            raise ProblemError(503, "Upstream has not answered yet", None, _LATER) from None

    async def _ask(self, model_id: str, revision: str) -> _Outcome:
        try:
            coming = await self.hub.in_thread(partial(self._look_up, model_id, revision))
        except (NotFoundError, AuthError) as error:
            outcome = _Outcome(_MISSING_SECONDS, error=error)
        except MMError as error:
            wait = getattr(error, "retry_after", None) or _FAILED_SECONDS
            outcome = _Outcome(min(wait, _KNOWN_SECONDS), error=error)
        else:
            coming = self._coming.setdefault((model_id, coming.version.commit), coming)
            outcome = _Outcome(_KNOWN_SECONDS, coming=coming)
        self._known[model_id, revision] = outcome
        return outcome

    def _look_up(self, model_id: str, revision: str) -> Coming:
        """What upstream has, if the policies let it in: in a thread, since it asks others."""
        url = self.config.source.replace("{id}", model_id)
        verdict = self.hub.manager.check_policies(
            url, to=self.hub.config.backend, revision=revision, **self._options(model_id)
        )
        if not verdict.ok:
            refused = "; ".join(r.line for r in verdict.rulings if r.finding.refused)
            raise PolicyError(f"{model_id} may not enter: {refused}")
        plan = verdict.plan
        unsized = [planned.file.path for planned in plan.files if planned.file.size is None]
        if unsized:
            raise MMError(
                f"{url} does not say how large {unsized[0]} is, so it cannot be served on its way",
                hint=f"`mm pull {url}` brings it",
            )
        former = self.hub.catalog.model(model_id)
        return Coming(self, plan, former, url, _aliases(revision))

    def _options(self, model_id: str) -> dict[str, Any]:
        config = self.config
        return {
            "model_id": model_id,
            "include": tuple(config.include),
            "exclude": tuple(config.exclude),
        }

    def source(self, url: str) -> Source:
        """Where files are read from for one client alone; one for all of them."""
        with self._lock:
            if self._source is None:
                opened = self.hub.manager.open_source(url)
                self._source, _ = self._open.enter_context(opened)
            return self._source

    def pull(self, coming: Coming) -> None:
        """Bring it into the backend: in a thread."""
        model_id, revision = coming.version.model.id, coming.plan.snapshot.revision
        flight = self.hub.pulls.enter(
            coming.url,
            kind="through",
            cancelled=coming.cancelled,
            model_id=model_id,
            version=coming.plan.version,
            revision=revision,
            aliases=coming.aliases,
        )

        def hear(event: TransferEvent) -> None:
            coming.hear(event)
            flight.hear(event)

        try:
            pulled = self.hub.manager.pull(
                coming.url,
                to=self.hub.config.backend,
                revision=revision,
                aliases=coming.aliases,
                through=coming.tee,
                on_event=hear,
                cancelled=coming.cancelled,
                **self._options(model_id),
            )
        except Exception as error:
            flight.end(error)
            raise
        flight.end(entry=pulled.entry)

    def ended(self, coming: Coming) -> None:
        """It is in the backend now, or failed; then it is tried again after a while."""
        self.running -= 1
        self.hub.catalog.forget(coming.version.model.id)
        if coming.failure is None:
            self._forget(coming)
        else:
            asyncio.get_running_loop().call_later(_FAILED_SECONDS, self._forget, coming)

    def _forget(self, coming: Coming) -> None:
        self._coming.pop((coming.version.model.id, coming.version.commit), None)
        for key in [key for key, outcome in self._known.items() if outcome.coming is coming]:
            self._known.pop(key, None)


@dataclass(eq=False)
class Coming:
    """One version that upstream has and the backend does not, or not yet."""

    upstream: Upstream
    plan: Plan
    former: Model | None
    url: str
    aliases: tuple[str, ...]
    cancelled: threading.Event = field(default_factory=threading.Event)
    failure: MMError | None = None
    elsewhere: bool = False

    def __post_init__(self) -> None:
        self.window = Window(self.upstream.config.window)
        self._begun = False
        self._stored: set[str] = set()
        self._known: dict[str, bytes] = {}
        self._small: dict[str, asyncio.Task[bytes]] = {}
        self._remote = {planned.file.path: planned.file for planned in self.plan.files}
        self.version = self._as_if_stored()

    def _as_if_stored(self) -> Version:
        plan, snapshot = self.plan, self.plan.snapshot
        manifest = Manifest(
            model_id=plan.model_id,
            version=plan.version,
            model_type=plan.model_type,
            files=tuple(_file_of(planned, plan.version) for planned in plan.files),
            source=snapshot.source,
            revision=snapshot.revision,
            license=snapshot.license,
            facts=snapshot.facts,
        )
        entry = ModelEntry(
            model_id=plan.model_id,
            version=plan.version,
            model_type=plan.model_type,
            path=f"{self.upstream.hub.sink.root}/{plan.prefix}",
            status=ModelStatus.DOWNLOADING,
            size_bytes=manifest.size_bytes,
            source=snapshot.source,
            metadata={"revision": snapshot.revision, "license": snapshot.license},
        )
        versions = () if self.former is None else self.former.versions
        model = Model(plan.model_id, (*versions, entry))
        return Version(model, entry, manifest, commit_of(entry), self)

    # -- the pull --------------------------------------------------------------------

    def begin(self) -> None:
        """Bring it into the backend, unless that is being done. `ProblemError` if too many are."""
        if self.failure is not None:
            raise problem_of(self.failure)
        if self._begun:
            return
        if self.upstream.running >= self.upstream.config.pulls:
            raise ProblemError(503, "Many models are on their way here already", None, _LATER)
        self._begun = True
        self.upstream.running += 1
        loop = asyncio.get_running_loop()
        name = f"mm-hub-pull-{self.version.model.id}"
        threading.Thread(target=self._pull, args=(loop,), name=name, daemon=True).start()

    def _pull(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.upstream.pull(self)
        except MMError as error:
            self.failure = error
        except Exception as error:
            logger.exception("A pull failed")
            self.failure = MMError(f"the pull failed: {type(error).__name__}")
        else:
            self._stored.update(self._remote)
        if self.failure is not None:
            logger.warning("%s did not come: %s", self.version.model.id, self.failure)
        with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile
            loop.call_soon_threadsafe(self.upstream.ended, self)

    def tee(self, source: Source) -> Source:
        """The source that the pull reads, with a look at all that passes."""
        return Tee(source, self.window, self._known)

    def hear(self, event: TransferEvent) -> None:
        """Note what stands in the backend; called by the threads of the pull."""
        if event.kind == "stored" and event.path is not None:
            self._stored.add(event.path)
            self.window.forget(event.path)
        elif event.kind == "waiting":
            self.elsewhere = True

    # -- those who are served meanwhile ------------------------------------------------

    async def settle(self, file: StoredFile) -> StoredFile:
        """`file` with its sha256, if that can be known in a moment."""
        if file.sha256 or file.size > SMALL:
            return file
        data = await self._whole(file)
        return replace(file, sha256=hashlib.sha256(data).hexdigest())

    def bytes_of(self, file: StoredFile) -> FileBytes:
        """The bytes of a file on its way; the first of them asked for sets it all going."""
        return _ComingBytes(self, file)

    async def read(self, file: StoredFile, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes ``[start, end)``, as soon as they are here.

        The last byte of a file is held back until the file is verified and stored: a
        client that has all of it has the right bytes.
        """
        self.begin()
        if file.size <= SMALL:
            data = await self._whole(file)
            for place in range(start, end, CHUNK):
                yield data[place : min(end, place + CHUNK)]
            return
        while start < end and not self._stands(file):
            piece = await self._passing(file, start, min(end, file.size - 1))
            if piece is None:
                continue
            start += len(piece)
            yield piece
        async for piece in self._kept(file).read(start, end):
            yield piece

    def _stands(self, file: StoredFile) -> bool:
        if file.path in self._stored:
            return True
        if self.failure is not None:
            raise problem_of(self.failure)
        return False

    async def _passing(self, file: StoredFile, start: int, end: int) -> bytes | None:
        """Some bytes on their way, or read from upstream; None once the file may stand."""
        began = time.monotonic()
        look_elsewhere = began
        while not self._stands(file):
            piece = self.window.at(file.path, start, min(CHUNK, end - start))
            if piece:
                return piece
            now = time.monotonic()
            if self.elsewhere and now >= look_elsewhere:
                look_elsewhere = now + _LOOK_ELSEWHERE
                if await self.upstream.hub.in_thread(partial(self._is_there, file)):
                    return None
            if start < end and now >= began + self.upstream.config.patience:
                return await self._alone(file, start, min(start + _STEP, end))
            await asyncio.sleep(_LOOK)
        return None

    def _is_there(self, file: StoredFile) -> bool:
        """Whether another machine has stored it: nothing is seen there before it was verified."""
        found = self.upstream.hub.sink.stat(file.key)
        if found is not None and found.size == file.size:
            self._stored.add(file.path)
            return True
        return False

    async def _alone(self, file: StoredFile, start: int, end: int) -> bytes:
        """The bytes ``[start, end)`` from upstream, for one client."""
        pieces = [piece async for piece in self._upstream(file).read(start, end)]
        return b"".join(pieces)

    async def _whole(self, file: StoredFile) -> bytes:
        """All of a small file, verified; each is fetched once."""
        if file.path in self._known:
            return self._known[file.path]
        task = self._small.get(file.path)
        if task is None:
            task = self._small[file.path] = asyncio.ensure_future(self._fetch(file))
            task.add_done_callback(lambda _: self._small.pop(file.path, None))
        return await asyncio.shield(task)

    async def _fetch(self, file: StoredFile) -> bytes:
        stands = file.path in self._stored
        origin = self._kept(file) if stands else self._upstream(file)
        data = b"".join([piece async for piece in origin.read(0, file.size)])
        _verify(self._remote[file.path], data)
        if sum(map(len, self._known.values())) + len(data) <= _SMALL_IN_ALL:
            self._known[file.path] = data
        return data

    def _kept(self, file: StoredFile) -> RangedBytes:
        return self.upstream.hub.stored_bytes(file)

    def _upstream(self, file: StoredFile) -> RangedBytes:
        def fetch(start: int, end: int) -> Iterator[Buffer]:
            source = self.upstream.source(self.url)
            yield from source.read(self._remote[file.path], start, end)

        hint = "ask for it again"
        return RangedBytes(file, fetch, self.upstream.hub.readers, hint)


@dataclass(frozen=True, slots=True)
class _ComingBytes:
    coming: Coming
    file: StoredFile
    path: None = None

    @property
    def size(self) -> int:
        return self.file.size

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        return self.coming.read(self.file, start, end)


def _file_of(planned: PlannedFile, version: str) -> StoredFile:
    file = planned.file
    unknown = hashlib.sha1(f"{version}\0{file.path}".encode(), usedforsecurity=False).hexdigest()
    return StoredFile(
        path=file.path,
        key=planned.key,
        size=file.size or 0,
        sha256=file.sha256 or "",
        extra={"tag": file.git_sha1 or unknown},
    )


def _verify(file: RemoteFile, data: bytes) -> None:
    checks: list[tuple[str | None, Callable[[], str]]] = [
        (file.sha256, lambda: hashlib.sha256(data).hexdigest()),
        (file.git_sha1, lambda: _git_sha1(data)),
    ]
    if len(data) != file.size or any(want is not None and want != is_() for want, is_ in checks):
        raise IntegrityError(
            f"{file.path}: upstream sent other bytes than it states", hint="ask for it again"
        )


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _aliases(revision: str) -> tuple[str, ...]:
    """The name that was asked for becomes an alias, where it may be one."""
    if HEX40.fullmatch(revision):
        return ()
    try:
        return (check_alias(revision),)
    except InvalidNameError:
        return ()
