"""Tests of keys, and of what a sink says of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mm_core.exceptions import InvalidNameError
from mm_core.recall import plain_settings
from mm_core.sink import Sink, read_bytes
from mm_core.testing.sinks.base import ESCAPING_KEYS, SinkFixtures, keys

ALIKE = (("Case/Key", "case/key"), ("caf\u00e9", "cafe\u0301"))
"""Keys that some stores take for one: by case, and by Unicode form."""


class NameTests(SinkFixtures):
    """What is promised of keys, roots and URLs."""

    def test_odd_keys_are_kept_as_they_are(self, sink: Sink, other: Sink) -> None:
        """No key is decoded, cut, or taken for something else."""
        for number, key in enumerate(self.odd_keys):
            data = b"%d" % number
            sink.write(key, [data], size=len(data))
        assert keys(other) == sorted(self.odd_keys)
        for number, key in enumerate(self.odd_keys):
            assert read_bytes(other, key) == b"%d" % number
            assert other.stat(key) is not None
            assert keys(other, key) == [key]
            sink.copy(key, f"copies/{key}")
            assert read_bytes(other, f"copies/{key}") == b"%d" % number
        sink.delete(self.odd_keys)
        assert keys(other) == sorted(f"copies/{key}" for key in self.odd_keys)

    def test_a_key_never_leaves_the_root(self, sink: Sink) -> None:
        """Such a key is an InvalidNameError to each method."""
        sink.put("file", b"x")
        attempts: list[Callable[[str], object]] = [
            lambda key: sink.write(key, [b"x"], size=1),
            lambda key: sink.put(key, b"x"),
            lambda key: list(sink.read(key)),
            sink.stat,
            lambda key: sink.copy("file", key),
            lambda key: sink.copy(key, "copied"),
            lambda key: sink.delete([key]),
            sink.url,
        ]
        if self.creates:
            attempts.append(lambda key: sink.create(key, b"x"))
        for key in ESCAPING_KEYS:
            for attempt in attempts:
                with pytest.raises(InvalidNameError):
                    attempt(key)
        assert keys(sink) == ["file"]

    def test_a_prefix_never_leaves_the_root(self, sink: Sink) -> None:
        """A listing of another place is an InvalidNameError."""
        for prefix in ("../", "a/../", "/", "/etc/"):
            with pytest.raises(InvalidNameError):
                list(sink.list(prefix))

    def test_plain_settings_do_where_the_sink_says_so(self, sink: Sink) -> None:
        """With `plain_config`, an object with the same attributes opens the same place."""
        if not sink.plain_config:
            pytest.skip("this sink is always given a validated Config")
        again = type(sink)(plain_settings(sink.config))
        again.put("a/b", b"data")
        assert again.root == sink.root
        assert read_bytes(sink, "a/b") == b"data"
        assert [stored.key for stored in again.list("a/")] == ["a/b"]
        again.delete(["a/b"])
        again.close()

    def test_root_and_url_name_the_place(self, sink: Sink, other: Sink) -> None:
        """Instances on one store have one root; a URL begins with it and ends with the key."""
        assert sink.root == other.root
        assert not sink.root.endswith("/") or sink.root.endswith("://")
        assert sink.url("a/file.bin").startswith(sink.root)
        assert sink.url("a/file.bin").replace("\\", "/").endswith("/a/file.bin")

    def test_keys_that_look_alike_are_two(self, sink: Sink, other: Sink) -> None:
        """Another case or Unicode form is another key, unless the sink says `case_blind`."""
        for one, two in ALIKE:
            sink.put(one, b"one")
            sink.put(two, b"two")
        merged = [pair for pair in ALIKE if read_bytes(other, pair[0]) != b"one"]
        assert bool(merged) == sink.case_blind
        if not merged:
            assert keys(other) == sorted(key for pair in ALIKE for key in pair)
