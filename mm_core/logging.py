"""Set up logging for a program that uses Model Manager.

The library itself never configures logging; it only writes to
``logging.getLogger(__name__)``. A program (the command line is one) calls
`setup_logging` once, and both stdlib and structlog loggers come out the same.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mm_core.exceptions import ConfigError
from mm_core.redaction import MASK, is_secret_name, redact

if TYPE_CHECKING:
    from structlog.typing import Processor

    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # subscriptable from 3.11 on

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_MAX_DEPTH = 8


def setup_logging(log_level: str = "INFO", log_file: str | os.PathLike[str] | None = None) -> None:
    """Send all log records to stderr, and to `log_file` as well if given.

    On a terminal records are lines for people; otherwise, and always in the
    file, each is one JSON object: ``event``, ``level``, ``logger``,
    ``timestamp`` (UTC, ISO 8601), the values bound with structlog's
    contextvars, the ``extra`` of the record, and ``exception``. Every string is
    redacted last of all.

    `log_level` is DEBUG, INFO, WARNING, ERROR or CRITICAL, in either case. The
    folders of `log_file` are made; the file is appended to. Calling it again
    replaces what the former call set up and leaves other handlers alone.

    Raises `ConfigError` for an unknown level or a file that cannot be written;
    the former set-up then still stands.
    """
    level = _level(log_level)
    terminal = sys.stderr.isatty()
    handlers: list[logging.Handler] = [_StderrHandler()]
    handlers[0].setFormatter(_formatter(for_people=terminal))
    if log_file is not None:
        handlers.append(_file_handler(Path(log_file)))
        handlers[1].setFormatter(_formatter(for_people=False))
    _configure_structlog()
    _replace_handlers(handlers, level)


class _StderrHandler(_StreamHandler):
    """Writes to what `sys.stderr` is at the time: a progress bar may have wrapped it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # looked up anew for each record
        return sys.stderr


class _FileHandler(logging.FileHandler):
    """A type of our own, so that only our handlers are replaced."""


def _level(name: str) -> int:
    word = str(name).strip().upper()
    if word not in _LEVELS:
        raise ConfigError(
            f"there is no log level {name!r}", hint=f"choose one of {', '.join(_LEVELS)}"
        )
    return int(getattr(logging, word))


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write the log file {str(path)!r}: {error.strerror}",
            hint="give another path, in a folder that you may write to",
        ) from error


def _replace_handlers(handlers: Sequence[logging.Handler], level: int) -> None:
    root = logging.getLogger()
    for former in [h for h in root.handlers if isinstance(h, (_StderrHandler, _FileHandler))]:
        root.removeHandler(former)
        former.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def _shared_processors() -> list[Processor]:
    import structlog

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _configure_structlog() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _formatter(*, for_people: bool) -> logging.Formatter:
    import structlog

    # The plain traceback, since the pretty one shows local variables and their secrets.
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors="NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
        )
        if for_people
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared_processors(), structlog.stdlib.ExtraAdder(), _facts_of_record],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_event,
            renderer,
        ],
    )


def _facts_of_record(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """When the record was made, so that stderr and the file say the same.

    ``message`` and ``asctime`` are what another handler's formatter left on the
    record; nobody can give them as ``extra``.
    """
    moment = datetime.fromtimestamp(event["_record"].created, timezone.utc)
    event["timestamp"] = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    for name in ("message", "asctime"):
        event.pop(name, None)
    return event


def _redact_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {str(key): _redacted(value, str(key)) for key, value in event.items()}


def _redacted(value: Any, name: str = "", depth: int = 0) -> Any:
    """`value` as JSON data, without secrets; what is too deep (or endless) becomes text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return MASK if value and is_secret_name(name) else redact(value)
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {redact(str(k)): _redacted(v, str(k), depth + 1) for k, v in value.items()}
    if depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(item, name, depth + 1) for item in value]
    return MASK if is_secret_name(name) else redact(str(value))
