"""The hooks. A plugin is a module (or object) with some of these, marked `hookimpl`.

Built-ins and strangers come through the same door: an entry point in the group
``model_manager`` that names the module. Arguments that a hook does not need may
be left out of its signature; new ones may come with a new release.

``docs/hooks.md`` is made of the docstrings here, so each has the same parts:
``Called``, ``Given`` (a line for each argument), ``Threads``, ``Errors``, ``Answer``
where something is returned, and an example after ``Such as::``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from mm_core.executor import Executor
from mm_core.policy import Policy
from mm_core.schemas import ModelEntry, Plan, Request, StoredFile, TransferEvent
from mm_core.service import Service
from mm_core.signatures.port import Signer
from mm_core.sink import Sink
from mm_core.source import Source

if TYPE_CHECKING:
    import click

    from mm_core.results import Got

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
    section of ``mm.yaml``, as it stands there; each of its sets was asked before.
    """

    backend: str
    policies: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentContext:
    """What a program is about to be run with.

    `models` are on this machine, each with its folder. Where they are to be read from the
    store itself, `models` is empty and `sink` is that store; where they are to be asked of
    a hub, `hub` is its URL. `folder` is for files that the program needs: it is the same one
    whenever the same models are asked for, by many processes at once, and need not exist yet.
    """

    models: tuple[Got, ...] = ()
    sink: Sink | None = None
    hub: str | None = None
    folder: Path


@hookspec
def mm_sources() -> list[type[Source]]:
    """Offer kinds of sources.

    Called: once for each set of plugins, before a type is looked up for the first time.
    Threads: the one that looks first.
    Errors: break this plugin alone; it is kept by name, with its error.
    Answer: classes, not instances. Importing them must load no library of a vendor.
    Such as::

        @hookimpl
        def mm_sources():
            return [MySource]
    """
    raise NotImplementedError


@hookspec
def mm_sinks() -> list[type[Sink]]:
    """Offer kinds of sinks.

    Called: once for each set of plugins, before a type is looked up for the first time.
    Threads: the one that looks first.
    Errors: break this plugin alone; it is kept by name, with its error.
    Answer: classes, not instances. Importing them must load no library of a vendor.
    Such as::

        @hookimpl
        def mm_sinks():
            return [MySink]
    """
    raise NotImplementedError


@hookspec
def mm_policies() -> list[type[Policy]]:
    """Offer kinds of policies.

    Called: once for each set of plugins, before a type is looked up for the first time.
    Threads: the one that looks first.
    Errors: break this plugin alone; it is kept by name, with its error.
    Answer: classes, not instances. Importing them must load no library of a vendor.
    Such as::

        @hookimpl
        def mm_policies():
            return [MyPolicy]
    """
    raise NotImplementedError


@hookspec
def mm_signers() -> list[type[Signer]]:
    """Offer forms of signatures over models.

    Called: once for each set of plugins, before a type is looked up for the first time.
    Threads: the one that looks first.
    Errors: break this plugin alone; it is kept by name, with its error.
    Answer: classes, not instances. Importing them must load no library of a vendor.
    Such as::

        @hookimpl
        def mm_signers():
            return [MySigner]
    """
    raise NotImplementedError


@hookspec
def mm_executors() -> list[type[Executor]]:
    """Offer kinds of executors.

    Called: once for each set of plugins, before a type is looked up for the first time.
    Threads: the one that looks first.
    Errors: break this plugin alone; it is kept by name, with its error.
    Answer: classes, not instances. Importing them must load no library of a vendor.
    Such as::

        @hookimpl
        def mm_executors():
            return [MyExecutor]
    """
    raise NotImplementedError


@hookspec
def mm_services() -> list[type[Service]]:
    """Offer kinds of services: servers over the backends.

    Called: once for each set of plugins, before a type is looked up for the first time.
    Threads: the one that looks first.
    Errors: break this plugin alone; it is kept by name, with its error.
    Answer: classes, not instances. Importing them must load no web framework.
    Such as::

        @hookimpl
        def mm_services():
            return [MyService]
    """
    raise NotImplementedError


