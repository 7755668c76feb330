"""Hints where the bytes of one sha256 stand, beside the registry. Never trusted, and free to lose.

One small object for each content, so that asking for one costs two requests,
however many models there are. Nobody keeps them in step with the log: a hint
counts only as far as the log and the store bear it out.
"""

from __future__ import annotations

import json
import logging
import re

from mm_core.exceptions import MMError
from mm_core.registry.layout import content_key
from mm_core.registry.state import State, is_available
from mm_core.schemas import StoredFile, canonical_json
from mm_core.sink import Sink, read_if_exists

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


def note(sink: Sink, file: StoredFile) -> None:
    """Write the hint to `file`, over an older one. A failure is logged: it harms nothing."""
    try:
        hint = canonical_json({"key": file.key, "size": file.size})
        sink.put(content_key(file.sha256), hint)
    except MMError as error:
        facts = {"key": file.key, "error": str(error)}
        logger.info("no hint was written where these bytes stand", extra=facts)


def find(sink: Sink, state: State, sha256: str, size: int | None) -> str | None:
    """The key of a file that should have these bytes; None if nobody knows one.

    It stands, has the size that is hinted and asked for, and belongs to a version
    that is AVAILABLE in `state`. Its bytes are not read. Errors of the store
    count as not knowing.
    """
    if not _SHA256.fullmatch(sha256):
        return None
    try:
        hint = json.loads(read_if_exists(sink, content_key(sha256)) or b"{}")
        if not _belongs(state, str(hint.get("key"))):
            return None
        stored = sink.stat(hint["key"])
    except (MMError, ValueError, AttributeError) as error:
        logger.info("a hint cannot be used", extra={"sha256": sha256, "error": str(error)})
        return None
    if stored is None or stored.size != hint.get("size") or size not in (None, stored.size):
        return None
    return stored.key


def _belongs(state: State, key: str) -> bool:
    """Whether `key` lies in the folder of a version that is AVAILABLE, and kept here."""
    root, *parts = key.split("/")
    rows = (state.row("/".join(parts[:depth]), parts[depth]) for depth in range(1, len(parts) - 1))
    return root == "models" and any(
        row is not None and is_available(row) and "path" not in row for row in rows
    )
