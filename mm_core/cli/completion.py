"""The completion script of a shell."""

from __future__ import annotations

import click

from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state


@command(
    "completion",
    examples="""
    eval "$(mm completion bash)"
    mm completion zsh > ~/.zfunc/_mm
    mm completion fish > ~/.config/fish/completions/mm.fish
    """,
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@pass_state
def completion(state: State, /, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from mm_core.cli.app import make_app

    script_class = get_completion_class(shell)
    if script_class is None:
        raise click.UsageError(f"there is no completion for {shell}")
    script = script_class(make_app(), {}, "mm", "_MM_COMPLETE").source()
    state.emit({"shell": shell, "script": script}, human=[script], quiet=[script])
