"""The suites that Model Manager ships for plugins, and what only this plugin promises."""

from __future__ import annotations

import sqlite3
import threading

import mm_hello
import pytest
from mm_hello.sink import HelloSink
from mm_hello.source import HelloSource

from mm_core import AlreadyExistsError, NotFoundError, Plugins, Request, UsageError
from mm_core.testing.sources import SourceTests


class TestHelloSource(SourceTests):
    """The suite for sources, on a model with more than 1 MiB of weights."""

    @pytest.fixture
    def source(self):
        return HelloSource(HelloSource.Config(times=100_000))

    @pytest.fixture
    def url(self):
        return "hello://world"

    @pytest.fixture
    def unknown_url(self):
        return "hello://nobody"

    @pytest.fixture
    def expected(self):
        said = b"Hello, world!\n"
        header = b'{"greeting": {"dtype": "U8", "shape": [1400000], "data_offsets": [0, 1400000]}}'
        header += b" " * (-len(header) % 8)
        return {
            "config.json": b'{"model_type": "hello", "name": "world"}',
            "greeting.txt": said,
            "model.safetensors": len(header).to_bytes(8, "little") + header + said * 100_000,
        }


def greeting(source: HelloSource, url: str) -> str:
    snapshot = source.snapshot(Request(url=url))
    (file,) = [f for f in snapshot.files if f.path == "greeting.txt"]
    return b"".join(bytes(b) for b in source.read(file)).decode()


def test_the_plugin_is_whole():
    """Model Manager finds nothing wrong with it, and finds both by URL."""
    plugins = Plugins([mm_hello])
    assert plugins.broken == {}
    assert plugins.source_for("hello://world") is HelloSource
    assert plugins.sink_for("hello:///tmp/x.sqlite") is HelloSink


def test_the_greeting_can_be_set():
    """The setting changes the bytes, and with them the revision."""
    usual, polite = HelloSource(), HelloSource(HelloSource.Config(greeting="Good day"))
    assert greeting(usual, "hello://world") == "Hello, world!\n"
    assert greeting(polite, "hello://world") == "Good day, world!\n"
    one, two = (s.snapshot(Request(url="hello://world")) for s in (usual, polite))
    assert one.revision != two.revision


def test_some_names_are_refused():
    """Nobody is not found; no name at all is the caller's mistake."""
    with pytest.raises(NotFoundError):
        HelloSource().snapshot(Request(url="hello://nobody"))
    with pytest.raises(UsageError):
        HelloSource().snapshot(Request(url="hello://"))


def test_one_of_many_creators_wins(tmp_path):
    """Eight threads with a connection each: one returns, seven are told that it is there."""
    config = HelloSink.Config(root=f"hello://{tmp_path / 'store.sqlite'}")
    sinks = [HelloSink(config) for _ in range(8)]
    for round_ in range(5):
        start, outcomes = threading.Barrier(8), []

        def create(
            sink: HelloSink, me: int, start=start, outcomes=outcomes, key=f"k{round_}"
        ) -> None:
            start.wait()
            try:
                sink.create(key, b"%d" % me)
                outcomes.append(me)
            except AlreadyExistsError:
                outcomes.append(None)

        threads = [threading.Thread(target=create, args=(s, i)) for i, s in enumerate(sinks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [me for me in outcomes if me is not None]
        assert len(outcomes) == 8
        assert b"".join(map(bytes, sinks[0].read(f"k{round_}"))) == b"%d" % winner


def test_a_failed_write_leaves_no_rows(tmp_path):
    """Blocks of a write that did not end are gone from the file as well."""
    sink = HelloSink(HelloSink.Config(root=f"hello://{tmp_path / 'store.sqlite'}"))

    def cut():
        yield b"x" * 3_000_000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        sink.write("k", cut(), size=None)
    connection = sqlite3.connect(tmp_path / "store.sqlite")
    assert connection.execute("SELECT count(*) FROM blocks").fetchone() == (0,)
    connection.close()
