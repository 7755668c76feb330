"""Connections of our own: kept, replaced, cut, stalled, proxied, against servers of plain sockets."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import re
import socket
import ssl
import threading
import time

import pytest

from mm_core import (
    ConfigError,
    IntegrityError,
    SourceChangedError,
    StorageError,
    TransientError,
)
from mm_plugins import _connections, _line, _wire
from mm_plugins._wire import Wire
from mm_plugins.http import HttpClient, Target

pytestmark = pytest.mark.integration

DATA = os.urandom(3_000_000)


class Server:
    """Hands each connection to `answer(server, stream)`; counts them."""

    def __init__(self, answer, context=None, family=socket.AF_INET):
        self.answer, self.context = answer, context
        self.connections, self.requests = 0, []
        self.closing = threading.Event()
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.socket = socket.create_server((host, 0), family=family)
        self.port = self.socket.getsockname()[1]
        scheme = "https" if context else "http"
        self.url = f"{scheme}://{host if family == socket.AF_INET else '[::1]'}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self.socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream):
        with contextlib.suppress(OSError):
            if self.context:
                stream = self.context.wrap_socket(stream, server_side=True)
            with stream:
                self.answer(self, stream)

    def take(self, stream):
        """The next request's head and body; None at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = stream.recv(65_536)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        pieces, left = [body], int(length[1]) - len(body) if length else 0
        while left > 0:
            pieces.append(stream.recv(1 << 20))
            left -= len(pieces[-1])
        self.requests.append((head.decode("latin-1"), b"".join(pieces)))
        return self.requests[-1]

    def close(self):
        self.closing.set()
        self.socket.close()


