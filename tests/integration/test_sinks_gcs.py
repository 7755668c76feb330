"""What only GCS can show: pages, metadata, and what its errors mean."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from mm_core import (
    AlreadyExistsError,
    AuthError,
    ConfigError,
    MMError,
    NotFoundError,
    StorageError,
    TransientError,
)
from mm_core.sink import read_bytes
from mm_plugins.sinks import _patience
from mm_plugins.sinks import gcs as gcs_module
from mm_plugins.sinks.gcs import GcsSink

pytestmark = pytest.mark.integration

SECRET = "ya29.a0-secret-access-token"


def open_sink(root, **options) -> GcsSink:
    return GcsSink(GcsSink.Config(root=root, options=options))


@pytest.mark.parametrize("root", ["gs://", "gs:///x", "gs://b/x?y", "s3://b", "b/x"])
def test_what_is_no_prefix_is_refused(root):
    """A root that GCS would misread is a ConfigError."""
    with pytest.raises(ConfigError):
        open_sink(root)


def test_gcs_is_gs(gcs):
    """Both schemes name the same place."""
    open_sink(gcs.replace("gs://", "gcs://")).put("key", b"x")
    assert read_bytes(open_sink(gcs), "key") == b"x"
    assert open_sink(gcs.replace("gs://", "gcs://") + "/").root == gcs


def test_pages_are_joined(gcs, monkeypatch):
    """A listing of more than one page is complete and in order."""
    monkeypatch.setattr(gcs_module, "_PAGE", 3)
    sink = open_sink(gcs)
    names = [f"{number:02}" for number in range(10)]
    for name in names:
        sink.put(name, b"")
    assert [o.key for o in sink.list("")] == names


def test_a_sink_works_again_after_it_was_closed(gcs):
    """Closing gives the connections back; the next call makes new ones."""
    sink = open_sink(gcs)
    sink.put("a", b"x")
    sink.close()
    assert read_bytes(sink, "a") == b"x"


def test_a_bucket_that_is_not_there_is_told(gcs):
    """NotFoundError, which names the bucket."""
    sink = open_sink("gs://no-such-bucket-here/x")
    for attempt in (lambda: sink.put("a", b""), lambda: list(sink.list(""))):
        with pytest.raises(NotFoundError, match="no-such-bucket-here"):
            attempt()


@pytest.fixture
def refusing(monkeypatch):
    """A server that answers each request with the status that is set."""
    status = [500]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"error": {"message": f"told, Bearer {SECRET}"}}).encode()
            self.send_response(status[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_patience.time, "sleep", lambda _: None)
        yield (
            open_sink("gs://bucket/x", endpoint_url=f"http://127.0.0.1:{server.server_port}"),
            status,
        )
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, StorageError),
        (401, AuthError),
        (403, AuthError),
        (404, NotFoundError),
        (408, TransientError),
        (409, TransientError),
        (412, AlreadyExistsError),
        (429, TransientError),
        (500, TransientError),
        (503, TransientError),
    ],
)
def test_each_answer_is_one_of_our_errors(refusing, status, expected):
    """By status, in each call, and no secret of the answer is in it."""
    sink, answer = refusing
    answer[0] = status
    attempts = [lambda: sink.create("a", b"x"), lambda: list(sink.list(""))]
    if status != 404:
        attempts += [lambda: sink.stat("a"), lambda: sink.delete(["a"])]
    for attempt in attempts:
        with pytest.raises(MMError) as caught:
            attempt()
        assert type(caught.value) is expected
        assert SECRET not in str(caught.value)
    with pytest.raises(expected):
        list(sink.read("a"))


def test_a_key_file_that_is_none_is_an_auth_error(tmp_path, gcs, monkeypatch):
    """The way to credentials is told; the token is not."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"type": "service_account", "private_key": SECRET}))
    sink = open_sink(gcs, token=str(key))
    assert str(key) not in repr(sink.config)
    with pytest.raises(AuthError) as caught:
        sink.stat("a")
    assert caught.value.hint
    assert SECRET not in str(caught.value)
