"""Ten thousand requests that nobody sane would send: no 500, no hang, and nothing gets out."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from serving import FILES, MODEL, mm, push, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS = 10_000
LINES = 4
PATIENCE = 10
KEPT = "kept/model"
SECRET = b"nobody-may-ever-read-this-5d1c"
OBJECT = b"an object by LFS"
METHODS = ("GET",) * 9 + ("HEAD",) * 3 + ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")
JUNK = ("XYZ", "get", "TRACE", "PROPFIND", "CONNECT", "G\x00T", "", "\xff")
PARTS = (
    "..", ".", "%2e%2e", "%2E.", "..%2f", "%2f", "%5c..", "\\..", "%00", "%c0%ae%c0%ae", "%ff",
    "%e0%80%af", "%f0%80%80%ae", "%ed%a0%80", "%c0%af..", "%252e%252e%252f", "%2e%2e%2fsecret.txt",
    "..%2f..%2fsecret.txt", "a" * 300, "a%2f" * 200, "", "%", "%zz", "%25252e", ";", "*", "~", "con",
    "a%20b", "%0d%0aX-Injected:%201", "%0aX-Injected:1", "%c3%a4", ".mm", "log", "tokens", "uploads",
    "models", "main", "refs%2Fheads%2Fmain", "refs%2Fpr%2F1", "HEAD", "0" * 40, "f" * 64,
    "config.json", "big.bin", "empty", "deep", "x.txt", "org", "model", "resolve", "raw", "api",
    "tree", "revision", "paths-info", "refs", "commits", "preupload", "commit", "branch", "tag",
    "mm", "v1", "ui", "lfs", "xet", "pulls", "openapi.json", "docs", "static", "xorbs", "shards",
    "secret.txt", "aliases", "versions", "history", "events", "sign-in", "file:", "etc%2fpasswd",
)  # fmt: skip
IDS = (
    MODEL, MODEL, MODEL, "org%2Fmodel", "org/mode%6c", "org/../org/model", "org//model", "org/new",
    "org/a/b/c", "ORG/MODEL", "model", ".mm", "..", "org/model%00", KEPT,
)  # fmt: skip
ROUTES = (
    "/", "/api/models", "/api/models/{id}", "/api/models/{id}/revision/{x}",
    "/api/models/{id}/tree/{x}/{x}", "/api/models/{id}/tree/main", "/api/models/{id}/refs",
    "/api/models/{id}/commits/{x}", "/api/whoami-v2", "/{id}/resolve/{x}/{x}",
    "/{id}/resolve/main/{x}", "/{id}/resolve/main/../../{x}", "/org/model/resolve/main/big.bin",
    "/org/model/resolve/main/config.json", "/kept/model/resolve/main/deep/x.txt",
    "/{id}/raw/{x}/{x}", "/mm/lfs/{x}", "/mm/xet/{x}/v1/shards", "/mm/v1/models",
    "/mm/v1/models/{id}", "/mm/v1/{x}/{x}", "/mm/v1/models/{id}/versions/{x}",
    "/mm/v1/models/{id}/history", "/mm/v1/models/{id}/aliases/{x}", "/mm/v1/pulls",
    "/mm/v1/pulls/{x}", "/mm/ui", "/mm/ui/models/{id}", "/mm/ui/{x}",
    "/mm/ui/files/{id}/resolve/main/{x}", "/mm/ui/static/{x}", "/mm/ui/static/../{x}", "/healthz",
    "/readyz", "/metrics", "/{x}/{x}/{x}", "/{x}", "/.mm/{x}/{x}", "/models/org/model/{x}",
)  # fmt: skip
DEEDS = (
    "POST /api/models/{id}/commit/{x}", "POST /api/models/org/model/commit/main",
    "POST /api/models/org/model/commit/main", "POST /api/models/{id}/preupload/{x}",
    "POST /api/models/org/model/branch/{x}", "DELETE /api/models/org/model/branch/{x}",
    "POST /api/models/org/model/tag/{x}", "POST /api/models/org/model/tag/main",
    "POST /api/models/{id}/paths-info/{x}", "POST /api/models/org/model/paths-info/main",
    "POST /api/repos/create", "DELETE /api/repos/delete", "POST /api/validate-yaml",
    "POST /{id}.git/info/lfs/objects/batch", "POST /org/model.git/info/lfs/objects/batch",
    "PUT /mm/lfs/{hash}/1?by={x}&mac=x&size={x}&until={x}&model={x}", "PUT {lfs}", "PUT {lfs}{x}",
    "POST {lfs}", "PUT {lfs}&mac=%C3%A9", "PUT {lfs}&size=9", "POST {xet}/v1/shards",
    "POST {xet}/v1/xorbs/default/{hash}", "POST /mm/xet/0123456789abcdef/v1/xorbs/default/{hash}",
    "GET /api/models/{id}/xet-write-token/{x}", "PUT /mm/v1/models/org/model/aliases/{x}",
    "DELETE /mm/v1/models/org/model/aliases/{x}", "DELETE /mm/v1/models/{id}/versions/{x}",
    "POST /mm/v1/pulls", "DELETE /mm/v1/pulls/{x}", "POST /mm/ui/sign-in", "POST /mm/ui/alias",
    "POST /mm/ui/pulls", "POST /mm/ui/{x}",
)  # fmt: skip
QUERIES = (
    "limit", "cursor", "sort", "search", "filter", "q", "expand", "recursive", "status", "version",
    "type", "removed", "blobs", "create_pr", "next",
)  # fmt: skip
RANGES = (
    "bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "bytes=99999999999999999999-", "bytes=--1",
    "bytes=-0", "bytes=a-b", "bytes=" + "1-2," * 500, "octets=1-2", "bytes=2999999-", "\xff",
    "bytes=0-" + "9" * 5000, "bytes=\u0661-\u0662", "bytes", "bytes=1-1\t", "",
)  # fmt: skip
CARDS = (
    "license: !!bool x", "license: !!int ''", "license: !!timestamp x", "? [a]\n: b", "a: &a [*a]",
    "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
                               for a, b in zip("abcdefghi", "bcdefghij", strict=True)) + "license: *j",
    "license: 2024-02-31", "license: {a: .nan}", "tags: " + "[" * 500, "a: \x00", "license: \ud800",
    "license: " + "9" * 5000, "pipeline_tag: [x]", "pipeline_tag: " + "x" * 9000,
)  # fmt: skip
BODIES = (
    "", "{}", "[]", "null", "NaN", '{"files": 5}', "\xff\xfe", "paths=a&paths=..%2F..", "{" * 5000,
    "[" * 50_000, '{"name": "../../x"}', '{"name": "new", "organization": "org"}', "x" * 3000,
    '{"name": "\\ud800", "organization": "org"}', '{"name": "org/new", "type": "dataset"}',
    '{"files": [{"path": "x", "size": -1}]}', '{"files": [{"path": "\\ud800", "size": 1}]}',
    '{"operation": "upload", "objects": [1]}',
    '{"operation": "upload", "objects": [{"oid": "x", "size": 1e400}]}',
    '{"operation": "upload", "objects": [{"oid": "' + "a" * 64 + '", "size": 99999999999}]}',
    '{"operation": "upload", "objects": [{"oid": "' + "b" * 64 + '", "size": ' + "9" * 5000 + "}]}",
    '{"source": "file:///etc/passwd"}', '{"source": "/etc/passwd"}', '{"source": "\\ud800"}',
    '{"source": "http://[::1"}', '{"version": "../.."}', '{"version": "\\ud800"}',
    '{"version": NaN}', '{"version": "\\u0000", "expect": 1e999}', '{"tag": "' + "t" * 5000 + '"}',
    '{"tag": "\\ud800"}', '{"tag": "ok", "overwrite": [1]}', '{"paths": ["' + "a/" * 2000 + '"]}',
    '{"paths": {"a": 1}}', '{"paths": ["\\ud800", "../secret.txt"]}', '{"startingPoint": {}}',
    '{"startingPoint": "\\ud800"}', "token=mm_x&next=//evil.example",
    "model_id=org/model&alias=%00&version=..", "source=/etc/passwd&aliases=%ff", "HFRepoMetaData\x00" + "\x01" * 99,
    "HFRepoMetaData\x00" + "\xff" * 99,
)  # fmt: skip
STEPS = (
    ("header", {"summary": 1, "parentCommit": []}), ("header", {"summary": "\ud800\x00"}),
    ("file", {"content": "\ud800", "path": "x", "encoding": "utf-8"}),
    ("file", {"content": "e30=", "path": "\ud800", "encoding": "base64"}),
    ("file", {"content": "e30=", "path": "../../secret.txt", "encoding": "base64"}),
    ("file", {"content": "e30=", "path": "config.json/x", "encoding": "base64"}),
    ("file", {"content": "e30", "path": "x", "encoding": "base64"}),
    ("file", {"content": "e30=", "path": "a" * 3000, "encoding": "base64"}),
    ("file", {"content": "e30=", "path": "x", "encoding": []}), ("file", {"path": {}}),
    ("lfsFile", {"path": "../x", "oid": "0" * 64, "size": -1}),
    ("lfsFile", {"path": "x", "oid": hashlib.sha256(OBJECT).hexdigest(), "size": len(OBJECT)}),
    ("lfsFile", {"path": "x", "oid": "0" * 64, "size": 1e300}), ("deletedFolder", {"path": ""}),
    ("deletedFile", {"path": "none"}), ("deletedFolder", {"path": "deep"}), ("\ud800", {}), ("x", 1),
)  # fmt: skip
FRAMES = (
    "Content-Length: -1", "Content-Length: x", "Content-Length: 99999999999999999999999",
    "Content-Length: 5000", "Content-Length: +5", "Content-Length: 0x5", "Content-Length: 1, 2",
    "Content-Length: 2\r\nContent-Length: 3", "Content-Length:", "Transfer-Encoding: gzip, x",
    "Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked",
    "Expect: 100-continue\r\nContent-Length: 9", "Upgrade: websocket\r\nConnection: Upgrade",
    "X" * 70_000 + ": 1", "No colon", " folded: 1",
)  # fmt: skip


class Places:
    """What a client with a token has been told: the token, and where it may upload."""

    def __init__(self, served, token: str) -> None:
        oid = hashlib.sha256(OBJECT).hexdigest()
        wish = {"operation": "upload", "objects": [{"oid": oid, "size": len(OBJECT)}]}
        path = f"/{MODEL}.git/info/lfs/objects/batch"
        told = json.loads(served.ask("POST", path, token=token, body=json.dumps(wish))[2])
        self.token = token
        self.lfs = self._path(told["objects"][0]["actions"]["upload"]["href"])
        xet = served.get_json(f"/api/models/{MODEL}/xet-write-token/main", token=token)
        self.xet, self.xet_token = self._path(xet["casUrl"]), xet["accessToken"]

    def _path(self, url: str) -> str:
        at = urlsplit(url)
        return f"{at.path}?{at.query}" if at.query else at.path


class Fuzz:
    """Makes requests, the same ones for the same seed and the same places."""

    def __init__(self, seed: int, places: Places) -> None:
        self._random = random.Random(seed)
        self._places = places

    def _one(self, *of):
        return self._random.choice(of)

    def _part(self) -> str:
        choose = self._random
        if choose.random() < 0.15:
            letters = "".join(chr(choose.randrange(1, 0x250)) for _ in range(choose.randrange(9)))
            return quote(letters, safe=self._one("", "/", "%"))
        if choose.random() < 0.01:
            return self._one("../" * 9_000, "\xff", "ä", "a b")
        return "/".join(choose.choice(PARTS) for _ in range(self._one(1, 1, 1, 2, 5)))

    def _place(self) -> tuple[str, str]:
        """A method and a path. What needs a method of its own mostly gets it."""
        if self._random.random() < 0.6:
            return self._random.choice(METHODS), self._path(self._random.choice(ROUTES))
        method, _, path = self._random.choice(DEEDS).partition(" ")
        return self._one(method, method, method, self._random.choice(METHODS)), self._path(path)

    def _path(self, path: str) -> str:
        choose = self._random
        path = path.replace("{lfs}", self._places.lfs).replace("{xet}", self._places.xet)
        path = path.replace("{id}", choose.choice([*IDS, self._part()]))
        path = path.replace("{hash}", f"{choose.getrandbits(256):064x}")
        while "{x}" in path:
            path = path.replace("{x}", self._part(), 1)
        if choose.random() < 0.2:
            query = "&".join(
                f"{choose.choice(QUERIES)}={self._one('1', 'true', self._part())}"
                for _ in range(choose.randrange(1, 4))
            )
            path += ("&" if "?" in path else "?") + query
        return self._one(*[""] * 9, self._one("http://evil.example", "//x")) + path

    def _headers(self, path: str) -> list[str]:
        bearer = f"Bearer {self._places.token}"
        if path.startswith(self._places.xet):
            bearer = f"Bearer {self._places.xet_token}{self._one('', '', '&mac=%C3%A9')}"
        optional = {
            "Range": RANGES,
            "If-Range": ('"x"', "W/", "*", "", "\xff"),
            "If-None-Match": ("*", '"x"', ",,,", "W/\xff", '"' * 3000),
            "Authorization": (*[bearer] * 9, "Bearer mm_x", "Basic eDp4", "Bearer", "\xff", "Bearer é"),
            "Accept": ("*/*", "text/html", "x" * 4000, "\xff"),
            "X-Request-Id": ("good-1", "b\xe4d", "x" * 999, "a\tb", ""),
            "X-Forwarded-For": ("1.2.3.4", "::1, x", "\xff"),
            "Content-Type": (
                "application/json", "text/plain", "x/\xff", "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=",
            ),
            "Cookie": (f"mm_token={self._places.token}", "mm_token=x", "=;=", "a=" + "b" * 3000, "\xff"),
            "Origin": ("null", "http://evil.example", "http://x"),
            "Sec-Fetch-Site": ("same-origin", "same-origin", "cross-site", "\xff"),
            "Connection": ("close", "keep-alive", "x"),
        }  # fmt: skip
        host = self._one(
            "x", "x", "127.0.0.1", "evil.example:99999", "[::1", "", "a b", "\xff", "x/@y"
        )
        lines = [f"Host: {host}"] * self._one(*[1] * 9, 0, 2)
        for name, values in optional.items():
            if self._random.random() < {"Authorization": 0.8, "Range": 0.25}.get(name, 0.1):
                lines.append(f"{name}: {self._one(*values)}")
        return lines

    def _body(self, path: str) -> bytes:
        if path.startswith("/mm/lfs/") and self._random.random() < 0.3:
            return OBJECT
        if "/commit/" in path and self._random.random() < 0.8:
            steps = self._random.sample(STEPS, self._random.randrange(1, 4))
            if self._random.random() < 0.4:
                card = f"---\n{self._one(*CARDS)}\n---\n".encode("utf-8", "surrogatepass")
                content = base64.b64encode(card).decode()
                steps = [("file", {"content": content, "path": "README.md", "encoding": "base64"})]
            return b"\n".join(json.dumps({"key": k, "value": v}).encode() for k, v in steps)
        return self._one(*BODIES).encode("latin-1")

    def request(self) -> tuple[str, bytes, bool]:
        """Its method, all of it, and whether nothing more is to be sent after it."""
        method, path = self._place()
        lines, body, is_last = self._headers(path), b"", False
        if method in ("POST", "PUT", "PATCH", "DELETE"):
            body = self._body(path)
        if self._random.random() < 0.02:
            method, is_last = self._random.choice(JUNK), True
        if self._random.random() < 0.03:
            lines.append(self._random.choice(FRAMES))
            is_last = True
        elif body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        version = "HTTP/1.1" if not is_last else self._one("HTTP/1.1", "HTTP/1.0", "HTTP/9.9", "")
        head = "\r\n".join([f"{method} {path} {version}", *lines, "", ""])
        # Bytes that are no UTF-8 as well as such that are.
        encoding = self._one("latin-1", "utf-8")
        return method, head.encode(encoding, "replace") + body, is_last


class Line:
    """One connection, made anew where the server ends it."""

    def __init__(self, url: str) -> None:
        self._at = urlsplit(url)
        self._socket: socket.socket | None = None

    def ask(self, method: str, request: bytes, *, is_last: bool) -> tuple[int, bytes]:
        """The status and all bytes of an answer; 0 where the connection was ended without one.

        With `is_last` the server hears that no more comes: a body that it waits for, too.
        """
        if self._socket is None:
            self._socket = socket.create_connection((self._at.hostname, self._at.port), PATIENCE)
            self._stream = self._socket.makefile("rb")
        try:
            self._socket.sendall(request)
            if is_last:
                self._socket.shutdown(socket.SHUT_WR)
            return self._answer(method, is_last=is_last)
        except ConnectionError:
            return self._end(0, b"")
        except TimeoutError:
            pytest.fail(f"no answer within {PATIENCE} seconds: {request[:2000]!r}")

    def _answer(self, method: str, *, is_last: bool) -> tuple[int, bytes]:
        head = b""
        while (line := self._stream.readline()) not in (b"", b"\r\n"):
            head += line
        if not head:
            return self._end(0, b"")
        status, lower = int(head.split(b" ", 2)[1]), head.lower()
        length = re.search(rb"\r\ncontent-length: (\d+)", lower)
        if b"text/event-stream" in lower:
            return self._end(status, head)
        if is_last:
            return self._end(status, head + self._stream.read())
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif b"transfer-encoding: chunked" in lower:
            body = self._chunks()
        else:
            body = self._stream.read(int(length[1]) if length else -1)
            assert length is None or len(body) == int(length[1]), "the answer is cut short"
        if b"connection: close" in lower or length is None:
            return self._end(status, head + body)
        return status, head + body

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._stream.readline(), 16):
            body += self._stream.read(size + 2)[:-2]
        self._stream.readline()
        return body

    def _end(self, status: int, body: bytes) -> tuple[int, bytes]:
        assert self._socket is not None
        self._stream.close()
        self._socket.close()
        self._socket = None
        return status, body


def test_ten_thousand_requests(tmp_path, local):
    """With a token that may write, and without: all are answered, and the hub is as before."""
    push(tmp_path, local)
    push(tmp_path, local, KEPT)
    for place in (Path(local), Path(local) / ".mm", tmp_path):
        (place / "secret.txt").write_bytes(SECRET)
    config = "{uploads: true, failures: 1000000, pull_sources: []}"
    with serving(tmp_path / "hub", local, config=config) as served:
        made = mm(served.folder, "token", "create", "x", "--scope", "write", "--model", "org/*")
        places = Places(served, made["token"]["text"])
        before = served.get_json(f"/api/models/{KEPT}")

        def run(seed: int) -> Counter[int]:
            fuzz, line, statuses = Fuzz(seed, places), Line(served.url), Counter[int]()
            for _ in range(REQUESTS // LINES):
                method, request, is_last = fuzz.request()
                began = time.monotonic()
                status, answer = line.ask(method, request, is_last=is_last)
                statuses[status] += 1
                assert time.monotonic() - began < PATIENCE, request
                assert status < 500, request
                assert SECRET not in answer, request
                assert b"\nx-injected" not in answer.lower(), request
            return statuses

        with ThreadPoolExecutor(LINES) as pool:
            statuses = sum(pool.map(run, range(LINES)), Counter[int]())
        assert {200, 206, 304, 400, 401, 403, 404, 416} <= statuses.keys(), statuses
        assert statuses[0] < REQUESTS // 50, statuses
        assert served.ask("GET", f"/{KEPT}/resolve/main/big.bin")[2] == FILES["big.bin"]
        assert served.get_json(f"/api/models/{KEPT}") == before
        assert not [entry for entry in served.log() if entry.get("level") == "error"]
