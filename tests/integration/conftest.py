"""The backends that the whole street is walked to."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator:
    """One S3 server for the session."""
    from mm_core.testing.s3 import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator:
    """One GCS server for the session."""
    from mm_core.testing.gcs import GcsServer

    with GcsServer() as server:
        yield server


@pytest.fixture
def local(tmp_path) -> str:
    """A folder that does not exist yet."""
    return str(tmp_path / "store")


@pytest.fixture
def s3(s3_server, monkeypatch) -> str:
    """A fresh S3 bucket, as a root URL with a prefix; the environment points at the server."""
    return _bucket(s3_server, "s3", monkeypatch)


@pytest.fixture
def gcs(gcs_server, monkeypatch) -> str:
    """A fresh GCS bucket, likewise."""
    return _bucket(gcs_server, "gs", monkeypatch)


@pytest.fixture(params=["local", "s3", "gcs"])
def backend(request) -> str:
    """Each kind of backend in turn."""
    return request.getfixturevalue(request.param)


def _bucket(server, scheme: str, monkeypatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    with contextlib.suppress(FileExistsError):
        server.make_bucket(name)
    return f"{scheme}://{name}/some/prefix"
