"""The sinks on stores behind a network that cuts, refuses, truncates and turns bits."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_core import AlreadyExistsError, IntegrityError, MMError, NotFoundError, TransientError
from mm_core.sink import read_bytes, read_if_exists
from mm_core.testing.material import cut, digest, noise, sha256
from mm_core.testing.proxy import FAULTS, FaultProxy
from mm_plugins.sinks import _gcs_checksums, _patience
from mm_plugins.sinks._gcs_api import GcsApi
from mm_plugins.sinks.gcs import GcsSink
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration

MIB = 1 << 20
SOME_FAULTS = ("cut_before", "cut_after", "503_after", "truncate")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same number of attempts, without the waiting between them."""
    monkeypatch.setattr(_patience.time, "sleep", lambda _: None)


@pytest.fixture
def s3_proxy(s3_server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url, seed=1) as proxy:
        yield proxy


@pytest.fixture
def gcs_proxy(gcs_server) -> Iterator[FaultProxy]:
    with FaultProxy(gcs_server.endpoint_url, seed=1) as proxy:
        yield proxy


@pytest.fixture
def s3_sink(s3, s3_proxy, monkeypatch) -> S3Sink:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint_url)
    return S3Sink(S3Sink.Config(root=s3))


@pytest.fixture
def gcs_sink(gcs, gcs_proxy, monkeypatch) -> GcsSink:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_proxy.endpoint_url)
    return GcsSink(GcsSink.Config(root=gcs))


@pytest.fixture(params=["s3", "gcs"])
def store(request):
    """A sink, and the proxy before its store."""
    name = request.param
    return request.getfixturevalue(f"{name}_sink"), request.getfixturevalue(f"{name}_proxy")


def test_each_single_fault_is_outlived(store):
    """Everything that may be done twice is: a fault of any kind in any call changes nothing."""
    sink, proxy = store
    for fault in SOME_FAULTS:
        for call in (
            lambda: sink.put("a", b"text"),
            lambda: read_bytes(sink, "a"),
            lambda: sink.stat("a"),
            lambda: list(sink.list("")),
            lambda: sink.copy("a", "b"),
            lambda: sink.delete(["b"]),
        ):
            proxy.inject(fault)
            call()
        assert read_bytes(sink, "a") == b"text"
        assert [o.key for o in sink.list("")] == ["a"]
    assert len(proxy.faults) == 6 * len(SOME_FAULTS)


def test_a_damaged_answer_is_an_error_of_ours(store):
    """Whatever an answer says after a bit of it was turned: it is done, or one of our errors is raised."""
    sink, proxy = store
    sink.put("a", b"text")
    for call in (
        lambda: sink.put("a", b"text"),
        lambda: sink.create("c", b"text"),
        lambda: sink.stat("a"),
        lambda: list(sink.list("")),
        lambda: sink.copy("a", "b"),
        lambda: sink.delete(["b"]),
    ):
        for count in range(1, 4):
            proxy.inject("flip_answer", times=count)
            with contextlib.suppress(MMError):
                call()
    proxy.clear()
    sink.put("a", b"text")
    assert read_bytes(sink, "a") == b"text"


def test_a_store_that_stays_down_is_a_transient_error(store):
    """After five attempts the caller decides."""
    sink, proxy = store
    proxy.inject("503_before", times=1000)
    for call in (lambda: sink.put("a", b""), lambda: sink.stat("a"), lambda: list(sink.read("a"))):
        before = proxy.count()
        with pytest.raises(TransientError):
            call()
        assert proxy.count() - before == 5


