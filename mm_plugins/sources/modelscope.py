"""ModelScope, and every server that speaks its protocol: ``ms://owner/name@revision``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, SecretStr

from mm_core import (
    AuthError,
    Buffer,
    MMError,
    ModelType,
    NotFoundError,
    PluginConfig,
    RangeReader,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    StorageError,
    UsageError,
    check_path,
    hookimpl,
    remember_secret,
)
from mm_plugins._guard import Guard
from mm_plugins.http import HttpClient, Target
from mm_plugins.sinks._patience import persist

PUBLIC_HUB = "https://www.modelscope.cn"

MAX_LISTED = 3000
"""The hub lists no more entries at once, and does not say that there are more."""

DOCUMENT_LIMIT = 64 << 20
METADATA_TRIES = 4

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BRANCH = "master"
_MANY = 100
_HOW_TO_SIGN_IN = "put an access token into MODELSCOPE_API_TOKEN, or `token` in mm.yaml"


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer ModelScope."""
    return [ModelScopeSource]


class ModelScopeSource(Source):
    """``ms://owner/name[@revision]``: a model repository at a fixed commit.

    The list of files states the size and the sha256 of each, so that every byte is
    verified. Honours MODELSCOPE_API_TOKEN and MODELSCOPE_DOMAIN.
    """

    type = "modelscope"
    schemes = ("ms", "modelscope")

    class Config(PluginConfig):
        """The settings of a hub."""

        endpoint: str | None = Field(
            default=None, description="The hub's URL; MODELSCOPE_DOMAIN or modelscope.cn without it"
        )
        token: SecretStr | None = Field(
            default=None, description="An access token; MODELSCOPE_API_TOKEN without it"
        )
        connect_timeout: float = Field(default=10.0, gt=0, description="Seconds")
        read_timeout: float = Field(default=60.0, gt=0, description="Seconds without a byte")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._endpoint = _endpoint(self.config.endpoint)
        self._http = HttpClient(
            connect_timeout=self.config.connect_timeout,
            read_timeout=self.config.read_timeout,
            permit=Guard(chosen=urlsplit(self._endpoint).hostname),
        )

    def snapshot(self, request: Request) -> Snapshot:
        """The repository at the commit that the revision (default ``master``) names now."""
        repo, named = _parse(request.url)
        revision = request.revision or named or _BRANCH
        commit = self._commit(repo, revision)
        about = self._ask(repo, f"?{urlencode({'Revision': commit})}")
        listed = self._list(repo, commit, None)
        files = (_described(repo, commit, item) for item in listed)
        return Snapshot(
            source=f"ms://{repo}@{commit}",
            revision=commit,
            files=tuple(file for file in files if request.selects(file.path)),
            model_id=repo,
            model_type=ModelType.from_tag(_task(about)),
            license=_text(about.get("License")),
            facts=_facts(about, revision),
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of `file` at its commit, by HTTP ranges."""
        return self._http.read(self._target(file), start, end)

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """The same, into the caller's memory."""
        return self._http.open(self._target(file), start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Unless the server turns out to know no ranges."""
        return self._http.honours_ranges(self._url(file))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    # -- talking to the hub ----------------------------------------------------------

    def _commit(self, repo: str, revision: str) -> str:
        """The commit that a branch, a tag or a commit names now."""
        query = urlencode({"Ref": revision, "PageNumber": 1, "PageSize": 1})
        found = self._ask(repo, f"/commits?{query}", revision).get("Commit") or []
        commit = found[0].get("Id") if isinstance(found, list) and _is_object(found[0]) else None
        if not found or (_COMMIT.fullmatch(revision) and commit != revision):
            raise _no_revision(repo, revision)
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise _not_understood(repo)
        return commit

    def _list(self, repo: str, commit: str, folder: str | None) -> Iterator[Mapping[str, Any]]:
        """The files below `folder`, which is the root where it is None."""
        found = self._entries(repo, commit, folder, recursive=True)
        if len(found) < MAX_LISTED:
            yield from (entry for entry in found if entry.get("Type") != "tree")
            return
        found = self._entries(repo, commit, folder, recursive=False)
        if len(found) >= MAX_LISTED:
            raise StorageError(
                f"{repo} has a folder of {MAX_LISTED} files or more ({folder or 'its root'}), of "
                "which ModelScope lists a part only",
                hint="download it by git, and `mm push` the folder",
            )
        for entry in found:
            if entry.get("Type") == "tree":
                yield from self._list(repo, commit, str(entry.get("Path")))
            else:
                yield entry

    def _entries(
        self, repo: str, commit: str, folder: str | None, *, recursive: bool
    ) -> list[Mapping[str, Any]]:
        query = {"Revision": commit, "Recursive": str(recursive)}
        if folder is not None:
            query["Root"] = folder
        found = self._ask(repo, f"/repo/files?{urlencode(query)}", commit).get("Files") or []
        if not isinstance(found, list) or not all(map(_is_object, found)):
            raise _not_understood(repo)
        return found

    def _ask(self, repo: str, route: str, revision: str | None = None) -> Mapping[str, Any]:
        """What the hub says under ``Data``."""
        target = Target(
            url=f"{self._endpoint}/api/v1/models/{repo}{route}",
            headers=self._authorization(),
            explain=partial(_explain, repo, revision),
        )
        _, body = persist(
            lambda: self._http.get(target, limit=DOCUMENT_LIMIT), attempts=METADATA_TRIES
        )
        try:
            answer = json.loads(body)
            code, told = answer["Code"], str(answer.get("Message", ""))
            data = answer.get("Data") or {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _not_understood(repo) from error
        if code != 200:
            raise _refused(repo, revision, told)
        if not _is_object(data):
            raise _not_understood(repo)
        return data

    def _authorization(self) -> dict[str, str]:
        token = self.config.token.get_secret_value().strip() if self.config.token else ""
        token = token or os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
        if not token:
            return {}
        remember_secret(token)
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}

    def _target(self, file: RemoteFile) -> Target:
        return Target(
            url=self._url(file),
            headers=self._authorization(),
            size=file.size,
            immutable=True,
            explain=partial(_explain, file.extra["repo"], None),
        )

    def _url(self, file: RemoteFile) -> str:
        repo, commit = file.extra["repo"], file.extra["commit"]
        query = urlencode({"Revision": commit, "FilePath": file.path})
        return f"{self._endpoint}/api/v1/models/{repo}/repo?{query}"


def _endpoint(given: str | None) -> str:
    named = given or os.environ.get("MODELSCOPE_DOMAIN", "").strip() or PUBLIC_HUB
    return (named if "://" in named else f"https://{named}").rstrip("/")


def _parse(url: str) -> tuple[str, str | None]:
    """The repository and the revision in ``ms://owner/name[@revision]``."""
    path, _, revision = url.partition("://")[2].partition("@")
    parts = [part for part in path.split("/") if part]
    if len(parts) != 2 or ":" in path:
        raise UsageError(
            f"{url!r} names no model of ModelScope",
            hint="write ms://owner/name or ms://owner/name@rev",
        )
    return "/".join(quote(part) for part in parts), revision or None


def _described(repo: str, commit: str, entry: Mapping[str, Any]) -> RemoteFile:
    path, size, sha256 = (
        entry.get("Path"),
        entry.get("Size"),
        str(entry.get("Sha256") or "").lower(),
    )
    if not isinstance(path, str) or not isinstance(size, int):
        raise _not_understood(repo)
    return RemoteFile(
        path=check_path(path),
        size=size,
        sha256=sha256 if _SHA256.fullmatch(sha256) else None,
        extra={"repo": repo, "commit": commit},
    )


def _task(about: Mapping[str, Any]) -> str | None:
    tasks = about.get("Tasks")
    first = tasks[0] if isinstance(tasks, list) and tasks else None
    return _text(first.get("Name") if isinstance(first, dict) else first)


def _facts(about: Mapping[str, Any], revision: str) -> dict[str, Any]:
    """What is worth recording, and small."""
    facts: dict[str, Any] = {"requested_revision": revision}
    for name in ("Tags", "Libraries", "Frameworks", "BaseModel"):
        found = about.get(name)
        words = [word for word in map(_text, found if isinstance(found, list) else []) if word]
        if words:
            facts[name.lower()] = words[:_MANY]
    return facts


def _text(value: Any) -> str | None:
    """A short text that can be written as UTF-8; None for anything else."""
    if not isinstance(value, str) or not value or len(value) > 1000:
        return None
    return value.encode(errors="replace").decode()


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _explain(
    repo: str, revision: str | None, status: int, _headers: Mapping[str, str]
) -> MMError | None:
    """The error of a refusal that means a model rather than a file."""
    if status == 404:
        return _no_repo(repo) if revision is None else _no_revision(repo, revision)
    return _denied(repo) if status in (401, 403) else None


def _refused(repo: str, revision: str | None, told: str) -> MMError:
    """The error of an answer that says so only within."""
    words = told.lower()
    if "unauthorized" in words or "permission" in words or "login" in words:
        return _denied(repo)
    if "not exist" in words or "not found" in words:
        return _no_repo(repo) if revision is None else _no_revision(repo, revision)
    return StorageError(f"ModelScope did not answer about {repo}: {_text(told[:200])}")


def _no_repo(repo: str) -> NotFoundError:
    return NotFoundError(
        f"ModelScope has no model {repo}, or not for these credentials",
        hint=f"check the name; if the model is private, {_HOW_TO_SIGN_IN}",
    )


def _no_revision(repo: str, revision: str) -> NotFoundError:
    return NotFoundError(
        f"ModelScope has no revision {revision!r} of {repo}, or not for these credentials",
        hint=f"name a branch, a tag or a commit; if the model is private, {_HOW_TO_SIGN_IN}",
    )


def _denied(repo: str) -> AuthError:
    return AuthError(f"ModelScope refused the access to {repo}", hint=_HOW_TO_SIGN_IN)


def _not_understood(repo: str) -> StorageError:
    return StorageError(
        f"what the hub said about {repo} is not understood",
        hint="check that MODELSCOPE_DOMAIN, or `endpoint` in mm.yaml, is ModelScope",
    )
