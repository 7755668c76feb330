"""What is shown while bytes move: bars on a terminal, else plain or JSON lines."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.exceptions import CancelledError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from mm_core.cli.state import State
    from mm_core.schemas import TransferEvent


class Reporter:
    """Hears the events of one transfer, from many threads. This one shows nothing.

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

    def __init__(self, *, every: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
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
    """One bar for the whole model and one for each file on its way."""

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
        self._tasks: dict[str, Any] = {}
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
            self._show_file(event.path, event)

    def stop(self) -> None:
        """Take the bars away."""
        self._bars.stop()

    def _restart(self, name: str) -> Any:
        for task in [*self._tasks.values(), *([] if self._overall is None else [self._overall])]:
            self._bars.remove_task(task)
        self._tasks.clear()
        return self._bars.add_task(output.clean(name), total=None)

    def _show_file(self, path: str, event: TransferEvent) -> None:
        if event.kind in ("stored", "failed"):
            task = self._tasks.pop(path, None)
            if task is not None:
                self._bars.remove_task(task)
            return
        if path not in self._tasks:
            self._tasks[path] = self._bars.add_task(f"  {output.clean(path)}", total=event.total)
        self._bars.update(self._tasks[path], completed=event.done, total=event.total)


class _Total:
    """The bytes of the whole model, added up from the events of its files."""

    def __init__(self) -> None:
        self.total: int | None = None
        self._files: dict[str, int] = {}
        self._whole = 0

    @property
    def done(self) -> int:
        """Bytes that have moved."""
        return max(self._whole, sum(self._files.values()))

    def add(self, event: TransferEvent) -> None:
        """Take an event into account."""
        if event.kind == "planned":
            self.total, self._whole = event.total, 0
            self._files.clear()
        elif event.path is None:
            self._whole = max(self._whole, event.done)
        elif event.kind in ("progress", "stored"):
            self._files[event.path] = event.done

    def __str__(self) -> str:
        if not self.total:
            return f"  {output.size(self.done)}"
        percent = 100 * self.done // self.total
        return f"  {output.size(self.done)} of {output.size(self.total)} ({percent} %)"


class _Stored:
    """The files that are whole and stay, whatever happens to the others."""

    def __init__(self) -> None:
        self._model_id = ""
        self._total: int | None = None
        self._sizes: dict[str, int] = {}
        self._begun: set[str] = set()

    def under_way(self) -> tuple[str, list[str]]:
        """The model, and those of its files that have begun and are not stored."""
        return self._model_id, [path for path in list(self._begun) if path not in self._sizes]

    def add(self, event: TransferEvent) -> None:
        """Take an event into account."""
        if event.kind == "planned":
            self._model_id, self._total = event.model_id, event.total
            self._sizes.clear()
            self._begun.clear()
        elif event.path is None:
            return
        elif event.kind == "stored":
            self._sizes[event.path] = event.done
        elif event.kind in ("started", "progress"):
            self._begun.add(event.path)

    def __str__(self) -> str:
        count, stored = len(self._sizes), output.size(sum(self._sizes.values()))
        if not count:
            return ""
        files = "1 file is" if count == 1 else f"{count} files are"
        total = "" if self._total is None else f" of {output.size(self._total)}"
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
