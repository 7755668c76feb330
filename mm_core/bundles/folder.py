"""The form of a folder: the members of the tar, as files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mm_core.bundles.contents import INDEX_LIMIT, INDEX_NAME, Contents, Index, sha256_of
from mm_core.bundles.form import Form
from mm_core.bundles.tree import File, check_files, names_in, read_file, write_files
from mm_core.exceptions import IntegrityError, UsageError


def write_folder(contents: Contents, folder: Path, *, force: bool) -> int:
    """Write a bundle as files of `folder`, or go on with one; as `write_files`.

    Raises `IntegrityError` for a stored file that is not what its manifest says: then
    `folder` holds no bundle.
    """
    index = contents.index
    files = [
        File(name=name, size=size, sha256=sha256_of(name), pieces=partial(contents.pieces, name))
        for name, size in index.members.items()
    ]
    return write_files(folder, [*files, File.of(index.name, index.data)], force=force)


class FolderForm(Form):
    """A bundle in a folder. Raises `UsageError` and `IntegrityError` as `TarForm`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = names_in(folder)
        roots = [name for name in names if INDEX_NAME.fullmatch(name)]
        if len(roots) > 1:
            raise IntegrityError(f"{folder} holds several indexes, such as {roots[1]}")
        path = folder / roots[0]
        size = path.stat().st_size
        if size > INDEX_LIMIT:
            raise UsageError(f"{path} is no index: it is too large")
        self.index = Index.from_named(roots[0], b"".join(read_file(path, 0, size)), folder)
        check_files(folder, names, {roots[0]: size, **self.index.members})

    def read(self, member: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a member."""
        return read_file(self._folder / member, start, stop)
