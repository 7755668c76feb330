"""Files of stored versions that are missing or wrong: brought again, bit by bit the same."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from mm_core.claiming import as_long_as_it_stands
from mm_core.equal_files import copy_what_is_known, files_of_siblings
from mm_core.exceptions import (
    CancelledError,
    IntegrityError,
    MMError,
    NotFoundError,
    TransientError,
)
from mm_core.mending import plan_mending
from mm_core.place import Place
from mm_core.planning import make_plan
from mm_core.registry import ModelRegistry
from mm_core.schemas import (
    Action,
    Manifest,
    ModelEntry,
    ModelStatus,
    PlannedFile,
    Request,
    StoredFile,
)
from mm_core.source import Source
from mm_core.stored import StoredSource
from mm_core.street import Street
from mm_core.transfer.stop import Stop
from mm_core.upkeep.store import Store, in_windows
from mm_core.verification import BadFile, MendedFile, VerifyReport, verify_entries

OpenSource = Callable[[Request], AbstractContextManager[tuple[Source, Request]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRepair:
    """Mends the files of one place. `open_source` opens where a version came from."""

    street: Street
    place: Place
    open_source: OpenSource

    def run(self, report: VerifyReport) -> VerifyReport:
        """Mend what `report` found; what was mended, and what is bad still, and why.

        What is wrong is set aside first: it is handed out to nobody any more, also where
        nothing brings it back. Then come equal bytes of the same backend, then the
        version's source; each must have the manifest's sha256 before it is visible.
        """
        by_version: dict[tuple[str, str], list[BadFile]] = {}
        for bad in report.bad:
            by_version.setdefault((bad.model_id, bad.version), []).append(bad)
        left: list[BadFile] = []
        mended: list[MendedFile] = []
        for (model_id, version), bads in by_version.items():
            try:
                found = self._of_version(model_id, version, bads)
            except (CancelledError, TransientError):
                raise
            except MMError as error:
                left += [replace(bad, reason=f"{bad.reason}; {error}") for bad in bads]
            else:
                left += found.bad
                mended += found.mended
        return VerifyReport(checked=report.checked, bad=tuple(left), mended=tuple(mended))

    def _of_version(self, model_id: str, version: str, bads: Sequence[BadFile]) -> VerifyReport:
        registry = self.place.registry
        entry = registry.get_model(model_id, version)
        if entry is None or entry.status is not ModelStatus.AVAILABLE:
            return VerifyReport(checked=0)  # removed meanwhile
        manifest = registry.manifest(entry)
        files = {file.path: file for file in manifest.files}
        broken = [files[bad.path] for bad in bads if bad.path in files]
        why = self._mend(entry, manifest, broken) if broken else None
        again = verify_entries(
            registry, [entry], deep=True, jobs=self.street.options.jobs, cancelled=self._stop()
        )
        still = {bad.path: bad for bad in again.bad}
        return VerifyReport(
            checked=again.checked,
            bad=tuple(
                bad if why is None else replace(bad, reason=f"{bad.reason}; {why}")
                for bad in still.values()
            ),
            mended=tuple(
                MendedFile(model_id=model_id, version=version, path=file.path)
                for file in broken
                if file.path not in still
            ),
        )

    def _mend(
        self, entry: ModelEntry, manifest: Manifest, broken: Sequence[StoredFile]
    ) -> str | None:
        """Bring `broken` again; why it could not be, where that is so."""
        store = Store(self.place.sink)
        with as_long_as_it_stands(self.place.registry, entry) as changed:
            for file in broken:
                if changed.is_set():
                    raise CancelledError("stopped")
                if store.set_aside(file.key) is not None:
                    store.delete([file.key])
            self._copy(manifest, broken, self._stop(changed))
            missing = [file for file in broken if store.sha256(file.key) != file.sha256]
            store.delete([file.key for file in missing])  # copies of what is damaged, too
        return self._fetch(entry, manifest, missing) if missing else None

    def _copy(self, manifest: Manifest, broken: Sequence[StoredFile], stop: Stop) -> None:
        """Copy what other versions in this backend have; what nobody has stays missing."""
        place, request = self.place, _request_for(manifest, broken)
        source = StoredSource(place.sink, manifest)
        registry = place.registry
        known = files_of_siblings(registry, manifest.model_id, but=manifest.version)
        plan = make_plan(request, source.snapshot(request), present={}, known=known)
        connections = self.street.settings.defaults.connections
        plan = copy_what_is_known(plan, registry, jobs=connections, cancelled=Stop(stop))
        wanted = {p.file.sha256 for p in plan.files if p.action is Action.FETCH}
        known = _anywhere(registry, manifest, wanted) if wanted else {}
        plan = replace(plan, files=tuple(_with_copy(p, known) for p in plan.files))
        plan = plan_mending(plan, manifest, present=_nothing)
        for copy in plan.files:
            if copy.action is not Action.COPY:
                continue
            alone = replace(plan, files=(copy,))
            its_own = Stop(stop)  # a copy that fails sets it, and stops no other
            with contextlib.suppress(
                NotFoundError, IntegrityError
            ):  # gone meanwhile, or wrong, too
                self.street.carry(
                    alone, source=source, sink=place.sink, jobs=None, stop=its_own, parts=False
                )

    def _fetch(
        self, entry: ModelEntry, manifest: Manifest, missing: Sequence[StoredFile]
    ) -> str | None:
        """Bring `missing` from the source; why that cannot be, else None.

        At the revision that was stored. Where that is gone, as the source has them now:
        only bytes with the same sha256 are taken.
        """
        if manifest.source is None:
            return "nothing tells where it came from"
        problem = ""
        for request in (
            _request_for(manifest, manifest.files),
            replace(_request_for(manifest, missing), revision=None),
        ):
            try:
                with self.open_source(request) as (source, in_its_words):
                    self.street.bring(self.place, source, in_its_words)
            except (CancelledError, TransientError):
                raise
            except MMError as error:
                why = " ".join(str(error).split())
                problem = problem or f"it cannot be brought from {manifest.source}: {why}"
            else:
                return None
        return problem

    def _stop(self, *more: threading.Event) -> Stop:
        return Stop(self.street.cancelled, *more)


_nothing: Mapping[str, int] = {}


def _anywhere(
    registry: ModelRegistry, but: Manifest, wanted: Collection[str | None]
) -> dict[str, str]:
    """The keys of files of any other version with the hashes `wanted`, by hash.

    Hints are written over by whoever comes last, so all manifests are asked.
    """

    def look(entry: ModelEntry) -> dict[str, str]:
        try:
            files = registry.manifest(entry).files
        except (NotFoundError, IntegrityError):  # verify tells of those
            return {}
        return {file.sha256: file.key for file in files if file.sha256 in wanted}

    others = [
        entry
        for entry in registry.list_models(status=ModelStatus.AVAILABLE)
        if entry.manifest and (entry.model_id, entry.version) != (but.model_id, but.version)
    ]
    known: dict[str, str] = {}
    for _, found in in_windows(look, others):
        known |= found
        if len(known) == len(wanted):
            break
    return known


def _with_copy(planned: PlannedFile, known: Mapping[str, str]) -> PlannedFile:
    key = known.get(planned.file.sha256 or "")
    if key is None or planned.action is not Action.FETCH:
        return planned
    return replace(planned, action=Action.COPY, copy_from=key)


def _request_for(manifest: Manifest, files: Sequence[StoredFile]) -> Request:
    """Exactly `files` of a version, as it was asked for."""
    return Request(
        url=manifest.source or "",
        revision=manifest.revision,
        include=[_literally(file.path) for file in files],
        model_id=manifest.model_id,
        version=manifest.version,
        model_type=manifest.model_type,
    )


def _literally(path: str) -> str:
    """A pattern that only `path` matches."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)
