"""What only S3 can show: open uploads, marks, pages, and what its errors mean."""

from __future__ import annotations

import http.server
import threading

import pytest

from mm_core import (
    AlreadyExistsError,
    AuthError,
    ConfigError,
    MMError,
    NoStoreError,
    NotFoundError,
    StorageError,
    TransientError,
)
from mm_core.registry import ModelRegistry
from mm_core.sink import read_bytes
from mm_core.testing.material import cut, digest, noise, sha256
from mm_plugins.sinks import _patience
from mm_plugins.sinks import s3 as s3_module
from mm_plugins.sinks.s3 import S3Sink

pytestmark = pytest.mark.integration

MIB = 1 << 20
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def open_sink(root, **options) -> S3Sink:
    return S3Sink(S3Sink.Config(root=root, options=options))


def client():
    import botocore.session

    return botocore.session.get_session().create_client("s3")


def test_an_aborted_upload_leaves_no_parts(s3):
    """After a failure in mid-upload there is no open upload that costs money."""

    def failing():
        yield b"x" * 40_000_000
        raise RuntimeError

    with pytest.raises(RuntimeError):
        open_sink(s3).write("f", failing(), size=None)
    assert "Uploads" not in client().list_multipart_uploads(Bucket=s3.split("/")[2])


def test_s3a_is_s3(s3):
    """The scheme that Spark and Hadoop use names the same place."""
    sink = open_sink(s3.replace("s3://", "s3a://") + "/")
    sink.put("key", b"x")
    assert sink.root == open_sink(s3).root == s3
    assert read_bytes(open_sink(s3), "key") == b"x"


@pytest.mark.parametrize("root", ["s3://", "s3:///x", "s3://b/x?y", "s3://b/x#y", "gs://b", "b/x"])
def test_what_is_no_prefix_is_refused(root):
    """A root that S3 would misread is a ConfigError."""
    with pytest.raises(ConfigError):
        open_sink(root)


def test_a_bucket_itself_can_be_the_root(s3):
    """Without a prefix, keys are the objects' own names."""
    bucket = s3.split("/")[2]
    sink = open_sink(f"s3://{bucket}")
    sink.put("a/key", b"x")
    assert sink.url("a/key") == f"s3://{bucket}/a/key"
    assert [o.key for o in sink.list("")] == ["a/key"]


def test_pages_are_joined(s3, monkeypatch):
    """A listing and a deletion of more than one page are complete."""
    monkeypatch.setattr(s3_module, "_PAGE", 3)
    monkeypatch.setattr(s3_module, "_DELETE_LIMIT", 4)
    sink = open_sink(s3)
    names = [f"{number:02}" for number in range(10)]
    for name in names:
        sink.put(name, b"")
    assert [o.key for o in sink.list("")] == names
    sink.delete(names)
    assert list(sink.list("")) == []


def test_folder_markers_are_not_objects(s3):
    """What consoles make to show a folder is not listed: it has no key here."""
    bucket, prefix = s3.split("/", 3)[2:]
    for key in (f"{prefix}/", f"{prefix}/a/"):
        client().put_object(Bucket=bucket, Key=key, Body=b"")
    sink = open_sink(s3)
    sink.put("a/b", b"")
    assert [o.key for o in sink.list("")] == ["a/b"]


def test_a_copy_above_the_limit_is_made_in_parts(s3, monkeypatch):
    """On the server's side, whole."""
    monkeypatch.setattr(s3_module, "_COPY_LIMIT", 10 * MIB)
    monkeypatch.setattr(s3_module, "_COPY_PART", 6 * MIB)
    sink, data = open_sink(s3), noise(13 * MIB)
    sink.write("a", cut(data), size=len(data))
    sink.copy("a", "b")
    assert digest(sink.read("b")) == sha256(data)
    assert (
        client().head_object(Bucket=s3.split("/")[2], Key="some/prefix/b")["ETag"].endswith('-3"')
    )


def test_settings_for_each_write_are_sent(s3):
    """`s3_additional_kwargs` go with small, large, created and copied objects; marks are added."""
    extra = {"ServerSideEncryption": "AES256", "Metadata": {"team": "ml"}}
    sink = open_sink(s3, s3_additional_kwargs=extra)
    sink.put("put", b"x")
    sink.create("created", b"x")
    sink.write("large", cut(noise(9 * MIB)), size=9 * MIB)
    for key in ("put", "created", "large"):
        head = client().head_object(Bucket=s3.split("/")[2], Key=f"some/prefix/{key}")
        assert head["ServerSideEncryption"] == "AES256"
        assert head["Metadata"]["team"] == "ml"


def test_a_sink_works_again_after_it_was_closed(s3):
    """Closing gives the connections back; the next call makes new ones."""
    sink = open_sink(s3)
    sink.put("a", b"x")
    sink.close()
    assert read_bytes(sink, "a") == b"x"
    sink.close()
    sink.close()


# -- errors ------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_told(s3):
    """NoStoreError, with the next step; nobody takes it for an empty store."""
    sink = open_sink("s3://no-such-bucket-here/x")
    for attempt in (
        lambda: sink.put("a", b""),
        lambda: list(sink.list("")),
        lambda: list(sink.read("a")),
        ModelRegistry(sink).list_models,
    ):
        with pytest.raises(NoStoreError) as caught:
            attempt()
        assert "bucket" in caught.value.hint
        assert caught.value.exit_code == 3


def test_without_credentials_the_way_to_them_is_told(s3, monkeypatch):
    """AuthError, not a time-out of some metadata service."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(AuthError) as caught:
        open_sink(s3).stat("a")
    assert "AWS_PROFILE" in caught.value.hint
    with pytest.raises(AuthError):
        open_sink(s3, profile="no-such-profile").stat("a")


@pytest.fixture
def refusing(monkeypatch):
    """A server that answers each request with the S3 error that is set: (status, code)."""
    answer: list[tuple[int, str]] = [(500, "InternalError")]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # older ones never say 100 Continue

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, code = answer[0]
            body = f"<Error><Code>{code}</Code><Message>told</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_patience.time, "sleep", lambda _: None)
        sink = open_sink(
            "s3://bucket/x",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            key="AKIAIOSFODNN7EXAMPLE",
            secret=SECRET,
            token="a-session-token",
        )
        yield sink, answer
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", AuthError),
        (403, "InvalidAccessKeyId", AuthError),
        (403, "RequestTimeTooSkewed", AuthError),
        (400, "ExpiredToken", AuthError),
        (400, "AuthorizationHeaderMalformed", StorageError),
        (400, "InvalidArgument", StorageError),
        (400, "RequestTimeout", TransientError),
        (400, "BadDigest", TransientError),
        (400, "MalformedXML", TransientError),
        (404, "NoSuchBucket", NoStoreError),
        (404, "NoSuchKey", NotFoundError),
        (409, "ConditionalRequestConflict", TransientError),
        (412, "PreconditionFailed", AlreadyExistsError),
        (429, "TooManyRequests", TransientError),
        (500, "InternalError", TransientError),
        (503, "SlowDown", TransientError),
        (501, "NotImplemented", StorageError),
    ],
)
def test_each_answer_is_one_of_our_errors(refusing, status, code, expected):
    """By status and code, not by the type that s3fs makes of it; and no secret is in it."""
    sink, answer = refusing
    answer[0] = (status, code)
    with pytest.raises(MMError) as caught:
        sink.create("a", b"x")
    assert type(caught.value) is expected
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!r} {error} {getattr(error, 'hint', '')}"
        error = error.__cause__
    assert SECRET not in repr(sink.config)
    assert "a-session-token" not in repr(sink.config)
