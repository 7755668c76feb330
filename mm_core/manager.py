"""ModelManager: the one room where source, sink, engine and registry meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mm_core.backends import open_sink, open_source
from mm_core.checkout import refuse_foreign_files
from mm_core.config import Settings, load_settings
from mm_core.exceptions import (
    CancelledError,
    ConfigError,
    ConflictError,
    IntegrityError,
    MMError,
    NotFoundError,
    TransientError,
)
from mm_core.formats import read_safetensors_header
from mm_core.hookspecs import PlanContext
from mm_core.manifests import bytes_by_action, difference, manifest_of
from mm_core.names import version_prefix
from mm_core.notices import Notices
from mm_core.planning import make_plan, name_version
from mm_core.plugins import Plugins
from mm_core.redaction import redact
from mm_core.registry import Claim, ModelRegistry
from mm_core.results import Got, Shown
from mm_core.schemas import (
    Action,
    ModelEntry,
    ModelStatus,
    ModelType,
    Plan,
    Pulled,
    Request,
    RequestOptions,
    Snapshot,
    TransferEvent,
)
from mm_core.sink import Sink
from mm_core.source import Source
from mm_core.stored import StoredSource
from mm_core.transfer import Progress, TransferOptions, transfer
from mm_core.transfer.retry import RetryPolicy
from mm_core.transfer.stop import Stop
from mm_core.verification import VerifyReport, verify_entries

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

logger = logging.getLogger(__name__)

COPY_FROM_VERSIONS = 3
"""How many of a model's newest versions are searched for equal files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backend:
    name: str
    sink: Sink
    registry: ModelRegistry


