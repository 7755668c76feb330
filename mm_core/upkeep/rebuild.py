"""Versions that the log has lost, found again by their manifests and the files that stand."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mm_core.exceptions import ConflictError, IntegrityError, MMError, NotFoundError
from mm_core.names import version_prefix
from mm_core.registry.claims import is_silent, store_time
from mm_core.registry.entries import added_fields, files_prefix
from mm_core.registry.log import Log
from mm_core.registry.operations import operation
from mm_core.registry.state import Operation, Record, Row, State, open_claim, status_of
from mm_core.schemas import (
    Manifest,
    ModelStatus,
    ModelType,
    StoredFile,
    StoredObject,
    rfc3339,
    sha256_hex,
)
from mm_core.upkeep.store import MANIFEST_PREFIX, Store, in_windows

_MANIFEST = re.compile(re.escape(MANIFEST_PREFIX) + r"([0-9a-f]{64})\.json")
_BATCH = 100
_SILENT_FOR = 60.0


Attempt = tuple[str, tuple[str, ...] | None]
"""A manifest, and the aliases of its version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostVersion:
    """A version that is complete, and that the log does not have as AVAILABLE."""

    manifest: Manifest
    sha256: str
    date: str
    aliases: tuple[str, ...] | None = None
    """For a version that is AVAILABLE and whose manifest is lost: what names it."""
    former: str | None = None
    """The sha256 of the manifest that is lost."""

    @property
    def name(self) -> str:
        """Model and version."""
        return f"{self.manifest.model_id}@{self.manifest.version}"

    @property
    def attempt(self) -> Attempt:
        """What would be tried: of one whose aliases have moved it is another."""
        return self.sha256, self.aliases


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A lost version that could not be added again, and why."""

    lost: LostVersion
    error: MMError


def lost_versions(store: Store, state: State) -> tuple[list[LostVersion], list[str]]:
    """The complete versions that `state` does not have, by model and version.

    Complete is a version of which every file of a manifest stands with its size;
    where two manifests fit, or a row tells of another attempt that may have written
    there since, the one whose hashes are right. Left out are versions
    that were removed, and those that somebody is pulling now. Beside them the keys
    of manifests that no version names and that are damaged: what they were of,
    nobody knows.
    """
    named = {row.get("manifest") for _, row in state.rows()}
    listed = [
        stored
        for stored in store.list(MANIFEST_PREFIX)
        if (name := _MANIFEST.fullmatch(stored.key)) and name[1] not in named
    ]
    found: dict[tuple[str, str], list[LostVersion]] = {}
    damaged: list[str] = []
    for stored, lost in in_windows(lambda stored: _read(store, stored), listed):
        if lost is None:
            damaged.append(stored.key)
        elif _may_return(store, state, lost.manifest):
            found.setdefault((lost.manifest.model_id, lost.manifest.version), []).append(lost)
    complete = [
        lost
        for names, rivals in sorted(found.items())
        for lost in _complete(store, rivals, hash_all=state.row(*names) is not None)
    ]
    return complete, damaged


def add_again(log: Log, lost: Sequence[LostVersion]) -> tuple[list[LostVersion], list[Refused]]:
    """Commit `lost` as AVAILABLE, some of them in each commit; what was done, and what was not.

    A version that another adds, removes or begins meanwhile is refused, and stays theirs.
    """
    done: list[LostVersion] = []
    refused: list[Refused] = []
    for start in range(0, len(lost), _BATCH):
        batch = lost[start : start + _BATCH]
        try:
            _commit(log, batch)
            done += batch
        except (ConflictError, NotFoundError):
            for one in batch:
                try:
                    _commit(log, [one])
                    done.append(one)
                except (ConflictError, NotFoundError) as error:
                    refused.append(Refused(lost=one, error=error))
    return done, refused


def _commit(log: Log, batch: Sequence[LostVersion]) -> None:
    state = log.refresh()
    log.commit([item for lost in batch for item in _operations(state, lost)])


def manifest_anew(store: Store, record: Record, row: Row) -> LostVersion | None:
    """A new manifest for an AVAILABLE version whose own is lost, from the files that stand.

    None where they are not of the size that the version had. Every file is read and
    hashed; what the old one said of the source beyond the row is lost.
    """
    prefix = files_prefix(record.model_id, row["version"], row.get("folder"))
    standing = store.list(prefix)
    if not standing or sum(stored.size for stored in standing) != row.get("size_bytes"):
        return None
    hashes = dict(in_windows(store.sha256, [s.key for s in standing]))
    if None in hashes.values():  # somebody is at work there
        return None
    metadata = row.get("metadata", {})
    manifest = Manifest(
        model_id=record.model_id,
        version=row["version"],
        model_type=ModelType.from_tag(row.get("model_type")),
        files=tuple(
            StoredFile(
                path=stored.key[len(prefix) :],
                key=stored.key,
                size=stored.size,
                sha256=hashes[stored.key] or "",
            )
            for stored in standing
        ),
        source=row.get("source"),
        revision=metadata.get("revision"),
        license=metadata.get("license"),
        extra={"rebuilt": True},
    )
    return LostVersion(
        manifest=manifest,
        sha256=sha256_hex(manifest.to_bytes()),
        date=row.get("date") or rfc3339(datetime.now(timezone.utc)),
        aliases=record.aliases_of(row["version"]),
        former=row["manifest"],
    )


def _operations(state: State, lost: LostVersion) -> Iterator[Operation]:
    """What adds a version again. Where it is another by now, or named otherwise, it is refused."""
    manifest = lost.manifest
    names = {"version": manifest.version}
    if lost.aliases is not None:
        row = state.row(manifest.model_id, manifest.version) or {}
        if row.get("manifest") != lost.former:
            raise ConflictError(f"{lost.name} was replaced meanwhile")
        reason, expect = "its manifest is lost", list(lost.aliases)
        yield operation("remove", manifest.model_id, **names, reason=reason, expect=expect)
    held = open_claim(state.row(manifest.model_id, manifest.version))
    if held is not None:
        reason = "the commit that added it is lost"
        yield operation("abandon", manifest.model_id, **names, claim=held, reason=reason)
    facts: dict[str, Any] = {
        **names,
        "claim": f"repair-{uuid.uuid4().hex}",
        "date": lost.date,
    }
    known = {"model_type": manifest.model_type.value, "source": manifest.source}
    yield operation("begin", manifest.model_id, **facts, **known)
    yield operation(
        "add", manifest.model_id, **facts, manifest=lost.sha256, **added_fields(manifest)
    )
    for alias in lost.aliases or ():
        yield operation("alias", manifest.model_id, **names, alias=alias, expect="")


def _read(store: Store, stored: StoredObject) -> LostVersion | None:
    data = store.read(stored.key)
    name = _MANIFEST.fullmatch(stored.key)
    if data is None or name is None or sha256_hex(data) != name[1]:
        return None
    try:
        manifest = Manifest.from_bytes(data)
    except IntegrityError:
        return None
    return LostVersion(manifest=manifest, sha256=name[1], date=rfc3339(stored.modified))


def _may_return(store: Store, state: State, manifest: Manifest) -> bool:
    """Whether the row of its version, if there is one, may be replaced."""
    row = state.row(manifest.model_id, manifest.version)
    if not manifest.files:
        return False
    if row is None or status_of(row) is ModelStatus.FAILED:
        return True
    return status_of(row) is ModelStatus.DOWNLOADING and _is_over(store, row)


def _is_over(store: Store, row: Row) -> bool:
    if open_claim(row) is None:
        return True
    now = store.persist(lambda: store_time(store.sink))
    if now is None:
        return False
    return store.persist(lambda: is_silent(store.sink, row, seconds=_SILENT_FOR, now=now))


def _complete(store: Store, rivals: Sequence[LostVersion], *, hash_all: bool) -> list[LostVersion]:
    prefix = version_prefix(rivals[0].manifest.model_id, rivals[0].manifest.version)
    sizes = {stored.key: stored.size for stored in store.list(prefix)}
    fitting = [lost for lost in rivals if _stands(store, lost.manifest, sizes)]
    if len(fitting) > 1 or hash_all:
        fitting = [lost for lost in fitting if _is_right(store, lost.manifest)]
    return fitting[:1]


def _stands(store: Store, manifest: Manifest, sizes: dict[str, int]) -> bool:
    for file in manifest.files:
        size = sizes.get(file.key)
        if size is None:
            stored = store.persist(lambda key=file.key: store.sink.stat(key))  # type: ignore[misc]
            size = stored.size if stored else None
        if size != file.size:
            return False
    return True


def _is_right(store: Store, manifest: Manifest) -> bool:
    hashes = in_windows(lambda file: store.sha256(file.key), manifest.files)
    return all(sha256 == file.sha256 for file, sha256 in hashes)
