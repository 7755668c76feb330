"""The hooks. A plugin is a module (or object) with some of these, marked `hookimpl`.

Built-ins and strangers come through the same door: an entry point in the group
``model_manager`` that names the module. Arguments that a hook does not need may
be left out of its signature; new ones may come with a new release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from mm_core.schemas import ModelEntry, Plan, Request, StoredFile, TransferEvent
from mm_core.sink import Sink
from mm_core.source import Source

if TYPE_CHECKING:
    import click

PROJECT = "model_manager"
"""The pluggy project and the entry-point group."""

MM_API = 1
"""The version of the hooks. It rises only when a plugin must change."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """Where a plan is about to be carried out.

    `backend` is the backend's name or root URL. `policies` is the ``policies``
    section of ``mm.yaml``, as it stands there.
    """

    backend: str
    policies: Mapping[str, Any] = field(default_factory=dict)


@hookspec
def mm_sources() -> list[type[Source]]:
    """Offer kinds of sources.

    Called once for each set of plugins, in the main thread, before anything is
    looked up. Return classes, not instances, and import nothing heavy.

        @hookimpl
        def mm_sources():
            return [MySource]
    """
    raise NotImplementedError


@hookspec
def mm_sinks() -> list[type[Sink]]:
    """Offer kinds of sinks. Called like `mm_sources`.

    @hookimpl
    def mm_sinks():
        return [MySink]
    """
    raise NotImplementedError


@hookspec
def mm_policies() -> list[type[Any]]:
    """Offer kinds of policies. Called like `mm_sources`; each class has a ``type``."""
    raise NotImplementedError


@hookspec
def mm_executors() -> list[type[Any]]:
    """Offer kinds of executors. Called like `mm_sources`; each class has a ``type``."""
    raise NotImplementedError


@hookspec
def mm_cli() -> list[click.Command]:
    """Add commands to ``mm``. Called when a command is unknown, or for ``mm --help``.

    @hookimpl
    def mm_cli():
        from my_plugin.commands import greet

        return [greet]
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def mm_models_in(address: str) -> list[Request] | None:
    """Say which models a layout that you know holds; None if you do not know it.

    Called by ``mm adopt`` with the address that it was given. Each request names
    the model id, the version, and as aliases the layout's own names for it; its
    URL is one that a source of yours answers.

        @hookimpl
        def mm_models_in(address):
            return [Request(url=f"my-layout://{address}", model_id="org/name", version="1")]
    """


@hookspec
def mm_plan_made(plan: Plan, context: PlanContext) -> None:
    """Look at a plan before a byte moves; raise `PolicyError` to refuse it.

    Called in the thread of the caller. Any error stops the pull; nothing is left.

        @hookimpl
        def mm_plan_made(plan):
            if any(f.file.path.endswith(".pkl") for f in plan.files):
                raise PolicyError("pickles are not allowed here")
    """


@hookspec
def mm_file_stored(file: StoredFile, sink: Sink) -> None:
    """Look at a stored, verified file before the version is committed; raise to refuse it.

    Called in the thread of the caller, after all files are stored.

        @hookimpl
        def mm_file_stored(file, sink):
            scan(sink.read(file.key))
    """


@hookspec
def mm_committed(entry: ModelEntry, backend: str) -> None:
    """Hear that a version is AVAILABLE. Errors are logged; the version stays.

    @hookimpl
    def mm_committed(entry, backend):
        notify(f"{entry.model_id} {entry.version} is in {backend}")
    """


@hookspec
def mm_removed(entry: ModelEntry, backend: str) -> None:
    """Hear that a version was removed. Errors are logged; it stays removed.

    @hookimpl
    def mm_removed(entry, backend):
        notify(f"{entry.model_id} {entry.version} is gone from {backend}")
    """


@hookspec
def mm_event(event: TransferEvent) -> None:
    """Hear what happens during a transfer. Called from many threads; must be quick.

    Errors are logged once and otherwise ignored.

        @hookimpl
        def mm_event(event):
            if event.kind == "retry":
                RETRIES.inc()
    """
