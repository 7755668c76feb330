"""What a model's names mean, told to a sink that shows them to other programs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mm_core.exceptions import MMError
from mm_core.registry.entries import read_manifest
from mm_core.registry.references import best
from mm_core.registry.state import Operation, Record, State, is_available
from mm_core.schemas import Manifest

if TYPE_CHECKING:
    from mm_core.registry.log import Log
    from mm_core.sink import NamingSink, Sink

logger = logging.getLogger(__name__)

MAIN = "main"
"""The branch that the Hub's loaders mean where they are told none."""

_SILENT = frozenset({"begin", "abandon", "sweep"})


def tell_names(sink: NamingSink, log: Log, operations: Iterable[Operation]) -> None:
    """Tell `sink` the names of all models that `operations` have touched.

    Should others commit meanwhile, the last to tell tells what is true: whoever has told
    looks again. What was committed stays committed, so no error is raised.
    """
    touched = {str(item["model_id"]) for item in operations if item["op"] not in _SILENT}
    for model_id in sorted(touched):
        try:
            _tell(sink, log, model_id)
        except MMError as error:
            facts = {"model_id": model_id, "error": str(error)}
            logger.warning("other programs may not find this model by its names", extra=facts)


def _tell(sink: NamingSink, log: Log, model_id: str) -> None:
    told: Mapping[str, str] | None = None
    while (names := names_of(sink, log.refresh(), model_id)) != told:
        sink.show_names(model_id, names)
        told = names


def names_of(sink: Sink, state: State, model_id: str) -> dict[str, str]:
    """Each name of a version of this model that stands in its own folder, and the version.

    Those are its aliases, the revisions that were asked for where it came from, and
    ``main``, which is what the bare id means if nothing else is called so. An alias
    goes before a revision, a newer version before an older.
    """
    record = state.record(model_id)
    if record is None:
        return {}
    rows = sorted(filter(is_available, record.versions.values()), key=lambda row: row["added"])
    kept = {row["version"]: row.get("manifest") for row in rows if "path" not in row}
    asked = {_asked_for(sink, manifest): version for version, manifest in kept.items()}
    names = {name: version for name, version in asked.items() if name}
    names |= {alias: version for alias, version in record.aliases.values() if version in kept}
    return _with_main(names, record, kept)


def _with_main(
    names: dict[str, str], record: Record, kept: Mapping[str, str | None]
) -> dict[str, str]:
    row = best(record)
    if row is not None and row["version"] in kept:
        names.setdefault(MAIN, row["version"])
    return names


def _asked_for(sink: Sink, sha256: str | None) -> str | None:
    """The branch or tag by which the version of this manifest was asked for."""
    if sha256 is None:
        return None
    manifest: Manifest = read_manifest(sink, sha256)
    asked = manifest.facts.get("requested_revision")
    return asked if isinstance(asked, str) and asked != manifest.revision else None
