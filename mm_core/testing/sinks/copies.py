"""Tests of `Sink.copy`, `Sink.copy_from` and `Sink.delete`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from mm_core.exceptions import InvalidNameError, NotFoundError
from mm_core.schemas import StoredObject
from mm_core.sink import Buffer, Sink, read_bytes
from mm_core.testing.material import digest, noise, sha256
from mm_core.testing.sinks.base import ESCAPING_KEYS, MIB, TEXT, SinkFixtures, keys


class CopyTests(SinkFixtures):
    """What `copy`, `copy_from` and `delete` promise."""

    def test_a_copy_is_a_file_of_its_own(self, sink: Sink, other: Sink) -> None:
        """It replaces what was there, and outlives and never follows its source."""
        data = noise(9 * MIB)
        sink.write("a/source", [data], size=len(data))
        sink.put("b/copy", b"old")
        sink.copy("a/source", "b/copy")
        sink.copy("a/source", "b/copy")
        sink.put("a/source", b"new")
        assert digest(other.read("b/copy")) == sha256(data)
        sink.delete(["a/source"])
        assert keys(other) == ["b/copy"]
        assert digest(sink.read("b/copy")) == sha256(data)

    def test_copying_a_file_onto_itself_changes_nothing(self, sink: Sink) -> None:
        """The file is as it was, once."""
        sink.put("file", TEXT)
        sink.copy("file", "file")
        assert read_bytes(sink, "file") == TEXT
        assert keys(sink) == ["file"]

    def test_a_copy_of_nothing_leaves_the_target(self, sink: Sink) -> None:
        """NotFoundError, and the target stands."""
        sink.put("target", TEXT)
        with pytest.raises(NotFoundError):
            sink.copy("absent", "target")
        assert read_bytes(sink, "target") == TEXT

    def test_a_neighbours_file_is_copied_by_the_store(
        self, sink: Sink, neighbour: Sink | None
    ) -> None:
        """The same bytes stand under the new key, whatever was there; the source is as it was."""
        if neighbour is None:
            pytest.skip("this store copies from no other root, or the suite was given none")
        assert sink.root != neighbour.root
        assert sink.copies_from(neighbour)
        data = noise(9 * MIB)
        neighbour.write("a/source", [data], size=len(data))
        sink.put("b/c/copy", b"old")
        for _ in range(2):
            assert sink.copy_from(neighbour, "a/source", "b/c/copy")
        assert digest(sink.read("b/c/copy")) == sha256(data)
        assert (keys(sink), keys(neighbour)) == (["b/c/copy"], ["a/source"])
        neighbour.delete(["a/source"])
        assert digest(sink.read("b/c/copy")) == sha256(data)
        with pytest.raises(NotFoundError):
            sink.copy_from(neighbour, "a/source", "b/c/copy")
        assert digest(sink.read("b/c/copy")) == sha256(data)
        for key in ESCAPING_KEYS:
            with pytest.raises(InvalidNameError):
                sink.copy_from(neighbour, key, "copied")

    def test_a_strangers_file_is_not_copied_by_the_store(self, sink: Sink) -> None:
        """From a store of another kind nothing is copied, and nothing changes."""
        sink.put("file", TEXT)
        stranger = _Stranger(None)
        assert not sink.copies_from(stranger)
        assert not sink.copy_from(stranger, "file", "file")
        assert (keys(sink), read_bytes(sink, "file")) == (["file"], TEXT)

    def test_deleting_nothing_is_fine(self, sink: Sink) -> None:
        """Absent keys are passed over, and only what was named goes."""
        for name in ("a/b", "a/bc", "a/b.c"):
            sink.put(name, b"")
        sink.delete([])
        sink.delete(["absent", "a/b", "a", "absent/too", "a/b"])
        assert keys(sink) == ["a/b.c", "a/bc"]


class _Stranger(Sink):
    """A sink of a kind of its own. It is only shown, never asked."""

    type = "stranger"

    @property
    def root(self) -> str:
        return "stranger://"

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        raise NotImplementedError

    def create(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        raise NotImplementedError

    def stat(self, key: str) -> StoredObject | None:
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[StoredObject]:
        raise NotImplementedError

    def copy(self, source_key: str, key: str) -> None:
        raise NotImplementedError

    def delete(self, keys: Iterable[str]) -> None:
        raise NotImplementedError

    def url(self, key: str) -> str:
        raise NotImplementedError
