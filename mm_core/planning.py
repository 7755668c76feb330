"""Snapshot against sink: what is present, what can be copied, what must move.

A pure function on values: it asks nobody, and nothing happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mm_core.exceptions import NotFoundError, UsageError
from mm_core.lockfile import refuse_other_files
from mm_core.names import check_model_id, check_paths, check_version, version_prefix
from mm_core.schemas import Action, Plan, PlannedFile, RemoteFile, Request, Snapshot
from mm_core.weights import choose


def make_plan(
    request: Request,
    snapshot: Snapshot,
    *,
    present: Mapping[str, int],
    known: Mapping[str, str],
    case_blind: bool = False,
    prefix: str | None = None,
) -> Plan:
    """What must be done so that `snapshot` stands in the sink, under `prefix`.

    Without `prefix` that is the version's own folder below ``models/``.

    `present` maps the keys that stand under the version's prefix to their sizes
    in bytes; `known` maps the sha256 of files elsewhere in the sink to their
    keys. A file counts as present only where its source states a hash, since it
    will be read back and checked.

    Of weights in several formats, only those that the request wants are planned.

    Raises `UsageError` where neither the source nor the request fixes a version,
    `NotFoundError` where no file is left, or none is of the format that was asked for,
    `InvalidNameError` for names that are not allowed (see `mm_core.names`).
    """
    model_id = check_model_id(request.model_id or snapshot.model_id)
    version = name_version(request, snapshot)
    if not snapshot.files:
        raise NotFoundError(
            f"{snapshot.source} has no file that matches",
            hint="look at --include and --exclude: patterns are globs over whole paths",
        )
    if request.expected is not None:
        refuse_other_files(snapshot.files, request.expected, snapshot.source)
    chosen, left_out = choose(snapshot.files, request.wish)
    if left_out:
        told = {"weights": str(request.wish), "files": len(left_out)}
        facts = {**snapshot.facts, "left_out": told}
        snapshot = replace(snapshot, files=chosen, facts=facts)
    check_paths((file.path for file in snapshot.files), case_blind=case_blind)
    if prefix is None:
        prefix = version_prefix(model_id, version)
    return Plan(
        model_id=model_id,
        version=version,
        model_type=request.model_type or snapshot.model_type,
        snapshot=snapshot,
        prefix=prefix,
        files=tuple(
            _plan_file(file, prefix + file.path, present, known) for file in snapshot.files
        ),
        aliases=tuple(request.aliases),
        request=request,
        left_out=left_out,
    )


def name_version(request: Request, snapshot: Snapshot) -> str:
    """The version's name: the caller's, else the source's own, else its fixed revision.

    Raises `UsageError` where there is none of them.
    """
    version = request.version or snapshot.version or snapshot.revision
    if version is None:
        raise UsageError(
            f"{snapshot.source} has no fixed revision: it states neither an ETag nor a sha256",
            hint="name one with --version, or add #sha256=… to the URL",
        )
    return check_version(version)


def _plan_file(
    file: RemoteFile, key: str, present: Mapping[str, int], known: Mapping[str, str]
) -> PlannedFile:
    hashed = file.sha256 is not None or file.git_sha1 is not None
    if hashed and key in present and present[key] == file.size:
        return PlannedFile(file=file, key=key, action=Action.PRESENT)
    if file.sha256 is not None and file.sha256 in known:
        return PlannedFile(file=file, key=key, action=Action.COPY, copy_from=known[file.sha256])
    return PlannedFile(file=file, key=key, action=Action.FETCH)
