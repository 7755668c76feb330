"""Commands about backends: list, test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from mm_core.cli import output
from mm_core.cli.base import group
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import AlreadyExistsError, IntegrityError, MMError, StorageError

if TYPE_CHECKING:
    from mm_core.sink import Sink

_PROBE_PREFIX = ".mm/probe/"


@dataclass(frozen=True)
class Step:
    """One thing that was tried on a backend, and the error if it did not work."""

    name: str
    error: MMError | None = None

    def to_json(self) -> dict[str, Any]:
        """The step as JSON data."""
        message = self.error.message if self.error else None
        return {"step": self.name, "ok": self.error is None, "error": message}


@group(
    "backends",
    examples="""
    mm backends list
    mm backends test lake
    """,
)
def backends() -> None:
    """List and test the backends."""


@backends.command(
    "list",
    examples="""
    mm backends list
    mm backends list --json
    """,
)
@pass_state
def list_(state: State, /) -> None:
    """List the backends of mm.yaml; nothing is contacted."""
    settings = state.settings()
    default = state.backend or settings.defaults.backend
    rows: list[dict[str, Any]] = [
        {"name": n, "type": b.type, "root": _root(b.values), "default": n == default}
        for n, b in settings.backends.items()
    ]
    state.emit(
        {"backends": rows},
        human=output.table(
            ("BACKEND", "TYPE", "ROOT", "DEFAULT"),
            [(r["name"], r["type"], r["root"], "yes" if r["default"] else "") for r in rows],
        ),
        quiet=[r["name"] for r in rows],
        rows=("backend", rows),
    )


@backends.command(
    "test",
    examples="""
    mm backends test lake
    mm backends test s3://bucket/prefix
    """,
)
@click.argument("name", required=False)
@pass_state
def test(state: State, /, name: str | None) -> None:
    """Write, read, list, create and delete small objects under .mm/probe/ of a backend.

    A store on which two writers can create the same object is found out here: it
    cannot hold a registry.
    """
    with state.manager() as manager:
        sink = manager.sink(name)
        steps = list(probe(sink))
    document = {
        "backend": name or state.backend or manager.settings.defaults.backend,
        "root": sink.root,
        "ok": all(step.error is None for step in steps),
        "steps": [step.to_json() for step in steps],
    }
    failed = [step.error for step in steps if step.error is not None]
    if not failed:
        state.emit(document, human=_step_lines(sink, steps))
        return
    state.so_far = document
    if not state.wants_json:
        for line in _step_lines(sink, steps):
            click.echo(line, err=True)
    raise failed[0]


def probe(sink: Sink) -> Iterator[Step]:
    """Try what the registry needs of a store, step by step; leaves nothing behind."""
    key, data = f"{_PROBE_PREFIX}{uuid4().hex}", b"mm probe"
    once = f"{key}-once"

    def create_again() -> None:
        try:
            sink.create(once, b"another")
        except AlreadyExistsError:
            return
        raise StorageError(
            "two writers can create the same object here",
            hint="this store cannot hold a registry: use one that honours If-None-Match",
        )

    def listed() -> None:
        _check(
            [o.key for o in sink.list(key)] == [key, once], "the listing is not what was written"
        )

    def deleted() -> None:
        sink.delete([key, once])
        _check(sink.stat(key) is None, "a deleted object is still there")

    yield _try("write", lambda: sink.put(key, data))
    yield _try("read", lambda: _check(_content(sink, key) == data, "other bytes came back"))
    yield _try("create", lambda: sink.create(once, data))
    yield _try("create twice is refused", create_again)
    yield _try("list", listed)
    yield _try("delete", deleted)


def _try(name: str, work: Callable[[], object]) -> Step:
    try:
        work()
    except MMError as error:
        return Step(name, error)
    return Step(name)


def _check(fine: bool, complaint: str) -> None:
    if not fine:
        raise IntegrityError(complaint)


def _content(sink: Sink, key: str) -> bytes:
    from mm_core.sink import read_bytes

    return read_bytes(sink, key)


def _step_lines(sink: Sink, steps: list[Step]) -> Iterator[str]:
    yield output.clean(sink.root)
    for step in steps:
        mark = (
            click.style("ok", fg="green") if step.error is None else click.style("failed", fg="red")
        )
        yield f"  {step.name}: {mark}" + (f": {output.clean(step.error)}" if step.error else "")


def _root(values: Any) -> str:
    from mm_core.redaction import redact_url

    return redact_url(str(values.get("root", "")))
