"""S3's bytes by connections of our own: what is sent, what is believed, what is taken up again."""

from __future__ import annotations

import base64
import contextlib
import http.server
import logging
import re
import threading
import tracemalloc
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from mm_core import (
    AuthError,
    ConfigError,
    ConflictError,
    IntegrityError,
    NoStoreError,
    StorageError,
    TransientError,
    UploadLostError,
)
from mm_core.sink import read_bytes, read_if_exists
from mm_core.testing.material import cut, digest, noise, sha256
from mm_core.testing.proxy import FaultProxy
from mm_core.testing.s3 import MinistackServer
from mm_plugins.sinks import _patience, _s3_direct, _s3_upload
from mm_plugins.sinks import s3 as s3_module
from mm_plugins.sinks._s3_api import S3Api
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration

MIB = 1 << 20
PART = 8 * MIB
SIZE = 20 * MIB
KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzEXAMPLEsessionTOKEN"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same number of attempts, without the waiting between them."""
    monkeypatch.setattr(_patience.time, "sleep", lambda _: None)


@pytest.fixture(scope="module")
def ministack():
    with MinistackServer() as server:
        yield server


@pytest.fixture
def checking(ministack, monkeypatch):
    """A bucket on a server that compares checksums."""
    for name, value in ministack.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    ministack.make_bucket(bucket)
    return f"s3://{bucket}/some/prefix"


def open_sink(root, transfer="direct", **options) -> S3Sink:
    return S3Sink(S3Sink.Config(root=root, transfer=transfer, options=options))


def client():
    import botocore.session

    return botocore.session.get_session().create_client("s3")


def begin(sink, size=SIZE, identity="sha256:aa", key="big"):
    upload = sink.begin_upload(key, size=size, identity=identity)
    assert upload is not None
    return upload


def part(data, number):
    return memoryview(data)[number * PART : (number + 1) * PART]


class Script:
    """A server that says what a test tells it to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer = lambda method, query, headers, body: (200, {}, b"")

    def of(self, method: str, **query: str) -> list[tuple[str, str, dict[str, str], bytes]]:
        """The requests by `method` whose query has all of `query`."""
        return [
            asked
            for asked in self.asked
            if asked[0] == method and query.items() <= _query(asked[1]).items()
        ]


def _query(path: str) -> dict[str, str]:
    return {n: v[0] for n, v in parse_qs(urlsplit(path).query, keep_blank_values=True).items()}


@pytest.fixture
def script():
    """A server that plays S3 by a script: its URL is `script.url`."""
    played = Script()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def play(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            played.asked.append((self.command, self.path, headers, body))
            status, extra, answer = played.answer(self.command, _query(self.path), headers, body)
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = play

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        played.url = f"http://127.0.0.1:{server.server_port}"
        yield played
        server.shutdown()


def scripted(script, transfer="direct", **options) -> S3Sink:
    given = {"key": KEY, "secret": SECRET, "token": TOKEN, **options}
    return open_sink("s3://bucket/x", transfer, endpoint_url=script.url, **given)


def crc32(data) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def error(status, code, **headers):
    return status, headers, f"<Error><Code>{code}</Code><Message>told</Message></Error>".encode()


def begun(method, query, headers, body):
    """S3's answers to the requests that come before the first part."""
    if method == "POST" and "uploads" in query:
        return 200, {}, b"<R><Bucket>bucket</Bucket><Key>x/big</Key><UploadId>id+/=</UploadId></R>"
    if method == "GET" and "uploads" in query:
        return 200, {}, b"<ListMultipartUploadsResult></ListMultipartUploadsResult>"
    if method == "GET" and "uploadId" in query:
        return 200, {}, b"<R><ChecksumAlgorithm>CRC32</ChecksumAlgorithm></R>"
    return 204, {}, b""


# -- what is sent -----------------------------------------------------------------


