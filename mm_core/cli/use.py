"""The commands that let programs find models: ``mm run`` and ``mm env``."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mm_core.cli.base import Command, command
from mm_core.cli.progress import make_reporter
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import UsageError

if TYPE_CHECKING:
    from mm_core.results import Environment

F = TypeVar("F", bound=Callable[..., Any])

_REFERENCE = "ID[@VERSION|:ALIAS]"


def _where(function: F) -> F:
    stream = click.option(
        "--stream", is_flag=True, help="Let the program read from the store itself."
    )
    hub = click.option("--hub", metavar="URL", help="Let it ask a hub, such as that of `mm serve`.")
    return stream(hub(function))


@command(
    "env",
    examples="""
    eval "$(mm env my-org/my-model:prod)"
    mm env my-org/my-model:prod --stream --backend lake
    mm env --hub http://127.0.0.1:8080
    mm env my-org/my-model:prod -q > model.env
    """,
)
@click.argument("references", metavar=f"[{_REFERENCE}]...", nargs=-1)
@_where
@pass_state
def env(state: State, /, *, references: tuple[str, ...], stream: bool, hub: str | None) -> None:
    """Print the variables by which programs find models, for a shell.

    The models are brought here first, and transformers, vLLM and every other client of the
    Hub finds them by their ids, without a network. With --quiet, as NAME=VALUE, for
    `docker run --env-file`. MM_MODEL is where the first model is.
    """
    found = _environment(state, references, stream=stream, hub=hub)
    variables = sorted(found.variables.items())
    state.emit(
        found.to_json(),
        human=[f"export {name}={shlex.quote(value)}" for name, value in variables],
        quiet=[f"{name}={value}" for name, value in variables],
    )


class _Run(Command):
    """Takes apart, before any option is looked for, what is mm's and what is the command's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What stands after the first ``--`` is the command, to the letter."""
        if "--" in args:
            cut = args.index("--")
            ctx.meta[_PROGRAM] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)


_PROGRAM = "mm_core.cli.use.program"


@click.command(
    "run",
    cls=_Run,
    examples="""
    mm run my-org/my-model:prod -- python train.py
    mm run my-org/my-model:prod -- sh -c 'vllm serve "$MM_MODEL"'
    mm run --stream my-org/my-model -- sh -c 'vllm serve "$MM_MODEL" --load-format runai_streamer'
    mm run --hub http://127.0.0.1:8080 -- python train.py
    """,
)
@click.argument("references", metavar=f"[{_REFERENCE}]... -- COMMAND...", nargs=-1)
@_where
@click.pass_context
def run(
    ctx: click.Context, /, *, references: tuple[str, ...], stream: bool, hub: str | None
) -> None:
    """Run a command that finds models: with the variables of `mm env`.

    It takes the place of mm, so that signals and the exit code are its own.
    """
    state, program = ctx.ensure_object(State), ctx.meta.get(_PROGRAM)
    if not program:
        raise UsageError(
            "there is no command to run", hint="put it after --: mm run ID... -- COMMAND..."
        )
    if state.wants_json:
        raise UsageError("what a command prints is its own: there is no JSON of it")
    found = _environment(state, references, stream=stream, hub=hub)
    _become(program, {**os.environ, **found.variables})


def _environment(
    state: State, references: tuple[str, ...], *, stream: bool, hub: str | None
) -> Environment:
    if not references and hub is None and not stream:
        raise UsageError(
            "no model is named", hint="name one, or add --hub URL or --stream for where they are"
        )
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        return manager.environment(
            references, hub=hub, stream=stream, offline=state.offline or None
        )


@contextlib.contextmanager
def _as_a_shell_would() -> Iterator[None]:
    """The signals that Python ignores, and a program would inherit, have their own effect."""
    before = {one: signal.getsignal(one) for one in (signal.SIGPIPE, signal.SIGXFSZ)}
    for one in before:
        signal.signal(one, signal.SIG_DFL)
    try:
        yield
    finally:  # nothing was run
        for one, handler in before.items():
            signal.signal(one, handler)


def _become(program: Sequence[str], environ: dict[str, str]) -> NoReturn:
    """Run `program` in place of this process; where a system knows no such thing, as a child."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if os.name == "posix":
            with _as_a_shell_would():
                os.execvpe(program[0], list(program), environ)  # noqa: S606  # what the user asked for
        ended = subprocess.run(list(program), env=environ, check=False)  # noqa: S603  # likewise
    except OSError as error:
        raise UsageError(
            f"{program[0]!r} cannot be run: {error.strerror}",
            hint="look whether it is installed, and on the PATH",
        ) from error
    raise SystemExit(ended.returncode)
