"""Checkpoints: the whole state after some commit, so that a new reader need not start at 1.

They are a convenience: each can be lost or damaged, and the log still says it all.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from typing import Any

from mm_core.exceptions import IntegrityError, MMError
from mm_core.registry.chain import Patience
from mm_core.registry.layout import CHECKPOINT_PREFIX, HINT_KEY
from mm_core.registry.state import State
from mm_core.schemas import canonical_json, sha256_hex
from mm_core.sink import Sink, read_if_exists

logger = logging.getLogger(__name__)

INTERVAL = 32
_NAME = re.compile(re.escape(CHECKPOINT_PREFIX) + r"(\d{12})-([0-9a-f]{12})\.json\.gz")


def is_due(state: State) -> bool:
    """Whether the writer of commit `state.seq` should write a checkpoint.

    Every 32 commits, and twice as seldom with each doubling beyond 16,384 versions.
    """
    if state.seq == 0 or state.seq % INTERVAL:
        return False
    versions = sum(len(record.versions) for record in state.models.values())
    interval = INTERVAL
    while interval * 512 < versions:
        interval *= 2
    return state.seq % interval == 0


def write_checkpoint(sink: Sink, state: State) -> None:
    """Write the checkpoint of `state`, then the hint. A failure is logged: it harms nothing."""
    data = gzip.compress(canonical_json(state.to_json()), compresslevel=6, mtime=0)
    digest = sha256_hex(data)
    key = f"{CHECKPOINT_PREFIX}{state.seq:012d}-{digest[:12]}.json.gz"
    try:
        sink.put(key, data)
        sink.put(HINT_KEY, canonical_json({"seq": state.seq, "key": key, "sha256": digest}))
    except MMError as error:
        logger.warning("no checkpoint was written", extra={"seq": state.seq, "error": str(error)})


def read_checkpoint(sink: Sink, patience: Patience) -> State:
    """The newest valid checkpoint: the hint's, else the best found by listing, else the start."""
    hint = _read_hint(sink, patience)
    state = _read(sink, hint["key"], hint["sha256"], patience) if hint else None
    if state is not None:
        return state
    listed = patience().persist(lambda: [found.key for found in sink.list(CHECKPOINT_PREFIX)])
    for key in reversed(listed):
        name = _NAME.fullmatch(key)
        state = _read(sink, key, name[2], patience) if name else None
        if state is not None:
            return state
    return State()


def _read_hint(sink: Sink, patience: Patience) -> dict[str, Any] | None:
    data = patience().persist(lambda: read_if_exists(sink, HINT_KEY))
    try:
        hint = json.loads(data) if data is not None else None
        if hint and _NAME.fullmatch(hint["key"]) and len(hint["sha256"]) == 64:
            return dict(hint)
    except (ValueError, KeyError, TypeError):
        logger.warning("the hint is damaged; looking for a checkpoint by listing")
    return None


def _read(sink: Sink, key: str, digest: str, patience: Patience) -> State | None:
    data = patience().persist(lambda: read_if_exists(sink, key))
    if data is None:
        return None
    try:
        if not sha256_hex(data).startswith(digest):
            raise IntegrityError("its hash is wrong")
        return State.from_json(json.loads(gzip.decompress(data)))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        logger.warning("a checkpoint is damaged", extra={"key": key, "error": str(error)})
        return None