def test_a_part_is_one_put_of_its_bytes_with_their_checksum(script):
    """Signed as botocore would, payload unsigned, its CRC32 in a header that is signed."""
    told = []

    def answer(method, query, headers, body):
        if method != "PUT":
            return begun(method, query, headers, body)
        told.append(crc32(body))
        return 200, {"ETag": '"e"', "x-amz-checksum-crc32": told[-1]}, b""

    script.answer = answer
    upload, data = begin(scripted(script)), noise(SIZE)
    upload.write_part(2, part(data, 2))
    ((_, path, headers, body),) = script.of("PUT", partNumber="3", uploadId="id+/=")
    assert urlsplit(path).path == "/bucket/x/big"
    assert body == part(data, 2)
    assert headers["x-amz-checksum-crc32"] == crc32(body)
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert headers["x-amz-security-token"] == TOKEN
    assert "x-amz-checksum-crc32;" in headers["authorization"]
    ((_, _, created, _),) = script.of("POST", uploads="")
    assert created["x-amz-checksum-algorithm"] == "CRC32"


def test_small_files_go_the_same_way_with_what_is_set_for_each_write(script):
    """Encryption, metadata, storage class: as botocore would put them into headers."""
    script.answer = lambda method, query, headers, body: (200, {"ETag": '"e"'}, b"")
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k", "Metadata": {"team": "m l"}}
    sink = scripted(script, s3_additional_kwargs={**extra, "StorageClass": "STANDARD_IA"})
    sink.write("small", [b"bytes"], size=5)
    ((_, _, headers, body),) = script.of("PUT")
    assert body == b"bytes"
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "k"
    assert headers["x-amz-meta-team"] == "m l"
    assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert headers["x-amz-checksum-crc32"] == crc32(b"bytes")


def test_without_credentials_nothing_is_signed(script):
    """`anon` is an answer, too."""
    script.answer = lambda method, query, headers, body: (200, {"ETag": '"e"'}, b"")
    sink = scripted(script, anon=True, key=None, secret=None, token=None)
    sink.write("small", [b"bytes"], size=5)
    ((_, _, headers, _),) = script.of("PUT")
    assert "authorization" not in headers
    assert "x-amz-date" not in headers


def test_the_ends_of_parts_carry_checksums_where_the_upload_was_begun_with_one(script):
    """S3 then asks for those of all parts."""

    def answer(method, query, headers, body):
        if method == "PUT":
            return 200, {"ETag": '"e"', "x-amz-checksum-crc32": crc32(body)}, b""
        if method == "POST" and "uploadId" in query:
            return 200, {}, b"<R><ETag>e</ETag></R>"
        if method == "HEAD":
            return 200, {"X-Size": "1"}, bytes(SIZE)
        return begun(method, query, headers, body)

    script.answer = answer
    upload, data = begin(scripted(script)), noise(SIZE)
    for number in range(3):
        upload.write_part(number, part(data, number))
    upload.commit()
    ((_, _, _, body),) = script.of("POST", uploadId="id+/=")
    told = re.findall(rb"<ChecksumCRC32>([^<]+)</ChecksumCRC32>", body)
    assert told == [crc32(part(data, number)).encode() for number in range(3)]


def test_a_stream_is_held_one_part_at_a_time(script):
    """Of 32 MiB where its size is unknown, plus what a growing buffer and a request need."""
    script.answer = lambda method, query, headers, body: (
        (200, {"ETag": '"e"'}, b"") if method == "PUT" else begun(method, query, headers, body)
    )
    sink, chunk = scripted(script), bytes(MIB)
    held: list[int] = []
    sink._objects.check_stored = lambda *_: None  # type: ignore[method-assign]
    sink._objects.put_part = lambda key, upload, number, data, composite: (  # type: ignore[method-assign]
        held.append(tracemalloc.get_traced_memory()[1]) or {"ETag": "e"}
    )
    sink.write("warm", (chunk for _ in range(33)), size=None)
    tracemalloc.start()
    try:
        sink.write("big", (chunk for _ in range(130)), size=None)
    finally:
        tracemalloc.stop()
    assert max(held) < 40 * MIB


