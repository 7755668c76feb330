"""The routes of the Hub's protocol that read: models, trees, files, and who asks."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from mm_plugins.hub import answers, cards
from mm_plugins.hub.access import Caller
from mm_plugins.hub.answers import ProblemError, json_answer
from mm_plugins.hub.catalog import MAIN, Model, Version
from mm_plugins.hub.hub import Hub
from mm_plugins.hub.sending import answer_elsewhere, answer_file, answer_head

PAGE = 1000
"""The most models, and files, of one page."""

_MOST_PATHS = 10_000
_FORM_LIMIT = 8 << 20

Handler = Callable[[Request, Caller, str, str], Awaitable[Response]]


class ReadRoutes:
    """The answers, each by its word in the path after the id of a model."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.words: dict[tuple[str, str], Handler] = {
            ("GET", ""): self.info,
            ("GET", "revision"): self.info,
            ("GET", "tree"): self.tree,
            ("POST", "paths-info"): self.paths_info,
            ("GET", "refs"): self.refs,
            ("GET", "commits"): self.commits,
            ("GET", "auth-check"): self.auth_check,
        }

    # -- about no model in particular ------------------------------------------------

    async def whoami(self, caller: Caller) -> Response:
        """Who the token belongs to."""
        token = caller.token
        if token is None:
            raise ProblemError(401, "Invalid username or password.")
        role = "read" if token.scope == "read" else "write"
        access = {"displayName": token.name, "role": role, "createdAt": token.to_json()["created"]}
        return json_answer(
            {
                "type": "user",
                "id": token.id,
                "name": token.name,
                "fullname": token.name,
                "isPro": False,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": access},
            }
        )

    async def search(self, request: Request, caller: Caller) -> Response:
        """A page of the models that fit, and where the next one is."""
        query = request.query_params
        ordered = await self._hub.in_thread(lambda: self._found(caller, query))
        start = _position(query.get("cursor"), ordered)
        limit = _number(query.get("limit"), PAGE, most=PAGE)
        page = ordered[start : start + limit]
        headers = {}
        if page and start + limit < len(ordered):
            headers["Link"] = self._next(request, page[-1].id)
        listed = [
            cards.listed(m, private=caller.is_private(m.id), gated=caller.is_gated(m.id))
            for m in page
        ]
        return json_answer(listed, headers=headers)

    # -- about one -------------------------------------------------------------------

    async def info(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """All that is told of a version."""
        version = await self._hub.version(caller, name, unquote(rest) or MAIN)
        described = cards.described(
            version,
            private=caller.is_private(name),
            gated=caller.is_gated(name),
            blobs=request.query_params.get("blobs", "").lower() in ("true", "1"),
        )
        return json_answer(described)

    async def tree(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """A page of what stands in a folder of a version."""
        revision, _, folder = rest.partition("/")
        version = await self._hub.version(caller, name, unquote(revision) or MAIN)
        folder = unquote(folder).strip("/")
        query = request.query_params
        recursive = query.get("recursive", "").lower() in ("true", "1")
        entries = list(cards.tree(version, folder, recursive=recursive))
        if folder and not entries:
            raise answers.no_entry(folder, version.commit)
        after = _cursor(query.get("cursor"))
        start = next((i for i, e in enumerate(entries, 1) if e["path"] == after), 0)
        limit = _number(query.get("limit"), PAGE, most=PAGE)
        page = entries[start : start + limit]
        headers = {"X-Repo-Commit": version.commit}
        if page and start + limit < len(entries):
            headers["Link"] = self._next(request, page[-1]["path"])
        if query.get("expand", "").lower() in ("true", "1"):
            page = [_expanded(entry, version) for entry in page]
        return json_answer(page, headers=headers)

    async def paths_info(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """What stands under each of some paths; those that are not there are left out."""
        version = await self._hub.version(caller, name, unquote(rest) or MAIN)
        wanted, expand = await _form(request)
        found = list(_entries_at(version, wanted))
        return json_answer([_expanded(e, version) for e in found] if expand else found)

    async def refs(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """Aliases as branches, versions as tags."""
        return json_answer(cards.refs(await self._hub.model(caller, name)))

    async def commits(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """The versions up to one."""
        version = await self._hub.version(caller, name, unquote(rest) or MAIN)
        found = cards.commits(version.model, version.entry)
        return json_answer(found, headers={"X-Total-Count": str(len(found))})

    async def auth_check(self, request: Request, caller: Caller, name: str, rest: str) -> Response:
        """Whether the caller may have the files."""
        await self._hub.model(caller, name)
        if not caller.reads(name):
            raise answers.gated(name, known=caller.token is not None)
        return json_answer({})

    async def resolve(
        self, request: Request, caller: Caller, name: str, revision: str, path: str
    ) -> Response:
        """The bytes of a file, or with HEAD what it is."""
        version, file, source = await self._hub.file(caller, name, revision, path)
        if request.method == "HEAD":
            return answer_head(version, file)
        url = await self._hub.address(version, file)
        if url is not None:
            return answer_elsewhere(version, file, url)
        return answer_file(version, file, source, request.headers)

    def _found(self, caller: Caller, query: QueryParams) -> list[Model]:
        """All models that fit, in order; with many of them it takes a while."""
        models = self._hub.catalog.models()
        fitting = [m for m in models if caller.sees(m.id) and _fits(m, query)]
        return _ordered(fitting, query.get("sort", ""), query.get("direction"))

    def _next(self, request: Request, last: str) -> str:
        kept = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
        cursor = base64.urlsafe_b64encode(last.encode()).decode()
        query = urlencode([*kept, ("cursor", cursor)])
        path = request.scope.get("raw_path", b"").decode("ascii", "replace")
        return f'<{self._hub.origin(request)}{path}?{query}>; rel="next"'


def _fits(model: Model, query: QueryParams) -> bool:
    words = query.get("search", "").lower().split()
    if not all(word in model.id.lower() for word in words):
        return False
    author = query.get("author")
    if author is not None and model.id.partition("/")[0].lower() != author.lower():
        return False
    wanted = {*query.getlist("filter"), *query.getlist("pipeline_tag")}
    if wanted:
        listed = cards.listed(model, private=False, gated=False)
        tags = {*listed["tags"], listed["pipeline_tag"]}
        return all(tag in tags for one in wanted for tag in one.split(","))
    return True


def _ordered(models: Sequence[Model], by: str, direction: str | None) -> list[Model]:
    """By id, or by time: newest first unless the other way is asked for."""
    if by in ("lastModified", "last_modified"):
        return sorted(models, key=lambda m: m.main.download_date, reverse=direction != "1")
    if by in ("createdAt", "created_at"):
        return sorted(models, key=lambda m: m.versions[0].download_date, reverse=direction != "1")
    return list(models)


def _position(cursor: str | None, models: Sequence[Model]) -> int:
    """The place after the last model of the former page."""
    after = _cursor(cursor)
    return next((place for place, model in enumerate(models, 1) if model.id == after), 0)


def _cursor(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return base64.urlsafe_b64decode(text.encode()).decode()
    except ValueError:
        raise ProblemError(400, "The cursor is not one that this hub gave") from None


def _number(text: str | None, otherwise: int, *, most: int) -> int:
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise ProblemError(400, "limit should be a number from 1 on")
    return min(int(text), most)


async def _form(request: Request) -> tuple[list[str], bool]:
    """The paths that are asked about, in a form or as JSON, and whether more is wanted."""
    body = await read_body(request, _FORM_LIMIT)
    try:
        if "json" in request.headers.get("content-type", ""):
            document = json.loads(body)
            paths, expand = document.get("paths", []), document.get("expand", False)
        else:
            form = parse_qs(body.decode())
            paths, expand = form.get("paths", []), form.get("expand", [""])[0]
        paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    except (ValueError, AttributeError, TypeError):
        raise ProblemError(400, "The paths should be a form, or JSON") from None
    if len(paths) > _MOST_PATHS:
        raise ProblemError(400, f"{_MOST_PATHS} paths at once are the most")
    return paths, str(expand).lower() in ("true", "1")


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request that should be small."""
    parts, total = [], 0
    async for part in request.stream():
        parts.append(part)
        total += len(part)
        if total > most:
            raise ProblemError(413, f"The request is larger than {most} bytes")
    return b"".join(parts)


def _entries_at(version: Version, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    known = cards.folders(version)
    for path in paths:
        file = version.files.get(path)
        if file is not None:
            yield cards.file_entry(file)
        elif path.strip("/") in known:
            yield cards.folder_entry(path.strip("/"))


def _expanded(entry: dict[str, Any], version: Version) -> dict[str, Any]:
    commit = cards.commits(version.model, version.entry)[0]
    last = {"id": version.commit, "title": commit["title"], "date": commit["date"]}
    return {**entry, "lastCommit": last}
