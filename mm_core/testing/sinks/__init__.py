"""SinkTests: the contract of `mm_core.Sink`, sentence by sentence.

Subclass it and give a fixture `sink` that returns a new, empty store, and, where
the store outlives an instance, `other`: a second instance on the same store::

    class TestMySink(SinkTests):
        @pytest.fixture
        def sink(self, tmp_path):
            return MySink(MySink.Config(root=str(tmp_path)))

        @pytest.fixture
        def other(self, tmp_path, sink):
            return MySink(MySink.Config(root=str(tmp_path)))

`SinkFixtures` tells what else may be given and declared. The tests stand in the
modules beside this one, by what they are about.
"""

from __future__ import annotations

import pytest

from mm_core.sink import ResumableSink, Sink
from mm_core.testing.sinks.base import ESCAPING_KEYS, ODD_KEYS, SinkFixtures, keys
from mm_core.testing.sinks.copies import CopyTests
from mm_core.testing.sinks.creates import CreateTests
from mm_core.testing.sinks.lists import ListTests
from mm_core.testing.sinks.names import NameTests
from mm_core.testing.sinks.reads import ReadTests
from mm_core.testing.sinks.uploads import UploadTests
from mm_core.testing.sinks.writes import WriteTests

__all__ = [
    "ESCAPING_KEYS",
    "ODD_KEYS",
    "ResumableSinkTests",
    "SinkFixtures",
    "SinkTests",
    "keys",
]


class SinkTests(WriteTests, CreateTests, ReadTests, ListTests, CopyTests, NameTests, UploadTests):
    """What every sink must do. What it does not declare is skipped, with the reason."""


class ResumableSinkTests(SinkTests):
    """The same for a sink that must be a `ResumableSink`: no test of uploads is skipped."""

    @pytest.fixture
    def resumable(self, sink: Sink) -> ResumableSink:
        """`sink`, which must take uploads in parts."""
        assert isinstance(sink, ResumableSink)
        return sink