@pytest.fixture
def serve():
    servers = []

    def start(answer, **options):
        servers.append(Server(answer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def wire():
    made = Wire(connect_timeout=5, read_timeout=5)
    yield made
    made.close()


@pytest.fixture
def client():
    made = HttpClient(connect_timeout=5, read_timeout=5)
    yield made
    made.close()


@pytest.fixture(params=["kernel", "python"])
def waits(request, monkeypatch):
    """Whoever keeps the time of a wait."""
    monkeypatch.setattr(_line, "_KERNEL_WAITS", _line._KERNEL_WAITS and request.param == "kernel")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE"):
        for each in (name, name.upper(), name.lower()):
            monkeypatch.delenv(each, raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def answers(body=b"", status=200, *headers, stated=None):
    """Answer every request of a connection the same way."""
    lines = [f"HTTP/1.1 {status} So", f"Content-Length: {len(body) if stated is None else stated}"]
    head = "\r\n".join([*lines, *headers, "", ""]).encode()

    def answer(server, stream):
        while server.take(stream):
            stream.sendall(head + body)
            if stated is not None:
                return

    return answer


def raw(data, *, wait=False):
    """Answer the first request of a connection by these very bytes."""

    def answer(server, stream):
        server.take(stream)
        stream.sendall(data)
        if wait:
            server.closing.wait(30)

    return answer


def whole(response, size=1 << 20):
    buffer, body = memoryview(bytearray(size)), bytearray()
    with response as reader:
        while count := reader.readinto(buffer):
            body += buffer[:count]
    return bytes(body)


def get(wire, url, **headers):
    return wire.request("GET", url, headers)


# -- connections are kept ----------------------------------------------------------------


def test_one_connection_serves_request_after_request(serve, wire):
    """It goes back when a body was read to its end, by whatever call."""
    server = serve(answers(DATA))
    for size in (1 << 20, 7777, len(DATA)):
        assert whole(get(wire, server.url), size) == DATA
    assert get(wire, server.url).read(len(DATA)) == DATA
    assert server.connections == 1


def test_an_answer_given_up_costs_its_connection(serve, wire):
    """What is left of one body is never taken for the next answer."""
    server = serve(answers(DATA))
    with get(wire, server.url) as response:
        response.readinto(memoryview(bytearray(100)))
    with pytest.raises(TransientError):
        response.readinto(memoryview(bytearray(100)))
    assert whole(get(wire, server.url)) == DATA
    assert server.connections == 2


def test_threads_share_the_connections(serve, wire):
    """Each has one to itself while it reads, and no more are made than are needed."""
    server = serve(answers(DATA))
    wrong = []

    def work():
        for _ in range(5):
            if whole(get(wire, server.url)) != DATA:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.connections <= 4


def test_a_kept_connection_that_died_is_replaced(serve, wire):
    """The server closed it meanwhile: nobody notices."""
    server = serve(lambda server, stream: answers(b"one", stated=3)(server, stream))
    for _ in range(3):
        assert get(wire, server.url).read(10) == b"one"
        time.sleep(0.05)
    assert server.connections == 3


def one_then_die(server, stream):
    """The second request of a connection is taken and never answered."""
    server.take(stream)
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    server.take(stream)


def test_a_connection_that_dies_under_the_request(waits, serve, wire):
    """The request goes to a fresh one once, with its whole body."""
    server = serve(one_then_die)
    body = memoryview(DATA)
    for _ in range(2):
        assert wire.request("PUT", server.url, {}, body).read(10) == b"ok"
    assert server.connections == 2
    assert [sent == DATA for _, sent in server.requests] == [True, True, True]


def test_what_may_not_be_repeated_is_not(serve, wire):
    """The caller says so; then it is an error that may pass."""
    server = serve(one_then_die)
    assert get(wire, server.url).read(10) == b"ok"
    with pytest.raises(TransientError):
        wire.request("POST", server.url, {}, b"x", repeatable=False)
    assert len(server.requests) == 2


def test_a_fresh_connection_is_not_tried_again(serve, wire):
    """No answer at all is an error that may pass, after one request."""
    server = serve(lambda server, stream: server.take(stream))
    with pytest.raises(TransientError):
        get(wire, server.url)
    assert len(server.requests) == 1


def test_idle_connections_are_bounded(serve, wire, monkeypatch):
    """Of those that nobody uses the newest are kept, for a while."""
    monkeypatch.setattr(_wire, "IDLE_LIMIT", 2)
    server = serve(answers(DATA))
    held = [get(wire, server.url) for _ in range(4)]
    for response in held:
        whole(response)
    held = [get(wire, server.url) for _ in range(4)]
    assert server.connections == 6
    for response in held:
        whole(response)
    monkeypatch.setattr(_wire, "IDLE_SECONDS", 0.05)
    time.sleep(0.1)
    whole(get(wire, server.url))
    assert server.connections == 7


def test_bytes_that_nobody_asked_for(serve, wire):
    """More than was stated is never the start of the next answer."""
    server = serve(answers(b"one" + b"HTTP/1.1 200 OK\r\n", stated=3))
    assert get(wire, server.url).read(10) == b"one"
    assert get(wire, server.url).read(10) == b"one"
    assert server.connections == 2


def test_closing_ends_who_waits(waits, serve, wire):
    """Another thread that reads gets its error at once."""
    server = serve(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", wait=True))
    response = get(wire, server.url)
    threading.Timer(0.2, wire.close).start()
    began = time.monotonic()
    with pytest.raises(TransientError):
        whole(response)
    assert time.monotonic() - began < 3


def test_closed_is_closed(serve, wire):
    """Nothing is asked after that, and who was about to connect does not leave a connection."""
    server = serve(answers(b"one"))
    assert get(wire, server.url).read(10) == b"one"
    wire.close()
    with pytest.raises(StorageError, match="closed"):
        get(wire, server.url)
    assert len(server.requests) == 1


def test_closed_while_a_connection_is_made(serve, wire, monkeypatch):
    """It is given up as soon as it is there."""
    server = serve(answers(b"one"))

    def connect(*arguments):
        made.append(_connections.connect(*arguments))
        wire.close()
        return made[-1]

    made = []
    monkeypatch.setattr(_wire, "connect", connect)
    with pytest.raises(StorageError, match="closed"):
        get(wire, server.url)
    assert made[0].fileno() == -1


# -- bodies --------------------------------------------------------------------------------


def test_a_cut_comes_after_what_came(waits, serve, wire):
    """All bytes before it are given, and then the error, whatever the size of the buffer."""
    server = serve(answers(DATA[:1_500_000], stated=len(DATA)))
    for size in (1 << 20, len(DATA)):
        body, buffer = bytearray(), memoryview(bytearray(size))
        with get(wire, server.url) as response, pytest.raises(TransientError, match="too early"):
            while count := response.readinto(buffer):
                body += buffer[:count]
        assert bytes(body) == DATA[:1_500_000]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
def test_a_stall_is_noticed(waits, serve, start):
    """No byte for the time-out, before the answer or within it, on a kept connection too."""
    wire = Wire(read_timeout=0.3)
    server = serve(raw(start, wait=True))
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"0\.3 s"):
        whole(get(wire, server.url))
    assert 0.25 < time.monotonic() - began < 3
    assert len(server.requests) == 1
    wire.close()


def test_a_reader_that_stalls_is_noticed(waits, serve):
    """A server that takes no more bytes of a body."""
    wire = Wire(read_timeout=0.3)
    server = serve(lambda server, stream: server.closing.wait(30))
    with pytest.raises(TransientError):
        wire.request("PUT", server.url, {}, memoryview(bytes(64 << 20)))
    wire.close()


def test_slow_is_not_stalled(waits, serve):
    """Each byte starts the time anew."""
    wire = Wire(read_timeout=0.5)

    def drip(server, stream):
        server.take(stream)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for i in range(8):
            time.sleep(0.2)
            stream.sendall(b"%d" % i)

    assert whole(get(wire, serve(drip).url)) == b"01234567"
    wire.close()


@pytest.mark.parametrize("size", [1, 3, 100, 1 << 20])
def test_chunks(serve, wire, size):
    """A body without a length comes whole, trailers are read over, the connection is kept."""

    def answer(server, stream):
        while server.take(stream):
            stream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
            stream.sendall(b"lo\r\nA;x=y\r\n, world...\r\n")
            stream.sendall(b"0\r\nX-Trailer: 1\r\n\r\n")

    server = serve(answer)
    for _ in range(2):
        response = get(wire, server.url)
        assert response.length is None
        assert whole(response, size) == b"hello, world..."
    assert get(wire, server.url).read(15) == b"hello, world..."
    assert server.connections == 1
    with pytest.raises(StorageError):
        get(wire, server.url).read(14)


@pytest.mark.parametrize("rest", [b"5\r\nhel", b"5\r\nhelloX\r\n", b"zz\r\n", b"-1\r\n", b""])
def test_broken_chunks(serve, wire, rest):
    """A body in chunks has an end of its own: without it, it is cut."""
    server = serve(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + rest))
    with pytest.raises(TransientError):
        whole(get(wire, server.url))


CHUNK = b"10000\r\n" + DATA[:65_536] + b"\r\n"


@pytest.mark.parametrize("rest", [b"10000\r\nabc", b"5\r\nabcXX\r\nYY", b"zz\r\n", b"0\r\n"])
def test_a_cut_of_chunks_comes_after_what_came(waits, serve, wire, rest):
    """All bytes before a fault are given, and then the error, as for a body with a length."""
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = serve(raw(start + 10 * CHUNK + rest))
    for size in (1 << 20, 655_360, 1000):
        body, buffer = bytearray(), memoryview(bytearray(size))
        with get(wire, server.url) as response, pytest.raises(TransientError):
            while count := response.readinto(buffer):
                body += buffer[:count]
        assert bytes(body[:655_360]) == DATA[:65_536] * 10


def test_a_stall_of_chunks_comes_after_what_came(waits, serve):
    """Silence within a chunk is told by the next call, and waited for once."""
    wire = Wire(read_timeout=0.5)
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with get(wire, serve(raw(start + CHUNK + b"5\r\nabc", wait=True)).url) as response:
        buffer = memoryview(bytearray(1 << 20))
        assert response.readinto(buffer) == 65_539
        began = time.monotonic()
        with pytest.raises(TransientError, match=r"nothing came for 0\.5 s"):
            response.readinto(buffer)
        assert time.monotonic() - began < 0.3
    wire.close()


def drip(start, drop):
    """Answer by `start`, and then by `drop` again and again."""

    def answer(server, stream):
        server.take(stream)
        stream.sendall(start)
        while not server.closing.wait(0.02):
            stream.sendall(drop)

    return answer


IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nX: ", b"y"),
        (IN_CHUNKS, b"0"),
        (IN_CHUNKS + b"0\r\n", b"X: y\r\n"),
        (IN_CHUNKS + b"0\r\n", (b"X: " + b"y" * 997 + b"\r\n") * 100),
    ],
)
def test_what_never_ends_is_left(waits, serve, start, drop):
    """A server that never falls silent does not hold anyone for ever either."""
    wire = Wire(read_timeout=0.5)
    began = time.monotonic()
    with pytest.raises(TransientError), get(wire, serve(drip(start, drop)).url) as response:
        response.read(100)
    assert time.monotonic() - began < 3
    wire.close()


