"""Ten thousand requests that nobody sane would send: no 500, no hang, and nothing gets out."""

from __future__ import annotations

import random
import re
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from serving import FILES, MODEL, mm, push, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REQUESTS = 10_000
LINES = 8
SECRET = b"nobody-may-ever-read-this-5d1c"
METHODS = (
    ("GET",) * 12 + ("HEAD",) * 3 + ("POST",) * 4 + ("PUT", "DELETE", "PATCH", "OPTIONS", "XYZ")
)
PARTS = (
    "..", ".", "%2e%2e", "%2E.", "..%2f", "%2f", "%5c..", "\\..", "%00", "%c0%ae%c0%ae", "%ff",
    "a" * 300, "", "%", "%zz", "%25252e", ";", "*", "~", "con", "a b", "%0d%0aX-Injected: 1", "ä",
    ".mm", "log", "tokens", "uploads", "models", "main", "refs%2Fheads%2Fmain", "0" * 40, "f" * 64,
    "config.json", "big.bin", "deep", "x.txt", "org", "model", "resolve", "raw", "api", "tree",
    "revision", "paths-info", "refs", "commits", "preupload", "commit", "branch", "tag", "mm", "v1",
    "ui", "lfs", "xet", "pulls", "openapi.json", "docs", "static", "xorbs", "shards", "secret.txt",
    "aliases", "versions", "history", "events", "sign-in",
)  # fmt: skip
ROUTES = (
    "/", "/api/models", "/api/models/{id}", "/api/models/{id}/revision/{x}",
    "/api/models/{id}/tree/{x}/{x}", "/api/models/{id}/paths-info/{x}", "/api/models/{id}/refs",
    "/api/models/{id}/commits/{x}", "/api/models/{id}/commit/{x}", "/api/models/{id}/preupload/{x}",
    "/api/models/{id}/branch/{x}", "/api/models/{id}/tag/{x}", "/api/repos/create",
    "/api/repos/delete", "/api/whoami-v2", "/api/validate-yaml", "/{id}/resolve/{x}/{x}",
    "/{id}/resolve/main/{x}", "/org/model/resolve/main/big.bin",
    "/org/model/resolve/main/config.json", "/{id}/raw/{x}/{x}", "/{id}.git/info/lfs/objects/batch",
    "/mm/lfs/{x}", "/mm/lfs/{hash}/1?by={x}&mac=x&size={x}&until={x}&model={x}",
    "/mm/xet/{x}/v1/shards", "/mm/xet/0123456789abcdef/v1/xorbs/default/{hash}",
    "/api/models/{id}/xet-write-token/{x}", "/mm/v1/models", "/mm/v1/models/{id}", "/mm/v1/{x}/{x}",
    "/mm/v1/models/{id}/versions/{x}", "/mm/v1/models/{id}/aliases/{x}", "/mm/v1/pulls",
    "/mm/v1/pulls/{x}", "/mm/ui/models/{id}", "/mm/ui/{x}", "/mm/ui/static/{x}", "/healthz",
    "/metrics", "/{x}/{x}/{x}", "/{x}",
)  # fmt: skip
RANGES = (
    "bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "bytes=99999999999999999999-", "bytes=--1",
    "bytes=-0", "bytes=a-b", "bytes=" + "1-2," * 500, "octets=1-2", "bytes=2999999-", "\xff",
)  # fmt: skip
BODIES = (
    b"", b"{}", b"[]", b"null", b'{"files": 5}', b"\xff\xfe", b"paths=a&paths=..%2F..", b"{" * 5000,
    b'{"key": "header", "value": {"summary": 1}}\n', b'{"operation": "upload", "objects": [1]}',
    b'{"name": "../../x"}', b'{"files": [{"path": "x", "size": -1}]}', b"x" * 3000,
    b'{"operation": "upload", "objects": [{"oid": "x", "size": 1e400}]}',
    b'{"source": "file:///etc/passwd"}', b'{"version": "../.."}', b'{"tag": "' + b"t" * 5000 + b'"}',
    b'{"paths": ["' + b"a/" * 2000 + b'"]}', b'{"paths": {"a": 1}}', b'{"startingPoint": {}}',
)  # fmt: skip


