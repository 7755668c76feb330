"""What a bundle holds in any form: an index, and the members that it names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mm_core.exceptions import IntegrityError, UsageError
from mm_core.names import check_alias, check_model_id, check_version
from mm_core.registry import ModelRegistry
from mm_core.schemas import Manifest, ModelEntry, canonical_json, sha256_hex
from mm_core.signatures.shelf import kept
from mm_core.sink import Buffer, Sink

FORMAT = 1
INDEX_LIMIT = 1 << 30
MANIFESTS, SIGNATURES, BLOBS = "manifests/", "signatures/", "blobs/"

INDEX_NAME = re.compile(r"index-[0-9a-f]{64}\.json")
MEMBER_NAME = re.compile(r"(?:manifests|signatures)/[0-9a-f]{64}\.json|blobs/[0-9a-f]{64}")


def sha256_of(member: str) -> str:
    """The sha256 that a member is named by."""
    return member.rpartition("/")[2].removesuffix(".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the index tells of one version. `manifest` and `signatures` are sha256."""

    model_id: str
    version: str
    manifest: str
    aliases: tuple[str, ...]
    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The index of a bundle. `members` are the names of all others, with their sizes in bytes."""

    data: bytes = field(repr=False)
    versions: tuple[Told, ...]
    members: Mapping[str, int]

    @property
    def name(self) -> str:
        """Its own name as a member."""
        return f"index-{sha256_hex(self.data)}.json"

    @classmethod
    def of(cls, versions: Iterable[Told], members: Mapping[str, int]) -> Index:
        """The index of these versions; the order of the members counts."""
        told = tuple(sorted(versions, key=lambda one: (one.model_id, one.version)))
        rows = [
            {
                "model_id": one.model_id,
                "version": one.version,
                "manifest": one.manifest,
                "aliases": list(one.aliases),
                "signatures": list(one.signatures),
            }
            for one in told
        ]
        sizes = [[name, size] for name, size in members.items()]
        data = canonical_json({"format": FORMAT, "versions": rows, "members": sizes})
        return cls(data=data, versions=told, members=dict(members))

    @classmethod
    def from_named(cls, name: str, data: bytes, place: object) -> Index:
        """`from_bytes`; `IntegrityError` where `data` is not what it is named by."""
        if name != f"index-{sha256_hex(data)}.json":
            raise IntegrityError(f"the index of {place} is damaged")
        return cls.from_bytes(data, place)

    @classmethod
    def from_bytes(cls, data: bytes, place: object) -> Index:
        """The index in `data`, whose sha256 is known to be right.

        Raises `UsageError` for one of another format, and `IntegrityError` for what is none.
        """
        try:
            raw = json.loads(data)
            if raw["format"] != FORMAT:
                raise UsageError(
                    f"{place} is a bundle of format {raw['format']}, and this is {FORMAT}",
                    hint="upgrade Model Manager",
                )
            versions = tuple(map(_told, raw["versions"]))
            members = dict(_sized(name, size) for name, size in raw["members"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise IntegrityError(f"the index of {place} is none: {error}") from error
        return cls(data=data, versions=versions, members=members)


def _told(raw: Mapping[str, Any]) -> Told:
    return Told(
        model_id=check_model_id(raw["model_id"]),
        version=check_version(raw["version"]),
        manifest=str(raw["manifest"]),
        aliases=tuple(map(check_alias, raw["aliases"])),
        signatures=tuple(map(str, raw["signatures"])),
    )


def _sized(name: str, size: int) -> tuple[str, int]:
    if MEMBER_NAME.fullmatch(name) is None or not isinstance(size, int) or size < 0:
        raise ValueError(f"{name!r} of {size!r} bytes is no member")
    return name, size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    key: str
    size: int
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is to be written, in any form. `small` are the members that are no model's file."""

    index: Index
    manifests: tuple[Manifest, ...]
    small: Mapping[str, bytes] = field(repr=False)
    _blobs: Mapping[str, _Blob] = field(repr=False)
    _sink: Sink = field(repr=False)

    def pieces(self, member: str) -> Iterator[Buffer]:
        """The bytes of a member. `IntegrityError` at the end, or before, where they are others."""
        if member in self.small:
            yield self.small[member]
            return
        blob, digest, size = self._blobs[member], hashlib.sha256(), 0
        for buffer in self._sink.read(blob.key):
            size += len(buffer)
            if size > blob.size:
                break
            digest.update(buffer)
            yield buffer
        if size != blob.size or digest.hexdigest() != sha256_of(member):
            raise IntegrityError(
                f"{blob.key} of {blob.of} is damaged", hint="`mm verify --repair` mends it"
            )


def gather(registry: ModelRegistry, entries: Sequence[ModelEntry]) -> Contents:
    """What a bundle of these versions holds; no file of a model is read yet."""
    small: dict[str, bytes] = {}
    blobs: dict[str, _Blob] = {}
    told, manifests = [], []
    for entry in sorted(entries, key=lambda one: (one.model_id, one.version)):
        manifest = registry.manifest(entry)
        manifests.append(manifest)
        data = manifest.to_bytes()
        signatures = {sha256_hex(one.data): one.data for one in _kept(registry, entry)}
        small[f"{MANIFESTS}{sha256_hex(data)}.json"] = data
        small |= {f"{SIGNATURES}{name}.json": signed for name, signed in signatures.items()}
        of = f"{entry.model_id}@{entry.version}"
        for file in manifest.files:
            blobs[f"{BLOBS}{file.sha256}"] = _Blob(key=file.key, size=file.size, of=of)
        told.append(
            Told(
                model_id=entry.model_id,
                version=entry.version,
                manifest=sha256_hex(data),
                aliases=tuple(sorted(entry.aliases)),
                signatures=tuple(sorted(signatures)),
            )
        )
    sizes = {name: len(small[name]) for name in sorted(small)}
    sizes |= {name: blobs[name].size for name in sorted(blobs)}
    return Contents(
        index=Index.of(told, sizes),
        manifests=tuple(manifests),
        small=small,
        _blobs=blobs,
        _sink=registry.sink,
    )


def _kept(registry: ModelRegistry, entry: ModelEntry) -> Iterable[Any]:
    return kept(registry.sink, entry.manifest or "")
