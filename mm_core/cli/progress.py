"""What is shown while bytes move: bars on a terminal, else plain or JSON lines."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.exceptions import CancelledError
from mm_core.tally import Tell, say_nothing

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from mm_core.cli.state import State
    from mm_core.schemas import TransferEvent


_File = tuple[str, str]
"""A model's id, and the path of a file in it."""

_ENDS = ("committed", "failed")

EVERY = 5.0
"""Seconds between two lines that say how far it is."""


class Reporter:
    """Hears the events of transfers, from many threads. This one shows nothing.

    Retries are not its business: the library logs them as warnings.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored = _Stored()
        self._parts = ""

    def how_to_go_on(self) -> str:
        """What to tell a user who interrupted the command."""
        return f"{self._stored}{self._parts}run the same command again to go on"

    @contextlib.contextmanager
    def asking(self, with_parts: Callable[[str], list[str]]) -> Iterator[None]:
        """If what happens within is interrupted, find out for which files under way parts are kept.

        `with_parts` tells the keys of the files of a model that have some. A store
        that is slow to answer, or fails, keeps nobody waiting.
        """
        self._parts = ""
        try:
            yield
        except (KeyboardInterrupt, CancelledError):
            model_id, paths = self._stored.under_way()
            keys = _soon(lambda: with_parts(model_id)) if paths else ()
            count = sum(any(key.endswith(f"/{path}") for key in keys) for path in paths)
            if count:
                files = "1 file" if count == 1 else f"{count} files"
                self._parts = f"parts of {files} are kept; "
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __call__(self, event: TransferEvent) -> None:
        """Hear `event`."""
        with self._lock:
            self._stored.add(event)
            self.show(event)

    def show(self, event: TransferEvent) -> None:
        """Show `event`; called by one thread at a time."""

    def stop(self) -> None:
        """End what is being shown."""


class JsonLines(Reporter):
    """Each event as one JSON line on stdout, before the line of the result."""

    def show(self, event: TransferEvent) -> None:
        """Print the event."""
        values = event.to_json()
        output.write_json_line(values.pop("kind"), values)


class PlainLines(Reporter):
    """Lines on stderr: the start, each stored file, and where it stands every few seconds."""

    def __init__(
        self, *, every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._every, self._clock = every, clock
        self._next = clock() + every
        self._total = _Total()

    def show(self, event: TransferEvent) -> None:
        """Print a line where the event is worth one."""
        self._total.add(event)
        line = _line(event)
        if event.kind == "progress" and self._clock() >= self._next:
            self._next = self._clock() + self._every
            line = f"{self._total}"
        if line:
            click.echo(output.clean(line), err=True)


class Bars(Reporter):
    """One bar for all that moves and one for each file on its way."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._total = _Total()
        self._overall: Any = None
        self._tasks: dict[_File, Any] = {}
        self._bars.start()

    def show(self, event: TransferEvent) -> None:
        """Move the bars."""
        self._total.add(event)
        if event.kind in ("planned", "waiting", "failed", "committed") and (line := _line(event)):
            self._bars.console.print(output.clean(line), markup=False, highlight=False)
        if self._overall is None or event.kind == "planned":
            self._overall = self._restart(event.model_id)
        self._bars.update(self._overall, completed=self._total.done, total=self._total.total)
        if event.path is not None:
            self._show_file((event.model_id, event.path), event)

    def stop(self) -> None:
        """Take the bars away."""
        self._bars.stop()

    def _restart(self, name: str) -> Any:
        gone = [file for file in self._tasks if file[0] == name]
        for task in [
            *(self._tasks.pop(file) for file in gone),
            *([] if self._overall is None else [self._overall]),
        ]:
            self._bars.remove_task(task)
        count = self._total.models
        shown = output.clean(name) if count < 2 else f"{count} models"
        return self._bars.add_task(shown, total=None)

    def _show_file(self, file: _File, event: TransferEvent) -> None:
        if event.kind in ("stored", "failed"):
            task = self._tasks.pop(file, None)
            if task is not None:
                self._bars.remove_task(task)
            return
        if file not in self._tasks:
            shown = output.clean(file[1])
            self._tasks[file] = self._bars.add_task(f"  {shown}", total=event.total)
        self._bars.update(self._tasks[file], completed=event.done, total=event.total)


