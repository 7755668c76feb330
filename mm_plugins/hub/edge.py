"""The edge: every request gets an id, a line in the log, its numbers, and no traceback."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_core import MMError, redact
from mm_plugins.hub.answers import ProblemError, error_answer, problem_of
from mm_plugins.hub.metrics import Metrics

logger = logging.getLogger("mm_plugins.hub.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ROUTE, CALLER, FAILURE = "mm.route", "mm.caller", "mm.failure"
"""Where a request notes, for the log and the numbers, what answered, who asked, what failed."""


class Edge:
    """Wraps the application. Errors become answers as long as none has begun."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        with self._metrics.in_flight():
            try:
                await self._app(scope, receive, visit.send)
            except ProblemError as problem:
                await self._fail(visit, problem, receive)
            except MMError as error:
                await self._fail(visit, problem_of(error), receive)
            except ClientDisconnect:
                await self._fail(visit, ProblemError(400, "The request broke off"), receive)
            except Exception as error:  # a fault of ours is an answer, and a line
                logger.error(  # noqa: TRY400  # the traceback is for -vv
                    "The hub failed: %s: %s", type(error).__name__, redact(str(error))
                )
                logger.debug("Where it failed", exc_info=error)
                await self._fail(visit, ProblemError(500, "Internal error of this hub"), receive)
            finally:
                self._note(visit)

    async def _fail(self, visit: _Visit, problem: ProblemError, receive: Receive) -> None:
        visit.failure = problem.message
        if visit.status is None:
            await error_answer(problem)(visit.scope, receive, visit.send)
        # else the answer breaks off: the client sees that it is not whole, and asks again

    def _note(self, visit: _Visit) -> None:
        seconds = time.perf_counter() - visit.began
        route = visit.scope.get(ROUTE, "other")
        method, status = visit.scope["method"], visit.status or 0
        self._metrics.note(route, method, status, visit.sent, seconds)
        if route == "health":
            return
        client = visit.scope.get("client")
        failure = visit.failure or visit.scope.get(FAILURE)
        logger.info(
            "%s %s %s",
            method,
            visit.path(),
            status,
            extra={
                "request_id": visit.id,
                "client": client[0] if client else None,
                "who": visit.scope.get(CALLER),
                "route": route,
                "bytes": visit.sent,
                "seconds": round(seconds, 4),
                **({"failure": failure} if failure else {}),
            },
        )


class _Visit:
    """One request and what became of it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.began = time.perf_counter()
        self.status: int | None = None
        self.sent = 0
        self.failure: str | None = None
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_id(message)
        await self._send(message)
        self.sent += len(message.get("body", b"")) + message.get("count", 0)

    def path(self) -> str:
        raw: bytes = self.scope.get("raw_path") or self.scope["path"].encode()
        return raw.decode("ascii", "replace").partition("?")[0][:500]

    def _add_id(self, message: MutableMapping[str, Any]) -> None:
        message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