def test_no_answer_of_a_server_that_is_not_there_is_a_transient_error(s3, gcs, monkeypatch):
    """A refused connection is no absence: never NotFoundError, never None."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    for sink in (S3Sink(S3Sink.Config(root=s3)), GcsSink(GcsSink.Config(root=gcs))):
        with pytest.raises(TransientError):
            sink.stat("a")


def test_a_long_read_goes_on_where_it_was_cut(store):
    """A cut in the middle of a file costs the rest, not the file."""
    sink, proxy = store
    data = noise(17 * MIB)
    sink.write("file", cut(data), size=len(data))
    proxy.inject("truncate", method="GET", times=3)
    assert digest(sink.read("file", 5, 17 * MIB - 5)) == sha256(data[5:-5])
    assert len(proxy.faults) == 3


def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(store):
    """After a cut, the rest of another object is an error."""
    sink, proxy = store
    sink.write("file", cut(noise(17 * MIB)), size=None)
    proxy.inject("truncate", method="GET")
    with pytest.raises(IntegrityError):
        for number, _ in enumerate(sink.read("file")):
            if number == 0:
                sink.write("file", cut(bytes(17 * MIB)), size=None)


# -- uploads -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", SOME_FAULTS)
def test_an_s3_upload_outlives_a_fault_in_every_request(s3_sink, s3_proxy, fault):
    """Start, each part and the end may fail once, before or after S3 acted: the file is whole."""
    data = noise(17 * MIB)
    s3_proxy.inject(fault, method="PUT", times=2)
    s3_proxy.inject(fault, method="POST")
    s3_proxy.inject(fault, method="POST", skip=1)
    s3_sink.write("file", cut(data), size=len(data))
    assert len(s3_proxy.faults) == 4
    assert digest(s3_sink.read("file")) == sha256(data)


@pytest.mark.parametrize("fault", ["cut_before", "503_after"])
@pytest.mark.parametrize("number", [0, 2])
def test_an_upload_that_fails_for_good_changes_nothing(store, fault, number):
    """Whichever request fails to the end: what stood before stands, and nothing is listed."""
    sink, proxy = store
    sink.put("file", b"before")
    proxy.inject(fault, method="PUT", skip=number, times=1000)
    with pytest.raises(TransientError):
        sink.write("file", cut(noise(25 * MIB)), size=25 * MIB)
    if fault == "cut_before" or number < 2:
        assert read_bytes(sink, "file") == b"before"
    assert [o.key for o in sink.list("")] == ["file"]


def test_bits_turned_on_their_way_to_s3_never_become_a_file(s3_sink, s3_proxy):
    """A damaged part is sent again; a small damaged object is an IntegrityError and goes."""
    data = noise(17 * MIB)
    s3_proxy.inject("flip_request", method="PUT", path="partNumber=2")
    s3_sink.write("file", cut(data), size=len(data))
    assert digest(s3_sink.read("file")) == sha256(data)
    s3_proxy.inject("flip_request", method="PUT")
    with pytest.raises(IntegrityError):
        s3_sink.put("small", b"x" * 1000)
    assert read_if_exists(s3_sink, "small") is None
    assert len(s3_proxy.faults) == 2


@pytest.fixture(params=["crc32c", "md5"])
def checksum(request, monkeypatch) -> str:
    """With the package for crc32c, and without."""
    if request.param == "md5":
        monkeypatch.setattr(_gcs_checksums, "_crc32c", lambda: None)
    return request.param


@pytest.mark.usefixtures("checksum")
def test_bits_turned_on_their_way_to_an_emulator_are_found(gcs_sink, gcs_proxy):
    """A server that ignores the checksum is given away by the one it tells, and the file goes."""
    for method, size in (("POST", 1000), ("PUT", 17 * MIB)):
        gcs_proxy.inject(
            "flip_request", method=method, path="uploadType" if size < MIB else "upload_id"
        )
        with pytest.raises(IntegrityError):
            gcs_sink.write("file", cut(noise(size)), size=size)
        assert read_if_exists(gcs_sink, "file") is None
    assert len(gcs_proxy.faults) == 2


def test_the_end_of_an_upload_is_recognised_by_what_stands_there(s3_sink, s3_proxy):
    """S3 forgets an upload that it ended: where the answer is lost, the object's ETag tells."""
    data = noise(17 * MIB)
    s3_proxy.inject("cut_after", method="POST", path="uploadId")
    s3_proxy.inject("503_before", method="POST", path="uploadId", times=1000)
    s3_sink.write("file", cut(data), size=len(data))
    assert digest(s3_sink.read("file")) == sha256(data)
    s3_proxy.inject("cut_before", method="POST", path="uploadId")
    with pytest.raises(TransientError):
        s3_sink.write("file", cut(noise(9 * MIB)), size=9 * MIB)
    assert digest(s3_sink.read("file")) == sha256(data)


# -- create ------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_create_in_doubt_never_lies(store, fault):
    """It returns only if the object is its own, and says "exists" only if it is another's."""
    sink, proxy = store
    proxy.inject(fault, method="PUT" if isinstance(sink, S3Sink) else "POST")
    try:
        sink.create("log/1", b"mine")
    except AlreadyExistsError:
        pytest.fail("its own object was taken for another's")
    except TransientError:
        assert read_if_exists(sink, "log/1") in (b"mine", None)
    else:
        assert read_bytes(sink, "log/1") == b"mine"
    assert len(proxy.faults) == 1
    if read_if_exists(sink, "log/1") is not None:
        proxy.inject(fault)
        with pytest.raises((AlreadyExistsError, TransientError)):
            sink.create("log/1", b"another's")
        assert read_bytes(sink, "log/1") == b"mine"


def test_two_creators_of_the_same_bytes_are_told_apart(store):
    """Bytes that are equal are not one's own: the second creator is told so, faults or not."""
    sink, proxy = store
    sink.create("a", b"same")
    for fault in (None, "cut_after", "503_after"):
        if fault:
            proxy.inject(fault)
        with pytest.raises((AlreadyExistsError, TransientError)):
            sink.create("a", b"same")


def test_a_numbered_log_loses_and_doubles_nothing_at_twenty_percent_faults(store):
    """Four writers, each call at risk: read back in doubt, every entry stands exactly once."""
    sink, proxy = store
    proxy.rate = 0.2
    kind = type(sink)

    def write(writer: int) -> None:
        mine, number = kind(sink.config), 0
        for entry in range(8):
            body = json.dumps([writer, entry]).encode()
            while True:
                found = _commit(mine, f"log/{number:06}", body)
                if found is None:
                    continue
                number += 1
                if found == body:
                    break

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    proxy.rate = 0.0
    entries = [tuple(json.loads(read_bytes(sink, o.key))) for o in sink.list("log/")]
    assert sorted(entries) == [(writer, entry) for writer in range(4) for entry in range(8)]
    assert len(proxy.faults) > 20


