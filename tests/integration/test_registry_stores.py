"""The registry's conformance suite on S3 and on GCS, and stores that it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mm_core.exceptions import MissingExtraError, StorageError
from mm_core.plugins import Plugins
from mm_core.registry import ModelRegistry
from mm_core.testing.gcs import GcsEmulator
from mm_core.testing.registry import RegistryTests, registered
from mm_core.testing.s3 import RcloneServer

pytestmark = pytest.mark.integration


def open_store(root):
    sink_type = Plugins.discover().sink_for(root)
    return sink_type(sink_type.Config(root=root))


class TestS3(RegistryTests):
    @pytest.fixture
    def sink(self, s3):
        return open_store(s3)


class TestGcs(RegistryTests):
    @pytest.fixture
    def sink(self, gcs):
        return open_store(gcs)


# -- stores without an exclusive create

EMULATOR = os.environ.get("MM_GCP_STORAGE_EMULATOR", "gcp-storage-emulator")
"""The command, which ``nox -s storm`` installs into an environment of its own."""


@pytest.fixture(params=["rclone", "emulator"])
def careless(request, monkeypatch):
    """A root on a server that overlooks the condition on which all depends."""
    scheme = "s3" if request.param == "rclone" else "gs"
    try:
        server = RcloneServer() if request.param == "rclone" else GcsEmulator(EMULATOR)
    except MissingExtraError as error:
        pytest.skip(f"{error}; {error.hint}")
    with server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("careless")
        yield f"{scheme}://careless/some/prefix"


def test_a_store_without_exclusive_create_is_refused_at_first_use(careless):
    """The first write says why there can be no registry, and leaves nothing behind; reading is fine."""
    sink = open_store(careless)
    registry = ModelRegistry(sink)
    assert registry.list_models() == []
    changes = [
        lambda: registry.add_model(registered("org/model", "1")),
        lambda: registry.begin("org/model", "1", wait=False),
    ]
    for change in changes:
        with pytest.raises(StorageError, match="no exclusive create") as told:
            change()
        assert "honours" in told.value.hint
        assert [found.key for found in sink.list("")] == []


def test_the_command_line_refuses_it_too(careless, tmp_path):
    """`mm push` there ends with 1 and one clear message, and so says `mm backends test`."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def mm(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mm_core", *arguments, "--json"],
            capture_output=True, text=True, env=os.environ, check=False,
        )  # fmt: skip

    pushed = mm("push", str(model), "org/model", "--to", careless)
    assert pushed.returncode == 1, pushed.stderr
    assert "Traceback" not in pushed.stderr
    assert "no exclusive create" in pushed.stdout + pushed.stderr
    tested = mm("backends", "test", careless)
    assert tested.returncode != 0
    assert "cannot hold a registry" in tested.stdout + tested.stderr
    listed = mm("list", "--backend", careless)
    assert json.loads(listed.stdout)["models"] == []