# -- what is believed --------------------------------------------------------------


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_a_part_that_was_damaged_on_its_way_is_a_transient_error(
    s3, s3_server, monkeypatch, transfer
):
    """Where the server says nothing of checksums, its ETag tells; the same part again is fine."""
    with FaultProxy(s3_server.endpoint_url, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        sink, data = open_sink(s3, transfer), noise(SIZE)
        upload = begin(sink)
        proxy.inject("flip_request", method="PUT", path="partNumber=2")
        with pytest.raises(TransientError):
            upload.write_part(1, part(data, 1))
        for number in range(3):
            upload.write_part(number, part(data, number))
        upload.commit()
        assert digest(sink.read("big")) == sha256(data)


def test_a_server_that_compares_refuses_a_damaged_part_itself(checking, ministack, monkeypatch):
    """BadDigest, before anything is stored; a small file's is sent again."""
    with FaultProxy(ministack.endpoint_url, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        sink, data = open_sink(checking), noise(SIZE)
        upload = begin(sink)
        proxy.inject("flip_request", method="PUT", path="partNumber=2")
        with pytest.raises(TransientError):
            upload.write_part(1, part(data, 1))
        assert begin(open_sink(checking)).kept == frozenset()
        proxy.inject("flip_request", method="PUT")
        sink.write("small", [b"x" * 1000], size=1000)
        assert read_bytes(sink, "small") == b"x" * 1000


def test_another_checksum_than_was_sent_is_not_believed(script):
    """Of a part: TransientError. Of a small file: it goes again, and IntegrityError."""

    def answer(method, query, headers, body):
        if method != "PUT":
            return begun(method, query, headers, body)
        return 200, {"ETag": '"e"', "x-amz-checksum-crc32": crc32(b"other")}, b""

    script.answer = answer
    sink = scripted(script)
    with pytest.raises(TransientError, match="damaged"):
        begin(sink).write_part(0, part(noise(SIZE), 0))
    for stands, deleted in (('"other"', 0), ('"e"', 1)):
        script.answer = lambda method, query, headers, body, stands=stands: (
            answer(method, query, headers, body)
            if method == "PUT"
            else (200, {"ETag": stands} if method == "HEAD" else {}, b"<R></R>")
        )
        with pytest.raises(IntegrityError):
            sink.write("small", [b"x"], size=1)
        assert len(script.of("POST", delete="")) == deleted


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_a_small_file_that_was_damaged_on_its_way_is_sent_again(
    s3, s3_server, monkeypatch, transfer
):
    """As a part is; nothing is deleted meanwhile."""
    with FaultProxy(s3_server.endpoint_url, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        sink = open_sink(s3, transfer)
        proxy.inject("flip_request", method="PUT")
        sink.write("small", [b"x" * 1000], size=1000)
        assert read_bytes(sink, "small") == b"x" * 1000
        assert proxy.count(method="POST") == 0


def test_what_another_stored_meanwhile_is_not_deleted(s3, monkeypatch):
    """A writer that slept between the end of its upload and its look at what stands there."""
    slow, new, data = open_sink(s3), open_sink(s3), noise(SIZE)
    check = slow._objects.check_stored

    def late(*args):
        new.write("big", [b"another's"], size=None)
        check(*args)

    monkeypatch.setattr(slow._objects, "check_stored", late)
    upload = begin(slow)
    for number in range(3):
        upload.write_part(number, part(data, number))
    with pytest.raises(ConflictError, match="somebody else"):
        upload.commit()
    with pytest.raises(ConflictError):
        slow.write("big", cut(data), size=len(data))
    assert read_bytes(new, "big") == b"another's"


def test_what_the_store_cut_short_is_deleted(s3):
    """It is our own object, by its ETag."""
    sink, data = open_sink(s3), noise(SIZE)
    upload = begin(sink, SIZE)
    for number in range(2):
        upload.write_part(number, part(data, number))
    with pytest.raises(IntegrityError, match="was stored with"):
        upload.commit()
    assert sink.stat("big") is None


def test_an_etag_that_is_no_md5_proves_nothing_and_refuses_nothing(script):
    """As with keys of KMS: neither checksum nor md5, and no error."""
    encrypted = {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"}
    script.answer = lambda method, *rest: (
        (200, encrypted, b"") if method == "PUT" else begun(method, *rest)
    )
    begin(scripted(script)).write_part(0, part(noise(SIZE), 0))


def test_a_refusal_for_another_reason_turns_no_checksums_off(script):
    """Sent once, told as it is; the next file has its checksum."""
    sink = scripted(script)
    script.answer = lambda method, *_: error(507, "QuotaExceeded")
    with pytest.raises(StorageError, match="QuotaExceeded"):
        sink.write("small", [b"x"], size=1)
    assert len(script.of("PUT")) == 1
    script.answer = lambda method, *_: (200, {"ETag": '"e"'}, b"")
    sink.write("small", [b"x"], size=1)
    assert [asked[2]["x-amz-checksum-crc32"] for asked in script.of("PUT")] == [crc32(b"x")] * 2


@pytest.mark.parametrize("status", [400, 501])
def test_a_server_that_knows_no_checksums_gets_none(script, status):
    """Neither when an upload begins nor with a part or a small file, after it refused one."""

    def answer(method, query, headers, body):
        if any("checksum" in name for name in headers):
            return error(status, "NotImplemented" if status == 501 else "InvalidArgument")
        if method == "PUT":
            return 200, {"ETag": '"e"'}, b""
        return begun(method, query, headers, body)

    script.answer = answer
    sink, data = scripted(script), noise(SIZE)
    upload = begin(sink)
    for number in range(3):
        upload.write_part(number, part(data, number))
    assert len(script.of("PUT")) == 4
    sink.write("small", [b"x"], size=1)
    assert len(script.of("PUT")) == 5


def test_no_checksums_are_sent_where_the_aws_configuration_says_so(script):
    """`request_checksum_calculation: when_required` is for stores that choke on them."""
    script.answer = lambda method, query, headers, body: (
        (200, {"ETag": '"e"'}, b"") if method == "PUT" else begun(method, query, headers, body)
    )
    sink = scripted(script, config_kwargs={"request_checksum_calculation": "when_required"})
    begin(sink).write_part(0, part(noise(SIZE), 0))
    sink.write("small", [b"x"], size=1)
    assert len(script.of("PUT")) == 2
    assert not [1 for asked in script.of("PUT") for name in asked[2] if "checksum" in name]


# -- one try, and what its errors mean ------------------------------------------------


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", TransientError),
        (500, "InternalError", TransientError),
        (400, "RequestTimeout", TransientError),
        (400, "BadDigest", TransientError),
        (404, "NoSuchUpload", UploadLostError),
        (403, "AccessDenied", AuthError),
        (400, "ExpiredToken", AuthError),
        (404, "NoSuchBucket", NoStoreError),
        (400, "EntityTooLarge", StorageError),
    ],
)
def test_each_refusal_of_a_part_is_one_of_our_errors(script, transfer, status, code, expected):
    """One try only, whichever way it goes, and no secret in what is said of it."""
    script.answer = lambda method, *rest: (
        error(status, code, **{"Retry-After": "7"}) if method == "PUT" else begun(method, *rest)
    )
    upload = begin(scripted(script, transfer))
    with pytest.raises(expected) as caught:
        upload.write_part(0, part(noise(SIZE), 0))
    assert type(caught.value) is expected
    assert len(script.of("PUT")) == 1
    if isinstance(caught.value, TransientError) and status == 503:
        assert caught.value.retry_after == 7
    told: BaseException | None = caught.value
    while told is not None:
        text = f"{told!r} {told} {getattr(told, 'hint', '')}"
        assert not [1 for secret in (KEY, SECRET, TOKEN) if secret in text]
        told = told.__cause__


def test_a_fault_is_the_callers_to_outlive(s3, s3_server, monkeypatch):
    """TransientError, and the same part by the same upload afterwards."""
    with FaultProxy(s3_server.endpoint_url, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        sink, data = open_sink(s3), noise(SIZE)
        upload = begin(sink)
        upload.write_part(0, part(data, 0))
        for fault in ("503_before", "503_after", "429_before"):
            proxy.inject(fault, method="PUT")
            before = proxy.count()
            with pytest.raises(TransientError):
                upload.write_part(1, part(data, 1))
            assert proxy.count() - before == 1
        for number in (1, 2):
            upload.write_part(number, part(data, number))
        upload.commit()
        assert digest(sink.read("big")) == sha256(data)


def test_an_upload_that_s3_forgot_is_lost_not_failed(checking):
    """So that the caller begins anew: by a part, and by what takes it up."""
    sink = open_sink(checking)
    upload, data = begin(sink), noise(SIZE)
    for left in sink.unfinished(""):
        sink.discard_unfinished(left)
    with pytest.raises(UploadLostError):
        upload.write_part(0, part(data, 0))
    upload.discard()
    upload.keep()
    assert begin(sink).kept == frozenset()


LISTED = (
    b"<R><Upload><Key>x/big</Key><UploadId>old</UploadId>"
    b"<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></R>"
)
THERE = b"<R><Part><PartNumber>1</PartNumber><ETag>e</ETag><Size>8388608</Size></Part></R>"


@pytest.mark.parametrize(
    ("status", "code", "expected", "aborted"),
    [
        (400, "InvalidRequest", UploadLostError, 1),
        (403, "AccessDenied", AuthError, 0),
        (503, "SlowDown", TransientError, 0),
    ],
)
def test_an_upload_that_takes_no_more_parts_is_given_up(script, status, code, expected, aborted):
    """Only what was taken up, and only for good: it may have been begun with another key."""

    def answer(method, query, headers, body):
        if method == "GET":
            return 200, {}, LISTED if "uploads" in query else THERE
        return error(status, code) if method == "PUT" else (204, {}, b"")

    script.answer = answer
    upload = begin(scripted(script))
    with pytest.raises(expected) as caught:
        upload.write_part(1, part(noise(SIZE), 1))
    assert type(caught.value) is expected
    assert len(script.of("DELETE", uploadId="old")) == aborted


def test_parts_that_s3_does_not_end_with_are_given_up(script):
    """The next attempt must not find the same parts again."""

    def answer(method, query, headers, body):
        if method == "GET":
            return 200, {}, LISTED if "uploads" in query else THERE
        if method == "PUT":
            return 200, {"ETag": '"e"'}, b""
        if method == "POST":
            return error(400, "InvalidPart")
        return 204, {}, b""

    script.answer = answer
    upload = begin(scripted(script))
    assert upload.kept == {0}
    for number in (1, 2):
        upload.write_part(number, part(noise(SIZE), number))
    with pytest.raises(UploadLostError):
        upload.commit()
    assert script.of("DELETE", uploadId="old")


def test_an_error_in_an_answer_of_200_is_an_error(script):
    """S3 may find out after its first byte that an upload cannot be ended."""

    def answer(method, query, headers, body):
        if method == "PUT":
            return 200, {"ETag": '"e"'}, b""
        if method == "POST" and "uploadId" in query:
            return error(200, "InternalError")
        if method == "HEAD":
            return 404, {}, b""
        return begun(method, query, headers, body)

    script.answer = answer
    upload, data = begin(scripted(script)), noise(SIZE)
    for number in range(3):
        upload.write_part(number, part(data, number))
    with pytest.raises(TransientError):
        upload.commit()


@pytest.mark.parametrize("then", [(503, "SlowDown"), (404, "NoSuchUpload")])
def test_the_end_of_an_upload_whose_answer_was_lost_is_known_by_its_mark(script, then):
    """With keys of KMS the ETag is none that could be worked out; another's object is not ours."""
    ended = []

    def answer(method, query, headers, body):
        if method == "PUT":
            return 200, {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"}, b""
        if method == "POST" and "uploadId" in query:
            ended.append(1)
            return error(*(then if len(ended) > 1 else (500, "InternalError")))
        if method == "HEAD":
            mark = {"x-amz-meta-mm-created-by": marks[0]} if len(ended) > 1 else {}
            return 200, {"ETag": '"x"', **mark}, bytes(SIZE)
        return begun(method, query, headers, body)

    script.answer = answer
    upload, data = begin(scripted(script)), noise(SIZE)
    ((_, _, headers, _),) = script.of("POST", uploads="")
    marks = [headers["x-amz-meta-mm-created-by"]]
    for number in range(3):
        upload.write_part(number, part(data, number))
    upload.commit()
    assert len(ended) == 2


# -- who asks ------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A credentials file that a test may write anew; nothing else names credentials."""
    path = tmp_path / "credentials"

    def write(token):
        path.write_text(
            f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
            f"aws_session_token = {token}\n"
        )

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return write


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_expired_credentials_are_asked_for_anew(script, profile, transfer):
    """Once: whoever signed in again meanwhile need not begin anew."""
    valid = ["first-token"]

    def answer(method, query, headers, body):
        if headers["x-amz-security-token"] != valid[0]:
            return error(400, "ExpiredToken")
        if method == "PUT":
            return 200, {"ETag": '"e"'}, b""
        return begun(method, query, headers, body)

    script.answer = answer
    profile("first-token")
    none = {"key": None, "secret": None, "token": None}
    sink, data = scripted(script, transfer, **none), noise(SIZE)
    upload = begin(sink)
    upload.write_part(0, part(data, 0))
    valid[0] = "second-token"
    with pytest.raises(AuthError):
        upload.write_part(1, part(data, 1))
    assert len(script.of("PUT")) == 2
    profile("second-token")
    upload.write_part(1, part(data, 1))
    upload.write_part(2, part(data, 2))
    assert len(script.of("PUT")) == 5
    assert list(sink.unfinished("")) == []


def test_credentials_are_kept_for_seconds_only(script, profile, monkeypatch):
    """A session renews what is about to end: it is asked again and again, but not each time."""
    script.answer = lambda method, query, headers, body: (200, {"ETag": '"e"'}, b"")
    profile("a-session-token")
    sink = scripted(script, key=None, secret=None, token=None)
    asked = []
    identity = sink._api.identity
    monkeypatch.setattr(sink._api, "identity", lambda name: asked.append(1) or identity(name))
    for _ in range(5):
        sink.write("small", [b"x"], size=1)
    seen = len(asked)
    assert seen <= 2
    monkeypatch.setattr(_s3_direct, "_FRESH", -1.0)
    sink._direct._identity = None
    sink.write("small", [b"x"], size=1)
    sink.write("small", [b"x"], size=1)
    assert len(asked) == seen + 2


# -- where, and by whom ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"config_kwargs": {"signature_version": "s3"}}, "signature"),
        ({"config_kwargs": {"proxies": {"http": "http://127.0.0.1:9"}}}, "proxies"),
        ({"s3_additional_kwargs": {"ChecksumAlgorithm": "SHA256"}}, "checksums"),
    ],
)
def test_what_is_not_understood_is_left_to_s3fs(script, options, reason):
    """`auto` says nothing and goes by s3fs; `direct` says why it cannot."""
    assert not scripted(script, "auto", **options)._direct.available()
    with pytest.raises(ConfigError, match=reason) as caught:
        scripted(script, "direct", **options).write("small", [b"x"], size=1)
    assert "transfer" in caught.value.hint
    assert scripted(script, "auto")._direct.available()
    assert not scripted(script, "fsspec")._direct.available()


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")]
)
def test_a_bucket_of_another_region_is_left_to_botocore(script, status, code):
    """It finds the region by its own requests, and is asked for the way again, once."""

    def answer(method, query, headers, body):
        ours = headers.get("x-amz-content-sha256") == "UNSIGNED-PAYLOAD"
        return error(status, code) if ours else (200, {"ETag": '"e"'}, b"")

    script.answer = answer
    sink = scripted(script, "auto")
    ours = lambda: [a for a in script.of("PUT") if "UNSIGNED" in a[2]["x-amz-content-sha256"]]  # noqa: E731
    for seen in (1, 2, 2, 2):
        sink.write("small", [b"x"], size=1)
        assert len(ours()) == seen
    sink = scripted(script, "direct")
    sink.write("small", [b"x"], size=1)
    for _ in range(2):  # never by s3fs in silence
        with pytest.raises(ConfigError, match="region"):
            sink.write("small", [b"x"], size=1)
    assert len(ours()) == 4


def test_one_move_of_a_bucket_is_one_however_many_threads_meet_it(script):
    """All of them meet the redirect at once; bytes go directly again afterwards."""
    together = threading.Barrier(4)
    met = []

    def answer(method, query, headers, body):
        if "UNSIGNED" in headers["x-amz-content-sha256"] and len(met) < 4:
            met.append(1)
            together.wait(10)
            return error(307, "TemporaryRedirect")
        return 200, {"ETag": '"e"'}, b""

    script.answer = answer
    sink = scripted(script)
    sink._direct.routes()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: sink.write(f"small{n}", [b"x"], size=1), range(4)))
    assert len(met) == 4
    sink.write("small", [b"x"], size=1)
    assert "UNSIGNED" in script.asked[-1][2]["x-amz-content-sha256"]


