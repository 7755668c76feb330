"""Log lines on stderr: warnings as short lines, and with ``-v`` all with their values."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_core.cli.state import State


class StderrHandler(logging.Handler):
    """Writes to what stderr is at that moment, so that a progress bar can stand in for it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        """Write one redacted line."""
        from mm_core.redaction import redact

        level, message = record.levelname.lower(), redact(record.getMessage())
        line = f"{level}: {message}"
        if self._as_json:
            line = json.dumps({"level": level, "logger": record.name, "event": message})
        sys.stderr.write(f"{line}\n")


def log_to_stderr(state: State) -> None:
    """Send log lines to stderr, as many as the options ask for.

    Without ``-v`` by a handler that costs nothing to import.
    """
    if state.verbose:
        from mm_core.logging import setup_logging

        setup_logging("INFO" if state.verbose == 1 else "DEBUG")
        return
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, StderrHandler)]
    root.addHandler(StderrHandler(as_json=state.wants_json))
    root.setLevel(logging.ERROR if state.quiet else logging.WARNING)
