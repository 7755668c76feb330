"""Bundles: versions in one file, for places that no network leads to.

A tar of known heads: an index, which is named by its own sha256, the manifests, the
signatures, and the bytes of all files, each once and named by their sha256. Every byte of
it follows from the index or is hashed, so whatever was changed on the way is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from mm_core.exceptions import IntegrityError, MMError, NotFoundError, StorageError, UsageError
from mm_core.names import check_alias
from mm_core.registry import ModelRegistry
from mm_core.schemas import Manifest, ModelEntry, StoredObject, canonical_json, sha256_hex
from mm_core.signatures.shelf import kept
from mm_core.sink import Buffer, Sink
from mm_core.stored import StoredSource

FORMAT = 1

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_INDEX_LIMIT = 1 << 30
_PIECE = 1 << 20
_MANIFESTS, _SIGNATURES, _BLOBS = "manifests/", "signatures/", "blobs/"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledVersion:
    """One version in a bundle. `signatures` are the names of those over it."""

    manifest: Manifest
    name: str
    aliases: tuple[str, ...]
    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int


def write_bundle(registry: ModelRegistry, entries: Sequence[ModelEntry], out: BinaryIO) -> int:
    """Write these versions to `out`, in order and once through; how many bytes that were.

    The same versions, with the same aliases and signatures, give the same bytes. Raises
    `IntegrityError` for a stored file that is not what its manifest says: what was
    written by then is no bundle.
    """
    small: dict[str, bytes] = {}
    blobs: dict[str, tuple[str, int, str]] = {}
    told = []
    for entry in sorted(entries, key=lambda one: (one.model_id, one.version)):
        manifest = registry.manifest(entry)
        data = manifest.to_bytes()
        name = sha256_hex(data)
        small[f"{_MANIFESTS}{name}.json"] = data
        signatures = sorted(
            {sha256_hex(one.data): one.data for one in _kept(registry, entry)}.items()
        )
        small |= {f"{_SIGNATURES}{sha256}.json": signed for sha256, signed in signatures}
        for file in manifest.files:
            blobs[file.sha256] = (file.key, file.size, f"{entry.model_id}@{entry.version}")
        told.append(
            {
                "model_id": entry.model_id,
                "version": entry.version,
                "manifest": name,
                "aliases": sorted(entry.aliases),
                "signatures": [sha256 for sha256, _ in signatures],
            }
        )
    members = [_Member(name, len(data)) for name, data in sorted(small.items())]
    members += [_Member(f"{_BLOBS}{sha256}", blobs[sha256][1]) for sha256 in sorted(blobs)]
    index = canonical_json(
        {
            "format": FORMAT,
            "versions": told,
            "members": [[member.name, member.size] for member in members],
        }
    )
    tar = _Writer(out)
    tar.add(f"index-{sha256_hex(index)}.json", len(index), [index])
    for member in members:
        if member.name in small:
            tar.add(member.name, member.size, [small[member.name]])
        else:
            sha256 = member.name.removeprefix(_BLOBS)
            key, _, of = blobs[sha256]
            pieces = _verified(registry.sink.read(key), sha256, f"{key} of {of}")
            tar.add(member.name, member.size, pieces)
    return tar.end()


def _kept(registry: ModelRegistry, entry: ModelEntry) -> Iterable[Any]:
    return kept(registry.sink, entry.manifest or "")


def _verified(buffers: Iterator[Buffer], sha256: str, name: str) -> Iterator[Buffer]:
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
        yield buffer
    if digest.hexdigest() != sha256:
        raise IntegrityError(f"{name} is damaged", hint="`mm verify --repair` mends it")


class _Writer:
    """A tar, written once through."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._at = 0

    def add(self, name: str, size: int, pieces: Iterable[Buffer]) -> None:
        self._write(_head(name, size))
        count = 0
        for piece in pieces:
            count += len(piece)
            if count > size:
                break
            self._write(piece)
        if count != size:
            raise IntegrityError(f"{name} has other than its {size} bytes")
        self._write(bytes(-size % _BLOCK))

    def end(self) -> int:
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._at % _RECORD))
        return self._at

    def _write(self, data: Buffer) -> None:
        self._out.write(data)
        self._at += len(data)


