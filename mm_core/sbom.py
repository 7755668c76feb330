"""A bill of materials of one version, as CycloneDX 1.6 has it for models.

https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mm_core.exceptions import NotFoundError
from mm_core.results import Shown
from mm_core.schemas import Manifest, ModelType, StoredFile, canonical_json, rfc3339
from mm_core.signatures.checking import CheckedSignature
from mm_core.sink import Sink, read_bytes
from mm_core.spdx import license_expression, license_id
from mm_core.version import __version__

if TYPE_CHECKING:
    from mm_core.registry import ModelRegistry

SPEC_VERSION = "1.6"

_SPACE = uuid.UUID("5a1f6f0c-1f6e-4d0a-9f53-0c8a1f6a2b11")
"""Of all serial numbers that are made here."""

_HUB = re.compile(r"hf://(?P<repo>[^@]+)(?:@(?P<revision>.+))?")
_MODEL = "model"
_LARGEST_CONFIG = 1 << 20

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a bill of materials is made of.

    `registry` is the registry's id, and `commit` the number of the commit that added the
    version. `config` is what the model's own ``config.json`` says, if it has one.
    """

    shown: Shown
    registry: str | None = None
    commit: int | None = None
    signatures: Sequence[CheckedSignature] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


def gather(
    registry: ModelRegistry, shown: Shown, signatures: Sequence[CheckedSignature]
) -> Material:
    """What is known of a version: besides what is `shown`, its place in the log and its config."""
    entry = shown.entry
    row = registry.state().row(entry.model_id, entry.version) or {}
    return Material(
        shown=shown,
        registry=registry.id,
        commit=next(iter(row.get("added", ())), None),
        signatures=signatures,
        config=_read_config(registry.sink, shown.manifest),
    )


def _read_config(sink: Sink, manifest: Manifest) -> Mapping[str, Any]:
    """What ``config.json`` says; nothing where there is none, or it is not what it should be."""
    for file in manifest.files:
        if file.path == "config.json" and file.size <= _LARGEST_CONFIG:
            with contextlib.suppress(NotFoundError, ValueError, RecursionError):
                found = json.loads(read_bytes(sink, file.key))
                return found if isinstance(found, dict) else {}
    return {}


def bill_of_materials(material: Material) -> Json:
    """The document, as JSON data. The same version, in the same state, gives the same."""
    entry = material.shown.entry
    document: Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(entry.download_date),
            "lifecycles": [{"phase": "post-build"}],
            "tools": {"components": [_tool()]},
            "component": _without_nothing(_model(material)),
        },
        "components": [_file(file) for file in material.shown.manifest.files],
        "dependencies": _dependencies(material.shown.manifest),
        "compositions": [{"aggregate": "complete", "assemblies": [_MODEL]}],
    }
    return {**document, "serialNumber": uuid.uuid5(_SPACE, canonical_json(document).hex()).urn}


def _tool() -> Json:
    return {"type": "application", "name": "model-manager", "version": __version__}


def _model(material: Material) -> Json:
    entry, manifest = material.shown.entry, material.shown.manifest
    group, _, name = entry.model_id.rpartition("/")
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "group": group,
        "name": name,
        "version": entry.version,
        "purl": _purl(manifest),
        "licenses": _licences(manifest),
        "externalReferences": list(_references(manifest)),
        "pedigree": _pedigree(_card(manifest)),
        "modelCard": _model_card(material),
        "properties": list(_properties(material)),
    }


def _file(file: StoredFile) -> Json:
    return {
        "type": "file",
        "bom-ref": _file_ref(file),
        "name": file.path,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": [_property("size", file.size)],
    }


def _file_ref(file: StoredFile) -> str:
    return f"file:{file.path}"


def _dependencies(manifest: Manifest) -> list[Json]:
    files = [_file_ref(file) for file in manifest.files]
    return [{"ref": _MODEL, "dependsOn": files}, *({"ref": ref} for ref in files)]


def _purl(manifest: Manifest) -> str | None:
    """As the package-url specification has it for the Hub; of what is from elsewhere, none."""
    found = _HUB.fullmatch(manifest.source or "")
    if found is None:
        return None
    name = "/".join(quote(part, safe="") for part in found["repo"].split("/"))
    revision = manifest.revision or found["revision"]
    return f"pkg:huggingface/{name}" + (f"@{quote(revision.lower(), safe='')}" if revision else "")


