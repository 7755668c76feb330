"""What only GCS can show: pages, metadata, and what its errors mean."""

from __future__ import annotations

import http.server
import json
import sys
import threading

import pytest

from mm_core import (
    AlreadyExistsError,
    AuthError,
    CancelledError,
    ConfigError,
    MMError,
    NoStoreError,
    NotFoundError,
    StorageError,
    TransientError,
)
from mm_core.sink import read_bytes
from mm_core.testing.material import cut, noise
from mm_plugins.sinks import _gcs_checksums, _patience
from mm_plugins.sinks import gcs as gcs_module
from mm_plugins.sinks._gcs_api import GcsApi
from mm_plugins.sinks._gcs_checksums import begin_checksum, checksum_of, tells_other_bytes
from mm_plugins.sinks.gcs import GcsSink

pytestmark = pytest.mark.integration

MIB = 1 << 20
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
    """NoStoreError, which names the bucket, and what to do."""
    sink = open_sink("gs://no-such-bucket-here/x")
    for attempt in (lambda: sink.put("a", b""), lambda: list(sink.list(""))):
        with pytest.raises(NoStoreError, match="no-such-bucket-here") as caught:
            attempt()
        assert "bucket" in caught.value.hint


@pytest.fixture
def refusing(monkeypatch):
    """A server that answers each request with the status that is set."""
    status, words = [500], ["told"]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"error": {"message": f"{words[0]}, Bearer {SECRET}"}}).encode()
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
            words,
        )
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, StorageError),
        (401, AuthError),
        (403, AuthError),
        (404, NoStoreError),
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
    sink, answer, words = refusing
    answer[0] = status
    attempts = [lambda: sink.create("a", b"x"), lambda: list(sink.list(""))]
    if status != 404:
        attempts += [lambda: sink.stat("a"), lambda: sink.delete(["a"])]
    for attempt in attempts:
        with pytest.raises(MMError) as caught:
            attempt()
        assert type(caught.value) is expected
        assert SECRET not in str(caught.value)
    if status == 404:
        with pytest.raises(NotFoundError):
            list(sink.read("a"))
        words[0] = "The specified bucket does not exist."
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


# -- bytes ---------------------------------------------------------------------------


