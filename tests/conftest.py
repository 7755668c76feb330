"""What every test gets: an environment of its own, and servers on loopback that it starts itself."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["mm_core.testing.fixtures"]

VENDOR_PREFIXES = (
    "MM_", "HF_", "AWS_", "GOOGLE_", "STORAGE_EMULATOR", "HUGGING_FACE_", "AZURE_", "MODELSCOPE_",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """Processes that tests start hear SIGINT, also where a shell runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory, monkeypatch) -> None:
    """No test sees, or writes to, what the user who runs it has set up."""
    for name in os.environ:
        if name.startswith(VENDOR_PREFIXES):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    for name in (
        "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME",
    ):  # fmt: skip
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(home / "xdg_config_dirs"))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:
    """No test leaves a handler behind for the next."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in before]
    root.setLevel(level)
