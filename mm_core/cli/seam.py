"""The one seam where errors and signals become messages and exit codes.

Data go to stdout, all else to stderr. With ``--json`` and ``--format jsonl``
the error is data, too: ``{"schema_version": 1, "error": {"code", "message",
"hint"}}`` on stdout, with ``findings`` where policies refuse, and stderr holds no
words for people.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

import click

from mm_core.cli import interrupts, output
from mm_core.cli.interrupts import INTERRUPTED, TERMINATED
from mm_core.cli.state import State
from mm_core.exceptions import CancelledError, MMError, PartialError, PolicyError

BROKEN_PIPE = 141

_INTERNAL_HINT = (
    "this is a fault in mm or in a plugin; run it again with MM_DEBUG=1 for the traceback"
)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. What cleans up after Ctrl-C cleans up after this one, too."""


@dataclass(frozen=True)
class Problem:
    """An error as it is shown."""

    code: str
    message: str
    exit_code: int
    hint: str | None = None
    parts: dict[str, Problem] = field(default_factory=dict)
    findings: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The ``error`` of a JSON document."""
        document: dict[str, Any] = {"code": self.code, "message": self.message, "hint": self.hint}
        if self.findings:
            document["findings"] = list(self.findings)
        if self.parts:
            document["errors"] = {name: part.to_json() for name, part in self.parts.items()}
        return document


def run(
    argv: Sequence[str] | None = None, *, strangers: Sequence[click.Command] | None = None
) -> int:
    """Run ``mm``; return its exit code, whatever happens.

    `strangers` are commands to take in place of those of the installed plugins.
    """
    from mm_core.cli.app import make_app

    args = list(sys.argv[1:] if argv is None else argv)
    state = State()
    _write_any_character()
    try:
        with _signals_raise():
            app = make_app(strangers)
            if "_MM_COMPLETE" in os.environ:
                return _complete(app)
            with app.make_context("mm", args, obj=state) as context:
                app.invoke(context)
            sys.stdout.flush()
            return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except BaseException as error:  # noqa: BLE001  # nothing leaves this seam as a traceback
        return _report(error, state, args)


def was_interrupted(code: int) -> bool:
    """Whether `run` ended with `code` because a signal arrived."""
    return code in (INTERRUPTED, TERMINATED)


def end_at_once(code: int) -> NoReturn:
    """End this process now. What was said has been said; all else was closed by `run`."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe(error: BaseException, state: State) -> Problem:
    """What `error` means to the user. Holds no secrets."""
    problem = _describe(error, state)
    return Problem(
        problem.code,
        _redact(problem.message),
        problem.exit_code,
        _redact(problem.hint) if problem.hint else None,
        problem.parts,
        problem.findings,
    )


def _describe(error: BaseException, state: State) -> Problem:
    if isinstance(error, click.Abort) and error.__cause__ is not None:
        error = error.__cause__
    match error:
        case PartialError():
            parts = {name: describe(part, state) for name, part in error.errors.items()}
            return Problem(error.code, error.message, error.exit_code, error.hint, parts)
        case PolicyError():
            found = error.findings
            problem = Problem(
                error.code, error.message, error.exit_code, error.hint, findings=found
            )
        case MMError():
            problem = Problem(error.code, error.message, error.exit_code, error.hint)
        case Terminated():
            problem = Problem("cancelled", "Terminated.", TERMINATED, _how_to_go_on(state))
        case KeyboardInterrupt() | click.Abort() | EOFError():
            problem = Problem("cancelled", "Interrupted.", INTERRUPTED, _how_to_go_on(state))
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "mm"
            problem = Problem("usage", error.format_message(), 2, f"see `{path} --help`")
        case click.ClickException():
            problem = Problem("error", error.format_message(), error.exit_code)
        case OSError():
            problem = Problem("error", str(error), 1)
        case _:
            message = f"Internal error: {type(error).__name__}: {error}"
            problem = Problem("internal", message, 1, _INTERNAL_HINT)
    return problem


def _how_to_go_on(state: State) -> str | None:
    return None if state.when_interrupted is None else state.when_interrupted()


def _report(error: BaseException, state: State, args: list[str]) -> int:
    problem = describe(_interrupt_behind(error), state)
    if isinstance(error, CancelledError) and isinstance(error.__context__, Terminated):
        problem = describe(error.__context__, state)
    if os.environ.get("MM_DEBUG") or (problem.code == "internal" and state.verbose):
        import traceback

        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        click.echo(_redact(trace), err=True)
    with suppress(BrokenPipeError):
        _show(problem, state, args)
        sys.stdout.flush()
        return problem.exit_code
    _silence_stdout()
    return problem.exit_code


def _interrupt_behind(error: BaseException) -> BaseException:
    """The interrupt that an import turned into another error, else `error` itself."""
    behind = error.__cause__
    while behind is not None and not isinstance(error, MMError):
        if isinstance(behind, KeyboardInterrupt):
            return behind
        behind = behind.__cause__
    return error


def _show(problem: Problem, state: State, args: list[str]) -> None:
    format_ = _format(state, args)
    if format_ == "json":
        output.write_json({**state.so_far, "error": problem.to_json()})
    elif format_ == "jsonl":
        output.write_json_line("error", {**state.so_far, "error": problem.to_json()})
    else:
        for line in _lines(problem):
            click.echo(line, err=True)


def _lines(problem: Problem) -> Iterator[str]:
    if problem.code == "cancelled" and problem.hint:
        yield f"{problem.message.rstrip('.')}: {problem.hint}"
        return
    plain = problem.code in ("internal", "cancelled")
    yield (problem.message if plain else f"Error: {problem.message}")
    for name, part in problem.parts.items():
        yield f"  {name}: {part.message}" + (f" ({part.hint})" if part.hint else "")
    if problem.hint:
        yield f"Hint: {problem.hint}"


def _format(state: State, args: list[str]) -> str:
    """The format asked for, also where the arguments could not be parsed to the end."""
    if state.format != "human":
        return state.format
    words = " ".join(args[: args.index("--")] if "--" in args else args)
    found = re.findall(r"(?<!\S)--(?:format[= ])?(jsonl?)(?!\S)", words)
    return found[-1] if found else "human"


def _redact(text: str) -> str:
    from mm_core.redaction import redact

    return redact(text)


def _complete(app: click.Command) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(app, {}, "mm", "_MM_COMPLETE", os.environ["_MM_COMPLETE"])


@contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: then signals are somebody else's
        yield
        return
    early = interrupts.is_ours(signal.SIGINT)
    try:
        if early:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if early:
            interrupts.end_at_once_on_signals()


def _write_any_character() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _silence_stdout() -> None:
    """Let the interpreter's own flush at exit fail in silence."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
