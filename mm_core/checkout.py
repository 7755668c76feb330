"""A stored version in a folder on the local disk that holds it and nothing else."""

from __future__ import annotations

from pathlib import Path

from mm_core.exceptions import ConflictError
from mm_core.planning import make_plan
from mm_core.registry import ModelRegistry
from mm_core.schemas import Manifest, ModelEntry, Plan, Request
from mm_core.sink import Sink
from mm_core.stored import StoredSource


def cache_folder(registry: ModelRegistry, entry: ModelEntry) -> Path:
    """Where a version is kept on this machine if its caller names no folder."""
    import platformdirs

    cache = platformdirs.user_cache_path("model-manager")
    folder = cache / "models" / str(registry.id) / entry.model_id / entry.version
    return folder / (entry.manifest or "")[:12]  # a version may be removed and made anew


def refuse_foreign_files(folder: Path, manifest: Manifest) -> None:
    """Raise `ConflictError` if `folder` holds a file that is not one of `manifest`.

    Hidden files do not count. A folder that does not exist is fine.
    """
    ours = {file.path for file in manifest.files}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_dir() and name not in ours and not hidden:
            raise ConflictError(
                f"{str(folder)!r} holds {name!r}, which is not part of this version",
                hint="choose an empty folder, so that no loader mixes two versions",
            )


def plan_checkout(source: StoredSource, target: Sink, version: str) -> Plan:
    """What must move so that `source` stands in the root of `target`, under its own paths."""
    request = Request(url="", version=version)
    return make_plan(
        request,
        source.snapshot(request),
        present={stored.key: stored.size for stored in target.list("")},
        known={},
        case_blind=target.case_blind,
        prefix="",
    )
