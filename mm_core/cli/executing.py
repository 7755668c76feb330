"""The options that say where pulls run, for the commands that have many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mm_core.executor import Executor
    from mm_core.manager import ModelManager

F = TypeVar("F", bound=Callable[..., Any])


def executor_options(function: F) -> F:
    """Give a command ``--executor`` and ``--scheduler``."""
    where = click.option("--executor", metavar="T", help="Where pulls run; threads if not given.")
    at = click.option("--scheduler", metavar="URL", help="The scheduler, for --executor dask.")
    split = click.option("--split", metavar="SIZE", help="Larger files in ranges; for dask 1GiB.")
    return where(at(split(function)))


@contextlib.contextmanager
def executor_of(
    manager: ModelManager, executor: str | None, scheduler: str | None, split: str | None
) -> Iterator[Executor | str | None]:
    """What `ModelManager.pull_many` takes; with settings of its own one that is made here."""
    given = {"scheduler": scheduler, "split": split}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        yield executor
        return
    from mm_core.config import build_config

    kind = manager.plugins.executor_type(executor or "dask")
    config = build_config(kind.Config, given, "--scheduler and --split", None)
    with contextlib.closing(kind(config)) as made:
        yield made
