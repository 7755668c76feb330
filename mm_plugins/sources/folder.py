"""A folder on the local disk: what `mm push` reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mm_core import (
    NotFoundError,
    Request,
    Snapshot,
    Source,
    UsageError,
    check_path,
    content_version,
    hookimpl,
)
from mm_plugins.sinks._staging import is_staged
from mm_plugins.sources._disk import DiskSource, describe, target_of, translated

_HUB_CACHE = "/.cache/huggingface"


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer folders."""
    return [FolderSource]


class FolderSource(DiskSource):
    """All regular files of a folder: ``/path/of/folder`` or ``file:///path/of/folder``.

    Every file is read once for the snapshot, since only its bytes name it: each
    has a sha256, and the revision is the digest of them all. Left out are
    ``.git``, ``.cache/huggingface`` and unfinished writes. A link to a file in
    the folder counts as that file; one that leaves the folder is refused.
    """

    type = "folder"
    schemes = ("file",)

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer the path of a folder that is there."""
        return "://" not in url and Path(url).expanduser().is_dir()

    def snapshot(self, request: Request) -> Snapshot:
        """Hash every file; the revision is 40 hex digits over paths, sizes and hashes.

        Raises `UsageError` for a link that leaves the folder, and
        `SourceChangedError` for a file that changes while it is hashed.
        """
        folder = _folder(request.url)
        paths = sorted(path for path in _walk(folder, "") if request.selects(path))
        files = tuple(
            describe(target_of(folder, path), path, shared=request.share) for path in paths
        )
        revision = content_version(files)
        if request.revision not in (None, revision):
            raise NotFoundError(
                f"{folder} has no revision {request.revision!r}: its content is {revision} now",
                hint="leave --revision out to take the folder as it is",
            )
        return Snapshot(
            source=folder.as_uri(), revision=revision, files=files, model_id=folder.name
        )


def _folder(url: str) -> Path:
    path = url
    if url.lower().startswith("file:"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(
                f"{url!r} names the host {parts.netloc!r}, not a folder",
                hint="write file:///path with three slashes",
            )
        path = url2pathname(parts.path)
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}", hint="check the path")
    return folder


def _walk(folder: Path, below: str) -> Iterator[str]:
    """The paths of all files under `below`, relative to `folder`, each name checked."""
    with translated(below or str(folder)):
        entries = list(os.scandir(folder / below))
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if is_staged(entry.name) or entry.name == ".git" or f"/{path}".endswith(_HUB_CACHE):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, path)
        elif entry.is_file() or entry.is_symlink():
            yield check_path(path)
