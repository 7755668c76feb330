"""``mm serve`` in a process of its own, over any backend, and a proxy that sees where clients go."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from mm_core import ModelManager
from mm_core.testing.material import noise


@dataclass
class Served:
    """A hub that runs."""

    url: str
    process: subprocess.Popen[str]
    log_file: Path
    folder: Path

    def ask(self, method: str, path: str, *, token: str | None = None, body=None, **headers):
        """One request by hand: its status, headers and body."""
        at = urlsplit(self.url)
        connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            names["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get_json(self, path: str, **options):
        """The document at a path that must be there."""
        status, _, body = self.ask("GET", path, **options)
        assert status == 200, (status, body)
        return json.loads(body)

    def log(self) -> list[dict]:
        """The lines of its log."""
        return [
            json.loads(line) for line in self.log_file.read_text().split("\n") if line[:1] == "{"
        ]

    def stop(self, seconds: float = 60) -> int:
        """Ask it to end, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(
    folder: Path, backend: str, *flags: str, config: str = "{}", **environ
) -> Iterator[Served]:
    """Run ``mm serve`` over a backend, with `config` as the section ``serve``."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "mm.yaml").write_text(
        f"version: 1\ndefaults: {{backend: {json.dumps(backend)}}}\nserve: {config}\n"
    )
    log_file = folder / "hub.log"
    command = [sys.executable, "-m", "mm_core", "serve", "--port", "0", "--json", *flags]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environ},
        )
    try:
        document = ""
        for line in process.stdout:
            document += line
            if line.rstrip() == "}":
                break
        assert document, log_file.read_text()
        yield Served(json.loads(document)["url"], process, log_file, folder)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def mm(folder: Path, *arguments: str) -> dict:
    """What ``mm`` says as JSON in the folder of a hub."""
    run = subprocess.run(
        [sys.executable, "-m", "mm_core", *arguments, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return json.loads(run.stdout)


@dataclass
class Seen:
    """Where clients went through a proxy."""

    url: str
    hosts: set[str] = field(default_factory=set)


@contextlib.contextmanager
def recording_proxy() -> Iterator[Seen]:
    """An HTTP proxy on loopback that notes each host it is asked for, and goes to loopback only."""
    seen = Seen("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def _pass_on(self) -> None:
            at = urlsplit(self.path)
            seen.hosts.add(at.netloc)
            if at.hostname != "127.0.0.1":
                self.send_error(502)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
            target = at.path + (f"?{at.query}" if at.query else "")
            headers = {k: v for k, v in self.headers.items() if k.lower() != "proxy-connection"}
            connection.request(self.command, target, body, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            while piece := answer.read(1 << 20):
                self.wfile.write(piece)
            connection.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _pass_on

        def do_CONNECT(self) -> None:
            seen.hosts.add(self.path)
            self.send_error(502)

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


MODEL = "org/model"
FILES = {"config.json": b'{"a": 1}', "big.bin": noise(3_000_003), "deep/x.txt": b"x", "empty": b""}


def push(folder, backend, model_id=MODEL, files=FILES, **options):
    """Put a model into a backend, from no hub."""
    source = folder / "source" / model_id
    for path, data in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    with ModelManager(backend=backend) as manager:
        return manager.push(source, model_id, **options).entry


def rss(pid: int) -> int:
    """The memory of a process, in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
