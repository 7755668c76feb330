"""What the Hub's protocol says of models and files, as JSON data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from mm_core import ModelEntry, ModelType, StoredFile, rfc3339
from mm_plugins.hub.catalog import MAIN, Model, Version, commit_of, tag_of


def listed(model: Model, *, private: bool, gated: bool) -> dict[str, Any]:
    """A model as one of a list: by its newest version, without reading its file list."""
    entry = model.main
    return {
        **_head(model, entry, private=private, gated=gated),
        "tags": _tags(entry, {}),
        "pipeline_tag": _task(entry),
        "library_name": None,
    }


def described(
    version: Version, *, private: bool, gated: bool, blobs: bool = False
) -> dict[str, Any]:
    """All that is told of one version of a model."""
    manifest, facts = version.manifest, version.manifest.facts
    card = _card(facts)
    if manifest.license and "license" not in card:
        card = {**card, "license": manifest.license}
    return {
        **_head(version.model, version.entry, private=private, gated=gated),
        "sha": version.commit,
        "tags": _tags(version.entry, facts),
        "pipeline_tag": _task(version.entry),
        "library_name": facts.get("library_name"),
        "cardData": card,
        "siblings": [_sibling(file, blobs=blobs) for file in version.files.values()],
        "spaces": [],
        "usedStorage": manifest.size_bytes,
    }


def file_entry(file: StoredFile) -> dict[str, Any]:
    """A file as the tree lists it: as one that git keeps by its sha256.

    So every file has a hash that clients can verify it by, and `oid` is that of the
    pointer that git would hold.
    """
    if not file.sha256:  # on its way, and upstream has it by its own hash
        return {"type": "file", "path": file.path, "size": file.size, "oid": tag_of(file)}
    pointer = _pointer(file)
    return {
        "type": "file",
        "path": file.path,
        "size": file.size,
        "oid": _git_sha1(pointer),
        "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)},
    }


def folder_entry(path: str) -> dict[str, Any]:
    """A folder as the tree lists it; git knows it by a hash, so it has one here, of its name."""
    return {"type": "directory", "path": path, "size": 0, "oid": _git_sha1(path.encode())}


def tree(version: Version, folder: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    """What stands in a folder: by path, and all below it if `recursive`."""
    prefix = f"{folder}/" if folder else ""
    seen: set[str] = set()
    for path, file in version.files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")[:-1]
        for depth in range(1, (len(parts) if recursive else min(1, len(parts))) + 1):
            inner = prefix + "/".join(parts[:depth])
            if inner not in seen:
                seen.add(inner)
                yield folder_entry(inner)
        if recursive or not parts:
            yield file_entry(file)


def folders(version: Version) -> set[str]:
    """All folders that hold a file."""
    found = set()
    for path in version.files:
        parts = path.split("/")[:-1]
        found |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    return found


def refs(model: Model) -> dict[str, Any]:
    """Aliases as branches, since they move; versions as tags."""
    heads = {MAIN: model.main, **model.aliases}
    return {
        "branches": [_ref("heads", name, entry) for name, entry in sorted(heads.items())],
        "tags": [_ref("tags", entry.version, entry) for entry in model.versions],
        "converts": [],
        "pullRequests": [],
    }


def commits(model: Model, entry: ModelEntry) -> list[dict[str, Any]]:
    """The versions up to one, the newest first."""
    upto = model.versions[: model.versions.index(entry) + 1]
    return [
        {
            "id": commit_of(one),
            "title": f"Version {one.version}",
            "message": "" if one.source is None else f"From {one.source}",
            "authors": [],
            "date": rfc3339(one.download_date),
        }
        for one in reversed(upto)
    ]


def _head(model: Model, entry: ModelEntry, *, private: bool, gated: bool) -> dict[str, Any]:
    commit = commit_of(entry)
    return {
        "_id": hashlib.sha256(model.id.encode()).hexdigest()[:24],
        "id": model.id,
        "modelId": model.id,
        "author": model.id.partition("/")[0] if "/" in model.id else None,
        "sha": commit,
        "lastModified": rfc3339(entry.download_date),
        "createdAt": rfc3339(model.versions[0].download_date),
        "private": private,
        "gated": "manual" if gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
    }


def _tags(entry: ModelEntry, facts: Mapping[str, Any]) -> list[str]:
    stated = facts.get("tags")
    tags = [tag for tag in stated if isinstance(tag, str)] if isinstance(stated, list) else []
    licence = entry.metadata.get("license")
    task = _task(entry)
    for tag in (task, f"license:{licence}" if licence else None):
        if tag is not None and tag not in tags:
            tags.append(tag)
    return tags


def _task(entry: ModelEntry) -> str | None:
    return None if entry.model_type is ModelType.OTHER else entry.model_type.value


def _card(facts: Mapping[str, Any]) -> dict[str, Any]:
    card = facts.get("card")
    return dict(card) if isinstance(card, Mapping) else {}


def _sibling(file: StoredFile, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": file.path}
    entry = file_entry(file)
    if "lfs" not in entry:
        return {"rfilename": file.path, "size": file.size, "blobId": entry["oid"]}
    lfs = {
        "sha256": file.sha256,
        "size": file.size,
        "pointerSize": entry["lfs"]["pointerSize"],
    }
    return {"rfilename": file.path, "size": file.size, "blobId": entry["oid"], "lfs": lfs}


def _ref(kind: str, name: str, entry: ModelEntry) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit_of(entry)}


def _pointer(file: StoredFile) -> bytes:
    """What git would hold in the place of the file: https://git-lfs.com/spec."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    ).encode()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
