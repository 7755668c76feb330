"""The street that all models walk: planned, claimed, carried, committed. The calls in a row."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mm_core.claiming import (
    abandoned_on_error,
    as_long_as_it_stands,
    begin,
    given_back,
    gone_if_refused,
    leave_only,
)
from mm_core.config import Settings
from mm_core.content import Content
from mm_core.equal_files import copies_in, copy_what_is_known, files_of_siblings, leave_hints
from mm_core.exceptions import ConflictError, PolicyError
from mm_core.hookspecs import PlanContext
from mm_core.manifests import bytes_by_action, manifest_of
from mm_core.mending import plan_mending, refuse_another, what_is_damaged, what_stands
from mm_core.names import version_prefix
from mm_core.notices import Notices
from mm_core.place import Place
from mm_core.planning import make_plan, name_version
from mm_core.plugins import Plugins
from mm_core.policing import Rules, Verdict, refuse, word_of_plugin
from mm_core.registry import Claim
from mm_core.schemas import (
    Action,
    ModelEntry,
    ModelStatus,
    Plan,
    PlannedFile,
    Pulled,
    RemoteFile,
    Request,
    Snapshot,
    StoredFile,
    TransferEvent,
)
from mm_core.signatures.making import bring_along
from mm_core.sink import Sink
from mm_core.source import Source
from mm_core.space import refuse_if_full, refuse_to_begin_if_full
from mm_core.tracing import note, span
from mm_core.transfer import TransferOptions, transfer
from mm_core.transfer.stop import Stop

_Carry = Callable[..., tuple[StoredFile, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Street:
    """The way from any source into any place, with what stands beside it: plugins, listeners.

    `cancelled` stops all that walks here.
    """

    settings: Settings
    plugins: Plugins
    notices: Notices
    options: TransferOptions
    cancelled: threading.Event
    rules: Rules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", Rules(self.settings, self.plugins))

    def heard_by(self, listener: Callable[[TransferEvent], None]) -> Street:
        """The same street, with one more who hears of all that happens on it."""
        street = replace(self, notices=self.notices.heard_by(listener))
        object.__setattr__(street, "rules", self.rules)  # which are made once
        return street

    def plan(self, place: Place, source: Source, request: Request) -> Plan:
        """What `bring` with the same arguments would do. Writes nothing.

        For a version that is there that is to mend it: what has the right size is
        present. Raises `ConflictError` where the stored version is another.
        """
        plan = self._plan(place, source, request, source.snapshot(request))
        self.ask_policies(place, plan)
        entry = place.registry.get_model(plan.model_id, plan.version)
        if entry is None or entry.status is not ModelStatus.AVAILABLE:
            return plan
        return _plan_mending(place, plan, entry)

    def bring(
        self,
        place: Place,
        source: Source,
        request: Request,
        *,
        jobs: int | None = None,
        wait: bool = True,
        cancelled: threading.Event | None = None,
        read_copies: bool = False,
    ) -> Pulled:
        """Make what `request` asks of `source` AVAILABLE in `place`, in one commit at the end.

        With `read_copies`, what a store copied by itself is read back and hashed, too.
        """
        with span("mm.pull", model=request.model_id, source=request.url, backend=place.name):
            pulled = self._brought(
                place,
                source,
                request,
                jobs,
                wait=wait,
                cancelled=cancelled,
                read_copies=read_copies,
            )
            note(bytes=pulled.fetched_bytes, size=pulled.entry.size_bytes)
            return pulled

    def _brought(
        self,
        place: Place,
        source: Source,
        request: Request,
        jobs: int | None,
        *,
        wait: bool,
        cancelled: threading.Event | None,
        read_copies: bool,
    ) -> Pulled:
        registry, stop = place.registry, Stop(self.cancelled, cancelled)
        snapshot = source.snapshot(request)
        plan = self._plan(place, source, request, snapshot, cancelled=stop)
        note(model=plan.model_id, version=plan.version)
        self.ask_policies(place, plan)
        refuse_to_begin_if_full(registry, plan)
        carry = partial(
            self.carry, source=source, sink=place.sink, jobs=jobs, read_copies=read_copies
        )
        begun = begin(registry, plan, wait=wait, on_event=self.notices.event, cancelled=stop)
        if isinstance(begun, ModelEntry):
            # No claim is held here: whoever mends leaves nothing that another would take up.
            return self._already(place, plan, begun, partial(carry, parts=False), stop)
        with abandoned_on_error(registry, begun):
            # The claim is ours only now: look again at what earlier attempts left.
            plan = self._plan(place, source, request, snapshot, known=copies_in(plan))
            refuse_if_full(place.sink, plan)
            stored = carry(plan, stop=Stop(stop, begun.lost))
            if any(planned.action is Action.COPY for planned in plan.files):
                source.confirm(snapshot)
            with gone_if_refused(registry, begun):
                checks = self.ask_about_content(place, plan, stored, Stop(stop, begun.lost))
            leave_only(registry, begun, stored)
            manifest = manifest_of(plan, stored, checks)
            bring_along(place.sink, manifest, snapshot.signatures, self.plugins.signers)
            entry = registry.add(begun, manifest, aliases=plan.aliases)
        leave_hints(stored, registry, jobs=self.settings.defaults.connections)
        self.committed(place, entry)
        moved = bytes_by_action(stored)
        return Pulled(entry=entry, backend=place.name, left_out=plan.left_out, **moved)

    @contextlib.contextmanager
    def ahead(
        self,
        place: Place,
        source: Source,
        request: Request,
        *,
        worth: Callable[[Plan], bool],
        cancelled: threading.Event,
    ) -> Iterator[Plan | None]:
        """What a `bring` that comes after will do, claimed until then, for who begins with a part.

        None where there is nothing to begin: the version is there, in the hands of another, or
        its plan not `worth` it. The policies are asked first. `cancelled` stops the asking.
        """
        snapshot = source.snapshot(request)
        plan = self._plan(place, source, request, snapshot, cancelled=cancelled)
        self.ask_policies(place, plan)
        begun = self._claimed(place, plan, cancelled) if worth(plan) else None
        if begun is None:
            yield None
            return
        with given_back(place.registry, begun, "a part of it came ahead; a pull goes on"):
            yield self._plan(place, source, request, snapshot, known=copies_in(plan))

    def _claimed(self, place: Place, plan: Plan, cancelled: threading.Event) -> Claim | None:
        refuse_to_begin_if_full(place.registry, plan)
        try:
            begun = begin(
                place.registry, plan, wait=False, on_event=self.notices.event, cancelled=cancelled
            )
        except ConflictError:
            return None
        return None if isinstance(begun, ModelEntry) else begun

    def carry(
        self,
        plan: Plan,
        *,
        source: Source,
        sink: Sink,
        jobs: int | None,
        stop: Stop,
        parts: bool = True,
        read_copies: bool = False,
    ) -> tuple[StoredFile, ...]:
        """`transfer`, by the settings, heard by all who listen."""
        options = replace(
            self.options, jobs=jobs or self.options.jobs, parts=parts, read_copies=read_copies
        )
        return transfer(
            plan, source, sink, options=options, on_event=self.notices.event, cancelled=stop
        )

    def ask_policies(self, place: Place, plan: Plan) -> None:
        """Let all policies and plugins look at `plan`; the errors of those who refuse it pass."""
        refuse(self.rules.about_plan(place, plan), plan, place.name)
        self._show_plan(place, plan)

    def ask_about_content(
        self, place: Place, plan: Plan, stored: tuple[StoredFile, ...], stop: Stop
    ) -> Mapping[str, Any]:
        """Let all policies and plugins look at what is stored, and return what policies noted.

        The errors of those who refuse it pass.
        """
        jobs = self.settings.defaults.connections
        content = Content.stored(place.sink, stored, stopped=stop.is_set, jobs=jobs)
        rulings, facts = self.rules.about_content(place, plan, content)
        refuse(rulings, plan, place.name)
        self.show_stored(place, stored)
        return facts

    def show_stored(self, place: Place, stored: tuple[StoredFile, ...]) -> None:
        """Let every plugin look at each stored file; the errors of those who refuse one pass."""
        for file in stored:
            self.plugins.hook.mm_file_stored(file=file, sink=place.sink)

    def verdict(self, place: Place, source: Source, request: Request, *, read: bool) -> Verdict:
        """What the policies of `place` say of a model that is still at its source.

        With `read`, also of its bytes, of which as little is read as they ask for.
        Neither reads nor writes anything in `place`.
        """
        snapshot = source.snapshot(request)
        plan = make_plan(request, snapshot, present={}, known={}, case_blind=place.sink.case_blind)
        rulings = self.rules.about_plan(place, plan)
        facts: dict[str, Any] = {}
        try:
            self._show_plan(place, plan)
        except PolicyError as error:
            rulings.append(word_of_plugin("mm_plan_made", error))
        if read:
            jobs = self.settings.defaults.connections
            content = Content.remote(source, plan.snapshot.files, jobs=jobs)
            found, facts = self.rules.about_content(place, plan, content)
            rulings += found
        return Verdict(
            plan=plan,
            backend=place.name,
            rulings=tuple(rulings),
            checks=facts,
            read=read,
            unread=tuple(file.path for file in snapshot.files if file.size is None),
        )

    def scan(self, place: Place, source: Source, request: Request) -> Verdict:
        """What the policies that look for pickles say of a model, wherever it is; no others.

        Reads from the source what they need, and writes nothing.
        """
        snapshot = source.snapshot(request)
        plan = make_plan(request, snapshot, present={}, known={})
        jobs = self.settings.defaults.connections
        content = Content.remote(source, plan.snapshot.files, jobs=jobs)
        rules = self.rules.only(place, "formats", "scan")
        rulings, facts = self.rules.about_content(place, plan, content, rules)
        return Verdict(
            plan=plan,
            backend=place.name,
            rulings=tuple(rulings),
            checks=facts,
            read=True,
            unread=tuple(file.path for file in plan.snapshot.files if file.size is None),
        )

    def _show_plan(self, place: Place, plan: Plan) -> None:
        context = PlanContext(backend=place.name, policies=self.settings.policies)
        self.plugins.hook.mm_plan_made(plan=plan, context=context)

    def committed(self, place: Place, entry: ModelEntry) -> None:
        """Tell everybody that `entry` is AVAILABLE."""
        size = entry.size_bytes
        self.notices.event(
            TransferEvent(kind="committed", model_id=entry.model_id, done=size, total=size)
        )
        self.notices.hook("mm_committed", entry=entry, backend=place.name)

    def _plan(
        self,
        place: Place,
        source: Source,
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
        if all(_is_handed_over(file, source, place.sink) for file in snapshot.files):
            known = {}  # nobody needs to look for equal bytes
        elif known is None:
            known = files_of_siblings(registry, model_id, but=version)
        plan = make_plan(
            request,
            snapshot,
            present={stored.key: stored.size for stored in place.sink.list(prefix)},
            known=known,
            case_blind=place.sink.case_blind,
        )
        plan = _let_store_copy(plan, source, place.sink)
        if search:
            plan = copy_what_is_known(
                plan,
                registry,
                jobs=self.settings.defaults.connections,
                cancelled=Stop(self.cancelled, cancelled),
            )
        return plan

    def _already(
        self, place: Place, plan: Plan, entry: ModelEntry, carry: _Carry, stop: Stop
    ) -> Pulled:
        """The entry that is there, whole again, if it is what the plan asks for."""
        mending = what_is_damaged(_plan_mending(place, plan, entry))
        refuse_if_full(place.sink, mending)
        with as_long_as_it_stands(place.registry, entry) as changed:
            mended = carry(mending, stop=Stop(stop, changed)) if mending.files else ()
        if plan.snapshot.signatures:
            manifest = place.registry.manifest(entry)
            bring_along(place.sink, manifest, plan.snapshot.signatures, self.plugins.signers)
        for alias in plan.aliases:
            entry = place.registry.set_alias(entry.model_id, alias, entry.version)
        moved = bytes_by_action(mended)
        moved["present_bytes"] += entry.size_bytes - sum(file.size for file in mended)
        return Pulled(entry=entry, backend=place.name, left_out=plan.left_out, **moved)


def _let_store_copy(plan: Plan, source: Source, sink: Sink) -> Plan:
    """`plan`, with a copy by the store in place of all that `source` can have copied there."""

    def handed_over(planned: PlannedFile) -> PlannedFile:
        if planned.action is Action.PRESENT or not _is_handed_over(planned.file, source, sink):
            return planned
        return replace(planned, action=Action.COPY, copy_from=None)

    return replace(plan, files=tuple(map(handed_over, plan.files)))


def _is_handed_over(file: RemoteFile, source: Source, sink: Sink) -> bool:
    return file.sha256 is not None and source.copies_to(file, sink)


def _plan_mending(place: Place, plan: Plan, entry: ModelEntry) -> Plan:
    """`plan` for the version that is there, if it is what the plan asks for."""
    manifest = place.registry.manifest(entry)
    refuse_another(manifest, plan)
    return plan_mending(plan, manifest, present=what_stands(place.sink, manifest))