@pytest.mark.parametrize("asked", ["facts", "identity"])
def test_closing_does_not_wait_for_who_looks_for_credentials(script, monkeypatch, asked):
    """A sign-in may take its time; Ctrl-C promises two seconds."""
    script.answer = lambda *_: (200, {"ETag": '"e"'}, b"")
    sink, looking, go_on = scripted(script), threading.Event(), threading.Event()
    look = getattr(sink._api, asked)

    def slow(name):
        looking.set()
        assert go_on.wait(30)
        return look(name)

    monkeypatch.setattr(sink._api, asked, slow)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(sink.write, "small", [b"x"], size=1)
        assert looking.wait(10)
        closing = pool.submit(sink.close)
        try:
            closing.result(5)
        finally:
            go_on.set()
        writing.result(10)


def test_closing_does_not_wait_for_credentials_that_are_looked_for_again():
    """As where those that were found have expired."""
    looking, go_on = threading.Event(), threading.Event()
    first = object()

    def make():
        if not looking.is_set() and api._made is None:
            return first
        looking.set()
        assert go_on.wait(30)
        return object()

    api = S3Api(make, "bucket")
    assert api._fs is first
    with ThreadPoolExecutor(2) as pool:
        renewing = pool.submit(api.renew, first, "x")
        assert looking.wait(10)
        closing = pool.submit(api.close)
        try:
            closing.result(5)
        finally:
            go_on.set()
        with contextlib.suppress(Exception):
            renewing.result(10)


