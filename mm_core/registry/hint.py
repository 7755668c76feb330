"""The hint: where a new reader begins. Overwritten, and never trusted."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import Any

from mm_core.registry.layout import CHECKPOINT_PREFIX, HINT_KEY, PACK_PREFIX
from mm_core.schemas import canonical_json
from mm_core.sink import Sink

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(re.escape(CHECKPOINT_PREFIX) + r"(\d{12})-([0-9a-f]{12})\.json\.gz")
"""The key of a checkpoint: the commit after which it is, and the start of its sha256."""

PACK = re.compile(re.escape(PACK_PREFIX) + r"(\d{12})-(\d{12})-([0-9a-f]{12})\.jsonl\.gz")
"""The key of a pack: its first and its last commit, and the start of its sha256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An object that takes a reader to commit `seq`: its `key`, and the sha256 of its bytes.

    `size` is its size, for a checkpoint; for a pack, that of the commits in it.
    """

    seq: int
    key: str
    sha256: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """The part as JSON data."""
        return {"seq": self.seq, "key": self.key, "sha256": self.sha256, "size": self.size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A checkpoint, and packs of the commits after it: `middle`, and after that `pack`.

    `head` is the sha256 of the last commit that they hold; empty where an older
    release wrote the hint. `former` are the packs that only the hint before named.
    """

    checkpoint: Part
    middle: Part | None = None
    pack: Part | None = None
    head: str = ""
    former: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What leads a reader to `head`, in order."""
        return tuple(part for part in (self.checkpoint, self.middle, self.pack) if part)

    @property
    def seq(self) -> int:
        """The commit to which the hint takes a reader."""
        return self.parts[-1].seq

    def to_bytes(self) -> bytes:
        """The hint as it is stored."""
        fields = {
            **self.checkpoint.to_json(),
            "head": self.head,
            "middle": None if self.middle is None else self.middle.to_json(),
            "tail": None if self.pack is None else self.pack.to_json(),
            "former": list(self.former) or None,
        }
        return canonical_json({name: value for name, value in fields.items() if value is not None})


def parse_hint(data: bytes | None) -> Hint | None:
    """The hint in these bytes; None for None, and for what is no hint."""
    if data is None:
        return None
    try:
        raw = json.loads(data)
        hint = Hint(
            checkpoint=_part(raw, CHECKPOINT),
            middle=_pack(raw.get("middle")),
            pack=_pack(raw.get("tail")),
            head=str(raw.get("head", "")),
            former=_keys(raw.get("former")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("the registry's hint is damaged; looking for a checkpoint by listing")
        return None
    return hint


def write_hint(sink: Sink, hint: Hint) -> None:
    """Put the hint over the one that is there."""
    sink.put(HINT_KEY, hint.to_bytes())


def _part(raw: dict[str, Any], name: re.Pattern[str]) -> Part:
    part = Part(
        seq=int(raw["seq"]),
        key=_key(raw["key"], name),
        sha256=str(raw["sha256"]),
        size=int(raw.get("size", 0)),
    )
    if len(part.sha256) != 64:
        raise ValueError("no sha256")
    return part


def _pack(raw: dict[str, Any] | None) -> Part | None:
    return None if raw is None else _part(raw, PACK)


def _keys(raw: Any) -> tuple[str, ...]:
    """The keys of packs; a single one is a text where an early release wrote the hint."""
    return tuple(_key(key, PACK) for key in ([raw] if isinstance(raw, str) else raw or ()))


def _key(key: str, name: re.Pattern[str]) -> str:
    if not name.fullmatch(key):
        raise ValueError("a key that is none of ours")
    return key
