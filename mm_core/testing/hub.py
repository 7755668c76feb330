"""A Hub on loopback: the Hugging Face Hub's read protocol over repositories in memory.

For tests and for ``mm demo``. It is a real server: huggingface_hub's own client
works against it. It can be told to fail in the ways that real servers do.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

LFS_SUFFIXES = (".bin", ".safetensors", ".onnx", ".pt", ".jit", ".gguf", ".h5", ".msgpack")
CHUNK = 1 << 20


@dataclass(slots=True)
class Fault:
    """One way to fail: for files that match `pattern` (a glob over whole paths), `times` times.

    A `pattern` that starts with ``/api/`` is for the routes of the API, by
    status only. `kind` is ``cut`` (the connection ends after `after_bytes` of the body),
    ``corrupt`` (the right size and wrong bytes), ``truncate`` (`after_bytes` bytes
    as if they were all), ``stall`` (no byte after
    `after_bytes` until the server closes), ``ignore-range`` (200 with the whole
    file), ``wrong-range`` (206 with another Content-Range), ``redirect`` (302 to
    the second origin), or a status such as ``503``, ``429``, ``403``.
    """

    pattern: str
    kind: str
    times: int = 1
    after_bytes: int = 0
    retry_after: float | None = None


class Zeros:
    """A file of `size` zero bytes that takes no memory, with a sha256 that is made up."""

    def __init__(self, size: int, sha256: str = "0" * 64) -> None:
        self.size = size
        self.sha256 = sha256

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> Zeros:
        return Zeros(len(range(*part.indices(self.size))), self.sha256)

    def __bytes__(self) -> bytes:
        return bytes(self.size)


@dataclass(frozen=True, slots=True)
class Logged:
    """One request that arrived. `authorized` tells whether it had an Authorization header."""

    method: str
    path: str
    status: int
    range: str | None
    authorized: bool
    headers: Mapping[str, str]
    origin: str


@dataclass(slots=True)
class _Repo:
    name: str
    token: str | None
    gated: bool
    private: bool
    pipeline_tag: str | None
    license: str | None
    raw_tree_paths: tuple[str, ...]
    card: Mapping[str, Any]
    commits: dict[str, dict[str, bytes | Zeros]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    xet: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        named = self.refs.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


class HubServer:
    """A Hub on ``127.0.0.1``, as a context manager. `endpoint` is what HF_ENDPOINT takes.

    `page_size` is how many entries a page of the tree has, and `page_origin` where the
    next one is said to be. `xet` names a folder
    for a content store: large files are then also offered by the Xet protocol
    (needs hf_xet). With `redirect_lfs` they are sent by a second origin, as the
    Hub's are. `requests` is the log; `faults` may be changed at any time.
    """

    def __init__(
        self, *, page_size: int = 1000, xet: Path | None = None, redirect_lfs: bool = False
    ) -> None:
        self.page_size = page_size
        self.redirect_lfs = redirect_lfs
        self.xet_folder = xet
        self.repos: dict[str, _Repo] = {}
        self.requests: list[Logged] = []
        self.faults: list[Fault] = []
        self._digests: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self.closing = threading.Event()
        self._servers = [self._server("hub"), self._server("other")]
        self.page_origin = self.endpoint

    @property
    def endpoint(self) -> str:
        """The hub's URL."""
        return _origin(self._servers[0])

    @property
    def other_origin(self) -> str:
        """The URL of the second origin, to which ``redirect`` faults lead."""
        return _origin(self._servers[1])

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
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes | Zeros] | None = None,
        *,
        folder: Path | None = None,
        revision: str = "main",
        tags: tuple[str, ...] = (),
        pipeline_tag: str | None = None,
        license: str | None = None,
        gated: bool = False,
        private: bool = False,
        token: str | None = None,
        raw_tree_paths: tuple[str, ...] = (),
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Commit `files` (or all of `folder`) to a branch; return the commit, 40 hex digits.

        The commit depends on the content alone; `tags` are moved to it. `card`
        is what the model's card states beside the licence.
        `raw_tree_paths` are listed in the tree as they stand, for servers that lie.
        """
        content: dict[str, bytes | Zeros] = dict(files or {})
        if folder is not None:
            content |= _read_folder(folder)
        repo = self.repos.setdefault(
            name,
            _Repo(name, token, gated, private, pipeline_tag, license, raw_tree_paths, card or {}),
        )
        repo.raw_tree_paths = raw_tree_paths
        digest = hashlib.sha1(name.encode(), usedforsecurity=False)
        for path in sorted(content):
            digest.update(path.encode() + b"\0" + self.sha256(content[path]).encode())
        commit = digest.hexdigest()
        repo.commits[commit] = content
        repo.refs[revision] = commit
        repo.tags |= dict.fromkeys(tags, commit)
        if self.xet_folder is not None:
            self._fill_xet(repo, content)
        return commit

    def take_fault(self, path: str, kinds: Callable[[str], bool]) -> Fault | None:
        """The next fault for `path` whose kind passes, used up once; None without one."""
        with self._lock:
            for fault in self.faults:
                if path.startswith("/api/") and not fault.pattern.startswith("/api/"):
                    continue
                if fault.times > 0 and kinds(fault.kind) and fnmatch.fnmatch(path, fault.pattern):
                    fault.times -= 1
                    return fault
        return None

    def sha256(self, data: bytes | Zeros) -> str:
        """The digest of a file, worked out once."""
        if isinstance(data, Zeros):
            return data.sha256
        if data not in self._digests:
            self._digests[data] = hashlib.sha256(data).hexdigest()
        return self._digests[data]

    def log(self, entry: Logged) -> None:
        """Note one request."""
        with self._arrived:
            self.requests.append(entry)
            self._arrived.notify_all()

    def wait_for_requests(self, count: int, *, timeout: float) -> bool:
        """Wait until `count` requests are logged; whether they came within `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.requests) >= count, timeout)

    def _server(self, origin: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "origin": origin})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server

    def _fill_xet(self, repo: _Repo, content: Mapping[str, bytes | Zeros]) -> None:
        import hf_xet

        assert self.xet_folder is not None
        self.xet_folder.mkdir(parents=True, exist_ok=True)
        session = hf_xet.XetSession()
        with session.new_upload_commit(endpoint=f"local://{self.xet_folder}") as commit:
            handles = {
                path: commit.start_upload_bytes(bytes(data))
                for path, data in content.items()
                if is_lfs(path)
            }
        for path, handle in handles.items():
            repo.xet[self.sha256(content[path])] = handle.result().xet_info.hash


def git_sha1(data: bytes | Zeros) -> str:
    """git's name for a blob."""
    data = bytes(data)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the hub keeps a file of that name in large file storage."""
    return path.endswith(LFS_SUFFIXES)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    origin: str
    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"

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
            )
        )

    # -- routing ---------------------------------------------------------------------

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        path = url.path
        if path.startswith("/api/"):
            fault = self.hub.take_fault(path, str.isdigit)
            if fault is not None:
                return self._fail(fault)
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

    def _search(self) -> Iterator[_Repo]:
        for name, repo in sorted(self.hub.repos.items()):
            if self.query.get("search", "") in name and not repo.private:
                yield repo

    # -- who may ---------------------------------------------------------------------

    def _token_fits(self, repo: _Repo) -> bool:
        return self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _repo(self, name: str) -> _Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._token_fits(repo)):
            status = 404 if "Authorization" in self.headers else 401
            self._error(status, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _may_read(self, repo: _Repo) -> bool:
        if not repo.gated or self._token_fits(repo):
            return True
        status = 403 if "Authorization" in self.headers else 401
        self._error(status, "GatedRepo", f"Access to model {repo.name} is restricted.")
        return False

    # -- answers ---------------------------------------------------------------------

    def _card(self, repo: _Repo, commit: str | None = None) -> dict[str, Any]:
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

    def _entries(self, repo: _Repo, commit: str) -> list[dict[str, Any]]:
        files = repo.commits[commit]
        entries = [self._entry(repo, path, files[path]) for path in sorted(files)]
        entries += [self._entry(repo, path, b"raw") for path in repo.raw_tree_paths]
        return entries

    def _entry(self, repo: _Repo, path: str, data: bytes | Zeros) -> dict[str, Any]:
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

    def _tree(self, repo: _Repo, commit: str, folder: str) -> None:
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

    def _xet_token(self, repo: _Repo) -> None:
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

    def _bytes(self, path: str, data: bytes | Zeros, headers: dict[str, str]) -> None:
        fault = None
        if self.command == "GET":
            fault = self.hub.take_fault(
                path, lambda kind: self.origin == "hub" or kind != "redirect"
            )
        if fault is not None and fault.kind.isdigit():
            return self._fail(fault)
        if fault is not None and fault.kind == "redirect":
            return self._elsewhere(headers)
        kind = "" if fault is None else fault.kind
        start, end, status = 0, len(data), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, headers["ETag"])
        if wanted and same and kind != "ignore-range":
            start = int(wanted[1])
            end = min(len(data), int(wanted[2]) + 1 if wanted[2] else len(data))
            if start >= len(data):
                return self._error(416, None, "past the end")
            status = 206
            shift = 1 if kind == "wrong-range" else 0
            headers["Content-Range"] = f"bytes {start + shift}-{end - 1 + shift}/{len(data)}"
        body = data[start:end]
        if kind == "corrupt" and len(body):
            body = bytes([bytes(body[:1])[0] ^ 1]) + bytes(body[1:])
        if fault is not None and kind == "truncate":
            body = body[: fault.after_bytes]
        keep = fault.after_bytes if fault is not None and kind in ("cut", "stall") else None
        return self._send(status, body, headers, keep=keep, stall=kind == "stall")

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

    def _send(
        self,
        status: int,
        body: bytes | Zeros,
        headers: Mapping[str, str],
        *,
        keep: int | None = None,
        stall: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            sent = body if keep is None else body[:keep]
            for start in range(0, len(sent), CHUNK):
                self.wfile.write(bytes(sent[start : start + CHUNK]))
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if keep is not None:
            if stall:
                self.hub.closing.wait(300)
            self.close_connection = True


_DATE = "2026-01-01T00:00:00.000Z"


def _origin(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def _refs(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
        for name, commit in named.items()
    ]


def _read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