def test_no_secret_is_logged(s3, caplog, monkeypatch):
    """Neither by us nor by what is below, at any level of ours."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG, logger="mm_plugins"):
        sink = open_sink(s3)
        sink.write("a", [b"x"], size=1)
        begin(sink).write_part(0, part(noise(SIZE), 0))
        repr(sink._api.identity("x"))
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text
    assert SECRET not in repr(sink._api.identity("x"))


# -- taken up again ----------------------------------------------------------------------


def test_only_whole_parts_of_the_newest_upload_are_taken_up(s3):
    """Parts of another size are sent again; older uploads, and those of no use, are aborted."""
    sink, data = open_sink(s3), noise(SIZE)
    bucket, prefix = s3.split("/", 3)[2:]
    ids = []
    for sizes in ((PART,), (PART, PART - 1)):
        key = f"{prefix}/big"
        ids.append(client().create_multipart_upload(Bucket=bucket, Key=key)["UploadId"])
        for number, size in enumerate(sizes):
            client().upload_part(
                Bucket=bucket,
                Key=key,
                UploadId=ids[-1],
                PartNumber=number + 1,
                Body=data[number * PART :][:size],
            )
    other = client().create_multipart_upload(Bucket=bucket, Key=f"{prefix}/big2")["UploadId"]
    upload = begin(sink)
    assert upload.kept == {0}
    left = client().list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert {one["UploadId"] for one in left} == {other, upload._multipart._id}
    assert upload._multipart._id in ids
    for number in (1, 2):
        upload.write_part(number, part(data, number))
    upload.commit()
    assert digest(sink.read("big")) == sha256(data)


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_parts_and_uploads_beyond_a_page_are_found(checking, monkeypatch, transfer):
    """Both are listed page by page."""
    monkeypatch.setattr(_s3_upload, "_PAGE", 2)
    sink, data = open_sink(checking, transfer), noise(5 * PART)
    upload = begin(sink, len(data))
    for number in range(5):
        upload.write_part(number, part(data, number))
    for number in range(4):
        begin(sink, key=f"more/{number}").keep()
    again = begin(open_sink(checking, transfer), len(data))
    assert again.kept == {0, 1, 2, 3, 4}
    assert {left.key for left in sink.unfinished("more/")} == {f"more/{n}" for n in range(4)}
    again.commit()
    assert digest(sink.read("big")) == sha256(data)


def test_without_the_right_to_list_an_upload_begins_anew(script):
    """A writer's rights are enough; only what was left is not found."""

    def answer(method, query, headers, body):
        if method == "GET":
            return error(403, "AccessDenied")
        return begun(method, query, headers, body)

    script.answer = answer
    assert begin(scripted(script)).kept == frozenset()
    assert len(script.of("POST", uploads="")) == 1