class ModelManager:
    """Pull, push, get, verify and remove models; one instance serves many threads.

    `backend` is the one that is meant where a call names none; it is a name from
    ``mm.yaml``, a URL such as ``s3://bucket/prefix``, or a folder. `on_event`
    hears every `TransferEvent`, from several threads, and must be quick.

    Sync by nature, since the work is threads and blocking sockets; `apull` is the
    same call for asyncio, in a thread, with cancellation. Use it as a context
    manager, or call `close`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        plugins: Plugins | None = None,
        backend: str | None = None,
        on_event: Callable[[TransferEvent], None] | None = None,
    ) -> None:
        self.settings = load_settings() if settings is None else settings
        self.plugins = Plugins.discover() if plugins is None else plugins
        self._default = backend
        self._notices = Notices(self.plugins, on_event)
        self._lock = threading.RLock()
        self._backends: dict[str, _Backend] = {}
        self._cancelled = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back all connections. Work that still runs is stopped."""
        self.cancel()
        with self._lock:
            for backend in self._backends.values():
                backend.sink.close()
            self._backends.clear()

    def cancel(self) -> None:
        """Stop all running and later transfers of this manager: they raise `CancelledError`."""
        self._cancelled.set()

    # -- the street ------------------------------------------------------------------

    def plan(
        self, source: str, *, to: str | None = None, **options: Unpack[RequestOptions]
    ) -> Plan:
        """What `pull` with the same arguments would do. Writes nothing."""
        request = Request(url=source, **options)
        backend = self._backend(to)
        with self._source(request) as (origin, request):
            plan = self._plan(backend, request, origin.snapshot(request))
        self._ask_policies(backend, plan)
        return plan

    def pull(
        self,
        source: str,
        *,
        to: str | None = None,
        jobs: int | None = None,
        wait: bool = True,
        cancelled: threading.Event | None = None,
        **options: Unpack[RequestOptions],
    ) -> Pulled:
        """Bring a model from `source` into a backend, and return its entry.

        The version becomes AVAILABLE in one commit, after every byte was
        verified; before, nobody is offered any of it. A version that is there is
        returned at once; one that another process is fetching is waited for, or
        with ``wait=False`` a `ConflictError`. `jobs` files move at once.

        `options` are ``revision``, ``include``, ``exclude``, ``model_id``,
        ``version``, ``aliases`` and ``model_type``: see `Request`.

        Setting `cancelled` stops the pull with `CancelledError`; what is stored
        by then is found again by the next pull.

        Raises the errors of `mm_core.exceptions`; see there.
        """
        request = Request(url=source, **options)
        backend = self._backend(to)
        stop = Stop(self._cancelled, cancelled)
        with self._source(request) as (origin, request):
            snapshot = origin.snapshot(request)
            plan = self._plan(backend, request, snapshot)
            self._ask_policies(backend, plan)
            begun = self._begin(backend, plan, wait=wait, cancelled=stop)
            if isinstance(begun, ModelEntry):
                return self._already(backend, plan, begun, origin, stop)
            with self._abandon_on_error(backend, begun):
                # The claim is ours only now: look again at what earlier attempts left.
                plan = self._plan(backend, request, snapshot)
                stored = transfer(
                    plan,
                    origin,
                    backend.sink,
                    options=self._options(jobs),
                    on_event=self._notices.event,
                    cancelled=Stop(stop, begun.lost),
                )
                for file in stored:
                    self.plugins.hook.mm_file_stored(file=file, sink=backend.sink)
                _delete_strays(backend.sink, plan)
                entry = backend.registry.add(begun, manifest_of(plan, stored), aliases=plan.aliases)
        self._committed(backend, entry)
        return Pulled(entry=entry, backend=backend.name, **bytes_by_action(stored))

    async def apull(self, source: str, **options: Any) -> Pulled:
        """`pull`, awaitable. Cancelling the task stops the pull before it returns."""
        cancelled = threading.Event()
        work = asyncio.ensure_future(
            asyncio.to_thread(self.pull, source, cancelled=cancelled, **options)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            while not work.done():  # also when cancelled again
                with contextlib.suppress(MMError, asyncio.CancelledError):
                    await asyncio.shield(work)
            raise

    def push(
        self,
        folder: str | Path,
        model_id: str,
        *,
        to: str | None = None,
        version: str | None = None,
        aliases: Sequence[str] = (),
        model_type: ModelType | None = None,
        jobs: int | None = None,
    ) -> Pulled:
        """Bring a local `folder` into a backend as `model_id`.

        Without `version` it is named by the digest of its content, so that
        pushing the same twice changes nothing.
        """
        path = Path(folder).expanduser().resolve()
        if not path.is_dir():
            raise ConfigError(
                f"{str(folder)!r} is not a folder",
                hint="push takes a folder with the model's files",
            )
        return self.pull(
            str(path),
            to=to,
            model_id=model_id,
            version=version,
            aliases=aliases,
            model_type=model_type,
            jobs=jobs,
        )

    def get(
        self,
        reference: str,
        *,
        output: str | Path | None = None,
        backend: str | None = None,
        jobs: int | None = None,
    ) -> Got:
        """A folder on the local disk with the verified files of a stored version.

        `reference` is ``ID``, ``ID@VERSION`` or ``ID:ALIAS``. Without `output`, a
        version in a local backend is used where it stands: it was verified when it
        was stored, and only the sizes are compared again (`verify` reads all). One
        from elsewhere is kept in the user's cache folder. Files that are there
        already are verified and not fetched again.

        Raises `NotFoundError`, and `ConflictError` where `output` holds other files.
        """
        place = self._backend(backend)
        entry = place.registry.resolve(reference)
        if output is None and isinstance(entry.path, Path):
            self._refuse_damaged(place, entry)
            return Got(path=entry.path, entry=entry)
        folder = self._cache(place, entry) if output is None else Path(output).expanduser()
        manifest = place.registry.manifest(entry)
        refuse_foreign_files(folder, manifest)
        sink_type = self.plugins.sink_type("local")
        target = sink_type(sink_type.Config(root=str(folder.resolve())))
        source = StoredSource(place.sink, manifest)
        request = Request(url="", version=entry.version)
        plan = make_plan(
            request,
            source.snapshot(request),
            present={stored.key: stored.size for stored in target.list("")},
            known={},
            case_blind=target.case_blind,
            prefix="",
        )
        transfer(
            plan,
            source,
            target,
            options=self._options(jobs),
            on_event=self._notices.event,
            cancelled=Stop(self._cancelled),
        )
        return Got(path=folder.resolve(), entry=entry)

    @staticmethod
    def _refuse_damaged(place: _Backend, entry: ModelEntry) -> None:
        if entry.manifest is None:
            return
        report = verify_entries(
            place.registry, [entry], deep=False, jobs=1, cancelled=threading.Event()
        )
        if not report.ok:
            bad = report.bad[0]
            raise IntegrityError(
                f"{entry.model_id} {entry.version} is damaged: {bad.path}: {bad.reason}",
                hint="pull the model again to mend it; `mm verify` tells all that is wrong",
            )

    # -- what is stored --------------------------------------------------------------

    def list_models(
        self, *, backend: str | None = None, include_deleted: bool = False
    ) -> list[ModelEntry]:
        """All versions of all models in a backend, by id and then by age."""
        return self.registry(backend).list_models(include_deleted=include_deleted)

    def show(self, reference: str, *, backend: str | None = None) -> Shown:
        """All that is known of a stored version, with the headers of its safetensors files."""
        place = self._backend(backend)
        entry = place.registry.resolve(reference)
        manifest = place.registry.manifest(entry)
        headers: dict[str, dict[str, Any]] = {}
        for file in manifest.files:
            if file.path.endswith(".safetensors"):
                with contextlib.suppress(IntegrityError):
                    headers[file.path] = read_safetensors_header(
                        _range_reader(place.sink, file.key), size=file.size
                    )
        urls = {file.path: place.sink.url(file.key) for file in manifest.files}
        return Shown(entry=entry, manifest=manifest, urls=urls, headers=headers)

    def url(self, reference: str, *, backend: str | None = None) -> str:
        """What transformers, vLLM or another loader opens to use a stored version."""
        return str(self.registry(backend).resolve(reference).path)

    def verify(
        self, reference: str | None = None, *, backend: str | None = None, deep: bool = True
    ) -> VerifyReport:
        """Compare what is stored with what the registry says. Changes nothing.

        With `deep` every byte is read and hashed, else sizes are compared. Without
        `reference`, all AVAILABLE versions of the backend.
        """
        place = self._backend(backend)
        if reference is None:
            entries = place.registry.list_models(status=ModelStatus.AVAILABLE)
        else:
            entries = [place.registry.resolve(reference)]
        if reference is None:  # entries that were only registered have their files elsewhere
            entries = [entry for entry in entries if entry.manifest]
        return verify_entries(
            place.registry,
            entries,
            deep=deep,
            jobs=self.settings.defaults.jobs,
            cancelled=Stop(self._cancelled),
        )

    def remove(self, reference: str, *, backend: str | None = None) -> ModelEntry:
        """Take a version out of use: it becomes DELETED, and its aliases go. No file is touched."""
        place = self._backend(backend)
        entry = place.registry.resolve(reference)
        removed = place.registry.remove(entry.model_id, entry.version)
        self._notices.hook("mm_removed", entry=removed, backend=place.name)
        return removed

    def registry(self, backend: str | None = None) -> ModelRegistry:
        """The registry of a backend."""
        return self._backend(backend).registry

    def sink(self, backend: str | None = None) -> Sink:
        """The sink of a backend."""
        return self._backend(backend).sink

    def get_download_progress(self, model_id: str) -> Progress | None:
        """How far the transfer of `model_id` is; None if this manager knows of none."""
        return self._notices.progress(model_id)

    # -- the stages' surroundings ----------------------------------------------------

    def _backend(self, name: str | None) -> _Backend:
        name = name or self._default or self.settings.defaults.backend
        if name is None:
            raise ConfigError(
                "no backend is named, and there is no default",
                hint="use --to NAME, or set defaults.backend in mm.yaml",
            )
        with self._lock:
            if name not in self._backends:
                sink = open_sink(self.settings, self.plugins, name)
                registry = ModelRegistry(
                    sink,
                    claim_timeout=self.settings.defaults.claim_timeout,
                    commit_timeout=self.settings.defaults.commit_timeout,
                )
                self._backends[name] = _Backend(name=name, sink=sink, registry=registry)
            return self._backends[name]

    @contextlib.contextmanager
    def _source(self, request: Request) -> Iterator[tuple[Source, Request]]:
        """The source of `request`, and the request in that source's own words."""
        source, url = open_source(self.settings, self.plugins, request.url)
        try:
            yield source, replace(request, url=url)
        finally:
            source.close()

    def _plan(self, backend: _Backend, request: Request, snapshot: Snapshot) -> Plan:
        model_id = request.model_id or snapshot.model_id
        prefix = version_prefix(model_id, name_version(request, snapshot))
        known: dict[str, str] = {}
        for entry in self._siblings(backend, model_id):
            with contextlib.suppress(NotFoundError, IntegrityError):  # verify tells of those
                files = backend.registry.manifest(entry).files
                known.update((file.sha256, file.key) for file in files)
        return make_plan(
            request,
            snapshot,
            present={stored.key: stored.size for stored in backend.sink.list(prefix)},
            known=known,
            case_blind=backend.sink.case_blind,
        )

    def _siblings(self, backend: _Backend, model_id: str) -> list[ModelEntry]:
        """The newest AVAILABLE versions of a model: where equal files are most likely."""
        versions = [
            entry
            for entry in backend.registry.list_models(status=ModelStatus.AVAILABLE)
            if entry.model_id == model_id and entry.manifest
        ]
        return versions[-COPY_FROM_VERSIONS:]

    def _ask_policies(self, backend: _Backend, plan: Plan) -> None:
        if self.settings.policies and not self.plugins.hook.mm_plan_made.get_hookimpls():
            logger.warning(
                "The policies in mm.yaml have no effect: no installed plugin enforces them"
            )
        context = PlanContext(backend=backend.name, policies=self.settings.policies)
        self.plugins.hook.mm_plan_made(plan=plan, context=context)

    def _begin(
        self, backend: _Backend, plan: Plan, *, wait: bool, cancelled: threading.Event
    ) -> Claim | ModelEntry:
        def on_wait(*_: object) -> None:
            message = f"{plan.model_id} {plan.version} is in the hands of another process; waiting"
            self._notices.event(
                TransferEvent(kind="waiting", model_id=plan.model_id, message=message)
            )

        return backend.registry.begin(
            plan.model_id,
            plan.version,
            model_type=plan.model_type,
            source=plan.snapshot.source,
            wait=wait,
            on_wait=on_wait,
            cancelled=cancelled,
        )

    def _already(
        self, backend: _Backend, plan: Plan, entry: ModelEntry, origin: Source, stop: Stop
    ) -> Pulled:
        """The entry that is there, if it is what the plan asks for."""
        other = difference(backend.registry.manifest(entry), plan.snapshot)
        if other is not None:
            raise ConflictError(
                f"{entry.model_id} {entry.version} is there already, but not the same: {other}",
                hint="a version never changes: name another with --version, or an id with --as",
            )
        mended = self._mend(backend, plan, entry, origin, stop)
        for alias in plan.aliases:
            backend.registry.set_alias(entry.model_id, alias, entry.version)
        if plan.aliases:
            entry = backend.registry.resolve(f"{entry.model_id}@{entry.version}")
        return Pulled(
            entry=entry,
            backend=backend.name,
            fetched_bytes=mended,
            present_bytes=entry.size_bytes - mended,
        )

    def _mend(
        self, backend: _Backend, plan: Plan, entry: ModelEntry, origin: Source, stop: Stop
    ) -> int:
        """Fetch again what is missing or cut short of an AVAILABLE version; the bytes fetched.

        The registry does not change: what comes must have the sha256 it states.
        """
        stored = {found.key: found.size for found in backend.sink.list(plan.prefix)}
        files = {file.path: file for file in backend.registry.manifest(entry).files}
        wanting = {path for path, file in files.items() if stored.get(file.key) != file.size}
        again = tuple(
            replace(
                planned,
                action=Action.FETCH,
                file=replace(planned.file, sha256=files[planned.file.path].sha256),
            )
            for planned in plan.files
            if planned.file.path in wanting
        )
        if again:
            transfer(
                replace(plan, files=again),
                origin,
                backend.sink,
                options=self._options(None),
                on_event=self._notices.event,
                cancelled=stop,
            )
        return sum(files[planned.file.path].size for planned in again)

    @contextlib.contextmanager
    def _abandon_on_error(self, backend: _Backend, claim: Claim) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            reason = redact(str(error)) or type(error).__name__
            with contextlib.suppress(MMError):  # the first error is the one to tell
                backend.registry.abandon(claim, reason)
            if isinstance(error, CancelledError) and claim.lost.is_set():
                raise TransientError(
                    f"the backend was out of reach for so long that the claim on {claim.model_id} "
                    f"{claim.version} is lost; another process may be fetching it now",
                    hint="pull again: what is stored is found",
                ) from error
            raise

    def _committed(self, backend: _Backend, entry: ModelEntry) -> None:
        self._notices.event(
            TransferEvent(
                kind="committed",
                model_id=entry.model_id,
                done=entry.size_bytes,
                total=entry.size_bytes,
            )
        )
        self._notices.hook("mm_committed", entry=entry, backend=backend.name)

    def _options(self, jobs: int | None) -> TransferOptions:
        defaults = self.settings.defaults
        return TransferOptions(
            jobs=jobs or defaults.jobs, retry=RetryPolicy(retries=defaults.retries)
        )

    @staticmethod
    def _cache(place: _Backend, entry: ModelEntry) -> Path:
        import platformdirs

        cache = platformdirs.user_cache_path("model-manager")
        folder = cache / "models" / str(place.registry.id) / entry.model_id / entry.version
        return folder / (entry.manifest or "")[:12]  # a version may be removed and made anew


def _delete_strays(sink: Sink, plan: Plan) -> None:
    """Nothing but the plan's files may stand in a folder that loaders are given."""
    keys = {planned.key for planned in plan.files}
    strays = [stored.key for stored in sink.list(plan.prefix) if stored.key not in keys]
    if strays:
        sink.delete(strays)


def _range_reader(sink: Sink, key: str) -> Callable[[int, int], bytes]:
    def read(start: int, end: int) -> bytes:
        return b"".join(bytes(buffer) for buffer in sink.read(key, start, end))

    return read
