"""The routes of the Hub's protocol that write: repositories, uploads, commits, branches."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response

from mm_core import (
    ConflictError,
    IntegrityError,
    InvalidNameError,
    ModelEntry,
    ModelStatus,
    NotFoundError,
    RemoteFile,
    StoredSource,
    check_alias,
    check_model_id,
)
from mm_plugins.hub import answers
from mm_plugins.hub.access import Caller
from mm_plugins.hub.answers import ProblemError, json_answer
from mm_plugins.hub.catalog import MAIN, Model, commit_of
from mm_plugins.hub.commits import Change, CommitSource, read_change
from mm_plugins.hub.hub import Hub
from mm_plugins.hub.routes import Handler, read_body
from mm_plugins.hub.staging import PART, TICKET_SECONDS, Staged, is_good, part_count, ticket

INLINE = 1 << 20
"""Files up to this size come with the commit itself."""

_BODY = 16 << 20
_MOST_TRIES = 8
_OBJECT = re.compile(r"/mm/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<number>\d{1,6}))?")
_XET = re.compile(
    r"/mm/xet/(?P<session>[0-9a-f]{16})/v1/(?:xorbs/default/(?P<name>[0-9a-f]{64})|shards)"
)
_SHARD = 64 << 20
_LFS_TYPE = "application/vnd.git-lfs+json"
_SIZE_LIMIT = 1 << 50


class WriteRoutes:
    """The answers to those who send something, where `serve.uploads` allows it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._stage = hub.stage
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.words: dict[tuple[str, str], Handler] = {
            ("POST", "preupload"): self.preupload,
            ("POST", "commit"): self.commit,
            ("POST", "branch"): self.create_branch,
            ("DELETE", "branch"): self.delete_branch,
            ("POST", "tag"): self.create_tag,
            ("DELETE", "tag"): self.delete_branch,
            ("GET", "xet-write-token"): self.xet_token,
        }

    # -- repositories ------------------------------------------------------------------

    async def create(self, request: Request, caller: Caller) -> Response:
        """Announce a model, which has nothing in it yet."""
        document = await _json(request)
        model_id = _named(document)
        self._check(caller, model_id)
        wants_private = document.get("private") or document.get("visibility") == "private"
        if wants_private and not caller.is_private(model_id):
            raise ProblemError(
                400,
                f"Anybody may read {model_id} here",
                hint="`serve.private` of the hub says which models are private",
            )
        told = {"url": f"{self._hub.origin(request)}/{model_id}", "name": model_id, "id": model_id}
        there = await self._hub.look_up(model_id) is not None
        if there or await self._hub.is_announced(model_id):
            message = "You already created this model repo"
            return json_answer({**told, "error": message}, 409, {"X-Error-Message": message})
        await self._hub.in_thread(partial(self._stage.announce, model_id))
        return json_answer(told)

    async def delete(self, request: Request, caller: Caller) -> Response:
        """Take all versions of a model out of use; their bytes stay until `mm gc`."""
        model_id = _named(await _json(request))
        self._check(caller, model_id, scope="admin")
        if await self._hub.is_announced(model_id):
            await self._hub.in_thread(partial(self._stage.withdraw, model_id))
            return json_answer({})
        model = await self._hub.look_up(model_id)
        if model is None:
            raise answers.no_repo(model_id, known=True)

        def remove() -> None:
            for entry in model.versions:
                reference = f"{entry.model_id}@{entry.version}"
                self._hub.manager.remove(reference, backend=self._hub.config.backend)

        await self._hub.in_thread(remove)
        self._hub.catalog.forget(model_id)
        return json_answer({})

    # -- what a commit needs before -------------------------------------------------------

    async def preupload(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """How each file should be sent."""
        self._check(caller, name)
        files = (await _json(request)).get("files")
        if not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
            raise ProblemError(400, "preupload takes a list of files")
        return json_answer(
            {
                "files": [
                    {
                        "path": str(one.get("path")),
                        "uploadMode": "regular" if _size(one.get("size")) <= INLINE else "lfs",
                        "shouldIgnore": False,
                    }
                    for one in files
                ]
            }
        )

    async def xet_token(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """Where to send by Xet: another place each time.

        Clients leave out what they know to have sent to a place, and nothing stays there.
        """
        self._check(caller, name)
        assert caller.token is not None
        session = secrets.token_hex(8)
        return json_answer(
            {
                "accessToken": ticket(caller.token, name, f"xet:{session}"),
                "exp": int(time.time() + TICKET_SECONDS),
                "casUrl": f"{self._hub.origin(request)}/mm/xet/{session}",
            }
        )

    async def xet(self, request: Request, path: str) -> Response:
        """Take a xorb, or a shard."""
        match = _XET.fullmatch(path)
        if match is None or request.method != "POST":
            raise ProblemError(404, "This hub takes xorbs and shards by Xet, and nothing else")
        text = request.headers.get("authorization", "").removeprefix("Bearer ")
        query = {name: values[-1] for name, values in parse_qs(text).items()}
        session, name = match["session"], match["name"]
        model_id, _ = await self._allowed(f"xet:{session}", query)
        if name is not None:
            await self._stage.take_xorb(model_id, session, name, request.stream())
            return json_answer({"was_inserted": True})
        data = await read_body(request, _SHARD)
        await self._hub.in_thread(partial(self._stage.take_shard, model_id, session, data))
        return json_answer({"result": 1})

    async def _allowed(self, subject: str, query: Mapping[str, str]) -> tuple[str, int]:
        """The model and the size that a ticket is for. `ProblemError` unless it is good."""
        token = await self._hub.in_thread(lambda: self._hub.tokens.get(query.get("by", "")))
        if not self._hub.config.uploads or token is None or not is_good(token, subject, query):
            raise ProblemError(403, "This upload is not allowed, or not any more")
        return query["model"], int(query["size"])

    async def batch(self, request: Request, caller: Caller, name: str) -> Response:
        """Where to send each object; those that the model has already need not be sent."""
        self._check(caller, name)
        document = await _json(request)
        objects = document.get("objects")
        if document.get("operation") != "upload" or not isinstance(objects, list):
            raise ProblemError(400, "This hub takes uploads by LFS; it sends by /resolve/")
        known = await self._known(name)
        rows = [await self._offered(request, caller, name, one, known) for one in objects]
        answer = json_answer({"transfer": "multipart", "objects": rows})
        answer.headers["Content-Type"] = _LFS_TYPE
        return answer

    async def _offered(
        self, request: Request, caller: Caller, name: str, one: Any, known: set[str]
    ) -> dict[str, Any]:
        oid, size = (
            (str(one.get("oid")), _size(one.get("size"))) if isinstance(one, dict) else ("", 0)
        )
        row = {"oid": oid, "size": size}
        if not re.fullmatch("[0-9a-f]{64}", oid):
            return {**row, "error": {"code": 422, "message": "an oid is 64 hex digits"}}
        there = await self._hub.in_thread(partial(self._stage.find, name, oid, size))
        if oid in known or there is not None:
            return row
        assert caller.token is not None
        query = ticket(caller.token, name, oid, size)
        base = f"{self._hub.origin(request)}/mm/lfs/{oid}"
        count = part_count(size)
        upload: dict[str, Any] = {"href": f"{base}?{query}"}
        if count > 1:
            parts = {f"{n:05d}": f"{base}/{n}?{query}" for n in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(PART), **parts}
        return {**row, "actions": {"upload": upload}}

    async def lfs(self, request: Request, path: str) -> Response:
        """Take an object, or a part of it, or hear that all parts are sent."""
        match = _OBJECT.fullmatch(path)
        if match is None or request.method not in ("PUT", "POST"):
            raise ProblemError(404, "This hub has no such place for an upload")
        oid, query = match["oid"], dict(request.query_params)
        model_id, size = await self._allowed(oid, query)
        if request.method == "POST":  # all parts are there, says the client
            found = await self._hub.in_thread(partial(self._stage.find, model_id, oid, size))
            if found is None:
                raise ProblemError(422, f"Not all parts of {oid} have come")
            return json_answer({})
        number = int(match["number"] or 1)
        if not 1 <= number <= part_count(size):
            raise ProblemError(400, f"{oid} has no part {number}")
        tag = await self._stage.take(model_id, oid, size, number, request.stream())
        return Response(None, 200, {"ETag": f'"{tag}"'})

    # -- a commit -----------------------------------------------------------------------

    async def commit(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """Make a version of what is there and what was sent, and let the branch name it."""
        self._check(caller, name)
        branch = _branch(rest)
        if request.query_params.get("create_pr", "0").lower() in ("1", "true"):
            raise ProblemError(400, "This hub has no pull requests: commit to a branch")
        change = await read_change(self._stage, name, request.stream())
        assert caller.token is not None
        turn = self._turns.setdefault(name, asyncio.Lock())
        try:
            async with turn:
                commit, used = await self._hub.in_thread(
                    partial(self._commit, name, branch, change, caller.token.name)
                )
        finally:
            self._hub.catalog.forget(name)
            await self._hub.in_thread(partial(self._stage.forget, change.inline))
        await self._hub.in_thread(partial(self._stage.forget, used))
        await self._hub.in_thread(partial(self._stage.withdraw, name))
        url = f"{self._hub.origin(request)}/{name}/commit/{commit}"
        return json_answer(
            {"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""}
        )

    def _commit(self, name: str, branch: str, change: Change, by: str) -> tuple[str, list[Staged]]:
        """In a thread. Where another moves the branch meanwhile, begin anew with what it names."""
        for _ in range(_MOST_TRIES):
            self._hub.catalog.forget(name)
            model = self._hub.catalog.model(name)
            parent = _parent(model, branch)
            if change.parent not in (None, _commit_of(parent)):
                raise _moved(branch)
            source, used = self._source(name, model, parent, change)
            source.by, source.summary = by, change.summary
            if not source.files:
                raise ProblemError(400, "A version without any file cannot be stored")
            if parent is not None and not source.is_new:
                return commit_of(parent), used
            version = source.commit(_commit_of(parent) or "")
            to = self._hub.config.backend
            try:
                self._hub.manager.pull_from(source, to=to, model_id=name, version=version)
            except IntegrityError as error:  # of what was sent
                raise ProblemError(422, str(error)) from None
            named = None if model is None else model.aliases.get(branch)
            try:
                self._hub.registry.set_alias(
                    name, branch, version, expect=None if named is None else named.version
                )
            except ConflictError:
                self._forget_version(name, version)
                continue
            return version, used
        raise _moved(branch)

    def _source(
        self, name: str, model: Model | None, parent: ModelEntry | None, change: Change
    ) -> tuple[CommitSource, list[Staged]]:
        registry, used = self._hub.registry, []
        former = None if parent is None else StoredSource.of(registry, parent)
        source = CommitSource(self._hub.sink, name, former)
        for kind, path, what in change.steps:
            if kind == "file":
                source.put(path, what)
            elif kind == "lfsFile":
                staged = self._stage.find(name, *what)
                if staged is not None:
                    source.put(path, staged)
                    used.append(staged)
                    continue
                stored = self._stored(model, what[0])
                if stored is None:
                    raise ProblemError(422, f"The object {what[0]} of {path} was not uploaded")
                source.put_stored(path, *stored)
            else:
                source.delete(path, folder=kind == "deletedFolder")
        return source, used

    def _stored(self, model: Model | None, oid: str) -> tuple[RemoteFile, StoredSource] | None:
        """A file of these bytes in a version of the model."""
        for entry in reversed(model.versions if model else ()):
            assert model is not None
            files = self._hub.catalog.version(model, entry).manifest.files
            found = next((file for file in files if file.sha256 == oid), None)
            if found is not None:
                remote = RemoteFile(
                    path=found.path, size=found.size, sha256=oid, extra={"key": found.key}
                )
                return remote, StoredSource.of(self._hub.registry, entry)
        return None

    async def _known(self, name: str) -> set[str]:
        """The hashes of all files of the model's versions."""
        model = await self._hub.look_up(name)
        if model is None:
            return set()
        found: set[str] = set()
        for entry in model.versions:
            version = await self._hub.with_files(model, entry)
            found.update(file.sha256 for file in version.manifest.files)
        return found

    def _forget_version(self, name: str, version: str) -> None:
        """A version that lost the race for its branch is nobody's, unless it has another name."""
        entry = self._hub.registry.get_model(name, version)
        if entry is not None and entry.status is ModelStatus.AVAILABLE and not entry.aliases:
            self._hub.manager.remove(f"{name}@{version}", backend=self._hub.config.backend)

    # -- branches and tags: both are aliases ------------------------------------------------

    async def create_branch(
        self, request: Request, caller: Caller, name: str, rest: str
    ) -> Response:
        """A new alias of what another names."""
        document = await _json(request)
        start = document.get("startingPoint") or MAIN
        return await self._name(caller, name, unquote(rest), str(start), document)

    async def create_tag(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """The same, with the names the other way round."""
        document = await _json(request)
        return await self._name(caller, name, str(document.get("tag")), unquote(rest), document)

    async def _name(
        self, caller: Caller, name: str, alias: str, start: str, document: Mapping[str, Any]
    ) -> Response:
        self._check(caller, name)
        alias = check_alias(alias)
        model = await self._hub.look_up(name)
        if model is None:
            raise answers.no_repo(name, known=True)
        entry = model.find(start)
        if entry is None:
            raise answers.no_revision(start)
        expect: Any = ... if document.get("overwrite") else None
        try:
            await self._hub.in_thread(
                lambda: self._hub.registry.set_alias(name, alias, entry.version, expect=expect)
            )
        except ConflictError:
            raise ProblemError(409, f"Reference already exists: {alias}") from None
        self._hub.catalog.forget(name)
        return json_answer({})

    async def delete_branch(
        self, request: Request, caller: Caller, name: str, rest: str
    ) -> Response:
        """Forget an alias."""
        self._check(caller, name)
        alias = unquote(rest)
        if alias == MAIN:
            raise ProblemError(403, "The branch main stays")
        try:
            await self._hub.in_thread(lambda: self._hub.registry.remove_alias(name, alias))
        except (NotFoundError, InvalidNameError):
            raise answers.no_revision(alias) from None
        self._hub.catalog.forget(name)
        return json_answer({})

    async def validate(self, request: Request) -> Response:
        """Nothing is wrong with a model card here: what it says is checked when it is committed."""
        await read_body(request, _BODY)
        return json_answer({"errors": [], "warnings": []})

    # -- who may ----------------------------------------------------------------------------

    def _check(self, caller: Caller, name: str, *, scope: str = "write") -> None:
        """Raise unless the caller may change the model, and models may be changed at all."""
        if not self._hub.config.uploads:
            raise ProblemError(
                403, "This hub takes no uploads", hint="`serve.uploads: true` allows them"
            )
        if caller.token is None or not caller.token.allows(scope, name):
            message = f"You may not write to {name}: that takes a token of scope {scope} for it"
            raise answers.forbidden(message, known=caller.token is not None)
        check_model_id(name)


def _parent(model: Model | None, branch: str) -> ModelEntry | None:
    if model is None:
        if branch != MAIN:
            raise answers.no_revision(branch)
        return None
    named = model.aliases.get(branch)
    if named is None and branch != MAIN:
        raise answers.no_revision(branch)
    return named or model.main


def _commit_of(entry: ModelEntry | None) -> str | None:
    return None if entry is None else commit_of(entry)


def _moved(branch: str) -> ProblemError:
    return ProblemError(412, f"A commit has happened since: {branch} is another by now")


def _branch(rest: str) -> str:
    name = unquote(rest).removeprefix("refs/heads/") or MAIN
    return check_alias(name)


def _named(document: Mapping[str, Any]) -> str:
    """The id in the body of `create_repo` and `delete_repo`."""
    if document.get("type") not in (None, "model"):
        raise ProblemError(400, "This hub has models alone")
    name, organization = str(document.get("name", "")), document.get("organization")
    return check_model_id(f"{organization}/{name}" if organization else name)


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _SIZE_LIMIT:
        raise ProblemError(400, "A size is a number of bytes")
    return value


async def _json(request: Request) -> Mapping[str, Any]:
    body = await read_body(request, _BODY)
    try:
        document = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ProblemError(400, "The body should be a JSON object")
    return document
