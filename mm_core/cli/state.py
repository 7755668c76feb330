"""What the global options say, for the command that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output

if TYPE_CHECKING:
    from mm_core.config import Settings
    from mm_core.manager import ModelManager
    from mm_core.place import Place
    from mm_core.recall import Memory
    from mm_core.registry import ModelRegistry
    from mm_core.schemas import TransferEvent


@dataclass
class State:
    """The global options of one run, filled in wherever they stand, and what they lead to.

    A plugin's command gets it with ``@click.pass_obj``.
    """

    config: Path | None = None
    backend: str | None = None
    format: str = "human"
    quiet: bool = False
    verbose: int = 0
    color: str = "auto"
    no_progress: bool = False
    offline: bool = False
    when_interrupted: Callable[[], str] | None = None
    so_far: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def wants_json(self) -> bool:
        """Whether stdout is for programs: all human words must stay away, stderr included."""
        return self.format in ("json", "jsonl")

    @property
    def wants_progress(self) -> bool:
        """Whether progress may be shown on stderr at all."""
        return self.format == "human" and not self.quiet and not self.no_progress

    def settings(self) -> Settings:
        """The settings from the files, the environment and the flags."""
        from mm_core.config import load_settings

        return load_settings(self.config, overrides=self._overrides())

    def _overrides(self) -> dict[str, Any]:
        if not self.offline:
            return dict(self.overrides)
        os.environ |= {"MM_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
        return {**self.overrides, "defaults.offline": True}

    def manager(self, on_event: Callable[[TransferEvent], None] | None = None) -> ModelManager:
        """A manager for these options: use it in a ``with``."""
        from mm_core.cli.logs import log_to_stderr
        from mm_core.manager import ModelManager

        log_to_stderr(self)
        return ModelManager(self.settings(), backend=self.backend, on_event=on_event)

    @contextmanager
    def registry(self, backend: str | None = None) -> Iterator[ModelRegistry]:
        """The registry of a backend, for commands that move no bytes: cheaper than a manager.

        Without `backend`, the one that the options name, else the default one.
        """
        from mm_core.cli.logs import log_to_stderr
        from mm_core.recall import Memory

        log_to_stderr(self)
        memory = Memory(
            file=self.config,
            backend=backend or self.backend,
            overrides=self._overrides(),
            environ=os.environ,
            cwd=Path.cwd(),
        )
        place = memory.recall()
        if place is None:
            with self._looked_up(backend, memory) as found:
                yield found.registry
            return
        try:
            yield place.registry
        finally:
            place.sink.close()

    @contextmanager
    def _looked_up(self, backend: str | None, memory: Memory) -> Iterator[Place]:
        from mm_core.place import Places
        from mm_core.plugins import Plugins

        settings = self.settings()
        places = Places(settings, Plugins.discover(), self.backend)
        try:
            place = places.open(backend)
            memory.note(settings, place)
            yield place
        finally:
            places.close()

    def emit(
        self,
        document: Mapping[str, Any],
        *,
        human: Iterable[str],
        quiet: Iterable[str] = (),
        rows: tuple[str, Iterable[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Print a result to stdout in the format that was asked for.

        `document` is the JSON document, without its ``schema_version``. `rows`
        is the kind and the entries of a list: JSON lines print one each, and
        the whole document as one line where there are none.
        """
        if self.format == "json":
            output.write_json(document)
        elif self.format == "jsonl" and rows is not None:
            kind, entries = rows
            for entry in entries:
                output.write_json_line(kind, entry)
        elif self.format == "jsonl":
            output.write_json_line("result", document)
        else:
            for line in quiet if self.format == "quiet" or self.quiet else human:
                click.echo(line)


pass_state = click.make_pass_decorator(State, ensure=True)
