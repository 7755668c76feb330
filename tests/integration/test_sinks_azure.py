"""The Azure sink: the contract on Azurite where that is installed, and the rest without."""

from __future__ import annotations

import http.server
import threading
import uuid

import pytest

from mm_core import (
    AlreadyExistsError,
    AuthError,
    ConfigError,
    MissingExtraError,
    MMError,
    ModelManager,
    NoStoreError,
    SourceChangedError,
    StorageError,
    TransientError,
    UploadLostError,
)
from mm_core.sink import read_bytes
from mm_core.testing.azure import AzureServer
from mm_core.testing.material import cut, noise
from mm_core.testing.registry import RegistryTests
from mm_core.testing.sinks import ResumableSinkTests, keys
from mm_plugins.sinks import _azure_blobs, _patience
from mm_plugins.sinks.azure import AzureSink

pytestmark = pytest.mark.integration

MIB = 1 << 20
SECRET = "c2VjcmV0LWtleS1vZi1hbi1hY2NvdW50LXRoYXQtaXMtbG9uZw=="


def open_sink(root, **options) -> AzureSink:
    return AzureSink(AzureSink.Config(root=root, options=options))


@pytest.fixture(scope="module")
def azure_server():
    """Azurite; without it, all that needs it is skipped, and says so."""
    try:
        server = AzureServer()
    except MissingExtraError as error:
        pytest.skip(f"{error} ({error.hint})")
    with server:
        yield server


@pytest.fixture
def azure(azure_server, monkeypatch):
    """A fresh container, as a root URL with a prefix; the environment points at the server."""
    for name, value in azure_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    azure_server.make_bucket(name)
    return f"az://{name}/some/prefix"


class TestAzure(ResumableSinkTests):
    @pytest.fixture
    def sink(self, azure):
        return open_sink(azure)

    @pytest.fixture
    def other(self, sink):
        return open_sink(sink.root)

    @pytest.fixture
    def neighbour(self, azure):
        return open_sink(f"{azure}-beside")


class TestRegistryOnAzure(RegistryTests):
    @pytest.fixture
    def sink(self, azure):
        return open_sink(azure)


def test_a_model_walks_the_street(azure, hub):
    """Pulled, verified, taken up, and got back."""
    hub.add_repo("org/m", files={"config.json": b"{}", "model.bin": noise(20 * MIB)})
    with ModelManager(backend=azure) as manager:
        manager.pull("hf://org/m")
        assert manager.verify(deep=True).ok
        assert (manager.get("org/m").path / "model.bin").read_bytes() == noise(20 * MIB)


def test_an_interrupted_write_is_seen_by_nobody(azure):
    """Not even by who lists blobs that are not there yet as uploads to take up."""
    sink = open_sink(azure)

    def chunks():
        yield noise(20 * MIB)
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        sink.write("a/file", chunks(), size=30 * MIB)
    assert keys(sink) == []
    assert list(sink.unfinished("")) == []


def test_a_put_while_parts_are_stored_is_never_mixed(azure):
    """Azure drops the blocks, and the upload says so; Azurite keeps them, and it goes on.

    Either way one of the two stands, and whole.
    """
    sink, content = open_sink(azure), noise(20 * MIB)
    upload = sink.begin_upload("key", size=20 * MIB, identity="sha256:aa")
    for number in range(3):
        upload.write_part(number, memoryview(content)[number * 8 * MIB :][: 8 * MIB])
    sink.put("key", b"other")
    assert read_bytes(sink, "key") == b"other"
    try:
        upload.commit()
    except UploadLostError:
        assert read_bytes(sink, "key") == b"other"
    else:
        assert read_bytes(sink, "key") == content


def test_blocks_that_azure_has_dropped_are_lost(azure):
    """As after a week: the upload says so, and nothing stands."""
    sink = open_sink(azure)
    upload = sink.begin_upload("key", size=20 * MIB, identity="sha256:aa")
    for number in range(3):
        upload.write_part(number, memoryview(noise(20 * MIB))[number * 8 * MIB :][: 8 * MIB])
    upload._ids[1] = upload._ids[1][:-1] + "9"  # one that nobody has stored
    with pytest.raises(UploadLostError):
        upload.commit()
    assert sink.stat("key") is None


def test_a_blob_that_changes_is_never_mixed(azure):
    """Replaced while it is read, also at the same size."""
    sink = open_sink(azure)
    sink.write("file", cut(noise(20 * MIB)), size=20 * MIB)
    reading = iter(sink.read("file"))
    next(reading)
    sink.write("file", cut(bytes(20 * MIB)), size=20 * MIB)
    with pytest.raises(SourceChangedError):
        list(reading)


def test_pages_are_joined(azure, monkeypatch):
    """A listing of more than one page is complete and in order."""
    monkeypatch.setattr(_azure_blobs, "_PAGE", 3)
    sink = open_sink(azure)
    names = [f"{number:02}" for number in range(10)]
    for name in names:
        sink.put(name, b"")
    assert keys(sink) == names


