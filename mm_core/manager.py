"""ModelManager: the one room where source, sink, engine and registry meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from mm_core.backends import open_source
from mm_core.checkout import (
    plan_checkout,
    put_signature_beside,
    refuse_foreign_files,
)
from mm_core.comparing import Comparison, compare
from mm_core.config import Settings, is_address, load_settings
from mm_core.environment import make_environment
from mm_core.exceptions import (
    CancelledError,
    ConfigError,
    ConflictError,
    MMError,
    UsageError,
)
from mm_core.local_copies import LocalCopies
from mm_core.mending import refuse_damaged
from mm_core.notices import Notices
from mm_core.place import Place, Places
from mm_core.plugins import Plugins
from mm_core.registry import ModelRegistry
from mm_core.registry.queries import Query
from mm_core.results import Environment, Got, Shown
from mm_core.schemas import (
    Manifest,
    ModelEntry,
    ModelStatus,
    ModelType,
    Plan,
    Pulled,
    Request,
    RequestOptions,
    StoredFile,
    TransferEvent,
)
from mm_core.showing import describe
from mm_core.signatures.keys import refuse_nobody, signing_key, trusted_keys
from mm_core.signatures.making import (
    NewSignature,
    SignatureBook,
    SignedVersion,
    look_at_signatures,
)
from mm_core.sink import Sink
from mm_core.source import Source
from mm_core.space import kept_bytes, refuse_if_full
from mm_core.stored import StoredSource
from mm_core.street import Street
from mm_core.syncing import How, Outdated, Relocked, Shard, Synced, Syncer, SyncStep
from mm_core.tally import Tell, say_nothing
from mm_core.tracing import note, span
from mm_core.transfer import Progress, RateLimit, TransferOptions
from mm_core.transfer.retry import RetryPolicy
from mm_core.transfer.stop import Stop
from mm_core.verification import VerifyReport, verify_entries
from mm_core.weights import ALL, parse_weights

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from mm_core.adopted import Adopted, AdoptOptions
    from mm_core.bundles import Contents, Imported
    from mm_core.collecting import Collected, GcPlan
    from mm_core.copies import Copies, CopyOptions
    from mm_core.copying import Copier
    from mm_core.executor import Executor
    from mm_core.lockfile import Lockfile
    from mm_core.policing import Rule, Verdict
    from mm_core.pulling import PullEnd, Pulls
    from mm_core.spreading import FileRange

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
        self._notices = Notices(self.plugins, *(() if on_event is None else (on_event,)))
        self._cancelled = threading.Event()
        self._street = Street(
            settings=self.settings,
            plugins=self.plugins,
            notices=self._notices,
            options=_transfer_options(self.settings),
            cancelled=self._cancelled,
        )

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
        request = self._request(source, options)
        place = self._places.open(to)
        with self._source(request) as (origin, request):
            return self._street.plan(place, origin, request)

    def check_policies(
        self,
        source: str,
        *,
        to: str | None = None,
        content: bool = True,
        **options: Unpack[RequestOptions],
    ) -> Verdict:
        """What the policies of a backend say of a model at `source`; moves and writes nothing.

        With `content`, also of its bytes, of which as little is read as they need.
        `options` are those of `pull`.
        """
        request = self._request(source, options)
        place = self._places.open(to)
        with self._source(request) as (origin, request):
            return self._street.verdict(place, origin, request, read=content)

    def scan(
        self, target: str, *, backend: str | None = None, **options: Unpack[RequestOptions]
    ) -> Verdict:
        """Look for what is dangerous in a stored version, or in a model at its source.

        `target` is a reference to a version in `backend`, or an address that `pull`
        takes. The policies ``formats`` and ``scan`` are asked, with the settings that
        hold for `backend`; all others are not. Nothing is written.
        """
        place = self._places.open(backend)
        if is_address(target) or target.partition(":")[0] in self.settings.sources:
            with self._source(self._request(target, options)) as (origin, request):
                return self._street.scan(place, origin, request)
        entry = place.registry.resolve(target)
        request = replace(
            Request(url="", **options), model_id=entry.model_id, version=entry.version
        )
        stored = StoredSource(place.sink, place.registry.manifest(entry))
        return self._street.scan(place, stored, request)

    def policies(self, *, backend: str | None = None) -> tuple[Rule, ...]:
        """The policies that hold for a backend, with where each is set."""
        return self._street.rules.of(self._places.open(backend))

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
        on_event: Callable[[TransferEvent], None] | None = None,
        through: Callable[[Source], Source] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Pulled:
        """Bring a model from `source` into a backend, and return its entry.

        The version becomes AVAILABLE in one commit, after every byte was
        verified; before, nobody is offered any of it. A version that is there is
        returned at once; one that another process is fetching is waited for, or
        with ``wait=False`` a `ConflictError`. `jobs` files move at once.

        `options` are ``revision``, ``include``, ``exclude``, ``weights``, ``model_id``,
        ``version``, ``aliases`` and ``model_type``: see `Request`.

        Setting `cancelled` stops the pull with `CancelledError`; what is stored
        by then is found again by the next pull. `on_event` hears the events of this
        pull alone, as that of the manager does. `through` puts another source before
        the one that is read, such as a `PassingSource` that looks at what passes.

        Raises the errors of `mm_core.exceptions`; see there.
        """
        request = self._request(source, options)
        place = self._places.open(to)
        street = self._street if on_event is None else self._street.heard_by(on_event)
        with self._source(request) as (origin, request):
            passed = origin if through is None else through(origin)
            return street.bring(place, passed, request, jobs=jobs, wait=wait, cancelled=cancelled)

    def pull_from(
        self,
        source: Source,
        *,
        to: str | None = None,
        jobs: int | None = None,
        wait: bool = True,
        cancelled: threading.Event | None = None,
        on_event: Callable[[TransferEvent], None] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Pulled:
        """`pull` from a source that the caller has made, and closes.

        It is asked for a snapshot of an empty address.
        """
        street = self._street if on_event is None else self._street.heard_by(on_event)
        return street.bring(
            self._places.open(to),
            source,
            self._request("", options),
            jobs=jobs,
            wait=wait,
            cancelled=cancelled,
        )

    def pull_many(
        self,
        sources: Iterable[str | Request],
        *,
        to: str | None = None,
        executor: Executor | str | None = None,
        jobs: int | None = None,
        wait: bool = True,
        cancelled: threading.Event | None = None,
        tell: Callable[[PullEnd], None] = lambda _: None,
    ) -> Pulls:
        """`pull` each of `sources`, several at once; a failure keeps no other from being pulled.

        A `Request` asks for more than an address does. `executor` says where they are
        pulled: the type of one, or one that the caller has and closes; without it,
        in a few threads here. `tell` hears of each as soon as it has ended.

        Raises `CancelledError` where it was stopped before all had ended.
        """
        from mm_core.pulling import executor_for, make_jobs, pull_all
        from mm_core.spreading import spread

        self._places.open(to)  # where it cannot be opened, that is one error and not many
        pulls = make_jobs(self, sources, to=to or self._places.default, jobs=jobs, wait=wait)
        stop = Stop(self._cancelled, cancelled)
        with executor_for(executor, self.plugins) as where:
            spread(self, pulls, where, stop)
            return pull_all(pulls, where, cancelled=stop, tell=tell)

    @contextlib.contextmanager
    def ranges(
        self,
        request: Request,
        *,
        to: str | None = None,
        at_least: int,
        wanted: Callable[[str], bool] = lambda _: True,
        cancelled: threading.Event | None = None,
    ) -> Iterator[tuple[FileRange, ...]]:
        """Begin the uploads of files of `at_least` bytes that a pull would fetch, in ranges.

        In the block each range may be brought by any process, by `carry_range`; the version is
        claimed until its end. A `pull` that comes after takes up what is there, verifies it, and
        makes the version AVAILABLE. The policies are asked, as by `plan`. `wanted` is asked of
        each file's content (``sha256:…``). None where the store lets one process alone write to
        an upload, where the version is there, and where another pulls it.
        """
        from mm_core.pulling import options_of
        from mm_core.spreading import begin_ranges, could_be_spread

        asked, place = self._request(request.url, options_of(request)), self._places.open(to)
        worth = partial(could_be_spread, sink=place.sink, at_least=at_least)
        stop = Stop(self._cancelled, cancelled)
        with (
            self._source(asked) as (origin, own),
            self._street.ahead(place, origin, own, worth=worth, cancelled=stop) as plan,
        ):
            pieces = (
                ()
                if plan is None
                else begin_ranges(asked, plan, origin, place.sink, at_least=at_least, wanted=wanted)
            )
            yield tuple(pieces)

    def carry_range(
        self,
        piece: FileRange,
        *,
        to: str | None = None,
        cancelled: threading.Event | None = None,
        on_event: Callable[[TransferEvent], None] | None = None,
    ) -> int:
        """Bring what is missing of one of the `ranges`; how many bytes.

        Nothing becomes visible. `on_event` hears of it in place of those who hear of pulls.
        Raises `SourceChangedError` where the source has another file by now, and
        `UploadLostError` where the upload was ended or given up.
        """
        from mm_core.spreading import carry_piece

        logger.info("Bringing a range of %s", piece.path, extra={"model": piece.model_id})
        with self._source(piece.request) as (origin, own):
            return carry_piece(
                piece,
                own,
                origin,
                self._places.open(to).sink,
                options=self._street.options,
                on_event=on_event or self._notices.event,
                stop=Stop(self._cancelled, cancelled),
            )

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
            weights=ALL,
            jobs=jobs,
        )

    def copy(
        self,
        *references: str,
        source: str,
        to: str,
        all_versions: bool = False,
        model_id: str | None = None,
        cancelled: threading.Event | None = None,
        **wishes: Unpack[CopyOptions],
    ) -> Copies:
        """Copy versions from the backend `source` into the backend `to`, with all that is known.

        With `all_versions`, `references` are model ids; `model_id` is another id for
        the copy. What failed is told by `Copies.failed`, and keeps no other version
        from being copied. The other `wishes` are told at `CopyWishes`.
        """
        copier = self._copier(source, to, wishes, cancelled)
        with span("mm.copy", source=copier.source.name, backend=copier.target.name):
            return copier.copy(references, all_versions=all_versions, model_id=model_id)

    def replicate(
        self,
        *,
        source: str,
        to: str,
        prune: bool = False,
        cancelled: threading.Event | None = None,
        **wishes: Unpack[CopyOptions],
    ) -> Copies:
        """Copy all AVAILABLE versions of the backend `source` that `to` does not have.

        With `prune`, versions that came from there and are gone there are removed
        (their files stay). Told as by `copy`.
        """
        copier = self._copier(source, to, wishes, cancelled)
        with span("mm.copy", source=copier.source.name, backend=copier.target.name):
            return copier.replicate(prune=prune)

    def adopt(
        self,
        address: str,
        *,
        to: str | None = None,
        cancelled: threading.Event | None = None,
        **wishes: Unpack[AdoptOptions],
    ) -> Adopted:
        """Make entries of models that stand at `address` already, without moving what need not.

        What failed is told by `Adopted.failed`. The `wishes` are told at `AdoptWishes`.
        """
        from mm_core.adopted import AdoptWishes
        from mm_core.adopting import Adopter

        adopter = Adopter(
            street=self._street,
            place=self._places.open(to),
            wishes=AdoptWishes(**wishes),
            cancelled=cancelled,
        )
        return adopter.adopt(address)

    def get(
        self,
        reference: str,
        *,
        output: str | Path | None = None,
        backend: str | None = None,
        jobs: int | None = None,
        offline: bool | None = None,
    ) -> Got:
        """A folder on the local disk with the verified files of a stored version.

        `reference` is ``ID``, ``ID@VERSION`` or ``ID:ALIAS``. Without `output`, a
        version in a local backend is used where it stands: it was verified when it
        was stored, and only the sizes are compared again (`verify` reads all). One
        from elsewhere is kept in the user's cache folder, for all processes of this
        machine: the first brings it, the others wait for that, and files that are
        the same are hard links to the same bytes, so nobody may change them in place.
        What is there, unchanged since it was hashed, is not read again.

        A full version that is in the cache is taken without any request; for an alias
        the registry is asked, and what it named last is taken, with a warning, where the
        backend does not answer. With ``offline=True`` nobody is asked, and `OfflineError`
        raised for what is not there; with ``offline=False`` the registry is always asked.

        Files in `output` that are there already are verified and not fetched again.

        Raises `NotFoundError`, and `ConflictError` where `output` holds other files.
        """
        place = self._places.open(backend)
        with span("mm.get", backend=place.name):
            got = self._got(place, reference, output, jobs, offline=offline)
            entry = got.entry
            note(model=entry.model_id, version=entry.version, bytes=entry.size_bytes)
            return got

    def _got(
        self,
        place: Place,
        reference: str,
        output: str | Path | None,
        jobs: int | None,
        *,
        offline: bool | None,
    ) -> Got:
        registry = place.registry
        if output is None and "://" in place.sink.root:
            return LocalCopies(place.name, registry).get(
                reference,
                partial(self._check_out, place, jobs=jobs),
                offline=offline,
                stop=Stop(self._cancelled),
            )
        entry = registry.resolve(reference)
        if output is None:
            refuse_damaged(registry, entry)
            return Got(path=Path(entry.path), entry=entry)
        folder = Path(output).expanduser().resolve()
        manifest = registry.manifest(entry)
        refuse_foreign_files(folder, manifest)
        self._check_out(place, entry, manifest, folder, jobs=jobs)
        # The caller's own folder, for other programs to verify.
        signature = put_signature_beside(folder, registry, entry, manifest)
        return Got(path=folder, entry=entry, signature=signature)

    def environment(
        self,
        references: Sequence[str],
        *,
        backend: str | None = None,
        hub: str | None = None,
        stream: bool = False,
        offline: bool | None = None,
    ) -> Environment:
        """The variables by which programs find stored versions, as all plugins say.

        Each version is brought here first, as by `get`. With `stream` it stays where it is,
        and the variables are those for reading that store; with `hub`, the URL of a server
        of this protocol, they lead there, and nobody is asked here. ``MM_MODEL`` is where the
        first of them is, ``MM_MODELS`` all, as a JSON object. Nothing is set in this process.

        Raises as `get`, and `UsageError` for `stream` and `hub` together.
        """
        if stream and hub:
            raise UsageError("a model is read from its store, or asked of a hub: not both")
        sink: Sink | None = None
        got: tuple[Got, ...] = ()
        models = dict.fromkeys(references, "")
        if stream:
            sink = self.sink(backend)
            models = {name: self.url(name, backend=backend) for name in models}
        elif hub is None:
            got = tuple(self.get(name, backend=backend, offline=offline) for name in models)
            models = {name: str(one.path) for name, one in zip(models, got, strict=True)}
        return make_environment(self.plugins, models, got=got, sink=sink, hub=hub)

    def _check_out(
        self, place: Place, entry: ModelEntry, manifest: Manifest, folder: Path, *, jobs: int | None
    ) -> None:
        """Let all of `manifest`, verified, stand in `folder`."""
        sink_type = self.plugins.sink_type("local")
        target = sink_type(sink_type.Config(root=str(folder)))
        source = StoredSource(place.sink, manifest)
        plan = plan_checkout(source, target, entry.version)
        refuse_if_full(target, plan)
        self._street.carry(plan, source=source, sink=target, jobs=jobs, stop=Stop(self._cancelled))

    # -- bundles -----------------------------------------------------------------------

    def export_bundle(
        self, references: Sequence[str], out: BinaryIO, *, backend: str | None = None
    ) -> int:
        """Write stored versions to `out`, once through, as a bundle; how many bytes that were.

        The same versions give the same bytes. Every file is hashed on its way:
        `IntegrityError` for one that is damaged, and then `out` holds no bundle.
        """
        from mm_core.bundles import write_tar

        return write_tar(self._contents(references, backend), out)

    def export_bundle_folder(
        self,
        references: Sequence[str],
        folder: str | Path,
        *,
        oci: bool = False,
        force: bool = False,
        backend: str | None = None,
    ) -> int:
        """`export_bundle` as the files of `folder`; with `oci`, as an OCI layout of ModelPacks.

        What stands there already is hashed and not written again, and what makes a
        bundle of it comes last: an export that was cut goes on. `AlreadyExistsError` where
        other files are; with `force`, those of another bundle are deleted.
        """
        from mm_core.bundles import write_folder, write_oci

        write = write_oci if oci else write_folder
        return write(self._contents(references, backend), Path(folder), force=force)

    def import_bundle(
        self,
        path: str | Path,
        *,
        to: str | None = None,
        aliases: bool = True,
        move_aliases: bool = False,
        jobs: int | None = None,
        cancelled: threading.Event | None = None,
    ) -> tuple[Imported, ...]:
        """Bring all versions of a bundle into a backend, each as a pull would, with its signatures.

        What is there already is not moved again. Aliases that name another version there
        are left, unless `move_aliases`. A version that fails keeps no other from coming.
        Raises as `mm_core.bundles.Bundle`.
        """
        from mm_core.bundles import Bundle, Imported

        done = []
        with contextlib.closing(Bundle(Path(path))) as bundle:
            for version in bundle.versions:
                manifest = version.manifest
                reference = f"{manifest.model_id}@{manifest.version}"
                before = self.registry(to).get_model(manifest.model_id, manifest.version)
                was_there = before is not None and before.status is ModelStatus.AVAILABLE
                try:
                    pulled = self.pull_from(
                        bundle.source_of(version), to=to, jobs=jobs, cancelled=cancelled,
                        model_id=manifest.model_id, version=manifest.version, weights=ALL,
                    )  # fmt: skip
                except CancelledError:
                    raise
                except MMError as error:
                    failed = Imported(reference=reference, outcome="failed", error=error)
                    done.append(failed)
                    continue
                wanted = version.aliases if aliases else ()
                named, left = self._name(pulled.entry, wanted, to, move=move_aliases)
                done.append(
                    Imported(
                        reference=reference,
                        outcome="present" if was_there and not pulled.fetched_bytes else "imported",
                        size_bytes=pulled.entry.size_bytes,
                        moved=pulled.fetched_bytes,
                        aliases=named,
                        left=left,
                    )
                )
        return tuple(done)

    def _contents(self, references: Sequence[str], backend: str | None) -> Contents:
        from mm_core.bundles import gather

        registry = self.registry(backend)
        entries = {(e.model_id, e.version): e for e in map(registry.resolve, references)}
        return gather(registry, list(entries.values()))

    def _name(
        self, entry: ModelEntry, aliases: Sequence[str], backend: str | None, *, move: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Let `aliases` name `entry` where they name nothing yet; those that do, and the rest."""
        registry, left = self.registry(backend), []
        for alias in aliases:
            if alias in entry.aliases:
                continue
            try:
                expect = ... if move else None
                registry.set_alias(entry.model_id, alias, entry.version, expect=expect)
            except ConflictError:
                left.append(alias)
        return tuple(a for a in aliases if a not in left), tuple(left)

    # -- the wanted state ------------------------------------------------------------

    def lock(
        self, former: Lockfile | None = None, *, upgrade: Collection[str] | None = None
    ) -> Relocked:
        """Resolve the ``models`` of the settings to commits, files, sizes and hashes.

        What `former` has for the same words stays as it is; with `upgrade`, these models
        are resolved anew, all of them where it is empty. Writes nothing.
        """
        return Syncer(self).relock(former, upgrade)

    def outdated(self, lock: Lockfile) -> tuple[Outdated, ...]:
        """What the sources have by now of each model of `lock`. Changes nothing."""
        return Syncer(self).outdated(lock)

    def plan_sync(
        self, lock: Lockfile, *, shard: Shard | str | None = None, prune: bool = False
    ) -> Synced:
        """What `sync` with the same arguments would do. Asks no source."""
        part = Shard.parse(shard) if isinstance(shard, str) else shard
        return Synced(steps=Syncer(self).plan(lock, shard=part, prune=prune), dry_run=True)

    def sync(
        self,
        lock: Lockfile,
        *,
        shard: Shard | str | None = None,
        prune: bool = False,
        executor: Executor | str | None = None,
        jobs: int | None = None,
        cancelled: threading.Event | None = None,
        tell: Callable[[SyncStep], None] = lambda _: None,
    ) -> Synced:
        """Make what `lock` says true on all backends that the settings name for each model.

        A source is asked only for what is missing, and must still have what is locked.
        With `shard` (``2/4``), that part of the models alone. With `prune`, other versions
        of these models are removed, and all of those that were locked once, unless an
        alias of somebody else's names them. Failures are told by `Synced.failed`.
        """
        from mm_core.pulling import executor_for

        planned = self.plan_sync(lock, shard=shard, prune=prune)
        with span("mm.sync"), executor_for(executor, self.plugins) as where:
            how = How(executor=where, jobs=jobs, cancelled=Stop(self._cancelled, cancelled))
            return Syncer(self).run(lock, planned.steps, how=how, tell=tell)

    def backend_name(self) -> str:
        """The backend that is meant where a call names none. `ConfigError` where there is none."""
        return self._places.open(None).name

    # -- what is stored --------------------------------------------------------------

    def list_models(
        self, *, backend: str | None = None, include_deleted: bool = False
    ) -> list[ModelEntry]:
        """All versions of all models in a backend, by id and then by age."""
        return self.registry(backend).query(Query(removed=include_deleted))

    def show(self, reference: str, *, backend: str | None = None) -> Shown:
        """All that is known of a stored version, with the headers of its safetensors files."""
        registry = self.registry(backend)
        shown = describe(registry, registry.resolve(reference))
        signatures = look_at_signatures(
            registry.sink,
            shown.entry,
            shown.manifest,
            signers=self.plugins.signers,
            trusted=lambda: trusted_keys(self.settings.signing),
        )
        return replace(shown, signatures=signatures)

    def url(self, reference: str, *, backend: str | None = None) -> str:
        """What transformers, vLLM or another loader opens to use a stored version."""
        return str(self.registry(backend).resolve(reference).path)

    def verify(
        self,
        reference: str | None = None,
        *,
        backend: str | None = None,
        deep: bool = True,
        repair: bool = False,
        tell: Tell = say_nothing,
    ) -> VerifyReport:
        """Compare what is stored with what the registry says; with `repair`, mend what is not so.

        With `deep` every byte is read and hashed, else sizes are compared. Without
        `reference`, all AVAILABLE versions of the backend. A file that is mended comes
        from equal bytes in the backend, else from its version's source; what was wrong
        is set aside below ``.mm/quarantine/``. `tell` hears in words how far it is, often.
        """
        place = self._places.open(backend)
        registry = place.registry
        entries = _with_files(registry) if reference is None else [registry.resolve(reference)]
        with span("mm.verify", backend=place.name, model=reference, deep=deep):
            report = verify_entries(
                registry,
                entries,
                deep=deep,
                jobs=self.settings.defaults.jobs,
                cancelled=Stop(self._cancelled),
                tell=tell,
            )
            note(files=report.checked, bad=len(report.bad))
        if not repair or report.ok:
            return report
        from mm_core.repairing import FileRepair

        return FileRepair(street=self._street, place=place, open_source=self._source).run(report)

    def sign(
        self,
        reference: str,
        *,
        backend: str | None = None,
        key: str | Path | None = None,
        password: str | None = None,
        certificate: str | Path | None = None,
        chain: Sequence[str | Path] = (),
    ) -> NewSignature:
        """Sign a stored version, of which no byte is read: its manifest has all digests.

        `key` and `certificate` are files in PEM form; without `key`, those of the section
        ``signing`` of ``mm.yaml``. The signature is kept beside the version. What the
        same key has signed already is not signed again.

        Raises `ConfigError` for a key that cannot be used.
        """
        with_key = signing_key(
            self.settings.signing, key=key, password=password, certificate=certificate, chain=chain
        )
        registry = self.registry(backend)
        return self._book(registry).sign(registry.resolve(reference), with_key)

    def attach_signature(
        self, reference: str, bundle: bytes, *, backend: str | None = None
    ) -> NewSignature:
        """Keep a signature over a stored version that was made elsewhere.

        Raises `SignatureError` for one that is of other files.
        """
        registry = self.registry(backend)
        return self._book(registry).attach(registry.resolve(reference), bundle)

    def verify_signatures(
        self,
        reference: str | None = None,
        *,
        backend: str | None = None,
        public_keys: Sequence[str | Path] = (),
        certificate_roots: Sequence[str | Path] = (),
    ) -> tuple[SignedVersion, ...]:
        """What the signatures over a stored version are worth; without `reference`, over all.

        They are held against the manifest: whether the bytes are as the manifest says,
        `verify` tells. Whose signatures count is named by files in PEM form, or by the
        section ``signing`` of ``mm.yaml``; `ConfigError` where nobody is.
        """
        trusted = trusted_keys(
            self.settings.signing, public_keys=public_keys, certificate_roots=certificate_roots
        )
        refuse_nobody(trusted)
        registry = self.registry(backend)
        entries = [registry.resolve(reference)] if reference else _with_files(registry)
        book = self._book(registry)
        return tuple(book.check(entry, trusted) for entry in entries)

    def sbom(self, reference: str, *, backend: str | None = None) -> dict[str, Any]:
        """A bill of materials of a stored version: a CycloneDX 1.6 document, as JSON data."""
        from mm_core.sbom import bill_of_materials, gather

        shown = self.show(reference, backend=backend)
        return bill_of_materials(gather(self.registry(backend), shown, shown.signatures or ()))

    def diff(
        self, before: str, after: str, *, backend: str | None = None, against: str | None = None
    ) -> Comparison:
        """What differs between two stored versions; with `against`, `after` is in that backend."""
        old, new = self.registry(backend), self.registry(against or backend)
        return compare(old.manifest(old.resolve(before)), new.manifest(new.resolve(after)))

    def remove(self, reference: str, *, backend: str | None = None) -> ModelEntry:
        """Take a version out of use: DELETED, its aliases gone. Its files stay until `gc`."""
        place = self._places.open(backend)
        entry = place.registry.resolve(reference)
        removed = place.registry.remove(entry.model_id, entry.version)
        self._notices.hook("mm_removed", entry=removed, backend=place.name)
        return removed

    def plan_gc(
        self,
        *,
        backend: str | None = None,
        grace: float | None = None,
        retention: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> GcPlan:
        """All that nobody uses any more, older than `grace` seconds by the store's clock.

        Without `grace` that is ``retention.grace``, else a day. With `retention`,
        versions as well that ``retention.keep_last`` and ``keep_aliases`` do not keep.
        Changes nothing. `tell` hears how far it is. Raises `NotFoundError` where
        `backend` is the path of a folder that is not there.
        """
        from mm_core.collecting import GRACE, Retention, make_gc_plan, refuse_no_folder

        place = self._places.open(backend)
        refuse_no_folder(place.sink, addressed=is_address(place.name))
        settings = self.settings.retention
        if grace is None:
            grace = GRACE if settings.get("grace") is None else settings["grace"]
        rules = Retention.of(settings) if retention else None
        return make_gc_plan(place.registry, grace=grace, retention=rules, tell=tell)

    def gc(
        self,
        plan: GcPlan | None = None,
        *,
        backend: str | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Collected:
        """Carry out what `plan_gc` found, and never more; without `plan`, by its defaults.

        What was begun, added or changed meanwhile is left. Safe beside pulls and
        other collections; one that was killed is gone on with by the next.
        """
        from mm_core.collecting import collect

        place = self._places.open(backend)
        with span("mm.gc", backend=place.name):
            plan = self.plan_gc(backend=backend, tell=tell) if plan is None else plan
            collected = collect(place.registry, plan, cancelled=Stop(self._cancelled), tell=tell)
            note(bytes=collected.done.total_bytes)
        for one in collected.done.retired:
            removed = place.registry.get_model(one.model_id, one.version)
            self._notices.hook("mm_removed", entry=removed, backend=place.name)
        return collected

    def registry(self, backend: str | None = None) -> ModelRegistry:
        """The registry of a backend."""
        return self._places.open(backend).registry

    def sink(self, backend: str | None = None) -> Sink:
        """The sink of a backend."""
        return self._places.open(backend).sink

    @contextlib.contextmanager
    def open_source(
        self, source: str, **options: Unpack[RequestOptions]
    ) -> Iterator[tuple[Source, Request]]:
        """What `pull` with the same arguments reads from, and what it asks there.

        The source is closed at the end.
        """
        with self._source(self._request(source, options)) as found:
            yield found

    def get_download_progress(self, model_id: str) -> Progress | None:
        """How far the transfer of `model_id` is; None if this manager knows of none."""
        return self._notices.progress(model_id)

    def relay(self, event: TransferEvent) -> None:
        """Tell all who listen here of something that happened to a pull elsewhere."""
        self._notices.event(event)

    # -- the stages' surroundings ----------------------------------------------------

    def _book(self, registry: ModelRegistry) -> SignatureBook:
        return SignatureBook(registry=registry, signers=self.plugins.signers())

    def _copier(
        self, source: str, to: str, wishes: CopyOptions, cancelled: threading.Event | None
    ) -> Copier:
        from mm_core.copies import CopyWishes
        from mm_core.copying import Copier

        return Copier(
            street=self._street,
            source=self._places.open(source),
            target=self._places.open(to),
            wishes=CopyWishes(**wishes),
            cancelled=cancelled,
        )

    def _request(self, source: str, options: RequestOptions) -> Request:
        """What is asked of `source`; the format of weights is preferred that the settings name."""
        request, preferred = Request(url=source, **options), self.settings.defaults.weights
        if request.weights is None and preferred is not None:
            return replace(request, weights=parse_weights(preferred, required=False))
        return request

    @contextlib.contextmanager
    def _source(self, request: Request) -> Iterator[tuple[Source, Request]]:
        """The source of `request`, and the request in that source's own words."""
        source, url = open_source(self.settings, self.plugins, request.url)
        source.bind(self._places)
        try:
            yield source, replace(request, url=url)
        finally:
            source.close()


def _with_files(registry: ModelRegistry) -> list[ModelEntry]:
    """All AVAILABLE versions, but those that were only registered: their files are elsewhere."""
    available = registry.list_models(status=ModelStatus.AVAILABLE)
    return [entry for entry in available if entry.manifest]


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
