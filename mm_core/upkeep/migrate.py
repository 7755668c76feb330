"""A registry that is one JSON file, brought into a store: each model as a `register` operation.

The file maps model ids to entries, or is a list of entries, or has either under
``models``. An entry has at least a path; the fields are those of `ModelEntry`. A
model id may also map to a list of entries, or to a mapping from versions to entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mm_core.exceptions import ConflictError, MMError, NotFoundError, StorageError, UsageError
from mm_core.registry.entries import registered_fields
from mm_core.registry.log import Log
from mm_core.registry.operations import operation
from mm_core.registry.signing import Trust
from mm_core.registry.state import Operation, State, status_of
from mm_core.schemas import ModelEntry, ModelStatus, ModelType, canonical_json, parse_rfc3339
from mm_core.sink import Sink

VERSION = "1"
"""The version of an entry that names none."""

_BATCH = 200
_WRONG = (
    MMError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,  # numbers that are no size or date
    OSError,
    RuntimeError,  # the home folder of nobody
)
_FIELDS = frozenset(
    {
        "model_id",
        "model_type",
        "path",
        "status",
        "version",
        "size_bytes",
        "download_date",
        "metadata",
        "source",
        "aliases",
        "manifest",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadEntry:
    """An entry of the file that cannot be brought over: where it stands, and why."""

    where: str
    why: str

    def to_json(self) -> dict[str, str]:
        """The entry as JSON data."""
        return {"where": self.where, "why": self.why}


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What was brought over. `present` were in the registry already, and stay as they are."""

    added: tuple[str, ...]
    present: tuple[str, ...]
    bad: tuple[BadEntry, ...] = ()
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "dry_run": self.dry_run,
            "added": list(self.added),
            "present": list(self.present),
            "bad": [bad.to_json() for bad in self.bad],
        }


def migrate(
    sink: Sink,
    path: Path,
    *,
    skip_bad: bool = False,
    dry_run: bool = False,
    timeout: float = 60.0,
    writer: str = "mm registry migrate",
    trust: Trust | None = None,
) -> Migrated:
    """Register all models of a JSON file in `sink`. Doing it again adds nothing.

    Paths in it are taken as they are, relative ones as of the file's folder; the
    files themselves are neither read nor moved. What is committed is signed where
    `trust` has a key.

    Raises `UsageError` for a file that is no such registry, and, unless `skip_bad`,
    for one with entries that cannot be brought over: then nothing is. Each version
    is added whole or not at all.
    """
    good, bad = read_json_registry(path)
    if bad and not skip_bad:
        lines = "; ".join(f"{one.where}: {one.why}" for one in bad[:5])
        raise UsageError(
            f"{len(bad)} of {len(good) + len(bad)} entries of {path} cannot be brought over: "
            f"{lines}{'; …' if len(bad) > 5 else ''}",
            hint="mend them in the file, or leave them out with --skip-bad; nothing was done",
        )
    log = Log(sink, timeout=timeout, writer=writer, trust=trust)
    added: list[str] = []
    present: list[str] = []
    refused: list[BadEntry] = []
    for start in range(0, len(good), _BATCH):
        batch = good[start : start + _BATCH]
        state = log.refresh()
        present += [_name(entry) for entry in batch if _is_there(state, entry)]
        new = [entry for entry in batch if not _is_there(state, entry)]
        if dry_run:
            added += map(_name, new)
            continue
        done, not_done = _register(log, new)
        added += done
        refused += not_done
    return Migrated(
        added=tuple(added), present=tuple(present), bad=(*bad, *refused), dry_run=dry_run
    )


def read_json_registry(path: Path) -> tuple[list[ModelEntry], list[BadEntry]]:
    """The entries of a JSON registry file, and those that are none."""
    good: list[ModelEntry] = []
    bad: list[BadEntry] = []
    seen: set[tuple[str, str]] = set()
    for where, raw in _entries(_loaded(path), path):
        try:
            entry = _entry(raw, path.parent)
            if (entry.model_id, entry.version) in seen:
                raise UsageError(f"{_name(entry)} is listed twice")
        except _WRONG as error:
            bad.append(BadEntry(where=where, why=_words(error)))
        else:
            seen.add((entry.model_id, entry.version))
            good.append(entry)
    return good, bad


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not JSON: {error}", hint="is there an older copy of it, such as .backup?"
        ) from error