def test_a_failing_list_is_not_taken_for_an_empty_one(script):
    """Else good parts would be left to rot beside new ones."""
    script.answer = lambda method, *rest: (
        error(503, "SlowDown") if method == "GET" else begun(method, *rest)
    )
    with pytest.raises(TransientError):
        begin(scripted(script))
    assert not script.of("POST")
    assert not script.of("DELETE")


def test_uploads_tell_when_they_were_begun(s3, s3_server):
    """On moto as well: else a collection there would take each for an old one."""
    sink = open_sink(s3)
    upload = begin(sink)
    (found,) = sink.unfinished("")
    assert abs(datetime.now(timezone.utc) - found.modified) < timedelta(minutes=5)
    assert sink.discard_unfinished(found)
    assert sink.discard_unfinished(found)
    upload.discard()


# -- read and copy -------------------------------------------------------------------------


def test_a_store_that_ignores_the_range_is_refused(script):
    """Its bytes would be taken for others."""
    script.answer = lambda method, query, headers, body: (200, {"ETag": '"e"'}, b"0123456789")
    sink = scripted(script)
    assert b"".join(bytes(b) for b in sink.read("a")) == b"0123456789"
    with pytest.raises(StorageError, match="range"):
        list(sink.read("a", 5))


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_nothing_beyond_the_end_is_believed(script, transfer):
    """Some stores send the rest of the object whatever end they were given."""
    told = {"ETag": '"e"', "Content-Range": "bytes 2-9/10"}
    script.answer = lambda *_: (206, told, b"23456789")
    sink = scripted(script, transfer)
    assert b"".join(bytes(b) for b in sink.read("a", 2, 5)) == b"234"
    assert b"".join(bytes(b) for b in sink.read("a", 2)) == b"23456789"


