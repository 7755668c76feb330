"""Tests of `Sink.list`: recursive, ordered, and never from memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from mm_core.sink import Sink, read_bytes
from mm_core.testing.sinks.base import TEXT, SinkFixtures, keys


class ListTests(SinkFixtures):
    """What `list` promises."""

    def test_a_listing_is_recursive_and_ordered_by_code_point(self, sink: Sink) -> None:
        """As `sorted` orders the keys, whatever the folders."""
        names = [
            "b",
            "a/b",
            "a-b",
            "a.b",
            "a/b/c" + "d",
            "aB",
            "a0",
            "é",
            "a/é",
            "模",
            "\U0001d49c",
            "z/y/x",
        ]
        for name in names:
            sink.put(f"{name}/f", b"")
        assert keys(sink) == sorted(f"{name}/f" for name in names)

    def test_a_prefix_is_a_plain_string(self, sink: Sink) -> None:
        """``a/b`` also finds ``a/bc``; a folder is asked for with its slash."""
        names = ["a/b/1", "a/bc/2", "a/bd", "a/c", "ab", "b"]
        for name in names:
            sink.put(name, b"")
        for prefix in ("", "a", "a/", "a/b", "a/b/", "a/bc/2", "ab", "c", "a/b/1/"):
            assert keys(sink, prefix) == [name for name in names if name.startswith(prefix)]

    def test_nothing_is_cached(self, sink: Sink, other: Sink) -> None:
        """Each instance sees at once what the other did, also where it had looked before."""
        for number in range(3):
            key = f"a/{number}"
            assert (other.stat(key), keys(other, key)) == (None, [])
            sink.put(key, TEXT)
            assert other.stat(key) is not None
            assert keys(other, key) == [key]
            sink.put(key, TEXT * 2)
            assert read_bytes(other, key) == TEXT * 2
            assert other.stat(key).size == 20  # type: ignore[union-attr]  # it is there
            sink.delete([key])
            assert (other.stat(key), keys(other, key)) == (None, [])

    def test_many_objects_are_listed_and_deleted(self, sink: Sink) -> None:
        """Also more than fit a page of the store's."""
        names = [f"m/{number:05}" for number in range(self.many_keys)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: sink.put(name, b"x"), [*names, "n"]))
        assert keys(sink, "m/") == names
        sink.delete(name for name in names)
        assert keys(sink) == ["n"]
