"""Commands that only look: list, show, files, url."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.asking import (
    as_of_option,
    filter_options,
    parse_query,
    provenance,
    read,
    sort_options,
)
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state

if TYPE_CHECKING:
    from mm_core.registry.reading import Reading
    from mm_core.results import Shown
    from mm_core.schemas import ModelEntry
    from mm_core.signatures.checking import CheckedSignature, Signers

_REFERENCE = "ID[@VERSION|:ALIAS]"
_HEADER = ("MODEL", "VERSION", "TYPE", "SIZE", "STATUS", "ALIASES", "AGE")
_REGISTERED = "it was only registered, by its path: nobody has listed its files"
_NOTHING = "no models yet; `mm pull SOURCE` brings one, `mm demo` shows how"


@command(
    "list",
    examples="""
    mm list
    mm list --filter 'size>1GB,type=text-generation' --sort size:desc --limit 20
    mm list --filter 'status=FAILED' --filter 'age>7d' --json
    mm list --as-of 2026-01-31
    """,
)
@filter_options
@sort_options
@as_of_option
@pass_state
def list_(
    state: State,
    /,
    *,
    filters: tuple[str, ...],
    limit: int | None,
    sort: str,
    removed: bool,
    as_of: str | None,
) -> None:
    """List the models of a backend, those on their way and those that failed included.

    A filter is FIELD OPERATOR VALUE, joined by commas: all must hold. Fields are model,
    version, type, status, size, date, age, source, licence, revision and alias; operators
    are = != ~= (holds) > >= < <=.
    """
    query = parse_query(filters, sort=sort, limit=limit, removed=removed)
    with state.registry() as registry:
        reading = read(state, registry, as_of)
        found = reading.query(query)
    nothing = "nothing fits the filter" if filters else _NOTHING
    emit_models(state, found, provenance(reading), nothing=nothing)


@command(
    "show",
    examples="""
    mm show my-org/my-model
    mm show my-org/my-model:prod --json
    mm show my-org/my-model:prod --as-of 7d
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@as_of_option
@pass_state
def show(state: State, /, reference: str, as_of: str | None) -> None:
    """Show all that is known about a model: its files, tensors, source and how to load it."""
    from mm_core.exceptions import OfflineError
    from mm_core.showing import describe

    with state.registry() as registry:
        reading = read(state, registry, as_of)
        entry = reading.resolve(reference)
        if entry.manifest is None:
            _emit_entry(state, entry, provenance(reading), _REGISTERED)
            return
        try:
            shown = describe(reading, entry, headers=not reading.alone)
        except OfflineError as error:
            _emit_entry(state, entry, provenance(reading), str(error))
            return
        if not reading.alone:
            shown = _with_signatures(state, reading, shown)
    state.emit(
        {"model": shown.to_json(), **provenance(reading)},
        human=_show_lines(shown, str(entry.path)),
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
    from mm_core.showing import describe

    with state.registry() as registry:
        reading = read(state, registry)
        shown = describe(reading, reading.resolve(reference), headers=not reading.alone)
    rows = shown.to_json()["files"]
    state.emit(
        {"files": rows, **provenance(reading)},
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
    with state.registry() as registry:
        reading = read(state, registry)
        found = str(reading.resolve(reference).path)
    state.emit({"url": found, **provenance(reading)}, human=[found], quiet=[found])


def emit_models(
    state: State, entries: list[ModelEntry], facts: dict[str, Any], *, nothing: str
) -> None:
    """Print versions as `list` does, with `facts` in the document; say `nothing` of none."""
    models = [entry.to_json() for entry in entries]
    state.emit(
        {"models": models, **facts},
        human=output.table_or(nothing, _HEADER, [_row(entry) for entry in entries]),
        quiet=[f"{e.model_id}@{e.version}" for e in entries],
        rows=("model", models),
    )


def _with_signatures(state: State, reading: Reading, shown: Shown) -> Shown:
    """`shown` with the signatures over it. Settings and plugins are asked only where there are."""
    from dataclasses import replace

    from mm_core.signatures.keys import trusted_keys
    from mm_core.signatures.making import look_at_signatures

    def signers() -> Signers:
        from mm_core.plugins import Plugins

        return Plugins.discover().signers()

    found = look_at_signatures(
        reading.sink,
        shown.entry,
        shown.manifest,
        signers=signers,
        trusted=lambda: trusted_keys(state.settings().signing),
    )
    return replace(shown, signatures=found)


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


def _emit_entry(state: State, entry: ModelEntry, facts: dict[str, Any], why: str) -> None:
    """What the registry itself knows of a version whose file list cannot be had."""
    known = {name: entry.metadata.get(name) for name in ("revision", "license")}
    lines = _fact_lines(entry, known["revision"], known["license"], str(entry.path))
    state.emit(
        {"model": entry.to_json() | known | {"files": None}, **facts},
        human=[*lines, "", why],
        quiet=[f"{entry.model_id}@{entry.version}"],
    )


def _fact_lines(
    entry: ModelEntry, revision: Any, license: Any, url: str, copied_from: str = ""
) -> Iterator[str]:
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
            ("copied from", copied_from),
            ("revision", revision),
            ("licence", license),
            ("url", url),
        ]
    )


def _show_lines(shown: Shown, url: str) -> Iterator[str]:
    entry, manifest = shown.entry, shown.manifest
    origin = _origin(manifest.facts)
    yield from _fact_lines(entry, manifest.revision, manifest.license, url, origin)
    yield from output.facts(("signed", _words(one)) for one in shown.signatures or ())
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


def _words(one: CheckedSignature) -> str:
    """One signature, and what came of looking at it."""
    why = f": {one.reason}" if one.reason else ""
    return f"{one.signer or 'by nobody knows whom'}, {one.state.value}{why}"


def _origin(facts: Mapping[str, Any]) -> str:
    """The registry from which a version was copied, in words; nothing for one that was not."""
    origin = facts.get("replicated_from")
    if not isinstance(origin, Mapping):
        return ""
    return f"{origin.get('version')} in {origin.get('backend')}"


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