@pytest.mark.parametrize("transfer", ["direct", "fsspec"])
def test_both_ways_do_the_same(s3, transfer):
    """Written by one, read by the other, whole and in ranges."""
    data = noise(17 * MIB)
    other = open_sink(s3, "fsspec" if transfer == "direct" else "direct")
    open_sink(s3, transfer).write("file", cut(data), size=None)
    open_sink(s3, transfer).write("päth/ +%2B?", [b"small"], size=5)
    assert digest(other.read("file", 5, 17 * MIB - 5)) == sha256(data[5:-5])
    assert read_bytes(other, "päth/ +%2B?") == b"small"
    assert read_if_exists(other, "none") is None


@pytest.fixture(params=["s3", "checking"])
def copied(request, monkeypatch):
    monkeypatch.setattr(s3_module, "_COPY_LIMIT", 10 * MIB)
    monkeypatch.setattr(s3_module, "_COPY_PART", 6 * MIB)
    return request.getfixturevalue(request.param)


def test_a_large_copy_is_made_by_several_requests_at_once(copied):
    """Parts in any order, the object whole."""
    sink, data = open_sink(copied), noise(33 * MIB)
    sink.write("a", cut(data), size=len(data))
    sink.copy("a", "b")
    assert digest(sink.read("b")) == sha256(data)
    assert list(sink.unfinished("")) == []