def test_a_container_that_is_not_there_is_told(azure):
    """NoStoreError, which names it; nobody takes it for an empty one."""
    sink = open_sink("az://no-such-container-here/x")
    for attempt in (
        lambda: sink.put("a", b""),
        lambda: list(sink.list("")),
        lambda: list(sink.read("a")),
    ):
        with pytest.raises(NoStoreError, match="no-such-container-here"):
            attempt()


def test_a_signature_suffices(azure, azure_server, monkeypatch):
    """A shared access signature in place of the key, also for copies."""
    from datetime import datetime, timedelta, timezone

    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    from mm_core.testing.azure import ACCOUNT, KEY

    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    signature = generate_account_sas(
        ACCOUNT, KEY, ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True, create=True, add=True),
        datetime.now(timezone.utc) + timedelta(hours=1),
    )  # fmt: skip
    sink = open_sink(azure, endpoint_url=azure_server.endpoint_url, sas_token=f"?{signature}")
    sink.put("a", b"x")
    sink.copy("a", "b")
    assert read_bytes(sink, "b") == b"x"
    assert signature not in repr(sink.config)
    assert signature not in sink.url("a")


def test_fsspec_and_this_sink_meet(azure):
    """The type fsspec still opens such a root, and finds what stands there."""
    pytest.importorskip("adlfs")
    from mm_plugins.sinks.fsspec import FsspecSink

    open_sink(azure).put("a/b", b"data")
    sink = FsspecSink(FsspecSink.Config(root=azure.replace("az://", "abfs://")))
    assert read_bytes(sink, "a/b") == b"data"
    with pytest.raises(AlreadyExistsError):
        sink.create("a/b", b"x")


# -- without a server ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "canonical"),
    [
        ("az://box/a/b/", "az://box/a/b"),
        ("abfs://box", "az://box"),
        ("abfss://box@ACCT.dfs.core.windows.net/a", "abfss://box@acct.dfs.core.windows.net/a"),
        ("abfs://box@acct/a", "abfss://box@acct.dfs.core.windows.net/a"),
    ],
)
def test_a_root_has_one_form(root, canonical):
    """However a place is written, its root is the same; urls go on from it."""
    sink = open_sink(root)
    assert sink.root == canonical
    assert sink.url("k") == f"{canonical}/k"
    assert not sink.copies_from(open_sink("az://box", account_name="other"))


@pytest.mark.parametrize("root", ["az://", "az:///x", "az://b/x?y", f"az://b:{SECRET}@acct/x"])
def test_what_is_no_prefix_is_refused(root):
    """A root that would be misread is a ConfigError, which shows no secret."""
    with pytest.raises(ConfigError) as caught:
        open_sink(root)
    assert SECRET not in str(caught.value)


def test_an_account_must_be_named():
    """Nobody is asked where no account is known."""
    with pytest.raises(ConfigError, match="account"):
        open_sink("az://box").stat("a")


def test_a_connection_string_that_is_none_is_told(monkeypatch):
    """The error shows nothing of it."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountKey={SECRET}")
    with pytest.raises(ConfigError) as caught:
        open_sink("az://box").stat("a")
    assert SECRET not in str(caught.value)


@pytest.fixture
def refusing(monkeypatch):
    """A server that answers each request with the status and the code that are set."""
    answer: list[object] = [500, ""]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, code = answer
            body = f"<Error><Code>{code}</Code><Message>sig={SECRET}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("x-ms-error-code", code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_patience.time, "sleep", lambda _: None)
        url = f"http://127.0.0.1:{server.server_port}/acct"
        yield open_sink("az://box/x", endpoint_url=url, account_key=SECRET), answer
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "InvalidInput", StorageError),
        (401, "NoAuthenticationInformation", AuthError),
        (403, "AuthorizationFailure", AuthError),
        (404, "ContainerNotFound", NoStoreError),
        (409, "BlobAlreadyExists", AlreadyExistsError),
        (409, "ContainerBeingDeleted", TransientError),
        (429, "", TransientError),
        (500, "InternalError", TransientError),
        (503, "ServerBusy", TransientError),
    ],
)
def test_each_answer_is_one_of_our_errors(refusing, status, code, expected):
    """By status and code, in each call, and no secret of the answer is in it."""
    sink, answer = refusing
    answer[:] = [status, code]
    for attempt in (lambda: sink.create("a", b"x"), lambda: list(sink.list(""))):
        with pytest.raises(MMError) as caught:
            attempt()
        assert type(caught.value) is expected
        assert SECRET not in str(caught.value) + repr(sink.config)


def test_a_create_is_sent_once(refusing, monkeypatch):
    """Nobody repeats it unseen: a repetition could meet its own blob."""
    sink, answer = refusing
    answer[:] = [500, "InternalError"]
    sent = []
    ask = sink._blobs.ask
    monkeypatch.setattr(
        sink._blobs,
        "ask",
        lambda key, q, **o: ask(key, lambda blob: (sent.append(1), q(blob)), **o),
    )
    with pytest.raises(TransientError):
        sink.create("a", b"x")
    assert len(sent) == 1
