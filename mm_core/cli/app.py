"""``mm`` itself: the table of commands, each imported only when it runs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import click

import mm_core
from mm_core.cli.base import global_options, taught, write_examples
from mm_core.cli.state import State

_DISTRIBUTION = "model-manager"
_GROUP = "model_manager"

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("mm_core.cli.demo:demo", "See it all work, with no network and no account."),
    "pull": ("mm_core.cli.transfer:pull", "Stream a model from its source into a backend."),
    "push": ("mm_core.cli.transfer:push", "Put a folder of your own into a backend."),
    "copy": (
        "mm_core.cli.copy:copy",
        "Copy versions into another backend, with all that is known about them.",
    ),
    "export": (
        "mm_core.cli.bundle:export",
        "Write versions into one file or folder, for places that no network leads to.",
    ),
    "import": ("mm_core.cli.bundle:import_", "Bring the versions of a bundle into a backend."),
    "adopt": ("mm_core.cli.adopt:adopt", "Make entries of models that are there already."),
    "lock": (
        "mm_core.cli.sync:lock",
        "Resolve the models of mm.yaml to commits, files, sizes and hashes.",
    ),
    "sync": (
        "mm_core.cli.sync:sync",
        "Make what is locked true on every backend that mm.yaml names.",
    ),
    "outdated": (
        "mm_core.cli.sync:outdated",
        "Show which models of mm.lock have another version at their source.",
    ),
    "get": ("mm_core.cli.transfer:get", "Bring a model to this machine and print its path."),
    "run": ("mm_core.cli.use:run", "Run a command that finds models."),
    "env": ("mm_core.cli.use:env", "Print the variables by which programs find models."),
    "list": ("mm_core.cli.look:list_", "List the models of a backend."),
    "search": ("mm_core.cli.search:search", "Find versions by words."),
    "du": ("mm_core.cli.du:du", "Show how much each model takes."),
    "show": ("mm_core.cli.look:show", "Show all that is known about a model."),
    "files": ("mm_core.cli.look:files", "List the files of a model."),
    "url": ("mm_core.cli.look:url", "Print the URL that a loader opens."),
    "history": ("mm_core.cli.history:history", "Show who changed what, and when."),
    "diff": ("mm_core.cli.compare:diff", "Show what differs between two versions."),
    "alias": ("mm_core.cli.alias:alias", "Point names such as prod at versions."),
    "rollback": (
        "mm_core.cli.alias:rollback",
        "Point an alias at the version that it named before.",
    ),
    "rm": ("mm_core.cli.change:rm", "Remove a version from the registry."),
    "policy": ("mm_core.cli.policy:policy", "Say which models may enter a backend, and why."),
    "scan": ("mm_core.cli.scan:scan", "Look for dangerous pickles in a model."),
    "verify": ("mm_core.cli.change:verify", "Read models back and check every byte."),
    "sign": ("mm_core.cli.sign:sign", "Sign a version, as the OpenSSF specifies it for models."),
    "sbom": ("mm_core.cli.sbom:sbom", "Write a bill of materials of a version."),
    "gc": ("mm_core.cli.collect:gc", "Delete what nobody uses any more."),
    "registry": ("mm_core.cli.registry:registry", "Check, repair and back up the registry."),
    "config": ("mm_core.cli.configure:config", "Write, check and explain mm.yaml."),
    "backends": ("mm_core.cli.backends:backends", "List and test the backends."),
    "plugins": ("mm_core.cli.plugins:plugins", "List plugins, begin one, and check it."),
    "doctor": ("mm_core.cli.doctor:doctor", "Find out what is wrong with this setup."),
    "completion": ("mm_core.cli.completion:completion", "Print the completion script of a shell."),
}

OFFERED = {
    "serve": "Serve a backend in the protocol of the Hugging Face Hub.",
    "token": "Say who may use the server.",
}
"""Commands of our own plugins, told here so that no plugin is loaded for the help."""

EXAMPLES = """
mm demo
mm pull hf://sentence-transformers/all-MiniLM-L6-v2 --alias prod
mm get sentence-transformers/all-MiniLM-L6-v2:prod
mm list --json
"""


class LazyGroup(click.Group):
    """Commands from the table above; those of plugins only where the table has none.

    `strangers` stand in place of the commands of the installed plugins.
    """

    def __init__(
        self, *args: Any, strangers: Sequence[click.Command] | None = None, **attrs: Any
    ) -> None:
        super().__init__(*args, **attrs)
        self._given = strangers

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names: the built-in ones first."""
        return [*COMMANDS, *OFFERED, *sorted(self._strangers.keys() - OFFERED.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if cmd_name in OFFERED and self._given is None:
            return self._offered.get(cmd_name)
        return self._strangers.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name is answered with the nearest one."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is not None:
            return name, command, args[1:]
        import difflib

        near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
        raise click.UsageError(
            f"there is no command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Answer a bare ``mm`` with the help on stderr."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table; no command is imported for it."""
        with formatter.section("Commands"):
            ours = [(name, short) for name, (_, short) in COMMANDS.items()]
            formatter.write_dl([*ours, *OFFERED.items()])
        strangers = [(n, c) for n, c in sorted(self._strangers.items()) if n not in OFFERED]
        if strangers:
            rows = [(name, c.get_short_help_str()) for name, c in strangers]
            with formatter.section("Commands of plugins"):
                formatter.write_dl(rows)

    @cached_property
    def _strangers(self) -> dict[str, click.Command]:
        if self._given is not None:
            return {command.name or "": taught(command) for command in self._given}
        return self._offered if _has_strangers() else {}

    @cached_property
    def _offered(self) -> dict[str, click.Command]:
        return _commands_of_plugins()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(EXAMPLES, formatter)


def make_app(strangers: Sequence[click.Command] | None = None) -> click.Group:
    """``mm`` with its global options, and `strangers` for the commands of plugins."""
    version = click.version_option(
        mm_core.__version__, prog_name="mm", message="%(prog)s %(version)s"
    )
    app: click.Group = version(
        LazyGroup(
            "mm",
            params=[*global_options()],
            callback=_prepare,
            help=_HELP,
            strangers=strangers,
        )
    )
    return app


_HELP = """Stream models from hubs into your own storage, verified, with the registry beside them.

SOURCE is hf://org/name, https://…, a folder, or any URL that a plugin answers.
Start with `mm demo`; see what a command takes with `mm COMMAND --help`.
"""


@click.pass_context
def _prepare(ctx: click.Context) -> None:
    ctx.ensure_object(State)
    if ctx.color is None and os.environ.get("NO_COLOR"):
        ctx.color = False


def _commands_of_plugins() -> dict[str, click.Command]:
    """The commands of plugins; what is broken is warned about."""
    from mm_core.plugins import Plugins

    found: dict[str, click.Command] = {}
    plugins = Plugins.discover()
    problems = dict(plugins.broken)
    for impl in plugins.hook.mm_cli.get_hookimpls():
        try:
            offered = cast("list[click.Command]", impl.function())
            found.update({c.name: taught(c) for c in offered if c.name and c.name not in found})
        except Exception as error:  # noqa: BLE001  # a stranger's code may raise anything
            problems[impl.plugin_name] = f"mm_cli: {type(error).__name__}: {error}"
    for name, problem in problems.items():
        click.echo(f"Warning: plugin {name} is broken: {problem}", err=True)
    return found


def _has_strangers() -> bool:
    import importlib.metadata

    return any(
        entry_point.dist is not None and entry_point.dist.name != _DISTRIBUTION
        for entry_point in importlib.metadata.entry_points(group=_GROUP)
    )
