"""What a hub says about a model, as small JSON data."""

from __future__ import annotations

import json
import math
from typing import Any

from mm_core import rfc3339

FACT_LIMIT = 16_384
"""The most bytes of card data, and of tags, that are kept."""

DEPTH_LIMIT = 20


def license_of(info: Any) -> str | None:
    """The licence that the tags and the card name; of several, all hold."""
    found = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    stated = info.card_data.get("license") if info.card_data is not None else None
    found += stated if isinstance(stated, list) else [stated]
    named: dict[str, str] = {}
    for one in (_text(one) for one in found if one):
        named.setdefault(one.lower(), one)
    several = [f"({one})" if " " in one else one for one in named.values()]
    return " AND ".join(several) if len(named) > 1 else next(iter(named.values()), None)


def facts_of(info: Any, asked_revision: str) -> dict[str, Any]:
    """What is worth recording, each part no larger than `FACT_LIMIT`."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    facts: dict[str, Any] = {
        "requested_revision": asked_revision,
        "tags": bounded(list(info.tags or ())),
        "library_name": bounded(info.library_name),
        "gated": bounded(info.gated or False),
        "last_modified": info.last_modified and rfc3339(info.last_modified),
        "card": bounded(card),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def bounded(value: Any) -> Any:
    """`value` as JSON data, if it is not too large to record."""
    safe = _json_safe(value)
    return safe if len(json.dumps(safe)) <= FACT_LIMIT else {"note": "left out: too large"}


def _json_safe(value: Any, depth: int = 0) -> Any:
    """`value` with everything that JSON does not know as text: dates, NaN, and the like."""
    if depth > DEPTH_LIMIT:
        return "left out: too deep"
    if isinstance(value, dict):
        return {_text(key): _json_safe(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float, bool, type(None))) else _text(value)


def _text(value: Any) -> str:
    """`value` as text that can be written as UTF-8, whatever a hub's JSON may hold."""
    return str(value).encode(errors="replace").decode()
