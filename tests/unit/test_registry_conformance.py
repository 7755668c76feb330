"""The registry's conformance suite on the two sinks that need no server."""

import pytest

from mm_core.testing.registry import RegistryTests
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


class TestLocal(RegistryTests):
    @pytest.fixture
    def sink(self, tmp_path):
        return LocalSink(LocalSink.Config(root=str(tmp_path)))


class TestMemory(RegistryTests):
    @pytest.fixture
    def sink(self, tmp_path):
        return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))
