"""A registry in one file, and back.

The file is a zip of the registry's own objects under their keys: ``format.json``,
the whole log, the newest checkpoint, the manifests and the signatures; then
``backup.json``, which says what it is. The models' files are not in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mm_core.exceptions import ConflictError, IntegrityError, NotFoundError
from mm_core.registry.layout import (
    CHECKPOINT_PREFIX,
    FORMAT_KEY,
    LOG_PREFIX,
    SIGNATURE_PREFIX,
    log_key,
    probe_exclusive_create,
    read_format,
)
from mm_core.registry.signing import Trust
from mm_core.registry.state import State, is_available
from mm_core.schemas import canonical_json, rfc3339, sha256_hex
from mm_core.signatures.shelf import is_whole, manifest_of_key
from mm_core.sink import Sink
from mm_core.tally import Tally, Tell, say_nothing
from mm_core.upkeep.believing import refuse_to_vouch
from mm_core.upkeep.copies import BACKUP_FORMAT, BACKUP_VERSION, CONTENTS, Copies, refuse_another
from mm_core.upkeep.files import written_at_once
from mm_core.upkeep.saving import write_checkpoint
from mm_core.upkeep.store import MANIFEST_PREFIX, Store, in_windows
from mm_core.upkeep.survey import Survey, survey
from mm_core.upkeep.walk import walk


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """A backup that was written: up to commit `seq`, `objects` in all."""

    path: Path
    seq: int
    objects: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "path": str(self.path),
            "seq": self.seq,
            "objects": self.objects,
            "bytes": self.size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did: `created` objects were missing, `present` stood there already."""

    created: int
    present: int
    seq: int
    head: str

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {"created": self.created, "present": self.present, "seq": self.seq}


def backup(
    sink: Sink,
    path: Path,
    *,
    overwrite: bool = False,
    timeout: float = 60.0,
    tell: Tell = say_nothing,
) -> BackedUp:
    """Write the registry in `sink` into one file, and read that file back.

    Others may commit meanwhile: the backup ends with the last commit that was there
    at its beginning. Written beside `path` and put there in one step. The models'
    files are not in it. `tell` hears how far it is.

    Raises `NotFoundError` where there is no registry, `IntegrityError` for one that
    is damaged (repair it first), `AlreadyExistsError` where `path` is taken.
    """
    store = Store(sink, timeout=timeout)
    if read_format(sink, store.deadline()) is None:
        raise NotFoundError(
            f"there is no registry at {sink.root}",
            hint="nothing was ever written to it; or if so, see `mm registry check`",
        )
    found = survey(store)
    state = _sound(store, found)
    with written_at_once(path, overwrite=overwrite) as staged:
        _write(store, found, state, staged, tell)
        with contextlib.closing(Copies(staged)) as copies:
            verify_backup(copies)
            objects = len(copies.keys)
        size = staged.stat().st_size
    return BackedUp(path=path, seq=state.seq, objects=objects, size=size)


def verify_backup(copies: Copies) -> State:
    """Raise `IntegrityError` unless a backup is whole and its log leads to its last commit."""
    digest = hashlib.sha256()
    for key, data in in_windows(copies.get, copies.keys):
        digest.update(_line(key, data or b""))
        if not _is_right(key, data):
            raise _damaged(copies, f"{key} is not what its name says")
    if digest.hexdigest() != copies.contents.get("sha256"):
        raise _damaged(copies, "its objects are not those that it was made of")
    store = Store(copies)
    state = _sound(store, survey(store))
    if (state.seq, state.head) != (copies.contents.get("seq"), copies.contents.get("head")):
        raise _damaged(copies, "its log does not lead to the commit that it says")
    return state


def restore(
    sink: Sink,
    path: Path,
    *,
    timeout: float = 60.0,
    trust: Trust | None = None,
    tell: Tell = say_nothing,
) -> Restored:
    """Create what a backup holds and `sink` lacks; nothing that stands is ever replaced.

    The whole backup is verified before anything is written; where `trust` believes only
    some keys, what it leads to must be signed. Nobody should write to an
    empty root while it is being restored: who does is told of a conflict, or is the
    reason for one here. An interrupted restore is done again, and goes on. `tell` hears
    how far it is.

    Raises `IntegrityError` for a damaged backup, `ConflictError` where another registry
    is in `sink`, or the same one with other bytes somewhere: then `repair` with the
    backup as its source of copies is meant.
    """
    store = Store(sink, timeout=timeout)
    with contextlib.closing(Copies(path)) as copies:
        state = verify_backup(copies)
        _refuse_strangers(copies, trust)
        refuse_another(store, copies)
        missing = _missing(store, copies)
        if FORMAT_KEY in missing:
            probe_exclusive_create(sink, timeout=timeout)
        tally = Tally(tell, "created", len(missing), "objects")
        for key, made in in_windows(lambda key: _create(store, copies, key), missing):
            tally.add()
            if not made:
                raise _differs(store, [key])
        if state.seq and not any(True for _ in store.list(log_key(state.seq + 1))):
            write_checkpoint(store, state, trust)
        created, present = len(missing), len(copies.keys) - len(missing)
    return Restored(created=created, present=present, seq=state.seq, head=state.head)


