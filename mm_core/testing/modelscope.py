"""ModelScope on loopback: what its own client asks of it, over repositories in memory."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ModelScopeServer", "Refusal", "Seen"]

LISTED = 3000


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that arrived. `token` is what it was signed in with, if anything."""

    method: str
    path: str
    origin: str
    token: str | None
    range: str | None


@dataclass(slots=True)
class Refusal:
    """Answer `times` requests whose path matches `pattern` with `status`, or cut their bodies.

    `status` 0 cuts the connection in the middle of the body.
    """

    pattern: str
    status: int
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Repo:
    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    tags: dict[str, str]
    about: dict[str, Any]
    token: str | None


class ModelScopeServer:
    """ModelScope on ``127.0.0.1``, as a context manager; `endpoint` is its URL.

    With `elsewhere`, the bytes of files are sent by a second origin, as large ones are
    by ModelScope's. `requests` is the log; `refusals` may be changed at any time.
    `listed` is how many entries one list of files has at most.
    """

    def __init__(self, *, elsewhere: bool = False, listed: int = LISTED) -> None:
        self.elsewhere = elsewhere
        self.listed = listed
        self.requests: list[Seen] = []
        self.refusals: list[Refusal] = []
        self.repos: dict[str, _Repo] = {}
        self._lock = threading.Lock()
        self._servers = [self._server(origin) for origin in ("hub", "other")]

    @property
    def endpoint(self) -> str:
        """The hub's URL."""
        return _url(self._servers[0])

    @property
    def other_origin(self) -> str:
        """The URL of the second origin."""
        return _url(self._servers[1])

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        branch: str = "master",
        tags: tuple[str, ...] = (),
        token: str | None = None,
        **about: Any,
    ) -> str:
        """Commit `files` to a branch; return the commit, 40 hex digits.

        With `token` the repository is private. `about` is what the hub says of the
        model, in its own words (``License``, ``Tasks``, ``Tags``).
        """
        repo = self.repos.setdefault(name, _Repo({}, {}, {}, {}, token))
        digest = hashlib.sha1(name.encode(), usedforsecurity=False)
        for path, data in sorted(files.items()):
            digest.update(path.encode() + b"\0" + hashlib.sha256(data).digest())
        commit = digest.hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        repo.tags |= dict.fromkeys(tags, commit)
        repo.about |= about
        return commit

    def refusal(self, path: str) -> Refusal | None:
        """The next refusal for `path`, used up once."""
        with self._lock:
            for found in self.refusals:
                if found.times > 0 and fnmatch.fnmatch(path, found.pattern):
                    found.times -= 1
                    return found
        return None

    def _server(self, origin: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "origin": origin})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server


class _Handler(BaseHTTPRequestHandler):
    hub: ModelScopeServer
    origin: str
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.hub.requests.append(
            Seen(self.command, path, self.origin, self._token(), self.headers.get("Range"))
        )
        self.refusal = self.hub.refusal(path)
        if self.refusal is not None and self.refusal.status:
            return self._say(self.refusal.status, "told to", headers=self.refusal.headers)
        match = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)(/.*)?", path)
        if match is None:
            return self._say(404, f"there is no route {path}")
        return self._about(match[1], match[2] or "")

    def do_HEAD(self) -> None:
        """Answer a request for the head alone."""
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the log is in `ModelScopeServer.requests`."""

    def _about(self, name: str, route: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._say(404, f"the model {name} does not exist")
        if repo.token not in (None, self._token()) and self.origin == "hub":
            return self._say(403 if self._token() else 404, "unauthorized permission")
        if route == "/revisions":
            map_ = {"Branches": _named(repo.branches), "Tags": _named(repo.tags)}
            return self._data({"RevisionMap": map_})
        if route == "":
            return self._data({"Name": name, "License": "", "Tasks": [], **repo.about})
        named = self.query.get("Ref" if route == "/commits" else "Revision", "master")
        commit = repo.branches.get(named) or repo.tags.get(named) or named
        if commit not in repo.commits:
            return self._say(404, f"the revision {named} does not exist")
        if route == "/commits":
            return self._data({"Commit": [{"Id": commit, "Title": "commit"}], "TotalCount": 1})
        if route == "/repo/files":
            return self._files(repo.commits[commit], commit)
        if route == "/repo":
            return self._file(repo.commits[commit].get(self.query.get("FilePath", "")))
        return self._say(404, f"there is no route {route}")

    def _files(self, files: Mapping[str, bytes], commit: str) -> None:
        root = self.query.get("Root", "").strip("/")
        below = {p: d for p, d in files.items() if not root or p.startswith(f"{root}/")}
        entries = {}
        for path, data in sorted(below.items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if len(folder) > len(root):
                    entries[folder] = _entry(folder, None, commit)
            entries[path] = _entry(path, data, commit)
        if self.query.get("Recursive", "").lower() != "true":
            depth = root.count("/") + 1 if root else 0
            entries = {p: e for p, e in entries.items() if p.count("/") == depth}
        self._data({"Files": list(entries.values())[: self.hub.listed]})

    def _file(self, data: bytes | None) -> None:
        if data is None:
            return self._say(404, "the file does not exist")
        if self.hub.elsewhere and self.origin == "hub":
            return self._send(302, b"", {"Location": f"{self.hub.other_origin}{self.path}"})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, data, {})
        start, end = int(wanted[1]), min(len(data), int(wanted[2] or len(data)) + 1)
        if start >= len(data):
            return self._say(416, "beyond the end")
        span = f"bytes {start}-{end - 1}/{len(data)}"
        return self._send(206, data[start:end], {"Content-Range": span})

    def _token(self) -> str | None:
        cookie = re.search(r"m_session_id=([^;]+)", self.headers.get("Cookie", ""))
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return cookie[1] if cookie else bearer or None

    def _data(self, data: Any) -> None:
        self._json(200, {"Code": 200, "Data": data, "Message": "success", "Success": True})

    def _say(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        told = {"Code": 10010205000 + status, "Message": message, "Success": False}
        self._json(status, told, headers)

    def _json(
        self, status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        told = {"RequestId": "loopback", **value}
        kind = {"Content-Type": "application/json"}
        self._send(status, json.dumps(told).encode(), {**kind, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.refusal is not None and not self.refusal.status:
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)


def _entry(path: str, data: bytes | None, commit: str) -> dict[str, Any]:
    return {
        "Name": path.rpartition("/")[2],
        "Path": path,
        "Type": "tree" if data is None else "blob",
        "Size": len(data or b""),
        "Sha256": "" if data is None else hashlib.sha256(data).hexdigest(),
        "Revision": commit,
        "Mode": "40000" if data is None else "100644",
        "CommittedDate": 1_767_225_600,
    }


def _named(refs: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"Revision": name, "CreatedAt": 1_767_225_600} for name in refs]


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"
