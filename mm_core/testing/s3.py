"""S3 servers on loopback: moto, made linearizable where the registry needs it, and ministack."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mm_core.exceptions import MissingExtraError
from mm_core.testing._process import free_port, wait_for
from mm_core.testing.material import without_proxy

if TYPE_CHECKING:
    from typing_extensions import Self


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
        import urllib3

        pool = urllib3.PoolManager()
        answer = pool.request("PUT", f"{self.endpoint_url}/{name}")
        assert answer.status in (200, 409), answer.data


class MinistackServer(S3Server):
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


def _say_nothing(*_: object) -> None:
    """The log is in `S3Server.requests`."""


class _Exclusive:
    """One conditional write at a time: moto looks, and then writes, without a lock of its own."""

    def __init__(self, app: Any, requests: list[tuple[str, str]]) -> None:
        self._app = app
        self._requests = requests
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if "HTTP_IF_NONE_MATCH" not in environ:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        with self._lock:
            return list(self._app(environ, start_response))
