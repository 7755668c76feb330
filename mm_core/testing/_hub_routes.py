"""The routes of the hub on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from mm_core.testing._hub_data import Fault, Logged, Repo, Zeros, git_sha1, is_lfs

if TYPE_CHECKING:
    from mm_core.testing.hub import HubServer

CHUNK = 1 << 20
_DATE = "2026-01-01T00:00:00.000Z"


class HubHandler(BaseHTTPRequestHandler):
    """One connection to the hub, or to its second origin."""

    hub: HubServer
    origin: str
    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"
    disable_nagle_algorithm = True
    fault: Fault | None = None

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._body = self.rfile.read(length)
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the log is in `HubServer.requests`."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        status = getattr(code, "value", code)
        self.hub.log(
            Logged(
                method=self.command,
                path=unquote(urlsplit(self.path).path),
                status=int(status),
                range=self.headers.get("Range"),
                authorized="Authorization" in self.headers,
                headers=dict(self.headers.items()),
                origin=self.origin,
                fault=None if self.fault is None else self.fault.kind,
            )
        )

    # -- routing ---------------------------------------------------------------------

    def _answer(self) -> None:
        self.fault = None
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        path = url.path
        if path.startswith("/api/"):
            self._take_fault(path, str.isdigit)
            if self.fault is not None:
                return self._fail(self.fault)
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/models":
            return self._json([self._card(repo) for repo in self._search()])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(unquote(match[1]), match[2] or "")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(unquote(match[1]), unquote(match[2]), unquote(match[3]))
        return self._error(404, "NotFound", f"there is no route {path}")

    def _api(self, name: str, rest: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        what, _, tail = rest.partition("/")
        if what == "auth-check":
            return self._json({}) if self._may_read(repo) else None
        if what == "refs":
            branches = _refs("heads", repo.refs)
            tags = _refs("tags", repo.tags)
            return self._json({"branches": branches, "tags": tags, "converts": []})
        if what.startswith("xet-read-token"):
            return self._xet_token(repo)
        revision, _, folder = tail.partition("/")
        commit = repo.resolve(unquote(revision) or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        if what in ("", "revision"):
            return self._json(self._card(repo, commit))
        if what == "tree":
            return self._tree(repo, commit, unquote(folder))
        if what == "paths-info":
            wanted = parse_qs(self._body.decode()).get("paths", [])
            return self._json([e for e in self._entries(repo, commit) if e["path"] in wanted])
        if what == "commits":
            title = {"id": commit, "title": "commit", "message": "", "authors": [], "date": _DATE}
            return self._json([title])
        return self._error(404, "NotFound", f"there is no route {what}")

    def _whoami(self) -> None:
        if "Authorization" not in self.headers:
            return self._error(401, None, "Invalid credentials")
        return self._json({"type": "user", "name": "loopback", "orgs": []})

    def _search(self) -> Iterator[Repo]:
        for name, repo in sorted(self.hub.repos.items()):
            if self.query.get("search", "") in name and not repo.private:
                yield repo

    # -- who may ---------------------------------------------------------------------

    def _token_fits(self, repo: Repo) -> bool:
        return self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._token_fits(repo)):
            status = 404 if "Authorization" in self.headers else 401
            self._error(status, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _may_read(self, repo: Repo) -> bool:
        if not repo.gated or self._token_fits(repo):
            return True
        status = 403 if "Authorization" in self.headers else 401
        self._error(status, "GatedRepo", f"Access to model {repo.name} is restricted.")
        return False

    # -- answers ---------------------------------------------------------------------

    def _card(self, repo: Repo, commit: str | None = None) -> dict[str, Any]:
        commit = commit or repo.refs["main"]
        tags = [repo.pipeline_tag] if repo.pipeline_tag else []
        tags += [f"license:{repo.license}"] if repo.license else []
        return {
            "_id": commit[:24],
            "id": repo.name,
            "modelId": repo.name,
            "sha": commit,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "pipeline_tag": repo.pipeline_tag,
            "tags": tags,
            "cardData": dict(repo.card) | ({"license": repo.license} if repo.license else {}),
            "lastModified": _DATE,
            "createdAt": _DATE,
            "siblings": [{"rfilename": path} for path in repo.commits[commit]],
        }

    def _entries(self, repo: Repo, commit: str) -> list[dict[str, Any]]:
        files = repo.commits[commit]
        entries = [self._entry(repo, path, files[path]) for path in sorted(files)]
        entries += [self._entry(repo, path, b"raw") for path in repo.raw_tree_paths]
        return entries

    def _entry(self, repo: Repo, path: str, data: bytes | Zeros) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
        if not is_lfs(path):
            return entry | {"oid": git_sha1(data)}
        sha256 = self.hub.sha256(data)
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
        ).encode()
        entry |= {
            "oid": git_sha1(pointer),
            "lfs": {"oid": sha256, "size": len(data), "pointerSize": len(pointer)},
        }
        return entry | ({"xetHash": repo.xet[sha256]} if sha256 in repo.xet else {})

    def _tree(self, repo: Repo, commit: str, folder: str) -> None:
        entries = [
            entry
            for entry in self._entries(repo, commit)
            if not folder or entry["path"].startswith(folder.rstrip("/") + "/")
        ]
        start = int(self.query.get("cursor", 0))
        end = start + self.hub.page_size
        headers = {}
        if end < len(entries):
            base = f"{self.hub.page_origin}{urlsplit(self.path).path}"
            query = f"recursive={self.query.get('recursive', 'false')}&cursor={end}"
            headers["Link"] = f'<{base}?{query}>; rel="next"'
        self._json(entries[start:end], headers)

    def _xet_token(self, repo: Repo) -> None:
        if not self._may_read(repo):
            return
        assert self.hub.xet_folder is not None
        self._json(
            {"accessToken": "xet", "exp": 4_000_000_000, "casUrl": f"local://{self.hub.xet_folder}"}
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name) if self.origin == "hub" else self.hub.repos.get(name)
        if repo is None or (self.origin == "hub" and not self._may_read(repo)):
            return None
        commit = repo.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        data = repo.commits[commit].get(path)
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if is_lfs(path):
            sha256 = self.hub.sha256(data)
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
            headers |= {"ETag": f'"{sha256}"'}
            if sha256 in repo.xet:
                route = f"{self.hub.endpoint}/api/models/{name}/xet-read-token/{commit}"
                headers |= {"X-Xet-Hash": repo.xet[sha256]}
                headers |= {"Link": f'<{route}>; rel="xet-auth"'}
            if self.hub.redirect_lfs and self.origin == "hub":
                return self._elsewhere(headers)
        else:
            headers["ETag"] = f'"{git_sha1(data)}"'
        return self._bytes(path, data, headers)

    def _elsewhere(self, headers: Mapping[str, str]) -> None:
        target = f"{self.hub.other_origin}{urlsplit(self.path).path}"
        self._send(302, b"", {**headers, "Location": target})

    def _fail(self, fault: Fault) -> None:
        after = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
        self._error(int(fault.kind), None, "told to fail", after)

    def _take_fault(self, path: str, kinds: Callable[[str], bool], size: int = 0) -> None:
        self.fault = self.hub.take_fault(path, kinds, size=size)
        if self.fault is not None and self.fault.then is not None:
            self.fault.then()

    def _bytes(self, path: str, data: bytes | Zeros, headers: dict[str, str]) -> None:
        span = self._span(len(data), headers["ETag"])
        if self.command == "GET":
            size = len(data) if span is None else len(span)
            self._take_fault(path, self._may_strike, size)
        fault = self.fault or Fault(path, "")
        if fault.kind.isdigit():
            return self._fail(fault)
        if fault.kind == "redirect":
            return self._elsewhere(headers)
        if span is None or fault.kind == "ignore-range":
            return self._send_file(200, _body(data, range(len(data)), fault), headers)
        if not span:
            return self._error(416, None, "past the end")
        return self._range(data, span, fault, headers)

    def _may_strike(self, kind: str) -> bool:
        return self.origin == "hub" or kind != "redirect"

    def _span(self, size: int, etag: str) -> range | None:
        """The bytes that are asked for, empty beyond the end; None for the whole file."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or self.headers.get("If-Range") not in (None, etag):
            return None
        return range(int(wanted[1]), min(size, int(wanted[2]) + 1 if wanted[2] else size))

    def _range(
        self, data: bytes | Zeros, span: range, fault: Fault, headers: dict[str, str]
    ) -> None:
        if fault.kind == "short-range":
            span = span[: -(-len(span) // 2)]
        if fault.kind == "long-range":
            span = range(span.start, min(len(data), span.stop + fault.after_bytes))
        shift = 1 if fault.kind == "wrong-range" else 0
        total = len(data) + (fault.kind == "wrong-total")
        headers["Content-Range"] = f"bytes {span.start + shift}-{span.stop - 1 + shift}/{total}"
        self._send_file(206, _body(data, span, fault), headers)

    def _send_file(self, status: int, body: memoryview | Zeros, headers: dict[str, str]) -> None:
        """Send bytes of a file, counted, as far as the fault lets it."""
        fault = self.fault or Fault("", "")
        stated = len(body) + (fault.after_bytes if fault.kind == "overstate" else 0)
        if fault.kind == "linked-size" and "X-Linked-Size" in headers:
            headers["X-Linked-Size"] = str(int(headers["X-Linked-Size"]) + 1)
        self._send_head(status, stated, headers)
        if self.command == "HEAD":
            return
        if fault.kind in ("cut", "stall"):
            body = body[: fault.after_bytes]
        with self._until_they_go():
            for start in range(0, len(body), CHUNK):
                self._send_piece(memoryview(bytes(body[start : start + CHUNK])))
        if fault.kind == "stall":
            self.hub.closing.wait(300)
        if fault.kind in ("cut", "stall", "overstate"):
            self.close_connection = True

    def _send_piece(self, piece: memoryview) -> None:
        while piece:
            count = self.connection.send(piece)
            self.hub.count_sent(count)
            piece = piece[count:]

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(
            200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _error(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        headers = {
            "Content-Type": "application/json",
            "X-Error-Message": message,
            **(headers or {}),
        }
        if code is not None:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._send_head(status, len(body), headers)
        if self.command != "HEAD":
            with self._until_they_go():
                self.wfile.write(body)

    def _send_head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    @contextmanager
    def _until_they_go(self) -> Iterator[None]:
        try:
            yield
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def _body(data: bytes | Zeros, span: range, fault: Fault) -> memoryview | Zeros:
    """The bytes of `data` in `span`, with what `fault` does to them."""
    whole = data if isinstance(data, Zeros) else memoryview(data)
    body = whole[span.start : span.stop]
    if fault.kind == "truncate":
        return body[: fault.after_bytes]
    if fault.kind == "pad":
        return memoryview(bytes(body) + bytes(fault.after_bytes))
    if fault.kind == "corrupt" and len(body):
        wrong = bytearray(bytes(body))
        wrong[0] ^= 1
        return memoryview(wrong)
    return body


def _refs(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
        for name, commit in named.items()
    ]
