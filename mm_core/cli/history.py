"""The command that looks back: history."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state

_WORDS = {
    "begin": "began to pull {name}",
    "add": "made {name} available",
    "abandon": "gave up {name}",
    "register": "registered {name}",
    "status": "set {name} to {status}",
    "remove": "removed {name}",
    "sweep": "began to delete the files of {name}",
    "swept": "deleted the files of {name}",
    "alias": "pointed {model_id}:{alias} at {version}",
    "unalias": "took {model_id}:{alias} away",
}
_BACK = "rolled {model_id}:{alias} back to {version}"


class _Names(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "?"


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    from mm_core.units import parse_moment

    try:
        return None if value is None else parse_moment(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}.") from None


@command(
    "history",
    examples="""
    mm history
    mm history my-org/my-model --limit 20
    mm history --since 7d --json
    """,
)
@click.argument("model_id", metavar="[ID]", required=False)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest so many.")
@click.option(
    "--since", callback=_moment, metavar="TIME", help="Not older, such as 2026-01-31 or 7d."
)
@pass_state
def history(
    state: State, /, model_id: str | None, limit: int | None, since: datetime | None
) -> None:
    """Show who changed what, and when: the commits of the registry, newest first.

    Times are what each writer noted by its own clock. Without --limit the whole
    log is read and its chain of hashes checked.
    """
    with state.registry() as registry:
        records = registry.history(model_id, since=since, limit=limit)
    commits = [record.to_json() for record in reversed(records)]
    state.emit(
        {"commits": commits},
        human=output.table_or(
            f"no commit is about {model_id!r}" if model_id else "no commits",
            ("SEQ", "TIME", "WRITER", "WHAT"),
            [(c["seq"], _seconds(c["time"]), c["writer"], _in_words(c)) for c in commits],
        ),
        quiet=[str(c["seq"]) for c in commits],
        rows=("commit", commits),
    )


def _in_words(commit: Mapping[str, Any]) -> str:
    if "stands_in" in commit and not commit["operations"]:
        return "stands in for a lost commit"
    return "; ".join(in_words(operation) for operation in commit["operations"])


def in_words(operation: Mapping[str, Any]) -> str:
    """What an operation of the log did, for people."""
    op = str(operation.get("op", "?"))
    names = _Names({key: output.short_version(str(value)) for key, value in operation.items()})
    names["name"] = f"{names['model_id']}@{names['version']}"
    pattern = _BACK if op == "alias" and "back" in operation else _WORDS.get(op, op + " {name}")
    return pattern.format_map(names) + _details(op, operation)


def _details(op: str, operation: Mapping[str, Any]) -> str:
    size = operation.get("size_bytes")
    if op in ("begin", "register") and operation.get("source"):
        return f" from {operation['source']}"
    if op == "add" and isinstance(size, int):
        return f" ({output.size(size)})"
    return f": {operation['reason']}" if operation.get("reason") else ""


def _seconds(time: str) -> str:
    """`time` without the parts of a second, which no reader of a table needs."""
    whole, dot, _ = time.partition(".")
    return f"{whole}Z" if dot and time.endswith("Z") else time
