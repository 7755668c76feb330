"""A checkpoint of the registry as it is after a repair or a restore, and the hint to it."""

from __future__ import annotations

from mm_core.registry.checkpoint import checkpoint_key, encode
from mm_core.registry.hint import Hint, Part, write_hint
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import sha256_hex
from mm_core.upkeep.store import Store


def write_checkpoint(store: Store, state: State, trust: Trust | None = None) -> None:
    """Write a checkpoint and then the hint. Older ones stay, unlike where a writer does it."""
    data = encode(state, trust)
    key = checkpoint_key(state.seq, data)
    store.put(key, data)
    part = Part(seq=state.seq, key=key, sha256=sha256_hex(data), size=len(data))
    hint = Hint(checkpoint=part, head=state.head)
    store.persist(lambda: write_hint(store.sink, hint))