class Recorder:
    """A GCS that takes each part in its own time, and remembers who asked for what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.part_came = threading.Event()
        self.body = b"0123456789"
        self.heeds_ranges = True

    def heads(self, method: str, path: str) -> list[dict[str, str]]:
        return [heads for verb, target, heads in self.asked if verb == method and path in target]


@pytest.fixture
def recorder(monkeypatch):
    """Such a server, and a maker of sinks on it whose credentials are a bearer token."""
    recorder = Recorder()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self._body()
            self._note()
            place = f"http://127.0.0.1:{self.server.server_port}/session?upload_id=abc"
            self._say(200, {"Location": place}, b'{"size": 1}')

        def do_PUT(self):
            self._body()
            recorder.part_came.set()
            recorder.may_answer.wait(20)
            self._note()
            span, total = self.headers["Content-Range"].removeprefix("bytes ").split("/")
            if total == "*":
                self._say(308, {"Range": f"bytes=0-{span.partition('-')[2]}"}, b"")
            else:
                self._say(200, {}, json.dumps({"size": total}).encode())

        def do_GET(self):
            self._note()
            first = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            if first and recorder.heeds_ranges:
                rest = recorder.body[int(first) :]
                told = {"Content-Range": f"bytes {first}-{len(recorder.body) - 1}/*"}
                self._say(206, told, rest)
            else:
                self._say(200, {}, recorder.body)

        def do_DELETE(self):
            self._note()
            self._say(499, {}, b"")

        def _body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _note(self):
            recorder.asked.append((self.command, self.path, dict(self.headers)))

        def _say(self, status, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def make(transfer="auto", **options) -> GcsSink:
        config = {"root": "gs://bucket/x", "transfer": transfer, "options": options}
        sink = GcsSink(GcsSink.Config(**config))
        sink._api._fs.credentials = Bearer()
        return sink

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        yield recorder, make
        recorder.may_answer.set()
        server.shutdown()


class Bearer:
    """Credentials as gcsfs holds them; `error` is what a refresh ends in."""

    def __init__(self, error=None):
        self.error = error

    def apply(self, headers):
        if self.error is not None:
            raise self.error
        headers["Authorization"] = f"Bearer {SECRET}"


@pytest.mark.parametrize("transfer", ["auto", "direct", "fsspec"])
def test_every_byte_is_sent_by_gcsfs_credentials(recorder, transfer):
    """Each way of the bytes: the token of gcsfs, and who pays."""
    server, make = recorder
    sink = make(transfer, requester_pays="payer")
    sink.write("file", cut(noise(9 * MIB)), size=9 * MIB)
    assert read_bytes_from(sink, 4) == b"456789"
    assert [method for method, _, _ in server.asked] == ["POST", "PUT", "PUT", "GET"]
    for _, target, heads in server.asked:
        assert heads["Authorization"] == f"Bearer {SECRET}"
        assert heads["User-Agent"].startswith("python-gcsfs/")
        assert "userProject=payer" in target
    by_aiohttp = ["Accept-Encoding" in h for _, _, h in server.asked]
    assert by_aiohttp == ([True] * 4 if transfer == "fsspec" else [True, False, False, False])


def test_a_client_certificate_is_presented_by_gcsfs(recorder):
    """Connections of our own have none: `auto` leaves bytes to gcsfs, `direct` says why not."""
    server, make = recorder
    sink = make()
    sink._api._fs._use_client_cert = True
    assert read_bytes(sink, "file") == server.body
    assert "Accept-Encoding" in server.heads("GET", "file")[0]
    sink = make("direct")
    sink._api._fs._use_client_cert = True
    with pytest.raises(ConfigError, match="certificate"):
        read_bytes(sink, "file")


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_another_range_than_was_asked_for_is_no_mixture(recorder, transfer):
    """A server that sends the whole in place of its end is an error."""
    server, make = recorder
    server.heeds_ranges = False
    with pytest.raises(StorageError, match="range"):
        read_bytes_from(make(transfer), 4)


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_credentials_that_were_taken_back_are_an_auth_error(recorder, transfer):
    """gcsfs tells a refresh that failed as a 401 of its own."""
    from gcsfs.retry import HttpError

    sink = recorder[1](transfer)
    sink._api._fs.credentials = Bearer(HttpError({"code": 401, "message": "Invalid Credentials"}))
    for call in (lambda: sink.put("a", b"x"), lambda: read_bytes(sink, "a")):
        with pytest.raises(AuthError) as caught:
            call()
        assert caught.value.hint


def test_the_next_part_is_made_while_one_is_sent(recorder):
    """The source is read on until the second part is whole, with the first still on its way."""
    server, make = recorder
    server.may_answer.clear()

    def chunks():
        for number in range(17):
            if number == 15:
                assert server.heads("PUT", "") == []
                server.may_answer.set()
            yield noise(MIB)

    make().write("file", chunks(), size=17 * MIB)
    assert len(server.heads("PUT", "session")) == 3


def test_a_source_that_breaks_while_a_part_is_sent_leaves_nothing(recorder):
    """Its error is the one that is raised; the upload is cancelled once the part has arrived."""
    server, make = recorder
    server.may_answer.clear()
    raised = OSError("the source broke")

    def chunks():
        yield from cut(noise(9 * MIB))
        assert server.part_came.wait(20)
        threading.Timer(0.3, server.may_answer.set).start()
        raise raised

    with pytest.raises(OSError, match="the source broke") as caught:
        make().write("file", chunks(), size=17 * MIB)
    assert caught.value is raised
    assert [method for method, _, _ in server.asked] == ["POST", "PUT", "DELETE"]
    for thread in threading.enumerate():
        if thread.name == "mm-gcs":
            thread.join(5)
            assert not thread.is_alive()


def test_an_upload_that_is_given_up_is_not_tried_again(recorder, monkeypatch):
    """Who waits for the last part on its way does not wait for all its tries."""
    _, make = recorder
    monkeypatch.setattr(GcsApi, "is_googles", True)
    upload = make()._begin("file")
    tries = []

    def put(*_, **__):
        tries.append(1)
        upload._cancelled.set()
        raise TransientError("later")

    monkeypatch.setattr(upload, "_put", put)
    upload.append(bytearray(1 << 18))
    with pytest.raises(CancelledError):
        upload._settle()
    assert len(tries) == 1


# -- checksums -----------------------------------------------------------------------


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_crc32c_is_what_gcs_computes(view):
    """The check value of the algorithm, whole and in pieces, of any buffer."""
    for pieces in ([b"123456789"], [b"1234", b"", b"56789"]):
        checksum = begin_checksum()
        for piece in pieces:
            checksum.update(view(piece))
        assert (checksum.word, checksum.encoded()) == ("crc32c", "4waSgw==")


def test_md5_stands_in_without_the_package(monkeypatch):
    """An installation without crc32c proves its bytes all the same."""
    monkeypatch.setitem(sys.modules, "crc32c", None)
    _gcs_checksums._crc32c.cache_clear()
    try:
        checksum = checksum_of(b"")
    finally:
        _gcs_checksums._crc32c.cache_clear()
    assert (checksum.field, checksum.encoded()) == ("md5Hash", "1B2M2Y8AsgTpgAmY7PhCfg==")


@pytest.mark.parametrize(
    ("record", "differs"),
    [
        ({}, False),
        ({"crc32c": "4waSgw=="}, False),
        ({"crc32c": "AAAAAA=="}, True),
        ({"md5Hash": "JfnnlDI7RTiF9RgfG2JNCw=="}, False),
        ({"md5Hash": "AAAA"}, True),
        ({"crc32c": "4waSgw==", "md5Hash": "AAAA"}, False),
    ],
)
def test_what_the_record_tells_is_compared(record, differs):
    """The crc32c, or the md5 where only that is told."""
    data = b"123456789"
    assert tells_other_bytes(record, checksum_of(data), data) is differs


def read_bytes_from(sink, start) -> bytes:
    return b"".join(bytes(buffer) for buffer in sink.read("file", start))
