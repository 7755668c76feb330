"""Commands that only look: list, show, files, url."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state

if TYPE_CHECKING:
    from mm_core.results import Shown
    from mm_core.schemas import ModelEntry

_REFERENCE = "ID[@VERSION|:ALIAS]"


@command(
    "list",
    examples="""
    mm list
    mm list --backend lake --json
    mm list --all --limit 20
    """,
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@click.option("--all", "all_", is_flag=True, help="Removed versions, too.")
@pass_state
def list_(state: State, /, limit: int | None, all_: bool) -> None:
    """List the models of a backend, those on their way and those that failed included."""
    with state.registry() as registry:
        shown = registry.list_models(include_deleted=all_)[:limit]
    models = [entry.to_json() for entry in shown]
    state.emit(
        {"models": models},
        human=_list_lines(shown),
        quiet=[f"{e.model_id}@{e.version}" for e in shown],
        rows=("model", models),
    )


@command(
    "show",
    examples="""
    mm show my-org/my-model
    mm show my-org/my-model:prod --json
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@pass_state
def show(state: State, /, reference: str) -> None:
    """Show all that is known about a model: its files, tensors, source and how to load it."""
    with state.manager() as manager:
        shown = manager.show(reference)
        url = manager.url(reference)
    entry = shown.entry
    state.emit(
        {"model": shown.to_json()},
        human=_show_lines(shown, url),
        quiet=[f"{entry.model_id}@{entry.version}"],
    )


@command(
    "files",
    examples="""
    mm files my-org/my-model
    mm files my-org/my-model:prod --format jsonl
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@pass_state
def files(state: State, /, reference: str) -> None:
    """List the files of a model with their sizes and sha256."""
    with state.manager() as manager:
        shown = manager.show(reference)
    rows = shown.to_json()["files"]
    state.emit(
        {"files": rows},
        human=output.table(
            ("PATH", "SIZE", "SHA256"),
            [(f["path"], output.size(f["size"]), f["sha256"]) for f in rows],
        ),
        quiet=[f["path"] for f in rows],
        rows=("file", rows),
    )


@command(
    "url",
    examples="""
    mm url my-org/my-model:prod
    vllm serve "$(mm url my-org/my-model:prod)"
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@pass_state
def url(state: State, /, reference: str) -> None:
    """Print the URL that a loader opens, and nothing else: that of the model's folder."""
    with state.manager() as manager:
        found = manager.url(reference)
    state.emit({"url": found}, human=[found], quiet=[found])


def _list_lines(entries: list[ModelEntry]) -> Iterator[str]:
    if not entries:
        click.echo("no models yet; `mm pull SOURCE` brings one, `mm demo` shows how", err=True)
        return
    header = ("MODEL", "VERSION", "TYPE", "SIZE", "STATUS", "ALIASES", "AGE")
    yield from output.table(header, [_row(entry) for entry in entries])


def _row(entry: ModelEntry) -> tuple[object, ...]:
    return (
        entry.model_id,
        output.short_version(entry.version),
        entry.model_type.value,
        output.size(entry.size_bytes),
        entry.status.value,
        ", ".join(entry.aliases),
        output.age(entry.download_date),
    )


def _show_lines(shown: Shown, url: str) -> Iterator[str]:
    entry, manifest = shown.entry, shown.manifest
    yield from output.facts(
        [
            ("model", entry.model_id),
            ("version", entry.version),
            ("type", entry.model_type.value),
            ("status", entry.status.value),
            ("aliases", ", ".join(entry.aliases)),
            ("size", output.size(entry.size_bytes)),
            ("stored", entry.to_json()["download_date"]),
            ("source", entry.source),
            ("revision", manifest.revision),
            ("licence", manifest.license),
            ("url", url),
        ]
    )
    yield ""
    rows = [(f.path, output.size(f.size), f.sha256[:12]) for f in manifest.files]
    yield from output.table(("FILE", "SIZE", "SHA256"), rows)
    if shown.headers:
        yield ""
        yield from output.table(
            ("TENSORS IN", "TENSORS", "PARAMETERS", "DTYPES"),
            [(path, *_tensors(header)) for path, header in sorted(shown.headers.items())],
        )
    yield ""
    yield from _loading(shown, url)


def _tensors(header: Mapping[str, Any]) -> tuple[object, ...]:
    dtypes = ", ".join(sorted(header["dtypes"]))
    return header["tensors"], output.number(header["parameters"]), dtypes


def _loading(shown: Shown, url: str) -> Iterator[str]:
    """How programs open this model, as far as its files say that they can."""
    reference = f"{shown.entry.model_id}@{shown.entry.version}"
    paths = {f.path for f in shown.manifest.files}
    yield click.style("how to load", bold=True)
    yield f"  mm get {reference}"
    if "config.json" not in paths:
        return
    remote = "://" in url
    folder = f'"$(mm get {reference})"' if remote else shlex.quote(url)
    yield f"  transformers  AutoModel.from_pretrained(path)   # path: {folder}"
    if remote:
        yield f"  vLLM          vllm serve {url} --load-format runai_streamer"
    else:
        yield f"  vLLM          vllm serve {folder}"
