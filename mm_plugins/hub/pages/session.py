"""Who looks at the page: a token in a cookie, and whether a form was sent by the page itself."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from mm_plugins.hub.access import Caller
from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.hub import Hub, address_of
from mm_plugins.hub.tokens import looks_like_ours

COOKIE, SECURE_COOKIE = "mm_token", "__Host-mm_token"
"""The second is for TLS: browsers take it from nobody else of the same domain."""

STALE = "mm.stale"


class Sessions:
    """Tells who looks, signs them in and out. The cookie is for the page alone."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def caller(self, request: Request) -> Caller:
        """Whoever looks. A token that is worth nothing any more counts as none, and goes."""
        text = request.cookies.get(self._name(request), "")
        if not text:
            return Caller(self._hub.config)
        try:
            return await self.known(request, text)
        except ProblemError as problem:
            if problem.status != 401:
                raise
            request.scope[STALE] = True
            return Caller(self._hub.config)

    async def known(self, request: Request, text: str) -> Caller:
        """The caller with this token; `ProblemError` where it is worth nothing."""
        if not looks_like_ours(text):
            raise ProblemError(401, "That is no token of this hub: they begin with mm_")
        token = await self._hub.check_token(text, address_of(request))
        return Caller(self._hub.config, token)

    def keep(self, request: Request, response: Response, text: str) -> None:
        """Let the browser keep a token until it ends."""
        response.set_cookie(
            self._name(request),
            text,
            path="/",
            secure=self._is_secure(request),
            httponly=True,
            samesite="strict",
        )

    def drop(self, request: Request, response: Response) -> None:
        """Let the browser forget it."""
        response.delete_cookie(
            self._name(request),
            path="/",
            secure=self._is_secure(request),
            httponly=True,
            samesite="strict",
        )

    def refuse_others(self, request: Request) -> None:
        """Refuse what another site lets a browser send.

        Browsers say where a request comes from: in Sec-Fetch-Site, which no script can
        set, or, without TLS, in Origin alone.
        """
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site is not None:
            is_ours = site == "same-origin"
        else:
            is_ours = origin is not None and self._is_ours(request, origin)
        if not is_ours:
            raise ProblemError(403, "This was not sent by the page of this hub")

    def _is_ours(self, request: Request, origin: str) -> bool:
        if self._hub.config.url and origin == _origin_of(self._hub.config.url):
            return True
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and host == request.headers.get("host")

    def _is_secure(self, request: Request) -> bool:
        url = self._hub.config.url or ""
        return request.url.scheme == "https" or url.startswith("https://")

    def _name(self, request: Request) -> str:
        return SECURE_COOKIE if self._is_secure(request) else COOKIE


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
