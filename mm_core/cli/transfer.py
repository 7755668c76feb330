"""Commands that move models: pull, push, get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command, transfer_options
from mm_core.cli.executing import executor_of, executor_options
from mm_core.cli.progress import make_reporter
from mm_core.cli.several import Several, emit_one
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import CancelledError, MMError, UsageError

if TYPE_CHECKING:
    from mm_core.manager import ModelManager
    from mm_core.pulling import PullEnd, Pulls
    from mm_core.schemas import Plan, Pulled, RemoteFile, Request


@command(
    "pull",
    examples="""
    mm pull hf://sentence-transformers/all-MiniLM-L6-v2
    mm pull hf://org/name@main --include '*.safetensors' --include '*.json' --alias prod
    mm pull https://example.org/lid.176.ftz --as lang/lid --version 1
    mm pull hf://org/name --to lake --to dr --json
    mm pull hf://org/one hf://org/two --to lake
    mm pull hf://org/name --limit-rate 50MiB --connections 16
    mm pull hf://org/name --weights gguf:Q4_K_M
    mm pull hf://org/name --dry-run
    """,
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--to", "to", multiple=True, metavar="B", help="A backend; may be given several times."
)
@click.option("--as", "model_id", metavar="ID", help="The model id to keep it under.")
@click.option("--revision", metavar="R", help="A branch, tag or commit of the source.")
@click.option("--version", metavar="V", help="The version, where the source states none.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No files that match.")
@click.option(
    "--weights", metavar="F", help="One format of the weights: safetensors, gguf:Q4_K_M, onnx, all."
)
@click.option("--alias", "aliases", multiple=True, metavar="A", help="Point this name at it.")
@click.option("--type", "model_type", metavar="T", help="What the model does, as on the Hub.")
@transfer_options
@click.option("-n", "--dry-run", is_flag=True, help="Print what would move, and stop.")
@click.option("--no-wait", is_flag=True, help="Fail where another pull of it is under way.")
@executor_options
@pass_state
def pull(
    state: State,
    /,
    *,
    sources: tuple[str, ...],
    to: tuple[str, ...],
    jobs: int | None,
    dry_run: bool,
    no_wait: bool,
    executor: str | None,
    scheduler: str | None,
    split: str | None,
    **request: Any,
) -> None:
    """Stream a model from its source into a backend.

    SOURCE is hf://org/name[@revision], https://…, a folder, or any URL that a
    plugin answers. Bytes go straight through, without a temporary disk, and are
    checked before anybody can see them. What is there already is not moved
    again, and a pull that was cut goes on where it stopped. Several sources are
    pulled at once; one that fails keeps no other from being pulled.
    """
    request["model_type"] = _model_type(request["model_type"])
    backends: list[str | None] = [*to] or [None]
    source, *others = dict.fromkeys(sources)
    _refuse_names_for_many(len(others), request)
    with make_reporter(state) as reporter, state.manager(reporter) as manager:

        def one(source: str, backend: str | None) -> dict[str, Any]:
            if dry_run:
                plan = manager.plan(source, to=backend, **request)
                return _planned(plan, manager.kept_bytes(plan, to=backend))
            with reporter.asking(partial(_with_parts, manager, backend)):
                options: dict[str, Any] = {"to": backend, "jobs": jobs, "wait": not no_wait}
                if executor is None and scheduler is None and split is None:
                    return _pulled(manager.pull(source, **options, **request))
                with executor_of(manager, executor, scheduler, split) as where:
                    asked = _requests([source], request)
                    return _pulled(_the_one(manager.pull_many(asked, executor=where, **options)))

        if others and dry_run:
            _plan_each(state, _requests([source, *others], request), backends, one)
        elif others:
            requests = _requests([source, *others], request)
            with executor_of(manager, executor, scheduler, split) as where:
                _pull_each(
                    state, manager, requests, backends, jobs=jobs, wait=not no_wait, executor=where
                )
        elif len(backends) == 1:
            emit_one(state, one(source, backends[0]))
        else:
            _for_each(state, [b for b in backends if b], partial(one, source))


@command(
    "push",
    examples="""
    mm push ./my-model my-org/my-model
    mm push ./my-model my-org/my-model --to lake --version 3 --alias prod
    mm push ./my-model my-org/my-model --connections 16 --memory 256MiB
    """,
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("model_id", metavar="ID")
@click.option("--to", "to", metavar="B", help="The backend.")
@click.option("--version", metavar="V", help="The version; by default a digest of the content.")
@click.option("--alias", "aliases", multiple=True, metavar="A", help="Point this name at it.")
@click.option("--type", "model_type", metavar="T", help="What the model does, as on the Hub.")
@transfer_options
@pass_state
def push(
    state: State, /, folder: Path, model_id: str, model_type: str | None, **options: Any
) -> None:
    """Put a folder of your own into a backend.

    The same folder pushed again is the same version: nothing moves.
    """
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        kind = _model_type(model_type)
        with reporter.asking(partial(_with_parts, manager, options["to"])):
            pulled = manager.push(folder, model_id, model_type=kind, **options)
        document = _pulled(pulled)
    emit_one(state, document)


@command(
    "get",
    examples="""
    mm get my-org/my-model
    mm get my-org/my-model:prod --output ./model
    mm get my-org/my-model:prod --limit-rate 50MiB/s
    mm --offline get my-org/my-model:prod
    python serve.py --model "$(mm get my-org/my-model:prod)"
    """,
)
@click.argument("reference", metavar="ID[@VERSION|:ALIAS]")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), help="Put it there.")
@transfer_options
@pass_state
def get(state: State, /, reference: str, folder: Path | None, jobs: int | None) -> None:
    """Bring a model to this machine and print its path, and nothing else.

    A model on a local backend is used where it is, after a look at the sizes; what
    is brought here is checked byte by byte, once, and kept for all processes. ID@VERSION
    is then taken without any request, and with the global option --offline everything is.
    With --output, the newest signature over it is put beside its files as model.sig.
    """
    with make_reporter(state) as reporter, state.manager(reporter) as manager:
        got = manager.get(reference, output=folder, jobs=jobs, offline=state.offline or None)
    path = str(got.path)
    state.emit(got.to_json(), human=[path], quiet=[path])


def _for_each(state: State, backends: list[str], one: Any) -> None:
    """Do `one` for each backend; the failure of one does not keep the others from theirs."""
    several = Several(state, "backends")
    for backend in dict.fromkeys(backends):
        try:
            several.add({"backend": backend, **one(backend)})
        except CancelledError:
            raise
        except MMError as error:
            several.add_error(backend, error)
    several.end()


def _the_one(pulls: Pulls) -> Pulled:
    """What was pulled; its error where it was not."""
    for error in pulls.failed.values():
        raise error
    return pulls.pulled[0]


def _requests(sources: Sequence[str], options: dict[str, Any]) -> list[Request]:
    from mm_core.schemas import Request

    return [Request(url=source, **options) for source in sources]


def _refuse_names_for_many(others: int, request: dict[str, Any]) -> None:
    flags = {"--as": request["model_id"], "--version": request["version"]}
    given = [flag for flag, value in flags.items() if value is not None]
    if others and given:
        raise UsageError(
            f"{' and '.join(given)} can name one model, not {others + 1}",
            hint="pull that one by itself",
        )


def _pull_each(
    state: State,
    manager: ModelManager,
    requests: Sequence[Request],
    backends: Sequence[str | None],
    **options: Any,
) -> None:
    """Pull all `requests` at once, into one backend after the other."""
    several = Several(state, "pulls")

    def tell(end: PullEnd, to: str | None) -> None:
        """Called as each ends, in this thread."""
        if end.error is not None:
            several.add_error(_to(end.request, to), end.error)
        elif end.pulled is not None:
            where = {"source": end.name, "backend": end.pulled.backend}
            several.add({**where, **_pulled(end.pulled)})

    for backend in dict.fromkeys(backends):
        try:
            manager.pull_many(requests, to=backend, tell=partial(tell, to=backend), **options)
        except CancelledError:
            raise
        except MMError as error:  # of the backend itself
            several.add_error(str(backend), error)
    several.end()


def _plan_each(
    state: State,
    requests: Sequence[Request],
    backends: Sequence[str | None],
    one: Callable[[str, str | None], dict[str, Any]],
) -> None:
    """Say what `_pull_each` would do."""
    several = Several(state, "plans")
    for backend in dict.fromkeys(backends):
        for request in requests:
            try:
                where = {"source": _to(request, None), "backend": backend}
                several.add({**where, **one(request.url, backend)})
            except MMError as error:
                several.add_error(_to(request, backend), error)
    several.end()


def _to(request: Request, backend: str | None) -> str:
    """What was to be pulled, and where to, if that was said."""
    from mm_core.pulling import PullEnd
    from mm_core.redaction import redact_url

    name = PullEnd(request=request).name
    return name if backend is None else f"{name} to {redact_url(backend)}"


def _pulled(pulled: Pulled) -> dict[str, Any]:
    entry = pulled.entry
    moved = {
        "fetched": pulled.fetched_bytes,
        "copied": pulled.copied_bytes,
        "present": pulled.present_bytes,
    }
    words = ", ".join(f"{output.size(count)} {word}" for word, count in moved.items() if count)
    data = {f"{word}_bytes": count for word, count in moved.items()}
    data |= {"left_out": pulled.to_json()["left_out"]} if pulled.left_out else {}
    name = f"{entry.model_id}@{output.short_version(entry.version)}"
    aliases = f" ({', '.join(entry.aliases)})" if entry.aliases else ""
    return {
        "entry": entry.to_json(),
        **data,
        "quiet": [f"{entry.model_id}@{entry.version}"],
        "human": [
            f"{name}{aliases} is {entry.status.value}",
            f"  {words or 'nothing to move'}",
            f"  {output.clean(entry.path)}",
            *(f"  {line}" for line in _left_out(pulled.left_out)),
        ],
    }


def _with_parts(manager: ModelManager, backend: str | None, model_id: str) -> list[str]:
    """The keys of the files of a model of which parts are kept."""
    from mm_core.sink import ResumableSink

    sink = manager.sink(backend)
    if not isinstance(sink, ResumableSink):
        return []
    return [upload.key for upload in sink.unfinished(f"models/{model_id}/")]


def _planned(plan: Plan, kept: int | None) -> dict[str, Any]:
    return {
        "plan": plan.to_json() | {"kept_bytes": kept},
        "quiet": [f.file.path for f in plan.files],
        "human": _plan_lines(plan, kept),
    }


def _plan_lines(plan: Plan, kept: int | None) -> Iterator[str]:
    from mm_core.schemas import Action

    name = f"{plan.model_id}@{output.short_version(plan.version)}"
    yield f"{name} from {output.clean(plan.snapshot.source)}"
    rows = [
        (f.action.value, output.size(f.file.size), f.file.path, f.copy_from or "")
        for f in plan.files
    ]
    copies = any(f.copy_from for f in plan.files)
    header = ("ACTION", "SIZE", "PATH", "COPY FROM") if copies else ("ACTION", "SIZE", "PATH")
    yield from output.table(header, [row[: len(header)] for row in rows])
    words = {Action.FETCH: "to fetch", Action.COPY: "to copy", Action.PRESENT: "present"}
    if kept != 0:
        words[Action.FETCH] += f" ({output.size(kept)} of it kept from an earlier attempt)"
    totals = [f"{output.size(plan.bytes_to(action))} {word}" for action, word in words.items()]
    yield f"{len(plan.files)} files: {', '.join(totals)}; nothing was done"
    yield from _left_out(plan.left_out)


def _left_out(files: Sequence[RemoteFile]) -> Iterator[str]:
    """What was left out for the sake of one format, and how to get it."""
    if files:
        from mm_core.weights import format_by_name

        formats = sorted({format_by_name(file.path) or "other" for file in files})
        size = output.size(sum(file.size or 0 for file in files))
        count = output.counted(len(files), "file")
        yield f"left out: {count} of {', '.join(formats)}, {size}; --weights all brings them, too"


def _model_type(text: str | None) -> Any:
    """The type of a word from the command line; a usage error names the nearest words."""
    if text is None:
        return None
    import difflib

    from mm_core.schemas import ModelType

    known = [t.value for t in ModelType]
    if text.lower() in known:
        return ModelType(text.lower())
    near = ", ".join(difflib.get_close_matches(text, known)) or "text-generation, other"
    raise UsageError(f"there is no model type {text!r}", hint=f"types are such as {near}")