class Fuzz:
    """Makes requests, the same ones for the same seed."""

    def __init__(self, seed: int, token: str) -> None:
        self.random = random.Random(seed)
        self._token = token

    def part(self) -> str:
        choose = self.random
        if choose.random() < 0.15:
            letters = "".join(chr(choose.randrange(1, 0x250)) for _ in range(choose.randrange(9)))
            return quote(letters, safe=choose.choice(["", "/", "%"]))
        return "/".join(choose.choice(PARTS) for _ in range(choose.choice([1, 1, 1, 2, 5])))

    def path(self) -> str:
        choose = self.random
        path = choose.choice(ROUTES)
        path = path.replace("{id}", choose.choice([MODEL, MODEL, "org%2Fmodel", self.part()]))
        path = path.replace("{hash}", f"{choose.getrandbits(256):064x}")
        while "{x}" in path:
            path = path.replace("{x}", self.part(), 1)
        if choose.random() < 0.15:
            query = "&".join(
                f"{choose.choice(['limit', 'cursor', 'sort', 'search', 'filter', 'q', 'expand'])}"
                f"={self.part()}"
                for _ in range(choose.randrange(1, 4))
            )
            path += ("&" if "?" in path else "?") + query
        return choose.choice(["", "", "", "", "", "http://evil.example"]) + path

    def request(self) -> tuple[str, bytes]:
        """Its method, and all of it."""
        choose = self.random
        method = choose.choice(METHODS)
        headers = {"Host": choose.choice(["x", "x", "127.0.0.1", "evil.example:99999", "[::1", ""])}
        optional = {
            "Range": lambda: choose.choice(RANGES),
            "If-Range": lambda: choose.choice(['"x"', "W/", "*", ""]),
            "If-None-Match": lambda: choose.choice(["*", '"x"', ",,,", "W/\xff"]),
            "Authorization": lambda: choose.choice(
                [f"Bearer {self._token}"] * 6 + ["Bearer mm_x", "Basic eDp4", "Bearer", "\xff"]
            ),
            "Accept": lambda: choose.choice(["*/*", "text/html", "x" * 4000]),
            "X-Request-Id": lambda: choose.choice(["good-1", "b\xe4d", "x" * 999]),
            "X-Forwarded-For": lambda: choose.choice(["1.2.3.4", "::1, x", "\xff"]),
            "Content-Type": lambda: choose.choice(["application/json", "text/plain", "x/\xff"]),
            "Cookie": lambda: choose.choice(["mm_token=x", "=;=", "a=" + "b" * 3000]),
            "Origin": lambda: choose.choice(["null", "http://evil.example"]),
        }
        for name, make in optional.items():
            if choose.random() < (0.5 if name == "Authorization" else 0.12):
                headers[name] = make()
        body = choose.choice(BODIES) if method in ("POST", "PUT", "PATCH", "DELETE") else b""
        if body or method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        line = f"{method} {self.path()} HTTP/1.1\r\n"
        return method, f"{line}{head}\r\n".encode("utf-8", "surrogatepass") + body


class Line:
    """One connection, made anew where the server ends it."""

    def __init__(self, url: str) -> None:
        self._at = urlsplit(url)
        self._socket: socket.socket | None = None

    def ask(self, method: str, request: bytes) -> tuple[int, bytes]:
        """The status and all bytes of an answer; 0 where the connection was ended without one."""
        if self._socket is None:
            self._socket = socket.create_connection((self._at.hostname, self._at.port), timeout=10)
            self._stream = self._socket.makefile("rb")
        self._socket.sendall(request)
        head = b""
        while line := self._stream.readline():
            head += line
            if line == b"\r\n":
                break
        if not head:
            return self._end(0, b"")
        status, lower = int(head.split(b" ", 2)[1]), head.lower()
        length = re.search(rb"\r\ncontent-length: (\d+)", lower)
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif b"text/event-stream" in lower:
            return self._end(status, head)
        elif b"transfer-encoding: chunked" in lower:
            body = self._chunks()
        else:
            body = self._stream.read(int(length[1]) if length else -1)
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
    for place in (Path(local), Path(local) / ".mm", tmp_path):
        (place / "secret.txt").write_bytes(SECRET)
    config = "{uploads: true, failures: 1000000}"
    with serving(tmp_path / "hub", local, config=config) as served:
        token = mm(served.folder, "token", "create", "x", "--scope", "write")["token"]["text"]

        def run(number: int) -> Counter[int]:
            fuzz, line, statuses = Fuzz(number, token), Line(served.url), Counter[int]()
            for _ in range(REQUESTS // LINES):
                method, request = fuzz.request()
                status, answer = line.ask(method, request)
                statuses[status] += 1
                assert status < 500, request
                assert SECRET not in answer, request
                assert b"\r\nx-injected" not in answer.lower(), request
            return statuses

        with ThreadPoolExecutor(LINES) as pool:
            statuses = sum(pool.map(run, range(LINES)), Counter[int]())
        assert {200, 400, 401, 403, 404, 416} <= statuses.keys(), statuses
        assert statuses[0] < REQUESTS // 50, statuses
        assert served.ask("GET", f"/{MODEL}/resolve/main/big.bin")[2] == FILES["big.bin"]
        assert not [entry for entry in served.log() if entry.get("level") == "error"]
