"""What a repair may sign: nothing that nobody has signed before who is trusted."""

from __future__ import annotations

from typing import Any

from mm_core.exceptions import IntegrityError
from mm_core.registry.layout import log_key
from mm_core.registry.signing import Trust
from mm_core.upkeep.commits import Link, link_of
from mm_core.upkeep.store import Store
from mm_core.upkeep.survey import Survey
from mm_core.upkeep.walk import Walk


def refuse_to_vouch(store: Store, found: Survey, way: Walk, trust: Trust) -> None:
    """Raise `IntegrityError` if what the log leads to was not signed by those who are trusted.

    A checkpoint that a repair writes is signed with this process's key, and so is
    believed by all who trust it. Its state must come from a trusted checkpoint, and
    from commits after it that are signed, too. `found` has trusted checkpoints only.
    """
    if not trust.checks:
        return
    if way.wrong:
        raise IntegrityError(
            f"the log at {store.sink.root} does not lead to the checkpoint {way.wrong[0]}, which "
            "is signed",
            hint="repair it with a backup of that log: --from FILE",
        )
    signed = max((mark.seq for mark in found.checkpoints.values()), default=0)
    for seq, link in sorted(found.links.items()):
        if seq > signed and seq not in found.bad:
            trust.check_commit(_raw(store, link), seq, store.sink.root)


def _raw(store: Store, link: Link) -> dict[str, Any]:
    record = link.record or link_of(link.seq, store.read(log_key(link.seq)) or b"").record
    if record is None:
        return {}
    return {
        **record.extra,
        "seq": link.seq,
        "prev": link.prev,
        "id": record.id,
        "writer": record.writer,
        "time": record.time,
        "operations": list(record.operations),
    }
