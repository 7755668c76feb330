"""Models that are there already become entries of a registry, and what need not move stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mm_core.adopted import Adopted, AdoptedModel, AdoptWishes
from mm_core.backends import open_source
from mm_core.claiming import abandoned_on_error, begin
from mm_core.exceptions import CancelledError, MMError, NotFoundError, UsageError
from mm_core.manifests import manifest_of
from mm_core.mending import refuse_another
from mm_core.names import check_model_id, check_version, version_prefix
from mm_core.place import Place
from mm_core.planning import make_plan
from mm_core.redaction import redact_url
from mm_core.registry.layout import FORMAT_KEY
from mm_core.schemas import (
    Action,
    ModelEntry,
    Plan,
    PlannedFile,
    Pulled,
    Request,
    Snapshot,
    StoredFile,
)
from mm_core.sink import Sink
from mm_core.standing import StandingSource
from mm_core.street import Street
from mm_core.transfer.stop import Stop

_REGISTRY = ".mm"
_MODELS = "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that is to be adopted, by names that are not checked yet.

    `prefix` is that of its keys in the backend itself, or in `elsewhere`, another
    root of the same store; None where a source has to read it.
    """

    address: str
    model_id: str | None
    version: str | None = None
    aliases: tuple[str, ...] = ()
    prefix: str | None = None
    elsewhere: Sink | None = None

    @property
    def how(self) -> str:
        """``in place``, or ``copy`` within the store, or ``bring`` from its source."""
        if self.prefix is None:
            return "bring"
        return "in place" if self.elsewhere is None else "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopter:
    """Adopts models into `place`."""

    street: Street
    place: Place
    wishes: AdoptWishes = field(default_factory=AdoptWishes)
    cancelled: threading.Event | None = None

    def adopt(self, address: str) -> Adopted:
        """Adopt what stands at `address`: a URL, a folder, or a layout that a plugin knows.

        Raises `NotFoundError` where nothing is there, `UsageError` for what cannot be.
        """
        found = list(self._found(address))
        if not found:
            raise NotFoundError(
                f"there is no model at {redact_url(address)}",
                hint="look at --depth: each folder so many levels below is taken for a model",
            )
        self._refuse_one_name_for_many(found)
        return Adopted(
            backend=self.place.name,
            models=tuple(self._adopted(one) for one in found),
            dry_run=self.wishes.dry_run,
        )

    # -- what there is ---------------------------------------------------------------

    def _found(self, address: str) -> Iterator[Found]:
        address = _as_path(address)
        if not address.strip():
            raise UsageError("no address is given", hint="name a folder or a URL; . is this one")
        known = self.street.plugins.hook.mm_models_in(address=address)
        prefix = None if known else prefix_in(self.place.sink, address)
        if known:
            yield from map(_from_layout, known)
        elif prefix is not None:
            yield from self._standing(self.place.sink, prefix, None)
        elif "://" not in address:
            yield from self._folders(Path(address).expanduser().resolve())
        elif (other := self._of_same_store(address)) is not None:
            yield from self._standing(other, "", other)
        else:
            yield self._from_source(address)

    def _standing(self, sink: Sink, prefix: str, elsewhere: Sink | None) -> Iterator[Found]:
        """The models below a prefix of a sink, by one listing."""
        if elsewhere is None and prefix.split("/", maxsplit=1)[0] in (_REGISTRY, _MODELS):
            yield _in_own_folder(sink, prefix)
            return
        top, depth, seen = f"{prefix}/" if prefix else "", self.wishes.depth, set[str]()
        if not top and not depth and elsewhere is None:
            raise UsageError(
                f"{sink.root} is the backend itself, which holds its registry and models",
                hint="name a folder below it, or take each such folder for a model with --depth 1",
            )
        if elsewhere is None and prefix:
            _refuse_anothers(sink, prefix)
        for stored in sink.list(top):
            parts = stored.key[len(top) :].split("/")
            below = "/".join(parts[:depth])
            ours = not top and elsewhere is None and parts[0] in (_REGISTRY, _MODELS)
            if not ours and _REGISTRY in parts[: depth + 1]:
                raise _a_backend(
                    sink.url(f"{top}{below}".rstrip("/")) if top or below else sink.root
                )
            if not ours and stored.key.endswith(f"/{FORMAT_KEY}"):
                raise _a_backend(sink.url(stored.key.removesuffix(f"/{FORMAT_KEY}")))
            if ours or len(parts) <= depth or below in seen:
                continue
            seen.add(below)
            folder = f"{top}{below}".rstrip("/")
            url = sink.url(folder) if folder else sink.root
            yield Found(
                address=url,
                model_id=below or url.rpartition("/")[2],
                prefix=f"{folder}/" if folder else "",
                elsewhere=elsewhere,
            )

    def _folders(self, top: Path) -> Iterator[Found]:
        if not top.is_dir():
            raise NotFoundError(f"there is no folder {str(top)!r}", hint="check the path")
        depth = self.wishes.depth
        for folder in sorted(top.glob("/".join(["*"] * depth))) if depth else [top]:
            if str(folder) == self.place.sink.root:
                continue
            if (folder / FORMAT_KEY).exists():
                raise _a_backend(str(folder))
            if folder.is_dir():
                _refuse_to_hold(folder, self.place.sink.root)
                below = folder.relative_to(top).as_posix()
                yield Found(address=str(folder), model_id=below if depth else folder.name)

    def _from_source(self, address: str) -> Found:
        if self.wishes.depth:
            raise UsageError(
                f"what is below {redact_url(address)} cannot be listed by this backend",
                hint="adopt into a backend of the same kind, or pull the models one by one",
            )
        return Found(address=address, model_id=None)

    def _of_same_store(self, address: str) -> Sink | None:
        """Another root of the backend's own store, reached just as the backend is."""
        sink = self.place.sink
        if urlsplit(address).scheme.lower() not in sink.schemes:
            return None
        other = type(sink)(sink.config.model_copy(update={"root": address.rstrip("/")}))
        return other if sink.copies_from(other) else None

    def _refuse_one_name_for_many(self, found: list[Found]) -> None:
        wishes, ids = self.wishes, [one.model_id for one in found]
        if len(found) == 1:
            return
        if wishes.model_id is not None and (wishes.depth or len(set(ids)) > 1):
            raise UsageError(
                f"there are {len(found)} models, and --as names one",
                hint="leave it out, or adopt one of the folders alone",
            )
        if len(set(ids)) < len(ids) and (wishes.version is not None or wishes.aliases):
            raise UsageError(
                "there are several versions of one model, and one name cannot be that of all",
                hint="leave out --version and --alias, or adopt one of them alone",
            )

    # -- one of them -----------------------------------------------------------------

    def _adopted(self, found: Found) -> AdoptedModel:
        told = AdoptedModel(
            address=redact_url(found.address),
            model_id=self.wishes.model_id or found.model_id or "",
            version=self.wishes.version or found.version,
            how=found.how,
        )
        stop = Stop(self.street.cancelled, self.cancelled)
        if stop.is_set():
            raise CancelledError("stopped")
        try:
            request = self._request(found)
            if self.wishes.dry_run:
                return told
            pulled = self._bring(found, request, stop)
        except CancelledError:
            raise
        except MMError as error:
            return replace(told, error=error)
        in_place = found.how == "in place"
        return replace(
            told,
            model_id=pulled.entry.model_id,
            version=pulled.entry.version,
            entry=pulled.entry,
            fetched_bytes=pulled.fetched_bytes,
            copied_bytes=pulled.copied_bytes,
            in_place_bytes=pulled.present_bytes if in_place else 0,
        )

    def _request(self, found: Found) -> Request:
        wishes = self.wishes
        return Request(
            url=found.address,
            model_id=wishes.model_id or found.model_id,
            version=wishes.version or found.version,
            aliases=(*wishes.aliases, *(found.aliases if wishes.with_aliases else ())),
            share=wishes.share,
        )

    def _bring(self, found: Found, request: Request, stop: Stop) -> Pulled:
        if found.prefix is None:
            source, url = open_source(self.street.settings, self.street.plugins, request.url)
            request = replace(request, url=url)
        else:
            sink = found.elsewhere or self.place.sink
            jobs = self.wishes.jobs or self.street.options.jobs
            source = StandingSource(sink, found.prefix, jobs=jobs, cancelled=stop)
            if found.elsewhere is None:
                return self._in_place(found.prefix, source, request, stop)
        try:
            return self.street.bring(
                self.place, source, request, jobs=self.wishes.jobs, cancelled=stop
            )
        finally:
            source.close()

    def _in_place(
        self, prefix: str, source: StandingSource, request: Request, stop: Stop
    ) -> Pulled:
        """Make an entry of what stands below `prefix` in the backend; no file is touched."""
        registry, snapshot = self.place.registry, source.snapshot(request)
        plan = self._plan_in_place(prefix, request, snapshot)
        self.street.ask_policies(self.place, plan)
        stored = tuple(map(_as_stored, plan.files))
        # Before the claim: of a version that failed, `gc` takes the files, and these are not ours.
        checks = self.street.ask_about_content(self.place, plan, stored, stop)
        tell = self.street.notices.event
        begun = begin(registry, plan, wait=True, on_event=tell, cancelled=stop)
        if isinstance(begun, ModelEntry):
            return self._already(plan, begun)
        with abandoned_on_error(registry, begun):
            source.confirm(snapshot)
            if begun.lost.is_set() or stop.is_set():
                raise CancelledError("stopped")
            entry = registry.add(begun, manifest_of(plan, stored, checks), aliases=plan.aliases)
        self.street.committed(self.place, entry)
        return Pulled(entry=entry, backend=self.place.name, present_bytes=entry.size_bytes)

    def _plan_in_place(self, prefix: str, request: Request, snapshot: Snapshot) -> Plan:
        plan = make_plan(
            replace(request, revision=snapshot.revision),  # as it stands there, and no other
            snapshot,
            present={file.extra["key"]: file.size or 0 for file in snapshot.files},
            known={},
            case_blind=self.place.sink.case_blind,
            prefix=prefix,
        )
        own = version_prefix(plan.model_id, plan.version)
        if prefix.split("/", maxsplit=1)[0] == _MODELS and prefix != own:
            raise UsageError(
                f"{prefix} is where a version of another name would stand, not {plan.model_id}",
                hint=f"files below {_MODELS}/ belong to the version that their folder names: "
                "leave out --as and --version",
            )
        return plan

    def _already(self, plan: Plan, entry: ModelEntry) -> Pulled:
        registry = self.place.registry
        refuse_another(registry.manifest(entry), plan)
        for alias in plan.aliases:
            entry = registry.set_alias(entry.model_id, alias, entry.version)
        return Pulled(entry=entry, backend=self.place.name, present_bytes=entry.size_bytes)


