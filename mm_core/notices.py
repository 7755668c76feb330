"""Telling others what happens: the caller's listener, the plugins, the log, the progress."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mm_core.plugins import Plugins
from mm_core.redaction import redact
from mm_core.schemas import TransferEvent
from mm_core.transfer import Progress, ProgressBook

logger = logging.getLogger(__name__)


class Notices:
    """Passes events on. Whoever fails to listen never harms what is told. Safe among threads."""

    def __init__(
        self, plugins: Plugins, listener: Callable[[TransferEvent], None] | None = None
    ) -> None:
        self._plugins = plugins
        self._listener = listener
        self._book = ProgressBook()
        self._failed: set[str] = set()

    def event(self, event: TransferEvent) -> None:
        """Tell everybody of `event`; retries are logged as warnings."""
        self._book.note(event)
        if event.kind == "retry":
            message = redact(event.message or "")
            logger.warning("Retrying %s: %s", event.path, message, extra={"model": event.model_id})
        if self._listener is not None:
            self._attempt("the listener", lambda listener: listener(event), self._listener)
        self._attempt("mm_event", lambda hook: hook.mm_event(event=event), self._plugins.hook)

    def hook(self, name: str, **arguments: object) -> None:
        """Call a hook whose errors do not matter to what has happened already."""
        try:
            getattr(self._plugins.hook, name)(**arguments)
        except Exception:
            logger.exception("A plugin failed in %s; what was done stays done", name)

    def progress(self, model_id: str) -> Progress | None:
        """How far the transfer of `model_id` is; None if there was none."""
        return self._book.get(model_id)

    def _attempt(self, who: str, call: Callable[..., object], target: object) -> None:
        try:
            call(target)
        except Exception:
            if who not in self._failed:  # once is enough: events come by the thousand
                self._failed.add(who)
                logger.exception("Telling %s of an event failed; this is said once", who)
