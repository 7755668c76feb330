"""Commands that take the global options anywhere and show examples in their help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mm_core.cli.state import State

F = TypeVar("F", bound=Callable[..., Any])

_JOBS = click.IntRange(1, 64)  # as the settings' own bounds, which cost pydantic to import
_CONNECTIONS = click.IntRange(1, 1024)

FORMATS = ("human", "json", "jsonl", "quiet")


class GlobalOption(click.Option):
    """An option of ``mm`` itself that is also taken after the command."""


class Command(click.Command):
    """A command with the global options and an Examples section."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.extend(global_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, and the names alone of the global ones."""
        own = [p for p in self.get_params(ctx) if not isinstance(p, GlobalOption)]
        records = [record for p in own if (record := p.get_help_record(ctx)) and _is_option(p)]
        with formatter.section("Options"):
            formatter.write_dl(records)
        write_global_options(formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand."""
        write_examples(self.examples, formatter)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.no_args_is_help = False
        self.examples = examples
        self.params.extend(global_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Answer a bare group with its help on stderr and the exit code of a usage error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, and the names alone of the global options."""
        self.format_commands(ctx, formatter)
        write_global_options(formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand."""
        write_examples(self.examples, formatter)


def write_global_options(formatter: click.HelpFormatter) -> None:
    """Write the names of the global options, none of them cut in two."""
    import textwrap

    names = ", ".join(o.opts[-1] for o in global_options())
    with formatter.section("Global options (see mm --help)"):
        width = formatter.width - formatter.current_indent
        for line in textwrap.wrap(names, width, break_on_hyphens=False):
            formatter.write_text(line)


def write_examples(examples: str, formatter: click.HelpFormatter) -> None:
    """Write an Examples section, one line for each line."""
    if examples:
        with formatter.section("Examples"):
            for line in examples.strip().splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")


def command(name: str, *, examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command with the global options."""
    return click.command(name, cls=Command, examples=examples)


def group(name: str, *, examples: str) -> Callable[[Callable[..., Any]], Group]:
    """Make a function a group with the global options."""
    return click.group(name, cls=Group, examples=examples)


cli_command = command
"""`command`, as plugins know it."""

cli_group = group
"""`group`, as plugins know it."""


def transfer_options(function: F) -> F:
    """Give a command that moves bytes the options that say how many at once, and how fast."""
    options = (
        click.option("-j", "--jobs", type=_JOBS, metavar="N", help="Files at once."),
        _default("--connections", type=_CONNECTIONS, metavar="N", help="Reads at once, in all."),
        _default("--memory", metavar="SIZE", help="Buffers in all, such as 128MiB."),
        _default("--limit-rate", metavar="RATE", help="Read no faster, such as 50MiB a second."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def global_options() -> list[GlobalOption]:
    """The options of ``mm`` itself; each writes to the `State` of the run."""
    formats = click.Choice(FORMATS)
    colors = click.Choice(("auto", "always", "never"))
    return [
        _option(
            "--config", metavar="FILE", type=click.Path(path_type=Path), help="Use this mm.yaml."
        ),
        _option("--backend", metavar="B", help="A backend's name, or its URL or folder."),
        _option("--format", type=formats, help="How results are printed on stdout."),
        _option("--json", is_flag=True, help="The same as --format json."),
        _option("-q", "--quiet", is_flag=True, help="Print only the essential, and no progress."),
        _option("-v", "--verbose", count=True, help="Log more on stderr; -vv for all."),
        _option("--color", type=colors, help="Colours: by default on a terminal."),
        _option("--no-progress", is_flag=True, help="Show no progress."),
        _option("--offline", is_flag=True, help="Touch no hub: use what is there."),
    ]


def taught(command: click.Command) -> click.Command:
    """A plugin's command, made to take the global options, too, where they mean nothing else.

    Those of a group take them as well.
    """
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            taught(inner)
    taken = {name for param in command.params for name in (*param.opts, param.name)}
    for option in global_options():
        if not taken & {*option.opts, option.name}:
            option.hidden = True
            command.params.append(option)
    return command


def _option(*names: str, **attrs: Any) -> GlobalOption:
    return GlobalOption(list(names), expose_value=False, callback=_remember, **attrs)


def _default(*names: str, **attrs: Any) -> Callable[[F], F]:
    """An option that is a setting of ``defaults`` for this run."""
    return click.option(*names, expose_value=False, callback=_override, **attrs)


def _override(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        ctx.ensure_object(State).overrides[f"defaults.{param.name}"] = value


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    state = ctx.ensure_object(State)
    if not value or param.name is None:
        return
    if param.name == "json":
        state.format = "json"
    elif param.name == "verbose":
        state.verbose += value
    else:
        setattr(state, param.name, value)
    if param.name == "color":
        ctx.color = {"always": True, "never": False}.get(value)


def _is_option(param: click.Parameter) -> bool:
    return isinstance(param, click.Option)
