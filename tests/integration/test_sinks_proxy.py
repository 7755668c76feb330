"""Proxies of the environment stand before S3 and GCS, and not before servers on loopback."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mm_core.sink import read_bytes
from mm_plugins.sinks.gcs import GcsSink
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration

NOWHERE = "http://storage.invalid"


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that finds nothing anywhere; the URLs that it was asked for."""
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def answer(self):
            asked.append(self.path)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET = do_PUT = do_POST = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        yield asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("kind", "root", "variable"),
    [
        (S3Sink, "s3://bucket/prefix", "AWS_ENDPOINT_URL"),
        (GcsSink, "gs://bucket/prefix", "STORAGE_EMULATOR_HOST"),
    ],
)
def test_a_store_is_asked_through_the_proxy(proxy, monkeypatch, kind, root, variable):
    """HTTP_PROXY holds for the sinks."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv(variable, NOWHERE)
    assert kind(kind.Config(root=root)).stat("key") is None
    assert [url.startswith(NOWHERE) for url in proxy] == [True]


def test_a_test_server_is_reached_without_the_proxy(proxy, bucket):
    """The environment that the servers give keeps a proxy out of the way."""
    kind = S3Sink if bucket.startswith("s3") else GcsSink
    sink = kind(kind.Config(root=bucket))
    sink.put("key", b"data")
    assert read_bytes(sink, "key") == b"data"
    assert proxy == []


@pytest.fixture(params=["s3", "gcs"])
def bucket(request):
    return request.getfixturevalue(request.param)