def _head(name: str, size: int) -> bytes:
    """The block that stands before a member: the same for the same name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


class BundleFile(Sink):
    """A bundle, for reading only: its keys are the names of its members. `close` it.

    All but the bytes of models is checked when it is opened, those when they are read.
    Raises `NotFoundError` where there is no such file, `UsageError` for one that is no
    bundle, and `IntegrityError`, naming what, for one that was changed.
    """

    type = "bundle"

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {str(path)!r}") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error}") from error
        try:
            self._places = self._checked()
            self.versions = tuple(self._read_versions())
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def root(self) -> str:
        """The file's path."""
        return str(self.path)

    def source_of(self, version: BundledVersion) -> StoredSource:
        """One version, to be brought into a backend."""
        manifest = version.manifest
        files = tuple(replace(file, key=f"{_BLOBS}{file.sha256}") for file in manifest.files)
        signatures = tuple(self._whole(f"{_SIGNATURES}{name}.json") for name in version.signatures)
        return StoredSource(self, replace(manifest, files=files), signatures=signatures)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of a member."""
        if key not in self._places:
            raise NotFoundError(f"{key} is not in {self.path}")
        offset, size = self._places[key]
        at, stop = offset + start, offset + (size if end is None else min(end, size))
        while at < stop:
            piece = os.pread(self._file.fileno(), min(_PIECE, stop - at), at)
            if not piece:
                raise IntegrityError(f"{self.path} ends within {key}")
            at += len(piece)
            yield piece

    def stat(self, key: str) -> StoredObject | None:
        """Nobody asks."""
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Nobody asks."""
        raise NotImplementedError

    def url(self, key: str) -> str:
        """The file's path."""
        return str(self.path)

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """It is only read."""
        self._refuse()

    def create(self, key: str, data: bytes) -> None:
        """It is only read."""
        self._refuse()

    def put(self, key: str, data: bytes) -> None:
        """It is only read."""
        self._refuse()

    def copy(self, source_key: str, key: str) -> None:
        """It is only read."""
        self._refuse()

    def delete(self, keys: Iterable[str]) -> None:
        """It is only read."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StorageError(f"{self.path} is a bundle, which is only read")

    # -- what it holds -----------------------------------------------------------------

    def _checked(self) -> dict[str, tuple[int, int]]:
        """Where each member is; all heads, fillings and ends are as they must be."""
        self._index = self._read_index()
        places: dict[str, tuple[int, int]] = {}
        at = self._end_of_index
        for name, size in self._index["members"]:
            self._expect(at, _head(name, size), f"the head of {name}")
            places[name] = (at + _BLOCK, size)
            at += _BLOCK + size
            at = self._expect_zeros(at, -size % _BLOCK, f"what follows {name}")
        at = self._expect_zeros(at, 2 * _BLOCK, "the end")
        at = self._expect_zeros(at, -at % _RECORD, "the end")
        if self._pread(at, 1):
            raise IntegrityError(f"{self.path} goes on after its end")
        return places

    def _read_index(self) -> Mapping[str, Any]:
        head = self._pread(0, _BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            info = tarfile.TarInfo()
        named = info.name.startswith("index-") and info.name.endswith(".json")
        if not named or info.size > _INDEX_LIMIT:
            raise UsageError(
                f"{self.path} is no bundle, or its first block is damaged",
                hint="a bundle is what `mm export` writes",
            )
        self._expect(0, _head(info.name, info.size), "the head of the index")
        data = self._pread(_BLOCK, info.size)
        if info.name != f"index-{sha256_hex(data)}.json":
            raise IntegrityError(f"the index of {self.path} is damaged")
        self._end_of_index = self._expect_zeros(
            _BLOCK + info.size, -info.size % _BLOCK, "what follows the index"
        )
        index = json.loads(data)
        if index.get("format") != FORMAT:
            raise UsageError(
                f"{self.path} is a bundle of format {index.get('format')}, and this is {FORMAT}",
                hint="upgrade Model Manager",
            )
        return dict(index)

    def _read_versions(self) -> Iterator[BundledVersion]:
        for name in self._places:
            if not name.startswith(_BLOBS):
                self._whole(name)
        for told in self._index["versions"]:
            manifest = Manifest.from_bytes(self._whole(f"{_MANIFESTS}{told['manifest']}.json"))
            if (manifest.model_id, manifest.version) != (told["model_id"], told["version"]):
                raise IntegrityError(f"{self.path} tells of another version than it holds")
            for file in manifest.files:
                if self._places.get(f"{_BLOBS}{file.sha256}", (0, -1))[1] != file.size:
                    raise IntegrityError(f"{self.path} lacks {file.path} of {manifest.model_id}")
            yield BundledVersion(
                manifest=manifest,
                name=told["manifest"],
                aliases=tuple(check_alias(alias) for alias in told["aliases"]),
                signatures=tuple(told["signatures"]),
            )

    def _whole(self, name: str) -> bytes:
        """A small member, which is named by its sha256."""
        data = b"".join(map(bytes, self.read(name)))
        if sha256_hex(data) != Path(name).stem:
            raise IntegrityError(f"{name} in {self.path} is damaged")
        return data

    def _expect(self, at: int, data: bytes, what: str) -> None:
        if self._pread(at, len(data)) != data:
            raise IntegrityError(f"{what} in {self.path} is damaged, at byte {at}")

    def _expect_zeros(self, at: int, count: int, what: str) -> int:
        if self._pread(at, count) != bytes(count):
            raise IntegrityError(f"{what} in {self.path} is damaged, at byte {at}")
        return at + count

    def _pread(self, at: int, count: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), count, at) if count else b""
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error}") from error


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