class _Total:
    """The bytes of the models that move together, added up from the events of their files."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    @property
    def models(self) -> int:
        """How many models are moved."""
        return len(self._models)

    @property
    def total(self) -> int | None:
        """Bytes to move, where all of them are known."""
        known = [model.total for model in self._models.values()]
        return sum(total or 0 for total in known) if known and None not in known else None

    @property
    def done(self) -> int:
        """Bytes that have moved."""
        return sum(model.done for model in self._models.values())

    def add(self, event: TransferEvent) -> None:
        """Take an event into account."""
        if event.kind == "planned":
            if all(model.ended for model in self._models.values()):
                self._models.clear()
            self._models[event.model_id] = _Model(event.total)
            return
        model = self._models.setdefault(event.model_id, _Model(None))
        if event.path is None:
            model.whole = max(model.whole, event.done)
            model.ended = model.ended or event.kind in _ENDS
        elif event.kind in ("progress", "stored"):
            model.files[event.path] = event.done

    def __str__(self) -> str:
        if not self.total:
            return f"  {output.size(self.done)}"
        percent = 100 * self.done // self.total
        return f"  {output.size(self.done)} of {output.size(self.total)} ({percent} %)"


@dataclass(slots=True)
class _Model:
    """How far one model is. Some sources only tell of the `whole`."""

    total: int | None
    whole: int = 0
    ended: bool = False
    files: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return max(self.whole, sum(self.files.values()))


class _Stored:
    """The files of the models on their way that are whole and stay, whatever happens next."""

    def __init__(self) -> None:
        self._model_id = ""
        self._open: set[str] = set()
        self._totals: dict[str, int | None] = {}
        self._sizes: dict[_File, int] = {}
        self._begun: set[_File] = set()

    def under_way(self) -> tuple[str, list[str]]:
        """The newest model, and those of its files that have begun and are not stored."""
        begun = [file for file in list(self._begun) if file not in self._sizes]
        return self._model_id, [path for model, path in begun if model == self._model_id]

    def add(self, event: TransferEvent) -> None:
        """Take an event into account."""
        if event.kind == "planned":
            self._plan(event.model_id, event.total)
        elif event.path is None:
            self._open -= {event.model_id} if event.kind in _ENDS else set()
        elif event.kind == "stored":
            self._sizes[event.model_id, event.path] = event.done
        elif event.kind in ("started", "progress"):
            self._begun.add((event.model_id, event.path))

    def _plan(self, model_id: str, total: int | None) -> None:
        if not self._open:
            self._totals.clear()
            self._sizes.clear()
            self._begun.clear()
        self._open.add(model_id)
        self._model_id, self._totals[model_id] = model_id, total
        self._sizes = {file: size for file, size in self._sizes.items() if file[0] != model_id}
        self._begun = {file for file in self._begun if file[0] != model_id}

    def __str__(self) -> str:
        count, stored = len(self._sizes), output.size(sum(self._sizes.values()))
        if not count:
            return ""
        files = "1 file is" if count == 1 else f"{count} files are"
        known = list(self._totals.values())
        total = "" if None in known else f" of {output.size(sum(size or 0 for size in known))}"
        return f"{files} stored, {stored}{total}; "


def _soon(ask: Callable[[], list[str]]) -> list[str]:
    """What `ask` returns, or nothing where it fails or takes longer than half a second."""
    answers: list[list[str]] = []

    def work() -> None:
        with contextlib.suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(0.5)
    return answers[0] if answers else []


def make_reporter(state: State) -> Reporter:
    """The reporter for what was asked for; an interrupted command ends with its words."""
    reporter = _reporter_for(state)
    state.when_interrupted = reporter.how_to_go_on
    return reporter


def make_teller(state: State) -> Tell:
    """What says on stderr, every few seconds, how far it is."""
    if not state.wants_progress:
        return say_nothing
    due = time.monotonic() + EVERY

    def tell(words: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + EVERY
            click.echo(output.clean(words), err=True)

    return tell


def _reporter_for(state: State) -> Reporter:
    if state.format == "jsonl":
        return JsonLines()
    if not state.wants_progress:
        return Reporter()
    if sys.stderr.isatty() and not os.environ.get("CI") and importlib.util.find_spec("rich"):
        return Bars()
    return PlainLines()


def _line(event: TransferEvent) -> str | None:
    if event.kind == "planned":
        return f"{event.model_id}: {output.size(event.total)}"
    if event.kind == "stored":
        return f"stored {event.path} ({output.size(event.total or event.done)})"
    if event.kind == "waiting":
        return f"{event.model_id}: {event.message or 'waiting for another pull of it'}"
    if event.kind == "failed":
        return f"failed {event.path or event.model_id}: {event.message}"
    if event.kind == "committed":
        return f"{event.model_id}: committed"
    return None