def _as_stored(planned: PlannedFile) -> StoredFile:
    """A file that was hashed where it stands."""
    return StoredFile(
        path=planned.file.path,
        key=planned.key,
        size=planned.file.size or 0,
        sha256=planned.file.sha256 or "",
        action=Action.PRESENT,
    )


def prefix_in(sink: Sink, address: str) -> str | None:
    """Where below the root of `sink` the address is, without slashes around it; None if elsewhere.

    A folder of a disk that holds links counts as elsewhere: a sink follows none.
    """
    if "://" in sink.root:
        scheme, _, rest = address.rstrip("/").partition("://")
        kind, _, root = sink.root.partition("://")
        same = scheme.lower() == kind or {scheme.lower(), kind} <= {*sink.schemes}
        below = rest[len(root) :] if same and f"{rest}/".startswith(f"{root}/") else None
        return None if below is None else below.strip("/")
    if "://" in address:
        return None
    folder, root_folder = Path(address).expanduser().resolve(), Path(sink.root)
    if not folder.is_relative_to(root_folder) or not folder.is_dir():
        return None
    if any(path.is_symlink() for path in folder.rglob("*")):
        return None
    return "" if folder == root_folder else folder.relative_to(root_folder).as_posix()


def _refuse_anothers(sink: Sink, prefix: str) -> None:
    """Raise `UsageError` if what is below `prefix` is kept, and deleted, by another backend."""
    parts = prefix.split("/")
    for depth in range(1, len(parts) + 1):
        folder = "/".join(parts[:depth])
        if sink.stat(f"{folder}/{FORMAT_KEY}") is not None:
            raise _a_backend(sink.url(folder))


