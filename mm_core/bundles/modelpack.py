"""What the CNCF ModelPack specification says of a model: its manifest, its config, its layers.

Layers are raw: one file each, so that a layer's digest is the file's own sha256. A model that
another program packed is understood where its layers are raw, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from mm_core.exceptions import IntegrityError, UsageError
from mm_core.names import check_path
from mm_core.schemas import Action, Manifest, ModelType, StoredFile, canonical_json, sha256_hex
from mm_core.spdx import license_expression, license_id
from mm_core.weights import format_by_name

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"

_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
_PATH = "org.cncf.model.filepath"
_UNTESTED = "org.cncf.model.file.mediatype.untested"
_PACKED = re.compile(r"\.tar(?:\+\w+)?$")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

_WEIGHTS = frozenset(
    ".bin .ckpt .gguf .h5 .mlmodel .msgpack .npy .npz .onnx .ot .pb .pkl .pt .pth .safetensors "
    ".tflite".split()
)
_CODE = frozenset(".c .cc .cpp .cu .go .h .ipynb .js .py .rs .sh .ts".split())
_DOCS = frozenset(".gif .html .jpeg .jpg .md .pdf .png .rst .svg .webp".split())
_DOC_NAMES = re.compile(r"(?:readme|license|licence|notice|copying|use_policy)\b", re.IGNORECASE)
_CONFIGS = frozenset(
    ".cfg .ini .jinja .json .jsonl .model .tiktoken .toml .txt .xml .yaml .yml".split()
)


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    """What names `data` in another document."""
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


def digest(data: bytes) -> str:
    """The digest of `data`, as OCI writes it."""
    return f"sha256:{sha256_hex(data)}"


def sha256_in(described: Mapping[str, Any], place: object) -> str:
    """The sha256 that a descriptor names. `IntegrityError` for any other digest."""
    match = _DIGEST.fullmatch(str(described.get("digest")))
    if match is None:
        raise IntegrityError(f"{place} has a digest that is no sha256: {described.get('digest')!r}")
    return match[1]


def pack(manifest: Manifest) -> tuple[bytes, bytes]:
    """The ModelPack manifest and config of a version; equal versions give equal bytes."""
    files = sorted(manifest.files, key=lambda file: file.path)
    config = canonical_json(
        {
            "descriptor": _describe(manifest),
            "config": _technical(files),
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in files]},
        }
    )
    layers = [
        {
            "mediaType": f"application/vnd.cncf.model.{_kind(file.path)}.v1.raw",
            "digest": f"sha256:{file.sha256}",
            "size": file.size,
            "annotations": {_PATH: file.path, _TITLE: file.path, _UNTESTED: "true"},
        }
        for file in files
    ]
    packed = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MODEL,
        "config": descriptor(CONFIG, config),
        "layers": layers,
        "annotations": {_TITLE: manifest.model_id, _VERSION: manifest.version},
    }
    return canonical_json(packed), config


def _describe(manifest: Manifest) -> dict[str, Any]:
    told = {
        "name": manifest.model_id,
        "version": manifest.version,
        "revision": manifest.revision,
        "sourceURL": manifest.source,
    }
    license_ = manifest.license or ""
    spdx = license_id(license_) or license_expression(license_)
    return {
        **{name: value for name, value in told.items() if value is not None},
        **({} if spdx is None else {"licenses": [spdx]}),
    }


def _technical(files: list[StoredFile]) -> dict[str, Any]:
    formats = {format_by_name(file.path) for file in files} - {None}
    return {"format": formats.pop()} if len(formats) == 1 else {}


def _kind(path: str) -> str:
    """What a file is for, by its name: `weight`, `weight.config`, `doc` or `code`."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    if suffix in _DOCS or _DOC_NAMES.match(name.name):
        return "doc"
    if suffix in _CODE:
        return "code"
    if suffix in _CONFIGS or (name.name.startswith(".") and suffix not in _WEIGHTS):
        return "weight.config"
    return "weight"


def unpack(
    packed: Mapping[str, Any], config: Mapping[str, Any], name: str, ref: str, place: object
) -> tuple[Manifest, str | None]:
    """A model that another program packed, and its tag, if it has one.

    Its id is the repository that `ref` names, else the config's name; its version the
    config's version or revision, else `name`, the sha256 of its manifest.

    Raises `UsageError` where a layer is packed, or where the model has no name.
    """
    described = config.get("descriptor") or {}
    repository, _, tag = ref.rpartition(":")
    model_id = repository or described.get("name")
    if not model_id:
        raise UsageError(f"a model in {place} has no name: sha256:{name}")
    files = [_file_of(layer, model_id, place) for layer in packed.get("layers", ())]
    licenses = described.get("licenses") or [None]
    manifest = Manifest(
        model_id=model_id,
        version=described.get("version") or described.get("revision") or name,
        model_type=ModelType.from_tag(None),
        files=tuple(files),
        source=described.get("sourceURL"),
        revision=described.get("revision"),
        license=licenses[0],
    )
    return manifest, tag or None


def _file_of(layer: Mapping[str, Any], model_id: str, place: object) -> StoredFile:
    annotations = layer.get("annotations") or {}
    path = annotations.get(_PATH) or annotations.get(_TITLE)
    if _PACKED.search(str(layer.get("mediaType"))) or not path:
        kind = layer.get("mediaType")
        raise UsageError(
            f"a layer of {model_id} in {place} is packed, or names no file: {kind}",
            hint="only raw layers, of one file each, can be imported",
        )
    sha256 = sha256_in(layer, place)
    size = int(layer["size"])
    return StoredFile(
        path=check_path(path), key=sha256, size=size, sha256=sha256, action=Action.FETCH
    )
