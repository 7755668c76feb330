"""The page for people: models, one model, pulls, and signing in."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from mm_core import MMError, ModelEntry, ModelStatus, Shown, check_path
from mm_plugins.hub.access import Caller
from mm_plugins.hub.actions import Actions, PullWish
from mm_plugins.hub.answers import ProblemError, problem_of
from mm_plugins.hub.edge import CALLER, FAILURE, ROUTE
from mm_plugins.hub.events import events
from mm_plugins.hub.hub import Hub
from mm_plugins.hub.pages import card
from mm_plugins.hub.pages.loading import ways
from mm_plugins.hub.pages.rendering import page
from mm_plugins.hub.pages.session import STALE, Sessions
from mm_plugins.hub.pages.statics import Statics
from mm_plugins.hub.pulls import Pull
from mm_plugins.hub.routes import ReadRoutes, read_body
from mm_plugins.hub.shelf import SORTS, Shelf, Wish, licence_of

HOME = "/mm/ui"

_FILE = re.compile(r"(?P<name>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_MOST_FORM = 64 << 10
_MODELS = 50
_FILES = 500
_COMMITS = 50
_STATUSES = [s.value for s in ModelStatus if s is not ModelStatus.SWEEPING]
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Form = Mapping[str, str]
View = Callable[[Request, Caller], Awaitable[ASGIApp]]
Deed = Callable[[Request, Caller, Form], Awaitable[Response]]


class PageRoutes:
    """Answers ``/`` and all below ``/mm/ui``."""

    def __init__(self, hub: Hub, shelf: Shelf, actions: Actions) -> None:
        self._hub = hub
        self._shelf = shelf
        self._actions = actions
        self._sessions = Sessions(hub)
        self._statics = Statics()
        self._read = ReadRoutes(hub)
        self._views: dict[str, View] = {
            "": self.models,
            "/": self.models,
            "/pulls": self.pulls,
            "/pulls/events": self.pull_events,
            "/sign-in": self.sign_in_form,
        }
        self._deeds: dict[str, Deed] = {
            "/sign-in": self.sign_in,
            "/sign-out": self.sign_out,
            "/alias": self.set_alias,
            "/alias/remove": self.remove_alias,
            "/remove": self.remove,
            "/pulls": self.begin_pull,
            "/pulls/cancel": self.cancel_pull,
        }

    async def answer(self, request: Request, path: str) -> ASGIApp:
        """The answer to any request for the page; errors are pages, too."""
        request.scope[ROUTE] = "page"
        rest = path.removeprefix(HOME)
        if rest.startswith("/static/"):
            return self._statics.answer(request, rest.removeprefix("/static/"))
        if not self._hub.config.page:
            raise ProblemError(404, "This hub has no page", hint="`serve.page: true` shows it")
        if path == "/":
            return RedirectResponse(HOME, 303)
        caller = Caller(self._hub.config)
        try:
            caller = await self._sessions.caller(request)
            request.scope[CALLER] = caller.name
            response = await self._answer(request, caller, rest)
        except ProblemError as problem:
            response = self._problem(request, caller, problem)
        except MMError as error:
            response = self._problem(request, caller, problem_of(error))
        if request.scope.get(STALE) and isinstance(response, Response):
            self._sessions.drop(request, response)
        return response

    async def _answer(self, request: Request, caller: Caller, rest: str) -> ASGIApp:
        if request.method == "POST":
            self._sessions.refuse_others(request)
            deed = self._deeds.get(rest)
            if deed is None:
                raise ProblemError(404, "There is nothing of that kind to be done")
            return await deed(request, caller, await _form(request))
        if request.method not in ("GET", "HEAD"):
            raise ProblemError(405, "That cannot be done here", headers={"Allow": "GET, POST"})
        if caller.token is None and not self._hub.config.anybody_reads and rest != "/sign-in":
            return RedirectResponse(f"{HOME}/sign-in?next={quote(HOME + rest)}", 303)
        view = self._views.get(rest)
        if view is not None:
            return await view(request, caller)
        if rest.startswith("/models/"):
            return await self.model(request, caller, unquote(rest.removeprefix("/models/")))
        match = _FILE.fullmatch(rest.removeprefix("/files/"))
        if rest.startswith("/files/") and match is not None:
            names = (unquote(part) for part in match.group("name", "revision", "path"))
            return await self.file(request, caller, *names)
        raise ProblemError(404, "There is no such page")

    # -- to look at ------------------------------------------------------------------

    async def models(self, request: Request, caller: Caller) -> Response:
        """The list, searched, filtered and sorted."""
        asked = {k: v[:500] for k, v in request.query_params.items()}
        wish = Wish(
            search=asked.get("search", ""),
            type=asked.get("type", ""),
            status=asked.get("status", ""),
            license=asked.get("license", ""),
            sort=asked.get("sort", "id") if asked.get("sort") in SORTS else "id",
            cursor=request.query_params.get("cursor", ""),
            limit=_MODELS,
        )
        found = await self._shelf.page(caller, wish)
        types, licences = await self._shelf.facets(caller)
        return self._page(
            request,
            caller,
            "models.html",
            wish=wish,
            found=found,
            kept={k: asked.get(k, "") for k in ("search", "type", "license", "status", "sort")},
            types=types,
            licences=licences,
            statuses=_STATUSES,
            licence_of=licence_of,
        )

    async def model(self, request: Request, caller: Caller, model_id: str) -> Response:
        """One model: a version of it, and what it has beside that one."""
        model = await self._shelf.model(caller, model_id)
        wanted = request.query_params.get("version")
        entry = model.main if wanted is None else model.find(wanted)
        if entry is None:
            raise ProblemError(404, f"There is no version {str(wanted)[:200]} of {model_id}")
        shown = await self._shelf.shown(entry)
        try:
            history, is_whole = await self._shelf.history(caller, model_id, _COMMITS)
        except MMError:
            history, is_whole = None, False
        token = caller.token
        return self._page(
            request,
            caller,
            "model.html",
            model=model,
            entry=entry,
            shown=shown,
            files=_files(shown),
            most_files=_FILES,
            facts=_facts(shown),
            checks={} if shown is None else shown.manifest.checks,
            licence=(shown.manifest.license if shown else None) or licence_of(entry),
            card=await self._card(caller, entry, shown),
            ways=list(
                ways(
                    entry,
                    origin=self._hub.origin(request),
                    root=self._hub.sink.root,
                    needs_token=not Caller(self._hub.config).reads(model_id),
                )
            ),
            history=history,
            is_whole=is_whole,
            reads=caller.reads(model_id),
            may_write=token is not None and token.allows("write", model_id),
            may_remove=token is not None and token.allows("admin", model_id),
        )

    async def file(
        self, request: Request, caller: Caller, name: str, revision: str, path: str
    ) -> Response:
        """A file, for who is signed in: as ``/{id}/resolve/…`` has it for tokens."""
        return await self._read.resolve(request, caller, name, revision, check_path(path))

    async def pulls(self, request: Request, caller: Caller) -> Response:
        """All pulls, and where one is begun."""
        return self._page(
            request,
            caller,
            "pulls.html",
            pulls=self._actions.pulls(caller),
            may_cancel=lambda pull: _may_cancel(caller, pull),
            may_write=caller.token is not None and caller.token.has("write"),
            sources=self._hub.config.pull_sources,
        )

    async def pull_events(self, request: Request, caller: Caller) -> ASGIApp:
        """What becomes of them: each as the row that the page shows."""

        def row(pull: Pull) -> dict[str, str]:
            html = page("pull.html", pull=pull, cancels=_may_cancel(caller, pull), home=HOME)
            return {"id": pull.id, "html": html}

        return events(self._hub.pulls, caller, row)

    async def sign_in_form(self, request: Request, caller: Caller) -> Response:
        """Where a token is given."""
        where = _own_place(request.query_params.get("next", ""))
        return self._page(request, caller, "sign_in.html", where=where)

    # -- to do -----------------------------------------------------------------------

    async def sign_in(self, request: Request, caller: Caller, form: Form) -> Response:
        """Keep a token in a cookie, if it is one."""
        text = form.get("token", "").strip()
        await self._sessions.known(request, text)
        response = _to(_own_place(form.get("next", "")))
        self._sessions.keep(request, response, text)
        return response

    async def sign_out(self, request: Request, caller: Caller, form: Form) -> Response:
        """Forget it."""
        response = _to(HOME)
        self._sessions.drop(request, response)
        return response

    async def set_alias(self, request: Request, caller: Caller, form: Form) -> Response:
        """Let an alias name a version."""
        model_id, alias = form.get("model_id", ""), form.get("alias", "").strip()
        await self._actions.set_alias(caller, model_id, alias, form.get("version", ""))
        return _to_model(model_id, form.get("version"))

    async def remove_alias(self, request: Request, caller: Caller, form: Form) -> Response:
        """Forget an alias."""
        model_id = form.get("model_id", "")
        await self._actions.remove_alias(caller, model_id, form.get("alias", ""))
        return _to_model(model_id, form.get("version"))

    async def remove(self, request: Request, caller: Caller, form: Form) -> Response:
        """Take a version out of use."""
        model_id = form.get("model_id", "")
        await self._actions.remove(caller, model_id, form.get("version", ""))
        try:
            await self._shelf.model(caller, model_id)
        except ProblemError:  # that was its last
            return _to(HOME)
        return _to_model(model_id)

    async def begin_pull(self, request: Request, caller: Caller, form: Form) -> Response:
        """Begin a pull."""
        wish = PullWish(
            source=form.get("source", "").strip(),
            model_id=form.get("model_id", "").strip() or None,
            revision=form.get("revision", "").strip() or None,
            version=form.get("version", "").strip() or None,
            aliases=form.get("aliases", "").replace(",", " ").split(),
        )
        self._actions.begin_pull(caller, wish)
        return _to(f"{HOME}/pulls")

    async def cancel_pull(self, request: Request, caller: Caller, form: Form) -> Response:
        """Ask a pull to end."""
        self._actions.cancel_pull(caller, form.get("id", ""))
        return _to(f"{HOME}/pulls")

    # -- within ----------------------------------------------------------------------

    def _page(
        self, request: Request, caller: Caller, name: str, status: int = 200, **values: Any
    ) -> Response:
        html = page(name, caller=caller, home=HOME, here=request.url.path, **values)
        return HTMLResponse(html, status, _HEADERS)

    def _problem(self, request: Request, caller: Caller, problem: ProblemError) -> Response:
        request.scope[FAILURE] = problem.message
        message = problem
        if problem.status == 401 and caller.token is None and problem.code is not None:
            message = replace(problem, hint="It may be there for those who sign in.")
        response = self._page(request, caller, "problem.html", problem.status, problem=message)
        response.headers.update({k: v for k, v in problem.headers.items() if k == "Retry-After"})
        return response

    async def _card(self, caller: Caller, entry: ModelEntry, shown: Shown | None) -> Any:
        """The model card as HTML; None where there is none that the caller may read."""
        files = () if shown is None else shown.manifest.files
        file = next((f for f in files if f.path == "README.md"), None)
        is_there = entry.status is ModelStatus.AVAILABLE and caller.reads(entry.model_id)
        if file is None or not is_there or file.size > card.MOST_BYTES:
            return None
        try:
            pieces = [piece async for piece in self._hub.stored_bytes(file).read(0, file.size)]
        except MMError:
            return None
        text = b"".join(pieces).decode("utf-8", "replace")
        return await self._hub.in_thread(lambda: card.rendered(text))


def _files(shown: Shown | None) -> list[Any]:
    return [] if shown is None else sorted(shown.manifest.files, key=lambda file: file.path)


def _facts(shown: Shown | None) -> dict[str, Any]:
    """What the headers of all files say together."""
    headers = [] if shown is None else list(shown.headers.values())
    dtypes: dict[str, int] = {}
    for header in headers:
        for name, count in header.get("dtypes", {}).items():
            dtypes[name] = dtypes.get(name, 0) + count
    return {
        "formats": sorted({str(header.get("format")) for header in headers}),
        "parameters": sum(header.get("parameters", 0) for header in headers),
        "tensors": sum(header.get("tensors", 0) for header in headers),
        "dtypes": dtypes,
    }


def _may_cancel(caller: Caller, pull: Pull) -> bool:
    token = caller.token
    if token is None or pull.is_over:
        return False
    return token.has("write") if pull.model_id is None else token.allows("write", pull.model_id)


def _own_place(path: str) -> str:
    """`path` if it is one of the page's own, else its beginning: nobody is sent elsewhere."""
    is_own = path == HOME or path.startswith(f"{HOME}/")
    return path if is_own and path.isprintable() and "\\" not in path else HOME


def _to(path: str) -> Response:
    return RedirectResponse(path, 303, _HEADERS)


def _to_model(model_id: str, version: str | None = None) -> Response:
    query = f"?version={quote(version)}" if version else ""
    return _to(f"{HOME}/models/{quote(model_id)}{query}")


async def _form(request: Request) -> Form:
    """The fields of a form, each once."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ProblemError(415, "The page sends forms, and nothing else")
    body = await read_body(request, _MOST_FORM)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise ProblemError(400, "The form cannot be read") from None
    return {name: values[-1] for name, values in fields.items()}
