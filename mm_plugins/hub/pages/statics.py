"""What stands beside the templates: style, scripts, their licence. Nothing is built."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response

from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.pages.rendering import FOLDER

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class Statics:
    """The files, read once."""

    def __init__(self) -> None:
        folder = FOLDER / "static"
        self._files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def answer(self, request: Request, name: str) -> Response:
        """A file; a browser asks each time whether it is another by now."""
        data = self._files.get(name)
        if data is None or request.method not in ("GET", "HEAD"):
            raise ProblemError(404, "This page has no such file")
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(None, 304, headers)
        return Response(data, 200, headers, media_type=_TYPES[name.rpartition(".")[2]])
