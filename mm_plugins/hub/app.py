"""The application: each request to its route, each error to its answer."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp as StarletteApp
from starlette.types import Receive, Scope, Send

from mm_core import ASGIApp, InvalidNameError, MMError, ModelManager, check_path
from mm_plugins.hub.access import Caller
from mm_plugins.hub.actions import Actions
from mm_plugins.hub.answers import ProblemError, json_answer, problem_of
from mm_plugins.hub.config import HubConfig
from mm_plugins.hub.edge import CALLER, ROUTE, Edge
from mm_plugins.hub.hub import Hub
from mm_plugins.hub.metrics import TEXT, Metrics
from mm_plugins.hub.pages.views import HOME, PageRoutes
from mm_plugins.hub.pulls import Pulls
from mm_plugins.hub.rest.app import make_rest
from mm_plugins.hub.rest.base import PREFIX, Rest
from mm_plugins.hub.routes import ReadRoutes
from mm_plugins.hub.shelf import Shelf
from mm_plugins.hub.writing import WriteRoutes

_RESOLVE = re.compile(r"/(?P<name>.+?)/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
_BATCH = ".git/info/lfs/objects/batch"
_MOST_PARTS = 8


def make_hub(manager: ModelManager, config: HubConfig, pulls: Pulls | None = None) -> ASGIApp:
    """The application that serves what `manager` reaches, by `config`.

    `pulls` are those of the process, where it has some already.
    """
    hub, metrics = Hub(manager, config, Pulls() if pulls is None else pulls), Metrics()
    hub.sink  # noqa: B018  # a backend that cannot be is told now, not to the first client
    hub.pulls.at_once = config.pulls
    return Edge(_Door(hub, Front(hub, metrics)), metrics)


class _Door:
    """ASGI, without a framework's own ideas of what to do about errors: the edge has ours."""

    def __init__(self, hub: Hub, front: Front) -> None:
        self._hub = hub
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        response = await self._front.answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._hub.close()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


class Front:
    """Finds out what is meant, who asks, and lets the routes answer."""

    def __init__(self, hub: Hub, metrics: Metrics) -> None:
        shelf = Shelf(hub)
        actions = Actions(hub, shelf)
        self._rest = make_rest(Rest(hub, shelf, actions))
        self._page = PageRoutes(hub, shelf, actions)
        self._hub = hub
        self._metrics = metrics
        self._read = ReadRoutes(hub)
        self._write = WriteRoutes(hub)
        self._words = {**self._read.words, **self._write.words}
        self._plain = {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
        }

    async def healthz(self, request: Request) -> Response:
        """Say that this process answers."""
        request.scope[ROUTE] = "health"
        return json_answer({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Say whether the backend answers, too."""
        request.scope[ROUTE] = "health"
        try:
            await self._hub.in_thread(self._hub.registry.refresh)
        except MMError as error:
            problem = problem_of(error)
            return json_answer({"status": "not ready", "why": problem.message}, 503)
        return json_answer({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """What this process has answered."""
        request.scope[ROUTE] = "health"
        if not (self._hub.config.metrics and self._metrics.is_on):
            raise _no_route("/metrics")
        return Response(self._metrics.text(), media_type=TEXT)

    async def answer(self, request: Request) -> StarletteApp:
        """What answers. Errors pass: the edge has words for them."""
        raw = request.scope.get("raw_path") or request.url.path.encode()
        path = raw.decode("ascii", "replace").partition("?")[0]
        if path in self._plain and request.method in ("GET", "HEAD"):
            return await self._plain[path](request)
        if path == PREFIX or path.startswith(f"{PREFIX}/"):
            request.scope[ROUTE] = "rest"
            return self._rest
        if path in ("/", HOME) or path.startswith(f"{HOME}/"):
            return await self._page.answer(request, path)
        return await self._protocol(request, path)

    async def _protocol(self, request: Request, path: str) -> Response:
        """The answer in the Hub's protocol."""
        if path.startswith("/api/"):
            return await self._api(request, path)
        if path.startswith(("/mm/lfs/", "/mm/xet/")):
            request.scope[ROUTE] = "upload"
            take = self._write.lfs if path.startswith("/mm/lfs/") else self._write.xet
            return await take(request, path)
        if path.endswith(_BATCH) and request.method == "POST":
            caller = await self._caller(request, "upload")
            name = unquote(path.removesuffix(_BATCH).removeprefix("/"))
            return await self._write.batch(request, caller, name)
        match = _RESOLVE.fullmatch(path)
        if match is not None and request.method in ("GET", "HEAD"):
            caller = await self._caller(request, "resolve")
            name, revision, file = (
                unquote(part) for part in match.group("name", "revision", "path")
            )
            return await self._read.resolve(request, caller, name, revision, _checked(file))
        raise _no_route(path)

    async def _caller(self, request: Request, route: str) -> Caller:
        request.scope[ROUTE] = route
        caller = await self._hub.caller(request)
        request.scope[CALLER] = caller.name
        return caller

    async def _api(self, request: Request, path: str) -> Response:
        caller = await self._caller(request, "api")
        if path in ("/api/whoami-v2", "/api/whoami"):
            return await self._read.whoami(caller)
        if path in ("/api/repos/create", "/api/repos/delete"):
            creates = path.endswith("/create")
            if request.method == ("POST" if creates else "DELETE"):
                change = self._write.create if creates else self._write.delete
                return await change(request, caller)
        if path == "/api/validate-yaml" and request.method == "POST":
            return await self._write.validate(request)
        if path == "/api/models":
            return await self._read.search(request, caller)
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/")
            method = "GET" if request.method == "HEAD" else request.method
            for name, word, rest in _readings(parts):
                handler = self._words.get((method, word))
                if handler is not None:
                    return await handler(request, caller, unquote(name), rest)
        raise _no_route(path)


def _readings(parts: list[str]) -> list[tuple[str, str, str]]:
    """The ways to read what follows ``/api/models/``: an id, a word, and what comes after it.

    Ids have one or two parts, or more; a word may also be a part of an id. The likeliest
    way comes first.
    """
    places = (2, 1, *range(3, _MOST_PARTS))
    found = [
        ("/".join(parts[:place]), parts[place], "/".join(parts[place + 1 :]))
        for place in places
        if place < len(parts)
    ]
    return [*found, ("/".join(parts), "", "")]


def _checked(path: str) -> str:
    try:
        return check_path(path)
    except InvalidNameError as error:
        raise ProblemError(404, f"Entry not found: {error.message}", "EntryNotFound") from None


def _no_route(path: str) -> ProblemError:
    return ProblemError(
        404, f"This hub has no {path[:200]}", hint="see docs/serve.md for what it has"
    )