def test_a_large_copy_that_fails_leaves_nothing(copied, monkeypatch):
    """The upload is aborted, what stood there stands."""
    sink, data = open_sink(copied), noise(33 * MIB)
    sink.write("a", cut(data), size=len(data))
    sink.put("b", b"before")
    copy = _s3_upload.Multipart.copy

    def failing(self, number, *rest):
        if number == 3:
            raise StorageError("refused")
        copy(self, number, *rest)

    monkeypatch.setattr(_s3_upload.Multipart, "copy", failing)
    with pytest.raises(StorageError, match="refused"):
        sink.copy("a", "b")
    assert read_bytes(sink, "b") == b"before"
    assert list(sink.unfinished("")) == []
    assert unquote(sink.url("b")).endswith("/b")


def test_certificates_of_the_environment_hold_for_our_own_connections(monkeypatch, tmp_path):
    """AWS_CA_BUNDLE alone leaves the bytes to s3fs, which knows it; both together do not."""
    import certifi

    monkeypatch.setenv("AWS_CA_BUNDLE", certifi.where())
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    options = {"key": KEY, "secret": SECRET, "endpoint_url": "https://127.0.0.1:9", "region": "x"}
    assert not open_sink("s3://bucket/x", "auto", **options)._direct.available()
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    sink = open_sink("s3://bucket/x", "auto", **options)
    assert sink._direct.available()
    assert sink._direct.secure
