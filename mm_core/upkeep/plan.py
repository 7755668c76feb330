"""What has to be done for what a survey found: commits, then a checkpoint, then versions."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from mm_core.exceptions import StorageError
from mm_core.registry.layout import (
    FORMAT,
    FORMAT_KEY,
    FORMAT_VERSION,
    HINT_KEY,
    LOG_PREFIX,
    SIGNATURE_PREFIX,
    log_key,
    manifest_key,
)
from mm_core.registry.signing import Trust
from mm_core.registry.state import GENESIS, Record, Row, State, is_available
from mm_core.schemas import canonical_json, sha256_hex
from mm_core.signatures.shelf import is_whole, manifest_of_key
from mm_core.upkeep.believing import refuse_to_vouch
from mm_core.upkeep.commits import BROKEN, Link, link_of, number_of, stand_in
from mm_core.upkeep.copies import Copies
from mm_core.upkeep.rebuild import Attempt, LostVersion, Refused, lost_versions, manifest_anew
from mm_core.upkeep.steps import Left, RepairPlan, Step, folder_of
from mm_core.upkeep.store import QUARANTINE_PREFIX, Store, in_windows, quarantine_key
from mm_core.upkeep.survey import NO_FORMAT, Survey, commits_in_pack
from mm_core.upkeep.walk import Walk, walk


def make_plan(
    store: Store,
    found: Survey,
    *,
    copies: Copies | None = None,
    refused: Sequence[Refused] = (),
    trust: Trust | None = None,
) -> RepairPlan:
    """What has to be done for what a survey found."""
    trust = trust or Trust()
    steps = list(_format_steps(store, found, copies))
    steps += _log_steps(found, _Elsewhere(store, found, copies), trust)
    after = _after(found, steps)
    if after.needs_fence:
        steps.append(_fence(after, trust))
        after = _after(found, steps)
    way = walk(store, after)
    bridging = list(_checkpoint_steps(after, way))
    if steps or bridging:
        refuse_to_vouch(store, after, way, trust)
    versions = _Versions(store, copies, may_add=not trust.checks)
    if way.skipped or any(link.stands_in and not link.fence for link in after.links.values()):
        versions.find_lost(way.state, {one.lost.attempt for one in refused})
    versions.look_at_manifests(way.state, {one.lost.attempt for one in refused})
    return RepairPlan(
        steps=(*steps, *bridging, *versions.steps, *_signature_steps(store)),
        state=way.state,
        lost=tuple(versions.lost),
        left=tuple(versions.left),
    )


def _after(found: Survey, steps: Sequence[Step]) -> Survey:
    """The survey as it will be when the `steps` on the log are done."""
    made = [
        link_of(number_of(step.key), step.data)
        for step in steps
        if step.data is not None and step.key.startswith(LOG_PREFIX)
    ]
    top = max([found.top, *(link.seq for link in made)])
    return found.mended({**found.links, **{link.seq: link for link in made}}, top)


def knowing(found: Survey, copies: Mapping[int, Link]) -> Survey:
    """`found`, where a backup names what nothing else does: lost commits, also after the last.

    It condemns nothing that stands and can be read: what was committed since may
    well be another commit than one that was lost before.
    """
    bad, top = dict(found.bad), found.top
    for seq in sorted(copies):
        link, before = copies[seq], found.links.get(seq - 1)
        if seq > top + 1 or (seq <= top and bad.get(seq, {""})):
            continue
        known = bad.get(seq - 1) or {before.sha256 if before and seq - 1 not in bad else GENESIS}
        if link.prev in known:
            bad[seq] = {link.sha256}
            top = max(top, seq)
    vouched = {**found.vouched, **{seq: bad[seq] for seq in bad if bad[seq]}}
    return replace(found, bad=bad, top=top, vouched=vouched)


def _format_steps(store: Store, found: Survey, copies: Copies | None) -> Iterator[Step]:
    if found.format is not None or (found.format_problem == NO_FORMAT and found.is_empty):
        return
    if found.is_empty and not found.checkpoints:
        raise StorageError(
            f"{FORMAT_KEY} cannot be read, and there is nothing else that tells of a registry",
            hint="is this the right backend? a registry's own objects lie below .mm/",
        )
    known = copies.format if copies else None
    made = known or {"format": FORMAT, "version": FORMAT_VERSION, "id": str(uuid.uuid4())}
    standing = store.read(FORMAT_KEY)
    yield Step(
        action="format",
        key=FORMAT_KEY,
        why=f"{found.format_problem}; it is made anew"
        + ("" if known else ", with a new id, since nothing tells the old one"),
        data=canonical_json(made),
        was=sha256_hex(standing) if standing is not None else None,
    )


def _log_steps(found: Survey, elsewhere: _Elsewhere, trust: Trust | None) -> Iterator[Step]:
    standing = dict(found.links)
    for seq, named in sorted(found.bad.items()):
        link = found.links.get(seq)
        was = link.sha256 if link else None
        data, origin = elsewhere.find(seq, named)
        if data is not None:
            why = f"its own bytes are in {origin}"
            yield Step(action="put_back", key=log_key(seq), why=why, data=data, was=was)
        elif link is not None and link.stands_in:
            continue
        else:
            data = _replacement(found, standing, seq, trust)
            why = "its own bytes are nowhere: an empty commit stands in for it"
            yield Step(action="stand_in", key=log_key(seq), why=why, data=data, was=was)
        standing[seq] = link_of(seq, data)


def _replacement(
    found: Survey, standing: Mapping[int, Link], seq: int, trust: Trust | None
) -> bytes:
    """The commit that stands in for `seq`: it follows what is before it, if that is all there is.

    Where a checkpoint knows more than the log does now, the log must not be read over
    the gap as if nothing had been there.
    """
    before = standing.get(seq - 1)
    link = found.links.get(seq)
    prev = GENESIS if seq == 1 else before.sha256 if before else BROKEN
    if found.checkpoint_at_or_after(seq) is not None:
        prev = BROKEN
    return stand_in(
        seq,
        prev,
        time=before.time if before else Link(seq=0, sha256="", prev=None).time,
        aside=quarantine_key(log_key(seq), link.sha256) if link else None,
        trust=trust,
    )


def _fence(found: Survey, trust: Trust | None) -> Step:
    last, seq = found.links[found.top], found.top + 1
    return Step(
        action="fence",
        key=log_key(seq),
        why="an empty commit, so that nobody goes on from the one that is lost",
        data=stand_in(seq, last.sha256, time=last.time, aside=None, fence=True, trust=trust),
    )


def _checkpoint_steps(found: Survey, way: Walk) -> Iterator[Step]:
    damaged = dict.fromkeys(found.damaged_checkpoints, "its hash is wrong")
    damaged |= dict.fromkeys(found.damaged_packs, "its hash is wrong")
    damaged |= dict.fromkeys(way.wrong, "it does not say what the log says")
    if way.state.seq and (damaged or way.stuck or found.needs_hint):
        why = found.hint_problem or "so that a reader need not pass what was damaged"
        yield Step(action="checkpoint", key=HINT_KEY, why=f"a new checkpoint and hint: {why}")
    elif found.needs_hint:
        yield Step(action="set_aside", key=HINT_KEY, why=str(found.hint_problem))
    for key, why in sorted(damaged.items()):
        yield Step(action="set_aside", key=key, why=why)


def _signature_steps(store: Store) -> Iterator[Step]:
    """Signatures that are damaged say nothing any more; those who made them may do so again."""
    keys = [s.key for s in store.list(SIGNATURE_PREFIX) if manifest_of_key(s.key)]
    for key, data in in_windows(store.read, keys):
        if data is not None and not is_whole(key, data):
            why = "it is a signature, and damaged: sign the version again"
            yield Step(action="set_aside", key=key, why=why)


# -- where right bytes may be found ---------------------------------------------------------


class _Elsewhere:
    """Copies of commits: in packs, in the quarantine of an earlier repair, in a backup."""

    def __init__(self, store: Store, found: Survey, copies: Copies | None) -> None:
        self._store = store
        self._found = found
        self._copies = copies
        self._packs: dict[str, dict[int, bytes]] = {}

    def find(self, seq: int, named: set[str]) -> tuple[bytes | None, str]:
        """The bytes of commit `seq` with one of the hashes `named`, and where they were."""
        for data, origin in self._candidates(seq) if named else ():
            if sha256_hex(data) in named:
                return data, origin
        return None, ""

    def _candidates(self, seq: int) -> Iterator[tuple[bytes, str]]:
        for pack in self._found.packs if seq in self._found.packed else ():
            if pack not in self._packs:
                packed = self._store.read(pack)
                commits = commits_in_pack(pack, packed) if packed is not None else None
                self._packs = {pack: commits or {}}  # one, not all
            if seq in self._packs[pack]:
                yield self._packs[pack][seq], pack
        data = self._copies.get(log_key(seq)) if self._copies else None
        if data is not None:
            yield data, "the backup"
        for stored in self._store.list(f"{QUARANTINE_PREFIX}{log_key(seq)}-"):
            data = self._store.read(stored.key)
            if data is not None:
                yield data, stored.key


class _Versions:
    """Versions that are lost, and the manifests of those that are not: what can be done.

    Where `may_add` is not set, nothing is added again: no signature is on a manifest
    that no commit names.
    """

    def __init__(self, store: Store, copies: Copies | None, *, may_add: bool) -> None:
        self._store = store
        self._copies = copies
        self._may_add = may_add
        self.steps: list[Step] = []
        self.lost: list[LostVersion] = []
        self.left: list[Left] = []

    def find_lost(self, state: State, but: Collection[Attempt]) -> None:
        """The complete versions that the log has lost, but for those that were tried."""
        complete, damaged = lost_versions(self._store, state)
        for lost in complete:
            if lost.attempt not in but:
                self._add_again(lost, "is complete, and no commit adds it any more")
        for key in damaged:
            why = "it is damaged, and if it was that of a lost version, nothing tells which"
            self.steps.append(Step(action="set_aside", key=key, why=why))
            hint = "repair with --from BACKUP; else pull again what `mm list` has no more"
            self.left.append(Left(key=key, why=why, hint=hint))

    def look_at_manifests(self, state: State, but: Collection[Attempt]) -> None:
        """The manifests of AVAILABLE versions that are lost or damaged."""
        rows = [(r, row) for r, row in state.rows() if is_available(row) and row.get("manifest")]
        for (record, row), standing in in_windows(self._standing, rows):
            if standing != row["manifest"]:
                self._mend(record, row, standing, but)

    def _standing(self, item: tuple[Record, Row]) -> str | None:
        data = self._store.read(manifest_key(item[1]["manifest"]))
        return sha256_hex(data) if data is not None else None

    def _mend(
        self, record: Record, row: Row, standing: str | None, but: Collection[Attempt]
    ) -> None:
        key, name = manifest_key(row["manifest"]), f"{record.model_id}@{row['version']}"
        how = "damaged" if standing else "missing"
        data = self._copies.get(key) if self._copies else None
        if data is not None and sha256_hex(data) == row["manifest"]:
            why = f"the manifest of {name} is {how}; its own bytes are in the backup"
            self.steps.append(Step(action="put_back", key=key, why=why, data=data, was=standing))
            return
        anew = manifest_anew(self._store, record, row) if self._may_add else None
        if anew is None:
            why = f"the manifest of {name} is {how}, and cannot be made anew"
            hint = f"repair with --from BACKUP, or `mm rm {name}` and pull it again"
            self.left.append(Left(key=key, why=why, hint=hint))
        elif anew.attempt in but:
            why = f"the manifest of {name} is {how}, and another is at work on that version"
            self.left.append(Left(key=key, why=why, hint="repair again when nobody is"))
        else:
            why = f"had a manifest that is {how}; it gets a new one, of the files that stand"
            self._add_again(anew, why)
            if standing:
                self.steps.append(Step(action="set_aside", key=key, why=f"it is {how}"))

    def _add_again(self, lost: LostVersion, why: str) -> None:
        key, why = folder_of(lost), f"{lost.name} {why}"
        if self._may_add:
            self.lost.append(lost)
            self.steps.append(Step(action="add_again", key=key, why=why))
        else:
            hint = (
                "where keys are trusted it is not added again by itself: pull it again, "
                "before `mm gc` deletes its files"
            )
            self.left.append(Left(key=key, why=why, hint=hint))
