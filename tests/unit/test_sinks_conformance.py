"""The sinks that need no server keep the contract."""

from __future__ import annotations

import uuid

import pytest

from mm_core.testing.sinks import ResumableSinkTests
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


class TestLocal(ResumableSinkTests):
    many_keys = 1100

    @pytest.fixture
    def sink(self, tmp_path):
        return LocalSink(LocalSink.Config(root=str(tmp_path / "store")))

    @pytest.fixture
    def other(self, sink):
        return LocalSink(LocalSink.Config(root=sink.root))

    @pytest.fixture
    def neighbour(self, tmp_path):
        return LocalSink(LocalSink.Config(root=str(tmp_path / "beside")))


class TestMemory(ResumableSinkTests):
    many_keys = 1100

    @pytest.fixture
    def sink(self):
        return MemorySink(MemorySink.Config(root=f"memory://{uuid.uuid4().hex}"))

    @pytest.fixture
    def other(self, sink):
        return MemorySink(MemorySink.Config(root=sink.root))

    @pytest.fixture
    def neighbour(self):
        return MemorySink(MemorySink.Config(root=f"memory://{uuid.uuid4().hex}"))
