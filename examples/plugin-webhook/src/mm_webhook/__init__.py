"""Tells a URL which models came and went. See README.md for its two settings."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
import urllib.request

from mm_core import ModelEntry, hookimpl, remember_secret

logger = logging.getLogger(__name__)

TRIES = 3
TIMEOUT = 5.0
PAUSE = 0.5


@hookimpl
def mm_committed(entry: ModelEntry, backend: str) -> None:
    """A version is AVAILABLE."""
    tell("committed", entry, backend)


@hookimpl
def mm_removed(entry: ModelEntry, backend: str) -> None:
    """A version was removed."""
    tell("removed", entry, backend)


def tell(event: str, entry: ModelEntry, backend: str) -> None:
    """Send it, up to `TRIES` times; an error of the last try is for whoever calls the hook."""
    url = os.environ.get("MM_WEBHOOK_URL")
    if not url:
        return
    told = {"event": event, "backend": backend, "model": entry.to_json()}
    body = json.dumps(told, sort_keys=True).encode()
    headers = {"Content-Type": "application/json", "X-Event": event}
    secret = os.environ.get("MM_WEBHOOK_SECRET")
    if secret:
        remember_secret(secret)  # so that it is in no log
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers["X-Signature"] = f"sha256={signature}"
    request = urllib.request.Request(url, body, headers, method="POST")
    for attempt in range(1, TRIES + 1):
        try:
            urllib.request.urlopen(request, timeout=TIMEOUT).close()
        except OSError:
            if attempt == TRIES:
                raise
            time.sleep(PAUSE * attempt)
        else:
            logger.debug("The webhook was told", extra={"model": entry.model_id})
            return
