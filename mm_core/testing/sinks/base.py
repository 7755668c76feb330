"""What all tests of a sink are given, and what the sink declares to be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import pytest

from mm_core.sink import ResumableSink, Sink

MIB = 1 << 20
TEXT = b"0123456789"
ESCAPING_KEYS = ("", "..", "../x", "a/../../x", "/x", "/etc/x", "a/..")
ODD_KEYS = (
    "with space",
    "per%41cent",
    "hash#tag",
    "question?versionId=abc",
    "plus+and&and=",
    "ünïcödé-模型",
    "\U0001d49cstral",
    "quote'\"<>",
    "tilde~!@$^(),;[]{}",
    "a.b",
    ".hidden/.file",
    "deep/er/and/deep/er/still",
    "x" * 200,
)


class SinkFixtures:
    """The fixtures, and the capabilities. Override these, and never a test.

    What a sink declares by its class (`ResumableSink`, `plain_config`, `case_blind`) is
    taken from there. A test of something that was not declared is skipped, with its reason.
    """

    many_keys: ClassVar[int] = 25
    """How many objects are listed and deleted at once; more than a page where that is quick."""

    creates: ClassVar[bool] = True
    """False for a sink that refuses `create` with `StorageError`: no registry can live there."""

    odd_keys: ClassVar[Sequence[str]] = ODD_KEYS
    """Keys that must be kept as they are; fewer for a store that refuses some."""

    large: ClassVar[int] = 40 * MIB + 12_345
    """The size of a file that goes in four parts or more."""

    identifies: ClassVar[bool] = True
    """Whether the sink records the identity of an upload; where not, readers-back find out."""

    @pytest.fixture
    def sink(self) -> Sink:
        """A new, empty store."""
        raise NotImplementedError("give a fixture `sink` that returns a new, empty store")

    @pytest.fixture
    def other(self, sink: Sink) -> Sink:
        """A second instance on the same store, where the store outlives an instance."""
        return sink

    @pytest.fixture
    def neighbour(self) -> Sink | None:
        """An empty place of another root in the same store, from which `sink` copies by itself."""
        return None

    @pytest.fixture
    def everything(self) -> Callable[[], Iterable[str]] | None:
        """Tells the names of all that the store holds, seen past the sink (files on a disk)."""
        return None

    @pytest.fixture
    def unreachable(self) -> Sink | None:
        """An instance whose store does not answer: a closed port, a file that is no store."""
        return None

    @pytest.fixture
    def secrets(self) -> Sequence[str]:
        """Words in the settings of `unreachable` that no error may tell."""
        return ()

    @pytest.fixture
    def resumable(self, sink: Sink) -> ResumableSink:
        """`sink`, where it is a `ResumableSink`."""
        if not isinstance(sink, ResumableSink):
            pytest.skip("this sink takes no uploads in parts: it is no ResumableSink")
        return sink


def keys(sink: Sink, prefix: str = "") -> list[str]:
    """The keys of a listing."""
    return [found.key for found in sink.list(prefix)]
