"""The sink that docs/write-a-sink.md shows keeps the contract, as it stands there."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

from mm_core import ModelManager, Plugins

pytestmark = pytest.mark.integration

FILES = {"config.json": b"{}", "sub/weights.bin": bytes(range(256)) * 8000}


def documented() -> dict:
    page = Path(__file__).parents[2] / "docs" / "write-a-sink.md"
    names: dict = {"__name__": "documented"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(block, str(page), "exec"), names)
    return names


DOCUMENTED = documented()


class TestDocumented(DOCUMENTED["TestSqlite"]):
    """The sink's own tests."""


class TestRegistryOnDocumented(DOCUMENTED["TestRegistryOnSqlite"]):
    """The registry lives on it."""


def test_the_documented_sink_down_the_street(tmp_path):
    """A stranger's sink, offered by its hook, holds a model like a built-in one."""
    for path, data in FILES.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    plugins = Plugins.discover(extra=[types.SimpleNamespace(mm_sinks=DOCUMENTED["mm_sinks"])])
    with ModelManager(backend=f"sqlite://{tmp_path}/store.db", plugins=plugins) as manager:
        manager.push(tmp_path / "model", "team/model")
        assert manager.verify("team/model").ok
        stored = manager.get("team/model").path
        assert {p: (stored / p).read_bytes() for p in FILES} == FILES