def _commit(sink, key: str, body: bytes) -> bytes | None:
    """What stands under `key` after an attempt to create it; None if that is not known."""
    try:
        sink.create(key, body)
    except MMError:
        try:
            return read_if_exists(sink, key)
        except TransientError:
            return None
    return body


# -- GCS as Google runs it ----------------------------------------------------------

SESSION = "ABPtcPr-session"


class GoogleLike:
    """The resumable protocol as Google documents it, with a persisted prefix and no mercy."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.kept = bytearray()
        self.keep_at_most = 1 << 60
        self.hashes: list[str | None] = []
        self.spans: list[str] = []

    def put(self, span: str, body: bytes, hashed: str | None) -> tuple[int, dict[str, str], bytes]:
        import base64
        import hashlib

        import google_crc32c  # gcsfs brings it along

        self.spans.append(span)
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", span)
        assert found, span
        if found[1] is not None:
            if int(found[1]) != len(self.kept):
                return 400, {}, b'{"error": {"message": "a gap, or bytes sent twice"}}'
            assert int(found[2]) - int(found[1]) + 1 == len(body)
            self.kept += body[: self.keep_at_most]
        if found[3] == "*" or len(self.kept) < int(found[3]):
            kept = {"Range": f"bytes=0-{len(self.kept) - 1}"} if self.kept else {}
            return 308, kept, b""
        crc32c = google_crc32c.value(bytes(self.kept)).to_bytes(4, "big")
        sums = {"crc32c": crc32c, "md5": hashlib.md5(self.kept).digest()}
        told = {word: base64.b64encode(digest).decode() for word, digest in sums.items()}
        self.hashes.append(hashed)
        if hashed is not None and hashed not in {f"{word}={text}" for word, text in told.items()}:
            return 400, {}, b'{"error": {"message": "Provided hash is another"}}'
        self.objects["file"] = bytes(self.kept)
        return 200, {}, json.dumps({"size": len(self.kept), "crc32c": told["crc32c"]}).encode()


@pytest.fixture
def google(monkeypatch) -> Iterator[tuple[GcsSink, GoogleLike, FaultProxy]]:
    model = GoogleLike()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            model.kept = bytearray()
            base = f"http://127.0.0.1:{self.server.server_port}"
            self._say(200, {"Location": f"{base}/session?upload_id={SESSION}"}, b"")

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._say(*model.put(self.headers["Content-Range"], body, self.headers["X-Goog-Hash"]))

        def do_DELETE(self):
            self._say(499, {}, b"")

        def _say(self, status, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with FaultProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.endpoint_url)
        monkeypatch.setattr(GcsApi, "is_googles", True)
        yield GcsSink(GcsSink.Config(root="gs://bucket/prefix")), model, proxy
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", SOME_FAULTS)
def test_a_gcs_upload_goes_on_after_a_fault_in_every_request(google, fault):
    """Google is asked what it has and gets the rest: the file is whole, its sum went along."""
    sink, model, proxy = google
    data = noise(25 * MIB)
    for skip in (0, 2, 4, 6):
        proxy.inject(fault, method="PUT", skip=skip)
    sink.write("file", cut(data), size=len(data))
    assert sha256(model.objects["file"]) == sha256(data)
    assert all(hashed.startswith("crc32c=") for hashed in model.hashes)
    assert len(proxy.faults) > 1


def test_what_google_kept_of_a_part_is_not_sent_again(google):
    """Google may keep less than it was sent: the rest follows."""
    sink, model, _ = google
    model.keep_at_most = 3 * MIB
    data = noise(9 * MIB)
    sink.write("file", cut(data), size=len(data))
    assert model.objects["file"] == data
    assert model.spans[:3] == [
        f"bytes 0-{8 * MIB - 1}/*",
        f"bytes {3 * MIB}-{8 * MIB - 1}/*",
        f"bytes {6 * MIB}-{8 * MIB - 1}/*",
    ]


def test_google_refuses_bytes_that_were_damaged_on_their_way(google, checksum):
    """With the last part goes their sum: an object of other bytes is never made."""
    sink, model, proxy = google
    proxy.inject("flip_request", method="PUT")
    with pytest.raises(MMError) as caught:
        sink.write("file", cut(noise(17 * MIB)), size=None)
    assert not isinstance(caught.value, NotFoundError)
    assert model.objects == {}
    assert [hashed.partition("=")[0] for hashed in model.hashes] == [checksum]


def test_no_fault_of_an_upload_tells_its_url(google):
    """Who has the URL of an upload may write to it: errors name the object."""
    sink, _, proxy = google
    proxy.inject("cut_before", method="PUT", times=1000)
    with pytest.raises(TransientError) as caught:
        sink.write("file", cut(noise(9 * MIB)), size=None)
    assert "gs://bucket/prefix/file" in str(caught.value)
    assert SESSION not in str(caught.value)
    cause = caught.value.__cause__
    assert cause is None or SESSION not in str(cause)
