"""Telling others what happens: the caller's listener, the plugins, the log, the progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from mm_core.plugins import Plugins
from mm_core.redaction import redact
from mm_core.schemas import TransferEvent
from mm_core.transfer import Progress, ProgressBook

logger = logging.getLogger(__name__)

Listener = Callable[[TransferEvent], None]


class Notices:
    """Passes events on. Whoever fails to listen never harms what is told. Safe among threads."""

    def __init__(
        self, plugins: Plugins, *listeners: Listener, book: ProgressBook | None = None
    ) -> None:
        self._plugins = plugins
        self._listeners = listeners
        self._book = book or ProgressBook()
        self._failed: set[str] = set()

    def heard_by(self, listener: Listener) -> Notices:
        """The same, and `listener` hears of each event, too."""
        return Notices(self._plugins, *self._listeners, listener, book=self._book)

    def event(self, event: TransferEvent) -> None:
        """Tell everybody of `event`; retries are logged as warnings."""
        self._book.note(event)
        if event.kind == "retry":
            message = redact(event.message or "")
            logger.warning("Retrying %s: %s", event.path, message, extra={"model": event.model_id})
        for listener in self._listeners:
            self._attempt("the listener", partial(listener, event))
        self._attempt("mm_event", partial(self._plugins.hook.mm_event, event=event))

    def hook(self, name: str, **arguments: object) -> None:
        """Call a hook whose errors do not matter to what has happened already."""
        try:
            getattr(self._plugins.hook, name)(**arguments)
        except Exception:
            logger.exception("A plugin failed in %s; what was done stays done", name)

    def progress(self, model_id: str) -> Progress | None:
        """How far the transfer of `model_id` is; None if there was none."""
        return self._book.get(model_id)

    def _attempt(self, who: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            if who not in self._failed:  # once is enough: events come by the thousand
                self._failed.add(who)
                logger.exception("Telling %s of an event failed; this is said once", who)