def _refuse_to_hold(folder: Path, root: str) -> None:
    """Raise `UsageError` if the backend at `root` lies in `folder`: it would hold itself."""
    if "://" not in root and Path(root).is_relative_to(folder):
        raise UsageError(
            f"the backend itself, {root}, lies in {folder}", hint="name the folder of one model"
        )


def _a_backend(where: str) -> UsageError:
    return UsageError(
        f"{where} is a backend of its own, with a registry",
        hint="copy its versions: mm copy --all --from there --to here",
    )


def _in_own_folder(sink: Sink, prefix: str) -> Found:
    """A version's folder below ``models/`` that no registry knows, such as after its loss."""
    top, *parts = prefix.split("/")
    if top == _REGISTRY or len(parts) < 2:
        raise UsageError(
            f"{sink.url(prefix)} holds what the backend itself keeps there",
            hint="name the folder of one version, models/ID/VERSION, or one outside of models/",
        )
    return Found(
        address=sink.url(prefix),
        model_id=check_model_id("/".join(parts[:-1])),
        version=check_version(parts[-1]),
        prefix=f"{prefix}/",
    )


def _from_layout(request: Request) -> Found:
    return Found(
        address=request.url,
        model_id=request.model_id,
        version=request.version,
        aliases=tuple(request.aliases),
    )


def _as_path(address: str) -> str:
    """The path of a ``file://`` URL; any other address as it is."""
    parts = urlsplit(address)
    local = parts.scheme.lower() == "file" and parts.netloc in ("", "localhost")
    return url2pathname(parts.path) if local else address
