"""What other programs have left in a cache of the Hugging Face Hub: ``hf-cache:///folder@commit``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mm_core import (
    IntegrityError,
    InvalidNameError,
    ModelType,
    NotFoundError,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    UsageError,
    check_alias,
    check_path,
    hookimpl,
)
from mm_plugins.sources._disk import DiskSource, describe, translated

_SCHEME = "hf-cache://"
_FOLDER = re.compile(r"models--(?P<name>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CARD_LIMIT = 64 << 10


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer what is in the cache."""
    return [HubCacheSource]


@hookimpl
def mm_models_in(address: str) -> list[Request] | None:
    """Each snapshot of each model in a cache, or of the one model whose folder it is."""
    if "://" in address:
        return None
    folder = Path(address).expanduser().resolve()
    if folder.is_dir() and not _is_model(folder) and (folder / "hub").is_dir():
        folder /= "hub"  # what HF_HOME names
    models = [folder] if _is_model(folder) else [p for p in _folders(folder) if _is_model(p)]
    return [request for model in models for request in _requests(model)] or None


class HubCacheSource(DiskSource):
    """``hf-cache:///path/of/models--org--name[@revision]``: a snapshot in a cache of the Hub.

    The revision is a commit, or a ref that the cache knows (default ``main``). Every
    file is read once: what its blob is named by, sha256 or git sha1, must be the
    hash of its bytes. A cache may hold a part of a commit's files; nothing in it
    says so.
    """

    type = "hf-cache"
    schemes = ("hf-cache",)

    def snapshot(self, request: Request) -> Snapshot:
        """Hash every file of the snapshot. `IntegrityError` for a blob that is damaged."""
        folder, revision = _parse(request)
        repo, commit = _name_of(folder), _commit(folder, revision)
        top = folder / "snapshots" / commit
        paths = sorted(path for path in _walk(top, "") if request.selects(path))
        files = tuple(_describe(folder, top, path, shared=request.share) for path in paths)
        card = _card(top / "README.md")
        license_ = card.get("license")
        return Snapshot(
            source=f"hf://{repo}@{commit}",
            revision=commit,
            files=files,
            model_id=repo,
            model_type=ModelType.from_tag(str(card.get("pipeline_tag"))),
            license=license_ if isinstance(license_, str) else None,
        )


def _requests(folder: Path) -> Iterator[Request]:
    refs = _refs(folder)
    for snapshot in _folders(folder / "snapshots"):
        if _COMMIT.fullmatch(snapshot.name):
            yield Request(
                url=f"{_SCHEME}{folder}@{snapshot.name}",
                model_id=_name_of(folder),
                version=snapshot.name,
                aliases=[ref for ref, commit in refs.items() if commit == snapshot.name],
            )


def _parse(request: Request) -> tuple[Path, str]:
    parent, slash, last = request.url.removeprefix(_SCHEME).rpartition("/")
    name, _, revision = last.partition("@")
    path = f"{parent}{slash}{name}"
    if revision and request.revision not in (None, revision):
        raise UsageError(f"{request.url!r} has a revision, and {request.revision!r} is another")
    folder = Path(path)
    if not _is_model(folder):
        raise NotFoundError(
            f"there is no model of a Hugging Face cache in {path!r}",
            hint="name a folder such as ~/.cache/huggingface/hub/models--org--name",
        )
    return folder.resolve(), revision or request.revision or "main"


def _commit(folder: Path, revision: str) -> str:
    commit = _refs(folder).get(revision, revision)
    if not _COMMIT.fullmatch(commit) or not (folder / "snapshots" / commit).is_dir():
        known = ", ".join(path.name for path in _folders(folder / "snapshots")) or "none"
        raise NotFoundError(f"{folder} has no snapshot of {revision!r}", hint=f"there are: {known}")
    return commit


def _refs(folder: Path) -> dict[str, str]:
    """The refs whose names can be aliases, and the commits that they name."""
    refs = {}
    for path in sorted((folder / "refs").glob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError, InvalidNameError):
            refs[check_alias(path.name)] = path.read_text().strip()
    return refs


def _describe(folder: Path, top: Path, path: str, *, shared: bool) -> RemoteFile:
    link = top / path
    target = link.resolve()
    if link.is_symlink() and target.parent != folder / "blobs":
        raise UsageError(
            f"{path!r} in {top} leads to {target}, which is no blob of this cache",
            hint="leave it out with --exclude, or adopt the folder that holds the files",
        )
    name = target.name if link.is_symlink() else ""
    file = describe(target, path, shared=shared, git=_COMMIT.fullmatch(name) is not None)
    if name not in ("", file.sha256, file.git_sha1) and _is_hash(name):
        raise IntegrityError(
            f"{path}: the blob {name} in {folder} is damaged: its bytes have another hash",
            hint=f"delete {target}, and let the program that uses the cache fetch it again",
        )
    return file


def _is_hash(name: str) -> bool:
    return bool(_COMMIT.fullmatch(name) or _SHA256.fullmatch(name))


def _walk(top: Path, below: str) -> Iterator[str]:
    with translated(below or str(top)):
        entries = list(os.scandir(top / below))
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(top, path)
        else:
            yield check_path(path)


def _card(path: Path) -> Mapping[str, Any]:
    """The front matter of a model card; nothing where it cannot be read."""
    from mm_plugins._front_matter import front_matter

    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return front_matter(file.read(_CARD_LIMIT))
    except OSError:
        return {}


def _is_model(folder: Path) -> bool:
    return _FOLDER.fullmatch(folder.name) is not None and (folder / "snapshots").is_dir()


def _name_of(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())
