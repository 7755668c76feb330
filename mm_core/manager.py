"""ModelManager: the one room where source, sink, engine and registry meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mm_core.backends import open_source
from mm_core.checkout import cache_folder, plan_checkout, refuse_foreign_files
from mm_core.claiming import abandoned_on_error, begin
from mm_core.config import Settings, is_address, load_settings
from mm_core.equal_files import copies_in, copy_what_is_known, files_of_siblings, leave_hints
from mm_core.exceptions import CancelledError, ConfigError, MMError
from mm_core.hookspecs import PlanContext
from mm_core.leftovers import GRACE, Collected, collect, refuse_no_folder
from mm_core.manifests import bytes_by_action, manifest_of
from mm_core.mending import plan_mending, refuse_another, refuse_damaged, what_is_damaged
from mm_core.names import version_prefix
from mm_core.notices import Notices
from mm_core.place import Place, Places
from mm_core.planning import make_plan, name_version
from mm_core.plugins import Plugins
from mm_core.registry import ModelRegistry
from mm_core.results import Got, Shown
from mm_core.schemas import (
    ModelEntry,
    ModelStatus,
    ModelType,
    Plan,
    Pulled,
    Request,
    RequestOptions,
    Snapshot,
    StoredFile,
    TransferEvent,
)
from mm_core.showing import describe
from mm_core.sink import Sink
from mm_core.source import Source
from mm_core.space import kept_bytes, refuse_if_full, refuse_to_begin_if_full
from mm_core.stored import StoredSource
from mm_core.transfer import Progress, RateLimit, TransferOptions, transfer
from mm_core.transfer.retry import RetryPolicy
from mm_core.transfer.stop import Stop
from mm_core.verification import VerifyReport, verify_entries

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

logger = logging.getLogger(__name__)

_Carry = Callable[[Plan], tuple[StoredFile, ...]]


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
        self._places = Places(self.settings, self.plugins, backend)
        self._notices = Notices(self.plugins, on_event)
        self._cancelled = threading.Event()
        self._options = _transfer_options(self.settings)

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
        self._places.close()

    def cancel(self) -> None:
        """Stop all running and later transfers of this manager: they raise `CancelledError`."""
        self._cancelled.set()

    # -- the street ------------------------------------------------------------------

    def plan(
        self, source: str, *, to: str | None = None, **options: Unpack[RequestOptions]
    ) -> Plan:
        """What `pull` with the same arguments would do. Writes nothing.

        For a version that is there that is to mend it: what has the right size is
        present. Raises `ConflictError` where the stored version is another.
        """
        request = Request(url=source, **options)
        place = self._places.open(to)
        with self._source(request) as (origin, request):
            plan = self._plan(place, request, origin.snapshot(request))
        self._ask_policies(place, plan)
        entry = place.registry.get_model(plan.model_id, plan.version)
        if entry is None or entry.status is not ModelStatus.AVAILABLE:
            return plan
        return _plan_mending(place, plan, entry)

    def kept_bytes(self, plan: Plan, *, to: str | None = None) -> int | None:
        """How much of what `plan` fetches an earlier attempt has stored, and a pull would keep.

        As the backend counts it: a disk, in blocks. None where the backend has parts
        of a file and does not tell their size.
        """
        place = self._places.open(to)
        entry = place.registry.get_model(plan.model_id, plan.version)
        if entry is not None and entry.status is ModelStatus.AVAILABLE:
            return 0  # whoever mends takes up no parts
        return kept_bytes(place.sink, plan)

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
        place = self._places.open(to)
        registry, stop = place.registry, Stop(self._cancelled, cancelled)
        with self._source(request) as (origin, request):
            snapshot = origin.snapshot(request)
            plan = self._plan(place, request, snapshot, cancelled=stop)
            self._ask_policies(place, plan)
            refuse_to_begin_if_full(registry, plan)
            carry = partial(self._carry, source=origin, sink=place.sink, jobs=jobs)
            begun = begin(registry, plan, wait=wait, on_event=self._notices.event, cancelled=stop)
            if isinstance(begun, ModelEntry):
                # No claim is held here: whoever mends leaves nothing that another would take up.
                return self._already(place, plan, begun, partial(carry, stop=stop, parts=False))
            with abandoned_on_error(registry, begun):
                # The claim is ours only now: look again at what earlier attempts left.
                plan = self._plan(place, request, snapshot, known=copies_in(plan))
                refuse_if_full(place.sink, plan)
                stored = carry(plan, stop=Stop(stop, begun.lost))
                for file in stored:
                    self.plugins.hook.mm_file_stored(file=file, sink=place.sink)
                if begun.lost.is_set():  # the folder is another's
                    raise CancelledError("stopped")
                _delete_strays(place.sink, plan)
                entry = registry.add(begun, manifest_of(plan, stored), aliases=plan.aliases)
            leave_hints(stored, registry, jobs=self.settings.defaults.connections)
        self._committed(place, entry)
        return Pulled(entry=entry, backend=place.name, **bytes_by_action(stored))

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
        place = self._places.open(backend)
        registry, entry = place.registry, place.registry.resolve(reference)
        if output is None and isinstance(entry.path, Path):
            refuse_damaged(registry, entry)
            return Got(path=entry.path, entry=entry)
        folder = cache_folder(registry, entry) if output is None else Path(output).expanduser()
        folder, manifest = folder.resolve(), registry.manifest(entry)
        refuse_foreign_files(folder, manifest)
        sink_type = self.plugins.sink_type("local")
        target = sink_type(sink_type.Config(root=str(folder)))
        source = StoredSource(place.sink, manifest)
        plan = plan_checkout(source, target, entry.version)
        refuse_if_full(target, plan)
        self._carry(plan, source=source, sink=target, jobs=jobs, stop=Stop(self._cancelled))
        return Got(path=folder, entry=entry)

    # -- what is stored --------------------------------------------------------------

    def list_models(
        self, *, backend: str | None = None, include_deleted: bool = False
    ) -> list[ModelEntry]:
        """All versions of all models in a backend, by id and then by age."""
        return self.registry(backend).list_models(include_deleted=include_deleted)

    def show(self, reference: str, *, backend: str | None = None) -> Shown:
        """All that is known of a stored version, with the headers of its safetensors files."""
        registry = self.registry(backend)
        return describe(registry, registry.resolve(reference))

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
        registry = self.registry(backend)
        if reference is None:  # entries that were only registered have their files elsewhere
            available = registry.list_models(status=ModelStatus.AVAILABLE)
            entries = [entry for entry in available if entry.manifest]
        else:
            entries = [registry.resolve(reference)]
        return verify_entries(
            registry,
            entries,
            deep=deep,
            jobs=self.settings.defaults.jobs,
            cancelled=Stop(self._cancelled),
        )

    def remove(self, reference: str, *, backend: str | None = None) -> ModelEntry:
        """Take a version out of use: it becomes DELETED, and its aliases go. No file is touched."""
        place = self._places.open(backend)
        entry = place.registry.resolve(reference)
        removed = place.registry.remove(entry.model_id, entry.version)
        self._notices.hook("mm_removed", entry=removed, backend=place.name)
        return removed

    def gc(
        self, *, backend: str | None = None, grace: float | None = None, dry_run: bool = False
    ) -> Collected:
        """Discard uploads that were begun and never finished; with `dry_run`, only tell of them.

        Those older than `grace` seconds (default: ``retention.grace``, else a day)
        by the store's clock, of versions that nobody is pulling. No file that
        anybody can see is touched, and the files of removed models stay, too.

        Raises `NotFoundError` where `backend` is the path of a folder that is not there.
        """
        place = self._places.open(backend)
        refuse_no_folder(place.sink, addressed=is_address(place.name))
        if grace is None:
            configured = self.settings.retention.get("grace")
            grace = GRACE if configured is None else configured
        return collect(place.registry, grace=grace, dry_run=dry_run)

    def registry(self, backend: str | None = None) -> ModelRegistry:
        """The registry of a backend."""
        return self._places.open(backend).registry

    def sink(self, backend: str | None = None) -> Sink:
        """The sink of a backend."""
        return self._places.open(backend).sink

    def get_download_progress(self, model_id: str) -> Progress | None:
        """How far the transfer of `model_id` is; None if this manager knows of none."""
        return self._notices.progress(model_id)

    # -- the stages' surroundings ----------------------------------------------------

    @contextlib.contextmanager
    def _source(self, request: Request) -> Iterator[tuple[Source, Request]]:
        """The source of `request`, and the request in that source's own words."""
        source, url = open_source(self.settings, self.plugins, request.url)
        try:
            yield source, replace(request, url=url)
        finally:
            source.close()

    def _plan(
        self,
        place: Place,
        request: Request,
        snapshot: Snapshot,
        *,
        known: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Plan:
        """The plan as things stand; with `known`, no other version is searched for equal bytes."""
        registry, model_id = place.registry, request.model_id or snapshot.model_id
        version, search = name_version(request, snapshot), known is None
        prefix = version_prefix(model_id, version)
        if known is None:
            known = files_of_siblings(registry, model_id, but=version)
        plan = make_plan(
            request,
            snapshot,
            present={stored.key: stored.size for stored in place.sink.list(prefix)},
            known=known,
            case_blind=place.sink.case_blind,
        )
        if search:
            plan = copy_what_is_known(
                plan,
                registry,
                jobs=self.settings.defaults.connections,
                cancelled=Stop(self._cancelled, cancelled),
            )
        return plan

    def _ask_policies(self, place: Place, plan: Plan) -> None:
        if self.settings.policies and not self.plugins.hook.mm_plan_made.get_hookimpls():
            logger.warning(
                "The policies in mm.yaml have no effect: no installed plugin enforces them"
            )
        context = PlanContext(backend=place.name, policies=self.settings.policies)
        self.plugins.hook.mm_plan_made(plan=plan, context=context)

    def _carry(
        self,
        plan: Plan,
        *,
        source: Source,
        sink: Sink,
        jobs: int | None,
        stop: Stop,
        parts: bool = True,
    ) -> tuple[StoredFile, ...]:
        return transfer(
            plan,
            source,
            sink,
            options=replace(self._options, jobs=jobs or self._options.jobs, parts=parts),
            on_event=self._notices.event,
            cancelled=stop,
        )

    def _already(self, place: Place, plan: Plan, entry: ModelEntry, carry: _Carry) -> Pulled:
        """The entry that is there, whole again, if it is what the plan asks for."""
        mending = what_is_damaged(_plan_mending(place, plan, entry))
        refuse_if_full(place.sink, mending)
        mended = carry(mending) if mending.files else ()
        for alias in plan.aliases:
            entry = place.registry.set_alias(entry.model_id, alias, entry.version)
        moved = bytes_by_action(mended)
        moved["present_bytes"] += entry.size_bytes - sum(file.size for file in mended)
        return Pulled(entry=entry, backend=place.name, **moved)

    def _committed(self, place: Place, entry: ModelEntry) -> None:
        size = entry.size_bytes
        self._notices.event(
            TransferEvent(kind="committed", model_id=entry.model_id, done=size, total=size)
        )
        self._notices.hook("mm_committed", entry=entry, backend=place.name)


def _transfer_options(settings: Settings) -> TransferOptions:
    defaults = settings.defaults
    rate = defaults.limit_rate
    return TransferOptions(
        jobs=defaults.jobs,
        connections=defaults.connections,
        memory=defaults.memory,
        retry=RetryPolicy(retries=defaults.retries),
        rate=None if rate is None else RateLimit(rate),  # one, for all that this manager moves
    )


def _plan_mending(place: Place, plan: Plan, entry: ModelEntry) -> Plan:
    """`plan` for the version that is there, if it is what the plan asks for."""
    manifest = place.registry.manifest(entry)
    refuse_another(manifest, plan)
    present = {stored.key: stored.size for stored in place.sink.list(plan.prefix)}
    return plan_mending(plan, manifest, present=present)


def _delete_strays(sink: Sink, plan: Plan) -> None:
    """Nothing but the plan's files may stand in a folder that loaders are given."""
    keys = {planned.key for planned in plan.files}
    strays = [stored.key for stored in sink.list(plan.prefix) if stored.key not in keys]
    if strays:
        sink.delete(strays)
