"""A bundle of any form, opened: its versions, as sources for a backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mm_core.bundles.contents import BLOBS, INDEX_NAME, MANIFESTS, SIGNATURES, sha256_of
from mm_core.bundles.folder import FolderForm
from mm_core.bundles.form import Form
from mm_core.bundles.oci import OciForm
from mm_core.bundles.tar import TarForm
from mm_core.exceptions import IntegrityError, MMError, UsageError
from mm_core.read_only import ReadOnlySink
from mm_core.schemas import Manifest, StoredObject, sha256_hex
from mm_core.sink import Buffer
from mm_core.stored import StoredSource


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledVersion:
    """One version in a bundle. `signatures` are the names of those over it."""

    manifest: Manifest
    name: str
    aliases: tuple[str, ...]
    signatures: tuple[str, ...]


class Bundle(ReadOnlySink):
    """A bundle, for reading only: its keys are the names of its members. `close` it.

    Which form it has is seen from what is at `path`. All but the bytes of models is
    checked when it is opened, those when they are read.
    Raises `NotFoundError` where nothing is there, `UsageError` for what is no
    bundle, and `IntegrityError`, naming what, for one that was changed.
    """

    type = "bundle"

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self.path = path
        self._form = _opened(path)
        try:
            self.versions = tuple(self._read_versions())
        except BaseException:
            self._form.close()
            raise

    def close(self) -> None:
        """Close what is open."""
        self._form.close()

    @property
    def root(self) -> str:
        """The path."""
        return str(self.path)

    def source_of(self, version: BundledVersion) -> StoredSource:
        """One version, to be brought into a backend."""
        manifest = version.manifest
        files = tuple(replace(file, key=f"{BLOBS}{file.sha256}") for file in manifest.files)
        signatures = tuple(self._whole(f"{SIGNATURES}{name}.json") for name in version.signatures)
        return StoredSource(self, replace(manifest, files=files), signatures=signatures)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of a member."""
        size = self._size(key)
        return self._form.read(key, start, size if end is None else min(end, size))

    def stat(self, key: str) -> StoredObject | None:
        """Nobody asks."""
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Nobody asks."""
        raise NotImplementedError

    def url(self, key: str) -> str:
        """The path."""
        return str(self.path)

    # -- what it holds -----------------------------------------------------------------

    def _read_versions(self) -> Iterator[BundledVersion]:
        members = self._form.index.members
        for name in members:
            if not name.startswith(BLOBS):
                self._whole(name)
        for told in self._form.index.versions:
            manifest = Manifest.from_bytes(self._whole(f"{MANIFESTS}{told.manifest}.json"))
            if (manifest.model_id, manifest.version) != (told.model_id, told.version):
                raise IntegrityError(f"{self.path} tells of another version than it holds")
            for file in manifest.files:
                if members.get(f"{BLOBS}{file.sha256}") != file.size:
                    raise IntegrityError(f"{self.path} lacks {file.path} of {manifest.model_id}")
            for name in told.signatures:
                self._size(f"{SIGNATURES}{name}.json")
            yield BundledVersion(
                manifest=manifest,
                name=told.manifest,
                aliases=told.aliases,
                signatures=told.signatures,
            )

    def _whole(self, name: str) -> bytes:
        """A small member, which is named by its sha256."""
        data = b"".join(map(bytes, self.read(name)))
        if sha256_hex(data) != sha256_of(name):
            raise IntegrityError(f"{name} in {self.path} is damaged")
        return data

    def _size(self, name: str) -> int:
        try:
            return self._form.index.members[name]
        except KeyError:
            raise IntegrityError(f"{name} is not in {self.path}") from None


def _opened(path: Path) -> Form:
    """The form that `path` has by what is there."""
    if not path.is_dir():
        return TarForm(path)
    at_top = [entry.name for entry in path.iterdir()]
    if any(map(INDEX_NAME.fullmatch, at_top)):
        return FolderForm(path)
    if {"oci-layout", "index.json"} & set(at_top):
        return OciForm(path)
    raise UsageError(
        f"{path} is no bundle: no index is in it",
        hint="where an export was stopped, the same `mm export` goes on with it",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of one version of a bundle: ``imported``, ``present`` or ``failed``.

    `aliases` name it now; `left` name another version here, and were not moved.
    """

    reference: str
    outcome: str
    size_bytes: int = 0
    moved: int = 0
    aliases: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    error: MMError | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "reference": self.reference,
            "outcome": self.outcome,
            "size_bytes": self.size_bytes,
            "moved_bytes": self.moved,
            "aliases": list(self.aliases),
            "aliases_left": list(self.left),
            "error": None if self.error is None else str(self.error),
        }
