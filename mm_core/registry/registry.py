"""ModelRegistry: which versions of which models there are, kept beside them in the store."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from mm_core.exceptions import (
    CommitUnknownError,
    ConflictError,
    IntegrityError,
    MMError,
    NotFoundError,
    UsageError,
)
from mm_core.names import check_alias, check_model_id, check_version, version_prefix
from mm_core.registry.chain import CommitRecord
from mm_core.registry.deadline import Deadline
from mm_core.registry.entries import added_fields, entry_of, read_manifest, registered_fields
from mm_core.registry.layout import create_once, manifest_key
from mm_core.registry.log import Log
from mm_core.registry.operations import operation
from mm_core.registry.references import find_any, find_available
from mm_core.registry.signing import Keys, Trust
from mm_core.registry.state import Operation, State, open_claim
from mm_core.registry.writer import cleaned, default_writer
from mm_core.schemas import (
    Manifest,
    ModelEntry,
    ModelStatus,
    ModelType,
    StoredFile,
    rfc3339,
    sha256_hex,
)
from mm_core.sink import NamingSink, Sink, read_bytes

if TYPE_CHECKING:  # and imported where they are used: a short command uses few
    from mm_core.registry.claims import Claim
    from mm_core.registry.history import Rollback
    from mm_core.registry.memory import Memory
    from mm_core.registry.queries import Query
    from mm_core.registry.reading import Reading, Readings
    from mm_core.registry.view import JsonView

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Cache(NamedTuple):
    """Entries as they are after commit `seq`."""

    seq: int
    entries: dict[str, ModelEntry | None]


class ModelRegistry:
    """The registry of one store: a log of commits, each an exclusive create.

    Give it the `sink` that holds the models, or a `registry_file`: then the
    registry lies in the folder beside it with ``.d`` added to its name, and the
    file is a JSON view of it, written for people and never read.

    Any number of instances, threads, processes and machines may use one store.
    Every query first asks the store for what is new, which costs one read of an
    absent object; `get_model_cached` does not. All methods raise `AuthError`,
    `StorageError`, `IntegrityError` (the log is damaged) and, if the store stays
    away for `commit_timeout` seconds, `TransientError`. Those that write raise
    `CommitUnknownError` when it could not be found out whether the commit was
    made; asking again is safe.

    `claim_timeout` is the age in seconds at which a heartbeat counts as dead.
    `writer` is noted in each commit, for people; else ``user@host/pid``.
    `memory` is a folder that remembers the highest commit seen of each registry:
    one that went back behind it is refused (`IntegrityError`) until `accept`.
    `keys` name the key that signs what is committed, and those without whose
    signature nothing is believed.
    `cache` is a folder for a copy of the state on this disk, which spares `query`,
    `resolve`, `aliases` and `reading` from loading it; nothing that is written is
    decided by it. Without it they load the state.
    """

    # The newest commit that this process made, by root: tells caches that they are old.
    _written: ClassVar[dict[str, int]] = {}
    _written_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        sink: Sink | None = None,
        *,
        registry_file: Path | str | None = None,
        claim_timeout: float = 60.0,
        commit_timeout: float = 60.0,
        writer: str | None = None,
        cache: Path | None = None,
        memory: Path | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._view = None if registry_file is None else _view(registry_file)
        self._sink = _sink_beside(registry_file) if sink is None else sink
        self._claim_timeout = claim_timeout
        self._commit_timeout = commit_timeout
        writer = cleaned(writer) if writer else default_writer()
        self._log = Log(
            self._sink,
            timeout=commit_timeout,
            writer=writer,
            memory=None if memory is None else _memory(memory),
            trust=Trust(keys),
        )
        self._cache = _Cache(-1, {})
        self._cache_folder = cache if cache is None else self._log.trust.own_folder(cache)
        self._view_lock = threading.Lock()

    @property
    def sink(self) -> Sink:
        """Where the models and the registry lie."""
        return self._sink

    @property
    def id(self) -> str | None:
        """The store's own id, from its ``format.json``; None while nobody has written to it."""
        found = self._log.format
        return None if found is None else str(found["id"])

    @property
    def trust(self) -> Trust:
        """What this registry signs with, and whom it believes."""
        return self._log.trust

    @property
    def registry_file(self) -> Path | None:
        """The JSON view, if this registry was made with one."""
        return None if self._view is None else self._view.path

    def load(self) -> None:
        """Read everything anew from the store, and write the view anew."""
        state = self._log.reload()
        if self._view is not None:
            self._view.write(self._entries(state))

    def accept(self, *, vouch: bool = True) -> int:
        """Take the registry as it is now, also if it went back; the number of its last commit.

        With `vouch`, and a key to sign with, also what nobody has signed.
        """
        accepted = self._log.accept(vouch=vouch).seq
        self._readings.cached.discard()
        return accepted

    def refresh(self) -> None:
        """See what others have committed since."""
        self._log.refresh()

    # -- queries ---------------------------------------------------------------------

    def get_model(self, model_id: str, version: str | None = None) -> ModelEntry | None:
        """The entry of a version, whatever its status; None if there is none.

        Without `version`, the one that `resolve` would give, or else the newest.
        """
        return self._get(self._log.refresh(), model_id, version)

    def get_model_cached(self, model_id: str) -> ModelEntry | None:
        """`get_model` from memory.

        It sees every commit of this process, through whichever instance; those
        of other processes after the next `refresh`, `load` or other query.
        """
        state = self._log.known
        if state is None or state.seq < self._written.get(self._sink.root, 0):
            state = self._log.refresh()
        cache = self._cache
        if cache.seq != state.seq:
            self._cache = cache = _Cache(state.seq, {})
        if model_id not in cache.entries:
            cache.entries[model_id] = self._get(state, model_id, None)
        return cache.entries[model_id]

    def list_models(
        self,
        *,
        model_id: str | None = None,
        status: ModelStatus | None = None,
        model_type: ModelType | None = None,
        include_deleted: bool = False,
    ) -> list[ModelEntry]:
        """All versions, of one model or of all, by model id and then by age.

        Those that are DELETED or SWEEPING are left out unless `status` names
        them or `include_deleted` is set.
        """
        hidden = () if include_deleted or status else (ModelStatus.DELETED, ModelStatus.SWEEPING)
        return [
            entry_of(self._sink, record, row)
            for record, row in self._log.refresh().rows()
            if row["status"] not in hidden
            and model_id in (None, record.model_id)
            and (status is None or row["status"] == status)
            and (model_type is None or row.get("model_type") == model_type)
        ]

    def query(self, query: Query) -> list[ModelEntry]:
        """The versions that `query` wants, in its order; see docs/queries.md."""
        return self._readings.now.query(query)

    def reading(
        self, *, as_of: int | str | datetime | None = None, offline: bool = False
    ) -> Reading:
        """The same questions put to a former state, or to the cache without asking the store.

        `as_of` is the number of a commit or a time. `UsageError` for one that
        means nothing, `NotFoundError` for one that is not there, `OfflineError`
        where there is no cache.
        """
        return self._readings.at(as_of, offline=offline)

    def resolve(self, reference: str) -> ModelEntry:
        """The AVAILABLE version that ``ID``, ``ID@VERSION``, ``ID@ALIAS`` or ``ID:ALIAS`` names.

        A bare id means its alias ``latest``, or else the version added last.
        `NotFoundError` if there is none.
        """
        if self._cache_folder is not None:
            return self._readings.now.resolve(reference)
        record, row = find_available(self._log.refresh(), reference)
        return entry_of(self._sink, record, row)

    def aliases(self, model_id: str | None = None) -> dict[str, dict[str, str]]:
        """The aliases of one model or of all: model id -> alias -> version."""
        if self._cache_folder is not None:
            return self._readings.now.aliases(model_id)
        return {
            record.model_id: dict(sorted(record.aliases.values()))
            for _, record in sorted(self._log.refresh().models.items())
            if record.aliases and model_id in (None, record.model_id)
        }

    def history(
        self,
        model_id: str | None = None,
        *,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> list[CommitRecord]:
        """All commits, or those that touch a model, oldest first.

        Reads the whole log and checks its chain: `IntegrityError` names the
        first commit that was changed, damaged or lost. With `limit`, the newest
        so many, and the log is read back no further than that takes. `since` is
        compared with the time that each writer noted.
        """
        from mm_core.registry import history

        if limit is None:
            return list(history.since(history.touching(self._log.records(), model_id), since))
        state = self._log.refresh()
        records = history.newest_first_over_gaps(self._sink, state, self._deadline, self._log.trust)
        found = history.since(history.touching(records, model_id), since)
        return list(islice(found, min(limit, sys.maxsize)))[::-1]

    def commits(self) -> Iterator[CommitRecord]:
        """As `history` without a limit, one by one: a long log need not be held."""
        return self._log.records()

    def manifest(self, entry: ModelEntry) -> Manifest:
        """The file list of a version. `NotFoundError` for one that was only registered."""
        sha256 = entry.manifest
        if sha256 is None:
            raise NotFoundError(
                f"{entry.model_id}@{entry.version} has no manifest",
                hint="it was registered by path or is not complete; pull it to have one",
            )
        return self._patiently(lambda: read_manifest(self._sink, sha256))

    def note_content(self, file: StoredFile) -> None:
        """Leave a hint for `find_content` that a file of an AVAILABLE version has these bytes.

        Nothing depends on it: no error is raised.
        """
        from mm_core.registry import by_sha256

        by_sha256.note(self._sink, file)

    def find_content(self, sha256: str, *, size: int | None = None) -> str | None:
        """The key of a file of an AVAILABLE version that should have this sha256; None if unknown.

        A hint, as of the newest commit that this registry knows: the file stands
        and has that `size`, but its bytes are not read. Costs two requests, and
        raises nothing for a store that does not answer.
        """
        from mm_core.registry import by_sha256

        state = self._log.known or self._log.refresh()
        return by_sha256.find(self._sink, state, sha256, size)

    def store_time(self) -> datetime:
        """What time it is by the store's own clock, found out by writing a small object."""
        from mm_core.registry.claims import store_time

        return self._patiently(lambda: store_time(self._sink)) or datetime.now(timezone.utc)

    def claimed_prefixes(self, *, silent_for: float) -> list[str]:
        """The folders that are being filled: their versions' claims are open.

        Left out are the claims of those who have given no sign of life for
        `silent_for` seconds, or for twice their time-out, whichever is longer.
        """
        from mm_core.registry.claims import is_silent

        now, least = self.store_time(), max(silent_for, 2 * self._claim_timeout)
        return [
            version_prefix(record.model_id, row["version"])
            for record, row in self._log.refresh().rows()
            if open_claim(row) and not is_silent(self._sink, row, seconds=least, now=now)
        ]

    def holds(self, claim: Claim) -> bool:
        """Whether `claim` is still open, by the newest commit."""
        return open_claim(self._log.refresh().row(claim.model_id, claim.version)) == claim.id

    def state(self) -> State:
        """All that stands after the newest commit, as the log has it."""
        return self._log.refresh()

    def commit(self, operations: Sequence[Operation]) -> State:
        """Commit `operations`, all or none, as `docs/storage-format.md` tells; the state after.

        `ConflictError` or `NotFoundError` if one is not allowed.
        """
        return self._commit(operations)

    # -- entries whose files the caller looks after ----------------------------------

    def add_model(self, entry: ModelEntry) -> bool:
        """Register an entry as it stands, with its own path and aliases.

        False, and no change, if its model id and version are there already and
        not DELETED.
        """
        register = operation(
            "register", entry.model_id, version=entry.version, **registered_fields(entry)
        )
        try:
            self._commit([register, *_alias_operations(entry, entry.aliases)])
        except ConflictError:
            row = self._log.refresh().row(entry.model_id, entry.version)
            if row is None or row["status"] == ModelStatus.DELETED:
                raise
            return False
        return True

    def update_model_status(
        self, model_id: str, status: ModelStatus, *, version: str | None = None
    ) -> bool:
        """Set the status of a version (by default of `get_model`'s); False if there is none.

        `ConflictError` while it is being pulled or swept.
        """
        if status == ModelStatus.SWEEPING:
            raise UsageError("SWEEPING is set by sweep() only")
        entry = self.get_model(model_id, version)
        if entry is None:
            return False
        value = ModelStatus(status).value
        try:
            self._commit([operation("status", entry.model_id, version=entry.version, status=value)])
        except NotFoundError:
            return False
        return True

    # -- a pull ----------------------------------------------------------------------

    def begin(
        self,
        model_id: str,
        version: str,
        *,
        model_type: ModelType = ModelType.OTHER,
        source: str | None = None,
        wait: bool = True,
        on_wait: Callable[[ModelEntry], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> Claim | ModelEntry:
        """A `Claim` on a version that is to be filled, or the entry if it is AVAILABLE.

        Where another's claim is open, wait until the version is there and return
        its entry, or take the claim over when its heartbeat has died; `on_wait`
        is called once, with the entry that is waited for. With ``wait=False``
        that is a `ConflictError` instead. A version under sweep is waited for, too.

        `ConflictError` if the version's folder would share files with another's;
        `CancelledError` when `cancelled` is set.
        """
        from mm_core.registry.begin import Beginner

        names = check_model_id(model_id), check_version(version)
        fields = {"model_type": ModelType(model_type).value, "source": source, "date": _now()}
        beginner = Beginner(
            self._log, self._commit, names, claim_timeout=self._claim_timeout, fields=fields
        )

        def tell(state: State) -> None:
            if on_wait is not None:
                on_wait(self._entry(state, *names))

        begun = beginner.run(
            wait=wait, on_wait=tell, cancelled=threading.Event() if cancelled is None else cancelled
        )
        return self._entry(begun, *names) if isinstance(begun, State) else begun

    def add(self, claim: Claim, manifest: Manifest, *, aliases: Sequence[str] = ()) -> ModelEntry:
        """Make the claimed version AVAILABLE and let `aliases` name it, in one commit.

        All files of `manifest` must be stored by now. `ConflictError` if the
        claim was abandoned or taken over. Doing it again is safe.
        """
        if (manifest.model_id, manifest.version) != (claim.model_id, claim.version):
            raise UsageError(
                f"a manifest of {manifest.model_id}@{manifest.version} cannot end the claim on "
                f"{claim.model_id}@{claim.version}"
            )
        sha256 = self._store_manifest(manifest)
        add = operation(
            "add",
            claim.model_id,
            id=f"{claim.id}-add",
            version=claim.version,
            claim=claim.id,
            manifest=sha256,
            date=_now(),
            **added_fields(manifest),
        )
        try:
            state = self._commit([add, *_alias_operations(claim, aliases, id_prefix=claim.id)])
        except ConflictError:
            state = self._log.refresh()
            row = state.row(claim.model_id, claim.version) or {}
            if (row.get("claim"), row.get("manifest")) != (claim.id, sha256):
                raise
        claim.discard()
        return self._entry(state, claim.model_id, claim.version)

    def abandon(self, claim: Claim, reason: str) -> None:
        """Give a claim up: the version is FAILED, and what is stored of it can be taken up again.

        No effect if the claim is not open any more.
        """
        claim.close()
        names = {"version": claim.version, "claim": claim.id}
        try:
            self._commit([operation("abandon", claim.model_id, **names, reason=reason)])
        except ConflictError:
            logger.info("the claim was closed already", extra={"claim": claim.id})
        claim.discard()

    # -- changes ---------------------------------------------------------------------

    def remove(self, model_id: str, version: str) -> ModelEntry:
        """Take a version out of use: DELETED, its aliases gone. Its files stay until swept.

        `NotFoundError` if there is none; `ConflictError` while it is being pulled.
        """
        return self._change("remove", model_id, version)

    def sweep(self, model_id: str, version: str) -> ModelEntry:
        """Lock a DELETED, FAILED or unknown version, so that its files may be deleted.

        Between this and `swept` nobody can begin it. Safe to call again.
        """
        return self._change("sweep", model_id, version)

    def swept(self, model_id: str, version: str) -> None:
        """Forget a version whose files are deleted."""
        version = check_version(version)
        self._commit([operation("swept", check_model_id(model_id), version=version)])

    def set_alias(
        self,
        model_id: str,
        alias: str,
        version: str,
        *,
        expect: str | EllipsisType | None = ...,
    ) -> ModelEntry:
        """Let `alias` name an AVAILABLE version, and return its entry.

        With `expect`, only if the alias names that version now (None: if there
        is no such alias); otherwise `ConflictError`.
        """
        fields: dict[str, Any] = {"version": check_version(version), "alias": check_alias(alias)}
        if not isinstance(expect, EllipsisType):
            fields["expect"] = expect or ""
        model_id = check_model_id(model_id)
        state = self._commit([operation("alias", model_id, **fields)])
        return self._entry(state, model_id, fields["version"])

    def rollback(self, model_id: str, alias: str, *, steps: int = 1) -> Rollback:
        """Let `alias` name the version that it named `steps` versions ago, and say which.

        What a rollback left behind does not count, so that two of one step are
        one of two. `NotFoundError` if it named no such version, or one that is
        not AVAILABLE any more; `ConflictError` if somebody moves it meanwhile.
        """
        from mm_core.registry import history

        if steps < 1:
            raise UsageError(f"a rollback goes back by one step or more, not {steps}")
        names, state = (check_model_id(model_id), check_alias(alias)), self._log.refresh()
        records = history.newest_first(self._sink, state, self._deadline)
        plan = history.plan_rollback(state, records, *names, steps=steps)
        try:
            self._commit([plan.operation()])
        except CommitUnknownError as error:  # doing it again would go back further
            error.hint = f"see what it names now with `mm alias list {names[0]}` before you go on"
            raise
        return plan

    def remove_alias(self, model_id: str, alias: str) -> None:
        """Forget an alias. `NotFoundError` if there is none."""
        self._commit([operation("unalias", check_model_id(model_id), alias=check_alias(alias))])

    # -- within ----------------------------------------------------------------------

    @cached_property
    def _readings(self) -> Readings:
        from mm_core.registry.reading import Readings

        return Readings(self._log, self._cache_folder, self._deadline, self.manifest)

    def _commit(self, operations: Sequence[Operation]) -> State:
        if self._view is not None:
            self._view.check()
        state = self._log.commit(operations)
        with self._written_lock:
            root = self._sink.root
            self._written[root] = max(state.seq, self._written.get(root, 0))
        if self._cache_folder is not None:
            self._readings.cached.committed(state)
        self._show(state)
        if isinstance(self._sink, NamingSink):
            from mm_core.registry.naming import tell_names

            tell_names(self._sink, self._log, operations)
        return state

    def _show(self, state: State) -> None:
        if self._view is None:
            return
        try:
            with self._view_lock:
                self._view.write(self._entries(self._log.known or state))
        except MMError as error:  # what was committed stays committed
            logger.warning("the view could not be written", extra={"error": str(error)})

    def _change(self, op: str, model_id: str, version: str) -> ModelEntry:
        model_id, version = check_model_id(model_id), check_version(version)
        return self._entry(
            self._commit([operation(op, model_id, version=version)]), model_id, version
        )

    def _store_manifest(self, manifest: Manifest) -> str:
        data = manifest.to_bytes()
        sha256 = sha256_hex(data)
        key = manifest_key(sha256)
        if (
            not create_once(self._sink, key, data, self._deadline())
            and self._patiently(lambda: read_bytes(self._sink, key)) != data  # damaged on its way?
        ):
            raise IntegrityError(
                f"{key} at {self._sink.root} holds other bytes than its name says",
                hint="delete that object and try again",
            )
        return sha256

    def _get(self, state: State, model_id: str, version: str | None) -> ModelEntry | None:
        found = find_any(state, model_id, version)
        return None if found is None else entry_of(self._sink, *found)

    def _entry(self, state: State, model_id: str, version: str) -> ModelEntry:
        record = state.record(model_id)
        row = record.row(version) if record else None
        if record is None or row is None:
            raise NotFoundError(
                f"{model_id}@{version} is gone again: it was removed after this was done",
                hint="see `mm history` for who removed it",
            )
        return entry_of(self._sink, record, row)

    def _entries(self, state: State) -> list[ModelEntry]:
        return [entry_of(self._sink, record, row) for record, row in state.rows()]

    def _deadline(self) -> Deadline:
        return Deadline(self._commit_timeout)

    def _patiently(self, action: Callable[[], T]) -> T:
        return self._deadline().persist(action)


def _view(path: Path | str) -> JsonView:
    from mm_core.registry.view import JsonView

    return JsonView(Path(path))


def _sink_beside(registry_file: Path | str | None) -> Sink:
    from mm_core.registry.view import sink_beside

    return sink_beside(registry_file)


def _memory(folder: Path) -> Memory:
    from mm_core.registry.memory import Memory

    return Memory(folder)


def _alias_operations(
    named: ModelEntry | Claim, aliases: Sequence[str], *, id_prefix: str | None = None
) -> list[Operation]:
    return [
        operation(
            "alias",
            named.model_id,
            id=f"{id_prefix}-alias-{alias}" if id_prefix else None,
            version=named.version,
            alias=alias,
        )
        for alias in map(check_alias, aliases)
    ]


def _now() -> str:
    return rfc3339(datetime.now(timezone.utc))
