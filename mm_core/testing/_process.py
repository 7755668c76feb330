"""Servers in processes of their own: a free port, and waiting until it answers."""

from __future__ import annotations

import socket
import subprocess
import time

from mm_core.exceptions import StorageError


def free_port() -> int:
    """A port of loopback that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(process: subprocess.Popen[bytes], port: int, *, name: str) -> None:
    """Return when `port` takes connections; `StorageError` when `process` ends, or after 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise StorageError(f"{name} did not start on port {port}")