def _refuse_strangers(copies: Copies, trust: Trust | None) -> None:
    """Raise `IntegrityError` where a checkpoint of the backup's state should not be signed."""
    if trust is None or not trust.checks:
        return
    store = Store(copies)
    found = survey(store, trust)
    _sound(store, found)
    refuse_to_vouch(store, found, walk(store, found), trust)


def _sound(store: Store, found: Survey) -> State:
    """The state of a log that can be read to its end; `IntegrityError` for another."""
    way = walk(store, found)
    lost = [seq for seq in found.bad if not _stands_in(found, seq)]
    if way.wrong:
        raise IntegrityError(
            f"the checkpoint {way.wrong[0]} at {store.sink.root} is not what the log says",
            hint="see `mm registry check`, then `mm registry repair`",
        )
    if lost or way.stuck or found.needs_fence:
        seq = min([*lost, *way.stuck, found.top])
        raise IntegrityError(
            f"the registry's log at {store.sink.root} is damaged at commit {seq}",
            hint="see `mm registry check`, then `mm registry repair`",
        )
    return way.state


def _stands_in(found: Survey, seq: int) -> bool:
    link = found.links.get(seq)
    return link is not None and link.stands_in


def _write(store: Store, found: Survey, state: State, path: Path, tell: Tell) -> None:
    digest = hashlib.sha256()
    keys = sorted(_keys(store, found, state))
    named = {row.get("manifest") for _, row in state.rows() if is_available(row)}
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        tally = Tally(tell, "read", len(keys), "objects")
        for key, data in in_windows(store.read, keys):
            tally.add()
            if data is None and key.startswith(CHECKPOINT_PREFIX):  # deleted by a writer at work
                continue
            if not _is_right(key, data):
                if key.startswith(MANIFEST_PREFIX) and key[-69:-5] not in named:
                    continue
                if key.startswith(SIGNATURE_PREFIX):  # damaged, or deleted by a collection
                    continue
                raise IntegrityError(
                    f"{key} at {store.sink.root} is damaged",
                    hint="see `mm registry check`, then `mm registry repair`",
                )
            assert data is not None
            digest.update(_line(key, data))
            archive.writestr(_entry(key), data, zipfile.ZIP_DEFLATED)
        contents = {
            "format": BACKUP_FORMAT,
            "version": BACKUP_VERSION,
            "registry": (found.format or {}).get("id"),
            "seq": state.seq,
            "head": state.head,
            "time": rfc3339(datetime.now(timezone.utc)),
            "sha256": digest.hexdigest(),
        }
        archive.writestr(_entry(CONTENTS), canonical_json(contents))


def _entry(key: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(key)
    entry.external_attr = 0o644 << 16
    return entry


def _keys(store: Store, found: Survey, state: State) -> Iterator[str]:
    yield FORMAT_KEY
    yield from (log_key(seq) for seq in found.links if seq <= state.seq)
    newest = max(found.checkpoints.items(), key=lambda item: item[1].seq, default=None)
    if newest is not None:
        yield newest[0]
    listed = {stored.key for stored in store.list(MANIFEST_PREFIX)}
    yield from listed
    yield from (s.key for s in store.list(SIGNATURE_PREFIX) if manifest_of_key(s.key))
    for record, row in state.rows():
        if is_available(row) and row.get("manifest"):
            key = f"{MANIFEST_PREFIX}{row['manifest']}.json"
            if key not in listed:
                raise IntegrityError(
                    f"the manifest of {record.model_id}@{row['version']} is missing",
                    hint="see `mm registry check`, then `mm registry repair`",
                )


def _is_right(key: str, data: bytes | None) -> bool:
    if data is None:
        return False
    if key.startswith(SIGNATURE_PREFIX):
        return is_whole(key, data)
    return not key.startswith(MANIFEST_PREFIX) or key == f"{MANIFEST_PREFIX}{sha256_hex(data)}.json"


def _line(key: str, data: bytes) -> bytes:
    return f"{sha256_hex(data)}  {key}\n".encode()


def _missing(store: Store, copies: Copies) -> list[str]:
    """The keys that are not in the store, the log's from its first number on, the log last."""
    differing: list[str] = []
    missing: list[str] = []

    def look(key: str) -> bytes | None:
        return store.read(key)

    for key, standing in in_windows(look, copies.keys):
        if standing is None:
            missing.append(key)
        elif standing != copies.get(key):
            differing.append(key)
    if differing:
        raise _differs(store, differing)
    order = (FORMAT_KEY, MANIFEST_PREFIX, SIGNATURE_PREFIX, CHECKPOINT_PREFIX, LOG_PREFIX)
    return sorted(missing, key=lambda key: (_place(key, order), key))


def _place(key: str, order: Iterable[str]) -> int:
    return next(place for place, prefix in enumerate(order) if key.startswith(prefix))


def _create(store: Store, copies: Copies, key: str) -> bool:
    data = copies.get(key)
    assert data is not None
    return store.create(key, data)


def _differs(store: Store, keys: list[str]) -> ConflictError:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return ConflictError(
        f"{keys[0]}{more} at {store.sink.root} holds other bytes than the backup; nothing was "
        "replaced",
        hint="`mm registry repair --from FILE` puts right bytes in the place of damaged ones; "
        "where both are right, the registry went on since: there is nothing to restore",
    )


def _damaged(copies: Copies, why: str) -> IntegrityError:
    return IntegrityError(f"the backup {copies.path} is damaged: {why}", hint="use another backup")
