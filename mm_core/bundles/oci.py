"""The form for container registries: an OCI image layout, with models as ModelPack has them.

Beside the models it holds one more artifact, for Model Manager: the index of the bundle, our
manifests and the signatures, and the list of the ModelPack manifests. `index.json`, whose
name says nothing of its content, must be that list and the artifact, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mm_core.bundles.contents import (
    BLOBS,
    INDEX_LIMIT,
    MANIFESTS,
    Contents,
    Index,
    Told,
    sha256_of,
)
from mm_core.bundles.form import Form
from mm_core.bundles.modelpack import (
    CONFIG,
    MODEL,
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    descriptor,
    pack,
    sha256_in,
    unpack,
)
from mm_core.bundles.tree import File, check_files, names_in, read_file, write_files
from mm_core.exceptions import IntegrityError, InvalidNameError, MMError, UsageError
from mm_core.names import check_alias
from mm_core.schemas import Manifest, canonical_json, sha256_hex

ARTIFACT = "application/vnd.model-manager.bundle.v1"
"""What the artifact says that it is, which holds what ModelPack has no place for."""

_INDEX = "application/vnd.model-manager.bundle.index.v1+json"
_MANIFEST = "application/vnd.model-manager.manifest.v1+json"
_SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_EMPTY = "application/vnd.oci.empty.v1+json"
_LAYOUT = canonical_json({"imageLayoutVersion": "1.0.0"})
_KEPT = "blobs/sha256/"


def write_oci(contents: Contents, folder: Path, *, force: bool) -> int:
    """Write a bundle as an OCI layout in `folder`, or go on with one; as `write_folder`."""
    files = {
        f"{_KEPT}{sha256_of(member)}": File(
            name=f"{_KEPT}{sha256_of(member)}",
            size=size,
            sha256=sha256_of(member),
            pieces=partial(contents.pieces, member),
        )
        for member, size in contents.index.members.items()
    }
    documents, root = _documents(contents)
    for data in documents:
        blob = File.of(f"{_KEPT}{sha256_hex(data)}", data)
        files.setdefault(blob.name, blob)
    both = File.of("oci-layout", _LAYOUT), File.of("index.json", root)
    return write_files(folder, [both[0], *files.values(), both[1]], force=force)


def _documents(contents: Contents) -> tuple[list[bytes], bytes]:
    """What beside the members stands among the blobs, and `index.json`."""
    documents, models = [], []
    for manifest in contents.manifests:
        packed, config = pack(manifest)
        documents += [packed, config]
        named = {REF_NAME: f"{manifest.model_id}:{manifest.version}"}
        models.append(descriptor(OCI_MANIFEST, packed, artifactType=MODEL, annotations=named))
    listing, empty = _index_of(models), canonical_json({})
    layers = [descriptor(_INDEX, contents.index.data), descriptor(OCI_INDEX, listing)]
    for name in sorted(contents.small):
        kind = _MANIFEST if name.startswith(MANIFESTS) else _SIGNATURE
        layers.append(descriptor(kind, contents.small[name]))
    artifact = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": ARTIFACT,
            "config": descriptor(_EMPTY, empty),
            "layers": layers,
        }
    )
    root = _index_of([*models, _naming(artifact)])
    return [*documents, contents.index.data, listing, empty, artifact], root


def _index_of(manifests: list[Any]) -> bytes:
    return canonical_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def _naming(artifact: bytes) -> dict[str, Any]:
    return descriptor(OCI_MANIFEST, artifact, artifactType=ARTIFACT)


class OciForm(Form):
    """An OCI layout that `write_oci` wrote, or one with models that another program packed.

    Of the second kind only what its manifests name is looked at, and nothing vouches for
    `index.json`. Raises `UsageError` and `IntegrityError` as `TarForm`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = frozenset(names_in(folder))
        self._made: dict[str, bytes] = {}
        try:
            self.index = self._read()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, MMError):
                raise
            raise IntegrityError(f"{folder} is no OCI layout that can be read: {error}") from error

    def _read(self) -> Index:
        root = self._bytes("index.json")
        named = _parsed(root, f"index.json in {self._folder}").get("manifests") or []
        found = [(one, self._blob(one, "index.json")) for one in named]
        parsed = [_parsed(data, one["digest"]) for one, data in found]
        ours = [i for i, one in enumerate(parsed) if one.get("artifactType") == ARTIFACT]
        if ours:
            return self._ours(root, found[ours[0]][1])
        return self._foreign([(*one, doc) for one, doc in zip(found, parsed, strict=True)])

    def read(self, member: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of a member."""
        if member in self._made:
            return iter([self._made[member][start:stop]])
        return read_file(self._folder / _KEPT / sha256_of(member), start, stop)

    def _ours(self, root: bytes, artifact: bytes) -> Index:
        """The index, with all that must stand beside it."""
        described = _parsed(artifact, ARTIFACT)
        layers = [described["config"], *described["layers"]]
        _, data, listing, *_ = [self._blob(layer, "the artifact") for layer in layers]
        models = _parsed(listing, OCI_INDEX)["manifests"]
        if root != _index_of([*models, _naming(artifact)]):
            raise IntegrityError(f"index.json in {self._folder} is damaged")
        if self._bytes("oci-layout") != _LAYOUT:
            raise IntegrityError(f"oci-layout in {self._folder} is damaged")
        index = Index.from_bytes(data, self._folder)
        expected = {"oci-layout": len(_LAYOUT), "index.json": len(root)}
        expected |= {f"{_KEPT}{sha256_of(name)}": size for name, size in index.members.items()}
        expected[f"{_KEPT}{sha256_hex(artifact)}"] = len(artifact)
        for model in models:
            config = _parsed(self._blob(model, "index.json"), "a manifest")["config"]
            self._blob(config, "a manifest")
            layers += [model, config]
        for one in layers:
            expected[f"{_KEPT}{sha256_in(one, self._folder)}"] = one["size"]
        check_files(self._folder, self._names, expected)
        return index

    def _foreign(self, found: list[tuple[Any, bytes, Mapping[str, Any]]]) -> Index:
        """An index such as the bundle would have that we had written of the same models."""
        told: list[Told] = []
        sizes: dict[str, int] = {}
        for one, data, packed in found:
            described = packed.get("config") or {}
            if packed.get("artifactType") != MODEL and described.get("mediaType") != CONFIG:
                continue
            config = _parsed(self._blob(described, "a manifest"), "a config")
            ref = (one.get("annotations") or {}).get(REF_NAME) or ""
            manifest, tag = unpack(packed, config, sha256_hex(data), ref, self._folder)
            told.append(self._tell(manifest, tag))
            sizes |= {f"{BLOBS}{file.sha256}": file.size for file in manifest.files}
        if not told:
            raise UsageError(
                f"index.json in {self._folder} names no model",
                hint="what can be imported has the artifactType " + MODEL,
            )
        there = {f"{_KEPT}{sha256_of(name)}": size for name, size in sizes.items()}
        check_files(self._folder, self._names & there.keys(), there)
        made = {name: len(data) for name, data in self._made.items()}
        return Index.of(told, {**made, **sizes})

    def _tell(self, manifest: Manifest, tag: str | None) -> Told:
        data = manifest.to_bytes()
        self._made[f"{MANIFESTS}{sha256_hex(data)}.json"] = data
        try:
            aliases = () if tag in (None, manifest.version) else (check_alias(str(tag)),)
        except InvalidNameError:
            aliases = ()
        return Told(
            model_id=manifest.model_id,
            version=manifest.version,
            manifest=sha256_hex(data),
            aliases=aliases,
            signatures=(),
        )

    def _blob(self, described: Any, by: str) -> bytes:
        """A small blob, of the sha256 and size that its descriptor in `by` says."""
        name = f"{_KEPT}{sha256_in(described, f'{by} in {self._folder}')}"
        if name not in self._names:
            raise IntegrityError(f"{name} is missing in {self._folder}, or {by} is damaged")
        data = self._bytes(name)
        if sha256_hex(data) != sha256_of(name) or len(data) != described.get("size"):
            raise IntegrityError(f"{name} in {self._folder} is damaged, or {by} is")
        return data

    def _bytes(self, name: str) -> bytes:
        if name not in self._names:
            raise IntegrityError(f"{name} is missing in {self._folder}")
        path = self._folder / name
        size = path.stat().st_size
        if size > INDEX_LIMIT:
            raise IntegrityError(f"{path} is too large for what it should be")
        return b"".join(read_file(path, 0, size))


def _parsed(data: bytes, what: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{what} is damaged: {error}") from error
    if not isinstance(parsed, dict):
        raise IntegrityError(f"{what} is damaged: no object")
    return parsed
