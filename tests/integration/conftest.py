"""The backends that the whole street is walked to."""

from __future__ import annotations

import pytest
from fresh import Environment
from serving import push, serving


@pytest.fixture
def local(tmp_path) -> str:
    """A folder that does not exist yet."""
    return str(tmp_path / "store")


@pytest.fixture
def s3(s3_root) -> str:
    """A fresh S3 bucket, as a root URL with a prefix; the environment points at the server."""
    return s3_root


@pytest.fixture
def gcs(gcs_root) -> str:
    """A fresh GCS bucket, likewise."""
    return gcs_root


@pytest.fixture(params=["local", "s3", "gcs"])
def backend(request) -> str:
    """Each kind of backend in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Environment:
    """One fresh virtual environment for the session, with Model Manager and a plugin in it."""
    return Environment(tmp_path_factory.mktemp("fresh") / "venv")


@pytest.fixture
def store(tmp_path, local):
    push(tmp_path, local)
    return local


@pytest.fixture
def hub_of(tmp_path, store):
    """Serves the store with some settings: ``with hub_of("{…}") as served``."""

    def serve(config="{}", *flags, **environ):
        return serving(tmp_path / "hub", store, *flags, config=config, **environ)

    return serve


@pytest.fixture
def served(hub_of):
    with hub_of() as running:
        yield running