@hookspec
def mm_cli() -> list[click.Command]:
    """Add commands to ``mm``.

    Called: where a command is not one of the built-in ones, and for ``mm --help``.
    Threads: the main one.
    Errors: are warned about on stderr; every other command works.
    Answer: commands of click, each with a name that no built-in one has.
    Such as::

        @hookimpl
        def mm_cli():
            from my_plugin.commands import greet

            return [greet]
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def mm_models_in(address: str) -> list[Request] | None:
    """Say which models a layout that you know holds.

    Called: by ``mm adopt``, until one plugin knows the layout.
    Given:
        address: what ``mm adopt`` was given, a folder or a URL.
    Threads: the caller's.
    Errors: stop the command.
    Answer: a request for each model, or None if you do not know the layout. Each names
        the model id, the version, and as aliases the layout's own names for it; its
        URL is one that a source of yours answers.
    Such as::

        @hookimpl
        def mm_models_in(address):
            if not address.endswith(".layout"):
                return None
            return [Request(url=f"my-layout://{address}", model_id="org/name", version="1")]
    """


@hookspec
def mm_plan_made(plan: Plan, context: PlanContext) -> None:
    """Look at a plan before a byte moves; raise `PolicyError` to refuse it.

    Called: for each pull, push and copy, and for a dry run, once the plan is made.
    Given:
        plan: what would move: the source's snapshot, and each file with its key.
        context: the backend's name, and the ``policies`` of ``mm.yaml``.
    Threads: the one of the pull.
    Errors: stop the pull. Nothing is left of it.
    Such as::

        @hookimpl
        def mm_plan_made(plan):
            if any(f.file.path.endswith(".pkl") for f in plan.files):
                raise PolicyError("pickles are not allowed here")
    """


@hookspec
def mm_file_stored(file: StoredFile, sink: Sink) -> None:
    """Look at a stored, verified file before the version is committed; raise to refuse it.

    Called: for each file of a version, after all of them are stored.
    Given:
        file: its path, key, size and sha256.
        sink: where it stands; it is shared, so do not close it.
    Threads: the one of the pull.
    Errors: stop the pull. Nobody is offered the version.
    Such as::

        @hookimpl
        def mm_file_stored(file, sink):
            scan(sink.read(file.key))
    """


@hookspec
def mm_committed(entry: ModelEntry, backend: str) -> None:
    """Hear that a version is AVAILABLE.

    Called: after the commit that made it so.
    Given:
        entry: the version as the registry has it.
        backend: the name of the backend, or its root URL.
    Threads: the one of the pull.
    Errors: are logged; the version stays.
    Such as::

        @hookimpl
        def mm_committed(entry, backend):
            notify(f"{entry.model_id} {entry.version} is in {backend}")
    """


@hookspec
def mm_removed(entry: ModelEntry, backend: str) -> None:
    """Hear that a version was removed.

    Called: after the commit that took it out of use, by ``mm rm`` or by retention.
    Given:
        entry: the version as the registry has it.
        backend: the name of the backend, or its root URL.
    Threads: the caller's.
    Errors: are logged; it stays removed.
    Such as::

        @hookimpl
        def mm_removed(entry, backend):
            notify(f"{entry.model_id} {entry.version} is gone from {backend}")
    """


@hookspec
def mm_environment(context: EnvironmentContext) -> Mapping[str, str]:
    """Say which variables let the programs that you know find the models.

    Called: by ``mm run`` and ``mm env``.
    Given:
        context: the models and where they are.
    Threads: the caller's.
    Errors: stop the command.
    Answer: variables and their values; of two plugins that name the same one, the one that
        was registered last wins. No secret is among them: ``mm env`` prints them.
    Such as::

        @hookimpl
        def mm_environment(context):
            return {"MY_LOADER_MODELS": ":".join(str(got.path) for got in context.models)}
    """
    raise NotImplementedError


@hookspec
def mm_event(event: TransferEvent) -> None:
    """Hear what happens during a transfer.

    Called: for each event, thousands of times in a large pull; it must be quick.
    Given:
        event: its kind, such as ``started``, ``progress`` or ``retry``, the model and the file.
    Threads: many at once.
    Errors: are logged once and otherwise ignored.
    Such as::

        @hookimpl
        def mm_event(event):
            if event.kind == "retry":
                RETRIES.inc()
    """
