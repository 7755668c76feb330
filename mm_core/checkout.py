"""A stored version in a folder on the local disk that holds it and nothing else."""

from __future__ import annotations

from pathlib import Path

from mm_core.exceptions import ConflictError
from mm_core.schemas import Manifest


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
