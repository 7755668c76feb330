"""Azure's blob service on loopback: Azurite, which comes from npm."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mm_core.exceptions import MissingExtraError
from mm_core.testing._process import free_port, wait_for
from mm_core.testing.material import without_proxy

if TYPE_CHECKING:
    from typing_extensions import Self

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key that every Azurite has: no secret."""


class AzureServer:
    """The blob service on ``127.0.0.1``, as a context manager; its blobs are gone at the end.

    Needs node, and ``npm install azurite``: MM_AZURITE names its ``azurite-blob``, if
    that is not on PATH. `environment` is what a process needs in its environment to use it.
    """

    def __init__(self) -> None:
        named = os.environ.get("MM_AZURITE")
        found = named if named and Path(named).exists() else shutil.which("azurite-blob")
        if found is None or shutil.which("node") is None:
            raise MissingExtraError(
                "the Azure server for tests is not installed",
                hint="npm install azurite, and let MM_AZURITE name node_modules/.bin/azurite-blob",
            )
        self._binary = found
        self._port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="mm-azure-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """The blob service's URL."""
        return f"http://127.0.0.1:{self._port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """The account, as the portal would show it."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.endpoint_url};"
        )

    @property
    def environment(self) -> dict[str, str]:
        """The account, as adlfs reads it, too; no proxy stands between."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string, **without_proxy()}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *(self._binary, "--blobHost", "127.0.0.1", "--blobPort", str(self._port)),
                *("--location", self._folder.name, "--silent", "--skipApiVersionCheck"),
                "--disableTelemetry",
            ],
            cwd=self._folder.name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._process, self._port, name="azurite-blob")
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

    def make_bucket(self, name: str) -> None:
        """Make a container; one that is there is fine."""
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string) as service:
            try:
                service.create_container(name)
            except ResourceExistsError:
                return
