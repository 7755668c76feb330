"""Between rows and entries: `ModelEntry` is made on demand, from plain data and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mm_core.exceptions import IntegrityError, UsageError
from mm_core.names import version_prefix
from mm_core.registry.layout import manifest_key
from mm_core.registry.state import Record, Row
from mm_core.schemas import (
    Manifest,
    ModelEntry,
    ModelStatus,
    ModelType,
    canonical_json,
    parse_rfc3339,
    sha256_hex,
)
from mm_core.sink import Sink, read_bytes


def entry_of(sink: Sink, record: Record, row: Row) -> ModelEntry:
    """The entry of one row. `IntegrityError` for one that does not keep to the format."""
    try:
        return _entry_of(sink, record, row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{record.model_id}@{row['version']} is not as the registry's format has it: {error}",
            hint=f"see `mm history {record.model_id}` for who wrote it, and with what",
        ) from error


def _entry_of(sink: Sink, record: Record, row: Row) -> ModelEntry:
    date = row.get("date")
    return ModelEntry(
        model_id=record.model_id,
        model_type=ModelType.from_tag(row.get("model_type")),
        path=_path_of(sink, record.model_id, row),
        status=ModelStatus(row["status"]),
        version=row["version"],
        size_bytes=row.get("size_bytes", 0),
        download_date=parse_rfc3339(date) if date else datetime.fromtimestamp(0, timezone.utc),
        metadata=dict(row.get("metadata", {})),
        source=row.get("source"),
        aliases=record.aliases_of(row["version"]),
        manifest=row.get("manifest"),
    )


def registered_fields(entry: ModelEntry) -> dict[str, Any]:
    """What the log keeps of an entry whose files the caller looks after.

    `UsageError` for metadata that is not JSON.
    """
    return {
        "status": entry.status.value,
        "model_type": entry.model_type.value,
        "path": str(entry.path),
        "path_is": "path" if isinstance(entry.path, Path) else "url",
        "size_bytes": entry.size_bytes,
        "date": entry.download_date.isoformat(),
        "metadata": _as_json(entry),
        "source": entry.source,
        "manifest": entry.manifest,
    }


def read_manifest(sink: Sink, sha256: str) -> Manifest:
    """The manifest of this hash. `NotFoundError`, or `IntegrityError` if its bytes changed."""
    data = read_bytes(sink, manifest_key(sha256))
    if sha256_hex(data) != sha256:
        raise IntegrityError(
            f"the manifest {manifest_key(sha256)} at {sink.root} was changed or damaged",
            hint="`mm registry repair` makes it anew from the files, or takes it from a backup",
        )
    return Manifest.from_bytes(data)


def folder_of(manifest: Manifest) -> str | None:
    """The folder below the root in which an adopted version's files stand, without a slash.

    None for all others: they stand in the version's own folder.
    """
    folders = {
        file.key[: -len(file.path) - 1]
        for file in manifest.files
        if file.key.endswith(f"/{file.path}")
    }
    own = version_prefix(manifest.model_id, manifest.version).rstrip("/")
    return folders.pop() if len(folders) == 1 and own not in folders else None


def files_prefix(model_id: str, version: str, folder: str | None) -> str:
    """The prefix of a version's keys: that of `folder` if it was adopted, else its own."""
    return version_prefix(model_id, version) if folder is None else f"{folder}/"


def added_fields(manifest: Manifest) -> dict[str, Any]:
    """What the ``add`` of a version keeps in its row of all that its manifest says."""
    metadata = {
        "license": manifest.license,
        "revision": manifest.revision,
        "replicated_from": _manifest_of_original(manifest),
    }
    return {
        "size_bytes": manifest.size_bytes,
        "model_type": manifest.model_type.value,
        "source": manifest.source,
        "metadata": {name: value for name, value in metadata.items() if value is not None} or None,
        "folder": folder_of(manifest),
    }


def _manifest_of_original(manifest: Manifest) -> str | None:
    """The sha256 of the manifest that a copy was made from: tells it from any other at a glance."""
    origin = manifest.facts.get("replicated_from")
    found = origin.get("manifest") if isinstance(origin, Mapping) else None
    return found if isinstance(found, str) else None


def _path_of(sink: Sink, model_id: str, row: Row) -> Path | str:
    if "path" in row:
        return Path(row["path"]) if row.get("path_is") == "path" else str(row["path"])
    url = sink.url(row.get("folder") or version_prefix(model_id, row["version"]).rstrip("/"))
    return Path(url) if "://" not in url and os.path.isabs(url) else url  # noqa: PTH117  # quick


def _as_json(entry: ModelEntry) -> dict[str, Any]:
    try:
        metadata = json.loads(canonical_json(dict(entry.metadata)))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the metadata of {entry.model_id!r} cannot be kept as JSON: {error}",
            hint="use strings, numbers, booleans, lists and mappings only",
        ) from error
    assert isinstance(metadata, dict)
    return metadata
