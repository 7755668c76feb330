"""A stored version in a folder on the local disk that holds it and nothing else."""

from __future__ import annotations

from pathlib import Path

from mm_core.exceptions import ConflictError
from mm_core.planning import make_plan
from mm_core.registry import ModelRegistry
from mm_core.schemas import Manifest, ModelEntry, Plan, Request
from mm_core.signatures.shelf import BESIDE, kept
from mm_core.sink import Sink
from mm_core.stored import StoredSource
from mm_core.upkeep.files import written_at_once


def refuse_foreign_files(folder: Path, manifest: Manifest) -> None:
    """Raise `ConflictError` if `folder` holds a file that is not one of `manifest`.

    Hidden files do not count, nor does a signature beside the files. A folder that does
    not exist is fine.
    """
    ours = {BESIDE, *(file.path for file in manifest.files)}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_dir() and name not in ours and not hidden:
            raise ConflictError(
                f"{str(folder)!r} holds {name!r}, which is not part of this version",
                hint="choose an empty folder, so that no loader mixes two versions",
            )


def put_signature_beside(
    folder: Path, registry: ModelRegistry, entry: ModelEntry, manifest: Manifest
) -> Path | None:
    """The file ``model.sig`` in `folder`, with the newest signature over a version.

    One that stands there, or that is a file of the version, stays. None where there is none.
    """
    path = folder / BESIDE
    if path.is_file() or any(file.path == BESIDE for file in manifest.files):
        return path if path.is_file() else None
    bundles = kept(registry.sink, entry.manifest or "")
    if not bundles:
        return None
    with written_at_once(path, overwrite=False) as staged:
        staged.write_bytes(bundles[-1].data)
    return path


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