def _entries(data: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Each entry with where it stands, as a dict with its ``model_id`` if it can be known."""
    if isinstance(data, Mapping) and isinstance(data.get("models"), (Mapping, Sequence)):
        data = data["models"]
    if isinstance(data, Mapping):
        for model_id, value in data.items():
            yield from _of_model(str(model_id), value)
    elif isinstance(data, list):
        yield from ((f"entry {place}", value) for place, value in enumerate(data, 1))
    else:
        raise UsageError(
            f"{path} holds no registry: neither a mapping of models nor a list",
            hint="docs/repair.md shows the forms that are read",
        )


def _of_model(model_id: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for place, item in enumerate(value, 1):
            yield f"{model_id} ({place})", _with(item, model_id=model_id)
    elif isinstance(value, Mapping) and value and not _FIELDS & value.keys():
        for version, item in value.items():
            yield f"{model_id}@{version}", _with(item, model_id=model_id, version=version)
    else:
        yield model_id, _with(value, model_id=model_id)


def _with(value: Any, **known: str) -> Any:
    return {**known, **value} if isinstance(value, Mapping) else value


def _entry(raw: Any, folder: Path) -> ModelEntry:
    if not isinstance(raw, Mapping):
        raise UsageError("it is not a mapping")
    model_id, path = raw.get("model_id"), raw.get("path")
    if not isinstance(model_id, str) or not model_id:
        raise UsageError("it has no model_id")
    if not isinstance(path, str) or not path:
        raise UsageError("it has no path")
    version = raw.get("version")
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UsageError("its metadata is not a mapping")
    extra = {key: raw[key] for key in raw.keys() - _FIELDS}
    source = raw.get("source")
    entry = ModelEntry(
        model_id=model_id,
        version=VERSION if version in (None, "") else str(version),
        model_type=ModelType.from_tag(_tag(raw.get("model_type"))),
        path=path if "://" in path else _absolute(path, folder),
        status=_status(raw.get("status")),
        size_bytes=int(raw.get("size_bytes") or 0),
        download_date=_date(raw.get("download_date")),
        metadata={**extra, **metadata},
        source=str(source) if source else None,
        aliases=tuple(str(alias) for alias in _listed(raw.get("aliases"))),
    )
    canonical_json(registered_fields(entry))  # raises for what cannot be kept
    return entry


def _listed(value: Any) -> Sequence[Any]:
    """A list of names, also where one is written without a list."""
    return [value] if isinstance(value, str) and value else value or ()


def _absolute(path: str, folder: Path) -> Path:
    found = Path(path).expanduser()
    return found if found.is_absolute() else (folder / found).absolute()


def _tag(value: Any) -> str | None:
    """A pipeline tag, also where it was written as the name of an enum's member."""
    if value is None:
        return None
    return str(value).rpartition(".")[2].strip().lower().replace("_", "-")


def _status(value: Any) -> ModelStatus:
    """The status; what was being downloaded then is not any more."""
    if value is None:
        return ModelStatus.AVAILABLE
    try:
        status = ModelStatus(str(value).rpartition(".")[2].strip().upper())
    except ValueError:
        raise UsageError(f"its status {value!r} is unknown") from None
    over = status in (ModelStatus.DOWNLOADING, ModelStatus.SWEEPING)
    return ModelStatus.FAILED if over else status


def _date(value: Any) -> datetime:
    if value is None:
        return datetime.now(timezone.utc)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, timezone.utc)
    try:
        return parse_rfc3339(str(value))
    except ValueError:
        raise UsageError(f"its download_date {value!r} is no date") from None


def _name(entry: ModelEntry) -> str:
    return f"{entry.model_id}@{entry.version}"


def _is_there(state: State, entry: ModelEntry) -> bool:
    row = state.row(entry.model_id, entry.version)
    return row is not None and status_of(row) is not ModelStatus.DELETED


def _register(log: Log, entries: Sequence[ModelEntry]) -> tuple[list[str], list[BadEntry]]:
    """Commit all at once; if one is refused, each in a commit of its own."""
    if not entries:
        return [], []
    try:
        log.commit([item for entry in entries for item in _operations(entry)])
    except (ConflictError, NotFoundError) as error:
        if len(entries) == 1:
            return [], [BadEntry(where=_name(entries[0]), why=_words(error))]
        parts = [_register(log, [entry]) for entry in entries]
        return [n for done, _ in parts for n in done], [b for _, bad in parts for b in bad]
    return [_name(entry) for entry in entries], []


def _operations(entry: ModelEntry) -> Iterator[Operation]:
    kept = replace(entry, aliases=())
    yield operation("register", entry.model_id, version=entry.version, **registered_fields(kept))
    if entry.status is ModelStatus.AVAILABLE:
        for alias in entry.aliases:
            yield operation("alias", entry.model_id, version=entry.version, alias=alias)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, MMError) else f"{type(error).__name__}: {error}"