def _licences(manifest: Manifest) -> list[Json]:
    stated, card = manifest.license, _card(manifest)
    if not stated:
        return []
    if (known := license_id(stated)) is not None:
        return [{"license": {"id": known}}]
    if (expression := license_expression(stated)) is not None:
        return [{"expression": expression}]
    name, link = card.get("license_name"), card.get("license_link")
    if stated.lower() != "other" or not isinstance(name, str) or not name:
        name = stated
    named: Json = {"name": name}
    if isinstance(link, str) and re.match(r"https?://\S+$", link):
        named["url"] = link
    return [{"license": named}]


def _references(manifest: Manifest) -> Iterator[Json]:
    if not manifest.source:
        return
    comment = {"comment": f"revision {manifest.revision}"} if manifest.revision else {}
    yield {"type": "distribution", "url": quote(manifest.source, safe=_URL_SAFE), **comment}
    if (hub := _HUB.fullmatch(manifest.source)) is not None:
        page = f"https://huggingface.co/{quote(hub['repo'])}"
        yield {"type": "vcs", "url": page, **comment}


_URL_SAFE = ":/?#[]@!$&'()*+,;=%"


def _pedigree(card: Mapping[str, Any]) -> Json:
    ancestors = [
        {"type": "machine-learning-model", "name": name} for name in _texts(card.get("base_model"))
    ]
    return {"ancestors": ancestors} if ancestors else {}


def _model_card(material: Material) -> Json:
    manifest, config = material.shown.manifest, material.config
    headers = material.shown.headers.values()
    card = _card(manifest)
    parameters = {
        "task": None if manifest.model_type is ModelType.OTHER else manifest.model_type.value,
        "architectureFamily": _text(config.get("model_type")) or _one(headers, "architecture"),
        "modelArchitecture": next(iter(_texts(config.get("architectures"))), None),
        "datasets": [{"type": "dataset", "name": name} for name in _texts(card.get("datasets"))],
    }
    properties = [_property(name, value) for name, value in _numbers(material)]
    return _without_nothing(
        {"modelParameters": _without_nothing(parameters), "properties": properties}
    )


def _numbers(material: Material) -> Iterator[tuple[str, object]]:
    """What the headers of weights say: how many parameters, in which types, how quantised."""
    headers = list(material.shown.headers.values())
    counts = [header["parameters"] for header in headers if header.get("parameters")]
    if counts:
        yield "parameters", sum(counts) if _one(headers, "format") == "safetensors" else max(counts)
    dtypes = sorted({str(name) for header in headers for name in header.get("dtypes") or ()})
    if dtypes:
        yield "dtypes", ", ".join(dtypes)
    quantised = {str(h["quantization"]) for h in headers if h.get("quantization")}
    method = material.config.get("quantization_config")
    if isinstance(method, Mapping) and _text(method.get("quant_method")):
        quantised.add(str(method["quant_method"]))
    if quantised:
        yield "quantization", ", ".join(sorted(quantised))


def _properties(material: Material) -> Iterator[Json]:
    entry, manifest = material.shown.entry, material.shown.manifest
    known = {
        "registry": material.registry,
        "commit": material.commit,
        "manifest": entry.manifest,
        "model": entry.model_id,
        "size": entry.size_bytes,
        "source": manifest.source,
        "revision": manifest.revision,
    }
    for name, value in known.items():
        if value not in (None, ""):
            yield _property(name, value)
    for kind, facts in sorted(manifest.checks.items()):
        yield _property(f"check:{kind}", canonical_json(facts).decode())
    for signature in material.signatures:
        whose = "" if signature.signer is None else f" {signature.signer}"
        yield _property("signature", f"{signature.state.value}{whose}")
    if not material.signatures:
        yield _property("signature", "none")


def _property(name: str, value: object) -> Json:
    return {"name": f"model-manager:{name}", "value": str(value)}


def _card(manifest: Manifest) -> Mapping[str, Any]:
    card = manifest.facts.get("card")
    return card if isinstance(card, Mapping) else {}


def _one(headers: Iterable[Mapping[str, Any]], name: str) -> str | None:
    """What all headers that have a field agree on."""
    found = {str(header[name]) for header in headers if header.get(name)}
    return found.pop() if len(found) == 1 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> list[str]:
    """A text, or a list of some: cards have both."""
    found = [value] if isinstance(value, str) else value
    return [item for item in found if _text(item)] if isinstance(found, list) else []


def _without_nothing(values: Json) -> Json:
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}
