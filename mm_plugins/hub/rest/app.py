"""The REST application: FastAPI for the routes, the hub's own words for errors."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_core import MMError, __version__
from mm_plugins.hub.answers import ProblemError, error_answer, problem_of
from mm_plugins.hub.edge import FAILURE
from mm_plugins.hub.rest import aliases, models, pulls
from mm_plugins.hub.rest.base import PREFIX, Rest
from mm_plugins.hub.rest.docs import render
from mm_plugins.hub.rest.shapes import Problem

_MOST_BODY = 1 << 20
_ABOUT = """
Model ids hold slashes. They are given as they are (`/models/org/name/versions/v1`), or with each
slash as `%2F`, which is for ids with a part such as `versions`.

A token goes into the header `Authorization: Bearer mm_…`. Reading needs what reading files needs;
moving aliases and pulling need one of scope `write` for that model, removing one of scope `admin`.
"""
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words}
    for status, words in {
        400: "What is asked for cannot be",
        401: "A token is needed, or this one is worth nothing",
        403: "The token is not for that",
        404: "There is no such thing, or none that the caller may know of",
        409: "It is not in a state in which that can be done",
        413: "The request is too large",
        422: "The request is not of the right form",
        429: "Too many wrong tokens came from this address",
        502: "The backend failed",
        503: "The backend does not answer, or all is busy",
    }.items()
}


def make_rest(rest: Rest) -> ASGIApp:
    """The application for all paths that begin with ``/mm/v1``."""
    app = FastAPI(
        title="Model Manager",
        version=__version__,
        description=_ABOUT,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_PROBLEMS,
    )
    app.state.rest = rest
    for router in (models.router, aliases.router, pulls.router, models.last):
        app.include_router(router, prefix=PREFIX)
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    app.add_route(f"{PREFIX}/docs", _docs, include_in_schema=False)
    return _Readied(app)


async def _docs(request: Request) -> Response:
    return HTMLResponse(render(request.app.openapi()), headers=_DOCS_HEADERS)


_DOCS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class _Readied:
    """Keeps an encoded slash apart from a plain one, and bodies small."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = (scope.get("raw_path") or scope["path"].encode()).decode("ascii", "replace")
        scope["path"] = unquote(re.sub("%2[fF]", "%252F", raw.partition("?")[0]))
        await self._app(scope, _limited(receive), send)


def _limited(receive: Receive) -> Receive:
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > _MOST_BODY:
            raise ProblemError(413, f"The request is larger than {_MOST_BODY} bytes")
        return message

    return limited


# -- errors


async def _problem(request: Request, problem: Any) -> Response:
    request.scope[FAILURE] = problem.message
    return error_answer(problem)


async def _error(request: Request, error: Any) -> Response:
    return await _problem(request, problem_of(error))


async def _http(_: Request, error: Any) -> Response:
    words = {404: "This hub has no such path", 405: "That cannot be done here"}
    message = words.get(error.status_code, str(error.detail))
    hint = f"see {PREFIX}/docs"
    return error_answer(
        ProblemError(error.status_code, message, headers=error.headers or {}, hint=hint)
    )


async def _form(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first.get("loc", ()))
    return error_answer(ProblemError(422, f"{where}: {first.get('msg', 'not of the right form')}"))


async def _fault(_request: Request, _error: Exception) -> Response:
    return error_answer(ProblemError(500, "Internal error of this hub"))  # the edge logs it


_ANSWERS: dict[type[Exception], Any] = {
    ProblemError: _problem,
    MMError: _error,
    HTTPException: _http,
    RequestValidationError: _form,
    Exception: _fault,
}