def test_a_body_until_the_connection_closes(serve, wire):
    """HTTP/1.0 has no other end."""
    server = serve(raw(b"HTTP/1.0 200 OK\r\n\r\n" + DATA))
    for _ in range(2):
        assert whole(get(wire, server.url)) == DATA
    assert server.connections == 2


def test_answers_without_a_body(serve, wire):
    """HEAD, 204 and 304 have none, whatever length they state."""
    server = serve(raw(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n"))
    assert get(wire, server.url).read(0) == b""
    server = serve(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    with wire.request("HEAD", server.url, {}) as response:
        assert (response.headers["content-length"], response.read(0)) == ("5", b"")


def test_interim_answers_and_folded_headers(serve, wire):
    """100 and 103 are read over; repeated headers are joined; line breaks may be bare."""
    server = serve(
        raw(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200\nX-One: a\nX-One:b\nX-Two: c\n d\nContent-Length: 2\n\nok"
        )
    )
    with get(wire, server.url) as response:
        headers = dict(response.headers)
        assert headers == {"x-one": "a, b", "x-two": "c d", "content-length": "2"}
        assert response.read(2) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-",
    ],
)
def test_what_is_no_answer(serve, wire, answer):
    """Whatever comes, the error is one of ours."""
    with pytest.raises(TransientError):
        whole(get(wire, serve(raw(answer)).url))


# -- what is sent --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 16 << 10, (16 << 10) + 1, 8 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_is_sent_whole(waits, serve, wire, size, kind):
    """Whatever it lies in; its length is stated once."""
    server = serve(answers())
    body = os.urandom(size)
    for _ in range(2):
        wire.request("PUT", f"{server.url}/k?a=b%2Fc", {"content-length": "9"}, kind(body)).close()
    for head, sent in server.requests:
        assert sent == body
        assert head.split("\r\n")[0] == "PUT /k?a=b%2Fc HTTP/1.1"
        assert head.lower().count("content-length:") == 1
        assert f"Host: 127.0.0.1:{server.port}" in head
    assert server.connections == 1


def test_a_refusal_before_the_body_was_read(waits, serve, wire):
    """What the server said is told, not that it hung up."""

    def refuse(server, stream):
        stream.recv(65_536)
        stream.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nbusy")
        stream.shutdown(socket.SHUT_WR)
        stream.settimeout(2)
        for _ in range(8):
            stream.recv(65_536)
        time.sleep(0.2)

    with wire.request("PUT", serve(refuse).url, {}, memoryview(bytes(64 << 20))) as response:
        assert (response.status, response.read(10)) == (403, b"busy")


@pytest.mark.parametrize(
    "headers",
    [{"X": "secret\r\nY: z"}, {"X": "secret\n"}, {"X\r\nY": "secret"}, {"X:": "secret"}, {"": "x"}],
)
def test_headers_are_not_injected(serve, wire, headers):
    """Nothing is sent, and the value is not quoted."""
    server = serve(answers())
    with pytest.raises(StorageError) as caught:
        wire.request("GET", server.url, headers)
    assert "secret" not in f"{caught.value!r} {caught.value.hint}"
    assert server.connections == 0


def test_paths_are_not_injected(serve, wire):
    """Blanks, line breaks and letters beyond ASCII are escaped; what is escaped stays."""
    server = serve(answers())
    get(wire, f"{server.url}/a b%20c\N{LATIN SMALL LETTER E WITH ACUTE}?q=x y\u2028").close()
    assert server.requests[0][0].startswith("GET /a%20b%20c%C3%A9?q=x%20y%E2%80%A8 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "http:///x", "http://[::1/x", "http://h:port/", "http://a..b/"]
)
def test_what_is_no_url(wire, url):
    """It is an error for good."""
    with pytest.raises(StorageError):
        get(wire, url)


def test_nobody_there(wire):
    """A refused connection and a name that does not exist may pass."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "http://nowhere.invalid/"):
        with pytest.raises(TransientError):
            get(wire, url)


def test_ipv6(serve, wire):
    """An address in brackets is dialled without them, and named with them."""
    try:
        server = serve(answers(b"six"), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    assert get(wire, server.url).read(10) == b"six"
    assert f"Host: [::1]:{server.port}" in server.requests[0][0]


# -- TLS and proxies -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 and models.example, with its key, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.timezone.utc)
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("models.example"),
    ]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(made + private)
    return path


@pytest.fixture
def context(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate)
    return made


def tunnel(to, allowed=lambda head: True):
    """A proxy that knows CONNECT only, and leads everything to `to`."""

    def answer(server, stream):
        head, _ = server.take(stream)
        if not allowed(head):
            stream.sendall(b"HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n")
            return
        stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", to.port)) as other:
            back = threading.Thread(target=copy, args=(other, stream), daemon=True)
            back.start()
            copy(stream, other)
            back.join()

    return answer


def copy(one, other):
    with contextlib.suppress(OSError):
        while data := one.recv(65_536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def test_tls(serve, wire, context):
    """Both directions, on one connection."""
    server = serve(answers(DATA), context=context)
    for _ in range(2):
        assert whole(wire.request("PUT", server.url, {}, memoryview(DATA))) == DATA
    assert [sent == DATA for _, sent in server.requests] == [True, True]
    assert server.connections == 1


def test_a_cut_and_a_stall_under_tls(serve, context):
    """They are seen as without it."""
    wire = Wire(read_timeout=0.3)
    server = serve(answers(DATA[:100_000], stated=len(DATA)), context=context)
    with pytest.raises(TransientError):
        whole(get(wire, server.url))
    server = serve(
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", wait=True), context=context
    )
    with pytest.raises(TransientError, match=r"0\.3 s"):
        whole(get(wire, server.url))
    wire.close()


@pytest.fixture(params=["direct", "tunnel"])
def to_tls(request, serve, context, monkeypatch):
    """Serve by TLS, or by TLS within that to a proxy; gives the server and its URL."""

    def start(answer):
        server = serve(answer, context=context)
        if request.param == "direct":
            return server, server.url
        monkeypatch.setenv("https_proxy", serve(tunnel(server), context=context).url)
        return server, "https://models.example"

    return start


def test_what_tls_holds_back_is_never_the_next_answer(to_tls, wire):
    """More than was stated, in the same record: the connection is not used again."""

    def answer(server, stream):
        while server.take(stream):
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            stream.sendall(b"goodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")

    server, url = to_tls(answer)
    for _ in range(2):
        with get(wire, url) as response:
            time.sleep(0.1)
            assert whole(response) == b"good"
    assert server.connections == 2


def hang_up(*, announced):
    """A body without a length; the end of the connection is announced as TLS demands, or not."""

    def answer(server, stream):
        server.take(stream)
        stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + DATA[:1000])
        if announced:
            with contextlib.suppress(OSError):
                stream.unwrap()

    return answer


def test_a_body_under_tls_until_it_is_closed(to_tls, wire):
    """Its end is announced: else it was cut, by whoever is on the way."""
    assert whole(get(wire, to_tls(hang_up(announced=True))[1])) == DATA[:1000]
    wire.close()
    with get(Wire(), to_tls(hang_up(announced=False))[1]) as response:
        buffer = memoryview(bytearray(2000))
        assert bytes(buffer[: response.readinto(buffer)]) == DATA[:1000]
        with pytest.raises(TransientError, match="cut"):
            response.readinto(buffer)


def test_a_certificate_that_nobody_trusts(serve, wire, context, monkeypatch):
    """The hint says what to set."""
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(StorageError) as caught:
        get(wire, serve(answers(), context=context).url)
    assert "SSL_CERT_FILE" in caught.value.hint


@pytest.mark.parametrize("encrypted", [False, True])
def test_https_through_a_proxy(serve, wire, context, monkeypatch, encrypted):
    """By CONNECT, with the proxy's credentials for the proxy alone; one tunnel is kept."""
    server = serve(answers(DATA), context=context)
    proxy = serve(
        tunnel(server, lambda head: "Proxy-Authorization: Basic bWU6c2VzYW1lIQ==" in head),
        context=context if encrypted else None,
    )
    place = proxy.url.replace("://", "://me:sesame%21@")
    monkeypatch.setenv("https_proxy", place)
    for _ in range(2):
        answer = wire.request("PUT", "https://models.example/file", {}, memoryview(DATA))
        assert whole(answer) == DATA
    assert proxy.requests[0][0].startswith("CONNECT models.example:443 HTTP/1.1\r\n")
    assert (proxy.connections, server.connections) == (1, 1)
    assert "bWU6c2VzYW1lIQ" not in str(server.requests[0][0])
    assert server.requests[0][1] == DATA

    monkeypatch.setenv("https_proxy", proxy.url)
    with pytest.raises(ConfigError, match="407"):
        get(Wire(), "https://models.example/file")


def test_a_stall_in_a_tunnel_in_tls(serve, context, monkeypatch):
    """The time-out holds through both layers, and a cut is seen."""
    wire = Wire(read_timeout=0.3)
    for answer in (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", wait=True),
        answers(b"abc", stated=9),
    ):
        server = serve(answer, context=context)
        proxy = serve(tunnel(server), context=context)
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(TransientError):
            whole(get(wire, "https://models.example/file"))
    wire.close()


def test_http_through_a_proxy(serve, wire, monkeypatch):
    """By absolute URLs, on one connection for all servers."""
    proxy = serve(answers(b"by proxy"))
    monkeypatch.setenv("http_proxy", proxy.url)
    for url in ("http://models.example/a?b=c", "http://other.example:8080/d"):
        assert get(wire, url).read(10) == b"by proxy"
    assert [head.split("\r\n")[:2] for head, _ in proxy.requests] == [
        ["GET http://models.example/a?b=c HTTP/1.1", "Host: models.example"],
        ["GET http://other.example:8080/d HTTP/1.1", "Host: other.example:8080"],
    ]
    assert proxy.connections == 1


@pytest.mark.parametrize(("status", "error"), [(403, StorageError), (503, TransientError)])
def test_a_proxy_that_refuses(serve, wire, monkeypatch, status, error):
    """Its answer is named."""
    proxy = serve(answers(b"", status))
    monkeypatch.setenv("https_proxy", proxy.url)
    with pytest.raises(error, match=str(status)):
        get(wire, "https://models.example/")


def test_a_proxy_that_is_not_there(wire, monkeypatch):
    """The error says that it was the proxy."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://me:sesame@127.0.0.1:{port}")
    with pytest.raises(TransientError, match="through the proxy") as caught:
        get(wire, "http://models.example/")
    assert "sesame" not in str(caught.value)


# -- ranges --------------------------------------------------------------------------------

SIZE = len(DATA)


def ranged(content_range, body, *headers):
    return answers(body, 206, f"Content-Range: {content_range}", *headers)


def take(client, url, start, end, size=SIZE, buffer=1 << 20):
    reader = client.open(Target(url=url, size=size, immutable=True), start, end)
    return whole(contextlib.closing(reader), buffer)


def test_a_range_into_memory_of_the_callers(serve, client):
    """Exactly what was asked for, on a kept connection; nothing is asked for an empty range."""
    server = serve(ranged(f"bytes 1000-1999999/{SIZE}", DATA[1000:2_000_000]))
    for buffer in (700_001, 1 << 21):
        assert take(client, server.url, 1000, 2_000_000, buffer=buffer) == DATA[1000:2_000_000]
    assert take(client, server.url, SIZE, None) == b""
    assert take(client, server.url, 5, 5) == b""
    assert ["Range: bytes=1000-1999999" in head for head, _ in server.requests] == [True] * 2
    assert server.connections == 1
    assert client.honours_ranges(server.url)


@pytest.mark.parametrize(
    ("content_range", "error"),
    [
        (f"bytes 1001-1999/{SIZE}", IntegrityError),
        (f"bytes 1000-2000/{SIZE}", IntegrityError),
        (f"bytes 1000-998/{SIZE}", IntegrityError),
        (f"items 1000-1999/{SIZE}", IntegrityError),
        (f"bytes 1000-1999/{SIZE + 1}", SourceChangedError),
        ("bytes 1000-1999", IntegrityError),
        ("", IntegrityError),
        (f"bytes 1000-1999/{'9' * 5000}", IntegrityError),
        (f"bytes 1000-1998/{SIZE}", IntegrityError),
    ],
)
def test_another_range_is_never_taken_for_the_right_one(serve, client, content_range, error):
    """Start, end, unit, total and the length of the body must fit what was asked for."""
    server = serve(ranged(content_range, DATA[1000:2000]))
    with pytest.raises(error):
        client.open(Target(url=server.url, size=SIZE, immutable=True), 1000, 2000)


def test_less_than_was_asked_for(serve, client):
    """The bytes are right as far as they go; then the error says that more may come."""
    for content_range in (f"bytes 1000-1499/{SIZE}", f"bytes 1000-1999/{SIZE}"):
        server = serve(ranged(content_range, DATA[1000:1500]))
        reader = client.open(Target(url=server.url, size=SIZE, immutable=True), 1000, 2000)
        buffer = memoryview(bytearray(4000))
        assert bytes(buffer[: reader.readinto(buffer)]) == DATA[1000:1500]
        with pytest.raises(TransientError, match="500 bytes too early"):
            reader.readinto(buffer)
        reader.close()


def test_a_file_of_unknown_size(serve, client):
    """A range beyond its end yields what there is."""
    server = serve(ranged("bytes 1000-1499/1500", DATA[1000:1500]))
    assert take(client, server.url, 1000, 9999, size=None) == DATA[1000:1500]
    assert take(client, server.url, 1000, None, size=None) == DATA[1000:1500]
    server = serve(answers(DATA[:1500]))
    assert take(client, server.url, 1000, 9999, size=None) == DATA[1000:1500]
    assert take(client, server.url, 1600, 9999, size=None) == b""


def test_the_whole_file_for_a_range(serve, client):
    """It is read from its start, and the origin is known from then on for what it is."""
    server, other = serve(answers(DATA)), serve(answers(DATA))
    assert client.honours_ranges(server.url)
    assert (
        take(client, f"{server.url}/a", 1_000_000, 1_000_010, buffer=3)
        == (DATA[1_000_000:1_000_010])
    )
    assert not client.honours_ranges(f"{server.url}/b")
    assert client.honours_ranges(other.url)
    head = server.requests[0][0]
    assert "Range: bytes=1000000-1000009" in head


def test_the_start_of_a_file_is_asked_for_as_a_range_too(serve, client):
    """So that the first part of a file tells whether there can be others."""
    server = serve(answers(DATA))
    assert take(client, server.url, 0, 1000) == DATA[:1000]
    assert "Range: bytes=0-999" in server.requests[0][0]
    assert not client.honours_ranges(server.url)


def test_an_origin_that_leads_to_one_without_ranges(serve, client):
    """The file is known by it, and who answered; what else the first one has may lie elsewhere."""
    store = serve(answers(DATA))
    site = serve(answers(b"", 302, f"Location: {store.url}/blob"))
    for immutable in (True, False):
        url = f"{site.url}/{immutable}"
        reader = client.open(Target(url=url, size=SIZE, immutable=immutable), 0, 20)
        assert whole(contextlib.closing(reader)) == DATA[:20]
        assert not client.honours_ranges(url)
    assert client.honours_ranges(site.url)
    assert not client.honours_ranges(store.url)


def test_an_origin_with_ranges_behind_one_without(serve, client):
    """What counts is who has the bytes."""
    store = serve(ranged(f"bytes 0-9/{SIZE}", DATA[:10]))

    def answer(server, stream):
        while request := server.take(stream):
            if "/large" in request[0]:
                place = f"Location: {store.url}/blob".encode()
                stream.sendall(b"HTTP/1.1 302 So\r\n" + place + b"\r\nContent-Length: 0\r\n\r\n")
            else:
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{'a': 12}")

    site = serve(answer)
    assert take(client, f"{site.url}/large", 0, 10) == DATA[:10]
    assert take(client, f"{site.url}/small", 0, 5, size=9) == b"{'a':"
    assert client.honours_ranges(f"{site.url}/large")
    assert not client.honours_ranges(f"{site.url}/small")


@pytest.mark.parametrize("size", [9, None])
def test_a_range_of_all_may_be_answered_by_all(serve, client, size):
    """200 is right there, and says nothing of other ranges."""
    server = serve(answers(DATA[:9]))
    assert take(client, server.url, 0, 9, size=size) == DATA[:9]
    assert "Range: bytes=0-8" in server.requests[0][0]
    assert client.honours_ranges(server.url)


def in_chunks(content_range, *pieces):
    lines = [f"Content-Range: {content_range}", "Transfer-Encoding: chunked", "", ""]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join(["HTTP/1.1 206 So", *lines]).encode() + body + b"0\r\n\r\n"


@pytest.mark.parametrize("stated", [1000, 1500])
@pytest.mark.parametrize("buffer", [1, 400, 4000])
def test_a_range_in_chunks_that_is_longer_than_it_says(serve, client, stated, buffer):
    """Where only its end tells how long it is, its end is looked at: whose bytes are they?"""
    place = f"bytes 0-{stated - 1}/{SIZE}"
    server = serve(raw(in_chunks(place, DATA[:stated], DATA[:1])))
    with pytest.raises(IntegrityError, match="more bytes"):
        take(client, server.url, 0, 1500, buffer=buffer)


def test_a_range_in_chunks(serve, client):
    """As long as it says it is right, and its connection is kept; cut behind that, too."""

    def answer(server, stream):
        while server.take(stream):
            stream.sendall(in_chunks(f"bytes 0-1499/{SIZE}", DATA[:1000], DATA[1000:1500]))

    server = serve(answer)
    for buffer in (700, 1500, 4000):
        assert take(client, server.url, 0, 1500, buffer=buffer) == DATA[:1500]
    assert server.connections == 1
    cut = in_chunks(f"bytes 0-1499/{SIZE}", DATA[:1500]).removesuffix(b"0\r\n\r\n")
    assert take(client, serve(raw(cut)).url, 0, 1500) == DATA[:1500]
    short = in_chunks(f"bytes 0-1499/{SIZE}", DATA[:1000])
    with pytest.raises(TransientError, match="500 bytes too early") as caught:
        take(client, serve(raw(short)).url, 0, 1500)
    assert caught.value.hint


def test_a_changed_file_says_nothing_of_ranges(serve, client):
    """If-Range makes an honest server send the new file whole."""
    server = serve(answers(DATA, 200, 'ETag: "v2"'))
    with pytest.raises(SourceChangedError):
        client.open(Target(url=server.url, size=SIZE, etag='"v1"'), 10, 20)
    assert client.honours_ranges(server.url)
