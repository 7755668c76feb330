"""Save what the next new reader begins with: a pack often, a checkpoint seldom, then the hint.

Nothing here is needed: what fails is logged, and the log has it all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mm_core.exceptions import MMError
from mm_core.registry.checkpoint import checkpoint_key, encode
from mm_core.registry.hint import CHECKPOINT, PACK, Hint, Part, parse_hint, write_hint
from mm_core.registry.layout import CHECKPOINT_PREFIX, HINT_KEY, PACK_PREFIX
from mm_core.registry.pack import MOST_BYTES, Recent, append, pack_key
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import sha256_hex
from mm_core.sink import Sink, read_if_exists

logger = logging.getLogger(__name__)

INTERVAL = 32
_LARGE_COMMIT = 64 << 10
_TAIL_BYTES = 256 << 10
_LEAST_BYTES = 128 << 10
_KEPT_CHECKPOINTS = 3
_KEPT_PACKS = 3


def is_due(seq: int, size: int) -> bool:
    """Whether the writer of commit `seq`, of `size` bytes, should save for new readers."""
    return seq % INTERVAL == 0 or size > _LARGE_COMMIT


def save(
    sink: Sink, state: State, recent: Recent, *, whole: bool = False, trust: Trust | None = None
) -> None:
    """Write a longer pack of the commits since the last checkpoint, or a checkpoint, and the hint.

    A checkpoint where `whole` says so, where the hint names none that goes with
    this log, or where the packs would have more bytes than the last checkpoint
    (at least 128 KiB, at most 4 MiB): so the cost of checkpoints stays a share
    of that of commits, and what a new reader replays stays bounded.
    """
    try:
        hint = None if whole else parse_hint(read_if_exists(sink, HINT_KEY))
        if hint is not None and hint.seq >= state.seq:
            return
        if hint is None or not _save_pack(sink, state, recent, hint):
            _save_checkpoint(sink, state, trust)
    except MMError as error:
        facts = {"seq": state.seq, "error": str(error)}
        logger.warning("no checkpoint of the registry was written", extra=facts)


def _save_pack(sink: Sink, state: State, recent: Recent, hint: Hint) -> bool:
    commits = recent.between(hint.seq, state.seq)
    if not commits or json.loads(commits[0])["prev"] != hint.head:
        return False
    packs, added = hint.parts[1:], sum(len(commit) + 1 for commit in commits)
    limit = min(max(hint.checkpoint.size, _LEAST_BYTES), MOST_BYTES)
    if sum(pack.size for pack in packs) + added > limit:
        return False
    longer = _Longer.of(hint, added)
    data = longer.written(sink, commits)
    if data is None:
        return False
    pack = Part(
        seq=state.seq,
        key=pack_key(longer.first, state.seq, data),
        sha256=sha256_hex(data),
        size=sum(one.size for one in longer.packs) + added,
    )
    sink.put(pack.key, data)
    new = Hint(
        checkpoint=hint.checkpoint,
        middle=pack if longer.is_middle else hint.middle,
        pack=None if longer.is_middle else pack,
        head=state.head,
        former=tuple(one.key for one in longer.packs),
    )
    write_hint(sink, new)
    _delete_former(sink, hint, new)
    return True


@dataclass(frozen=True, slots=True)
class _Longer:
    """The packs that are to be one, and longer: the last, or both where that has grown large.

    So most savings write a short pack, and few a long one.
    """

    packs: tuple[Part, ...]
    first: int
    is_middle: bool

    @classmethod
    def of(cls, hint: Hint, added: int) -> _Longer:
        if (hint.pack.size if hint.pack else 0) + added > _TAIL_BYTES:
            return cls(hint.parts[1:], hint.checkpoint.seq + 1, is_middle=True)
        before = hint.middle or hint.checkpoint
        return cls((hint.pack,) if hint.pack else (), before.seq + 1, is_middle=False)

    def written(self, sink: Sink, commits: Sequence[bytes]) -> bytes | None:
        """The bytes of the pack with `commits` at its end; None if it cannot be had."""
        packed = [read_if_exists(sink, pack.key) for pack in self.packs]
        found = [data for data in packed if data is not None]
        if [sha256_hex(data) for data in found] != [pack.sha256 for pack in self.packs]:
            return None
        return append(b"".join(found), commits)


def _delete_former(sink: Sink, hint: Hint, new: Hint) -> None:
    """Delete what the hint before `hint` named; who reads by `hint` still finds all."""
    named = {*(part.key for part in new.parts), *new.former}
    gone = [key for key in hint.former if key not in named]
    if gone:
        sink.delete(gone)


def _save_checkpoint(sink: Sink, state: State, trust: Trust | None) -> None:
    data = encode(state, trust)
    key = checkpoint_key(state.seq, data)
    sink.put(key, data)
    part = Part(seq=state.seq, key=key, sha256=sha256_hex(data), size=len(data))
    write_hint(sink, Hint(checkpoint=part, head=state.head))
    old = [*_old_checkpoints(sink, state.seq, key), *_old_packs(sink, state.seq)]
    if old:
        sink.delete(old)


def _old_checkpoints(sink: Sink, seq: int, newest: str) -> list[str]:
    """All but the newest few, and of those before one for each doubling of the distance.

    What is left lets a past state be found without reading the whole log.
    """
    names = (CHECKPOINT.fullmatch(found.key) for found in sink.list(CHECKPOINT_PREFIX))
    older = [(int(name[1]), name[0]) for name in names if name and int(name[1]) < seq]
    kept: dict[int, str] = {}
    for number, key in older:
        kept.setdefault((seq - number).bit_length(), key)
    spared = {newest, *kept.values(), *(key for _, key in older[1 - _KEPT_CHECKPOINTS :])}
    return [key for _, key in older if key not in spared]


def _old_packs(sink: Sink, seq: int) -> list[str]:
    names = (PACK.fullmatch(found.key) for found in sink.list(PACK_PREFIX))
    old = sorted((int(name[2]), name[0]) for name in names if name and int(name[2]) <= seq)
    return [key for _, key in old[:-_KEPT_PACKS]]
