"""The HTTP reader that the url and huggingface sources share, against servers that behave badly."""

from __future__ import annotations

import datetime as dt
import email.utils
import ipaddress
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mm_core import (
    AuthError,
    ConfigError,
    MMError,
    SourceChangedError,
    StorageError,
    TransientError,
)
from mm_plugins.http import HttpClient, Target, retry_after

pytestmark = pytest.mark.integration

DATA = bytes(range(256)) * 8_000
SECRET = "Bearer verySecretValue"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers.items()), self.client_address[1]))
        route = server.routes.get(self.path, lambda h: h.say(404))
        try:
            route(self)
        except OSError:  # the reader went away, as some tests mean it to
            self.close_connection = True

    do_HEAD = do_GET

    def say(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Start servers on loopback; `serve()` gives one with `.url`, `.routes` and `.seen`."""
    servers = []

    def start(context=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        scheme = "http"
        if context is not None:
            scheme = "https"
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.routes, server.seen = {}, []
        server.closing = threading.Event()
        server.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def client():
    made = HttpClient(connect_timeout=5, read_timeout=5)
    yield made
    made.close()


def read(client, url, **facts) -> bytes:
    return b"".join(bytes(b) for b in client.read(Target(url=url, **facts)))


def to(url, status=302, **headers):
    return lambda handler: handler.say(status, Location=url, **headers)


def body(data=DATA):
    return lambda handler: handler.say(200, data)


# -- redirects ---------------------------------------------------------------------------


def test_headers_that_were_dropped_never_come_back(serve, client):
    """Another host cannot send the caller's credentials to a path of its choice at the first."""
    first, other = serve(), serve()
    first.routes = {"/start": to(f"{other.url}/bounce"), "/chosen": body()}
    other.routes = {"/bounce": to(f"{first.url}/chosen")}
    headers = {"Authorization": SECRET, "X-Api-Key": "anotherSecret"}
    assert read(client, f"{first.url}/start", headers=headers) == DATA
    assert [(path, SECRET in h.values()) for path, h, _ in first.seen] == [
        ("/start", True),
        ("/chosen", False),
    ]
    assert "anotherSecret" not in str(other.seen) + str(first.seen[1])


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:port/x", "http://[::1/x", "http://", "gopher://h/x", "file:///x"]
)
def test_malformed_redirects_are_errors_of_ours(serve, client, location):
    """Whatever stands in Location, the error is final and one of ours."""
    site = serve()
    site.routes = {"/": to(location)}
    with pytest.raises(StorageError):
        read(client, f"{site.url}/")


@pytest.mark.parametrize("place", ["/d\u00e9.bin", "/d\u00c3\u00a9.bin", "/d%C3%A9.bin"])
def test_redirects_beyond_ascii(serve, client, place):
    """Raw UTF-8 in Location is escaped once, as what else was meant by such letters."""
    site = serve()
    site.routes = {"/": to(place), "/d%C3%A9.bin": body()}
    assert read(client, f"{site.url}/") == DATA


def test_the_body_of_a_redirect_is_not_read_for_ever(serve, client):
    """A redirect with a body that never ends is left, not drained."""
    site = serve()

    def endless(handler):
        handler.say(302, Location="/file", Content_Length=str(1 << 40))
        while not handler.server.closing.is_set():
            handler.wfile.write(b"x" * 65_536)

    site.routes = {"/": endless, "/file": body()}
    assert read(client, f"{site.url}/") == DATA


def test_one_connection_serves_many_reads(serve, client):
    """Connections are kept, also over redirects with a short body, and after refusals."""
    site = serve()
    site.routes = {
        "/": lambda handler: handler.say(302, b"moved" * 100, Location="/file"),
        "/file": body(),
    }
    for _ in range(3):
        assert read(client, f"{site.url}/") == DATA
    assert len({port for _, _, port in site.seen}) == 1


# -- what is sent --------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["Bearer verySecret\nValue", "Bearer verySecret\N{SNOWMAN}Value"])
def test_headers_that_cannot_be_sent_are_not_quoted(serve, client, value):
    """A token with a line break is an error that does not show it, and nothing is sent."""
    site = serve()
    with pytest.raises(StorageError) as caught:
        read(client, f"{site.url}/", headers={"Authorization": value})
    assert "verySecret" not in f"{caught.value!r} {caught.value.hint}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert site.seen == []


def test_bytes_are_asked_for_as_they_are(serve, client):
    """No content coding is asked for, and none is undone: hashes are of the bytes as sent."""
    site = serve()
    site.routes = {"/": lambda h: h.say(200, DATA, Content_Encoding="gzip")}
    assert read(client, f"{site.url}/") == DATA
    assert site.seen[0][1]["Accept-Encoding"] == "identity"


def test_a_small_document_is_small(serve, client):
    """What should be a few lines of JSON is not read for ever; within the limit it comes whole."""
    site = serve()
    site.routes = {"/": body()}
    head, data = client.get(Target(url=f"{site.url}/"), limit=len(DATA))
    assert (head.status, data) == (200, DATA)
    with pytest.raises(StorageError):
        client.get(Target(url=f"{site.url}/"), limit=len(DATA) - 1)


# -- proxies -------------------------------------------------------------------------------


def test_the_proxy_of_the_environment(serve, client, monkeypatch):
    """HTTP_PROXY is used with its credentials, which the target never sees in the URL."""
    proxy = serve()
    proxy.routes = {"http://models.example/file": body()}
    place = proxy.url.removeprefix("http://")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:sesame%21@{place}")
    monkeypatch.setenv("http_proxy", f"http://me:sesame%21@{place}")
    assert read(client, "http://models.example/file") == DATA
    (_, headers, _) = proxy.seen[0]
    assert {k.lower(): v for k, v in headers.items()}[
        "proxy-authorization"
    ] == "Basic bWU6c2VzYW1lIQ=="
    monkeypatch.setenv("no_proxy", "models.example")
    with pytest.raises(TransientError) as caught:  # the name exists for the proxy only
        read(client, "http://models.example/file")
    assert "sesame" not in str(caught.value)
    assert len(proxy.seen) == 1


def test_loopback_goes_around_the_proxy(serve, client, monkeypatch):
    """A server on this machine is asked directly."""
    site, proxy = serve(), serve()
    site.routes = {"/": body()}
    monkeypatch.setenv("http_proxy", proxy.url)
    assert read(client, f"{site.url}/") == DATA
    assert proxy.seen == []


def test_a_proxy_without_a_scheme(serve, client, monkeypatch):
    """``host:port`` is taken for http, as everywhere."""
    proxy = serve()
    proxy.routes = {"http://models.example/file": body()}
    monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))
    assert read(client, "http://models.example/file") == DATA


def test_a_proxy_that_cannot_be_used_is_named(client, monkeypatch):
    """A kind of proxy that is not supported is an error of the configuration, without a password."""
    monkeypatch.setenv("http_proxy", "socks5://me:sesame@127.0.0.1:1")
    with pytest.raises(ConfigError, match="socks5") as caught:
        read(client, "http://models.example/file")
    assert "sesame" not in str(caught.value)


# -- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that no system trusts: (folder, PEM of it, PEM with its key)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made)
    (folder / "both.pem").write_bytes(made + private)
    return folder


@pytest.fixture
def tls(serve, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "both.pem")
    return serve(context)


@pytest.fixture(autouse=True)
def no_bundles(monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_certificate_that_nobody_trusts(tls, client):
    """It is refused for good, and the hint says how to trust one of your own."""
    tls.routes = {"/": body()}
    with pytest.raises(StorageError) as caught:
        read(client, f"{tls.url}/", headers={"Authorization": SECRET})
    assert "SSL_CERT_FILE" in caught.value.hint
    assert tls.seen == []


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_of_your_own(tls, client, certificate, monkeypatch, name):
    """Each of the usual variables names what is trusted."""
    tls.routes = {"/": body()}
    monkeypatch.setenv(name, str(certificate / "cert.pem"))
    assert read(client, f"{tls.url}/") == DATA


def test_a_bundle_that_is_not_there_is_named(tls, client, monkeypatch, tmp_path):
    """A wrong path is an error of the configuration that names the variable."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nothing.pem"))
    with pytest.raises(ConfigError) as caught:
        read(client, f"{tls.url}/")
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


def test_https_never_leads_to_http(tls, serve, client, certificate, monkeypatch):
    """A redirect that gives up the encryption is refused; the other way is fine."""
    plain = serve()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    tls.routes = {"/": to(f"{plain.url}/file"), "/file": body()}
    plain.routes = {"/": to(f"{tls.url}/file"), "/file": body()}
    with pytest.raises(StorageError, match="not be safe"):
        read(client, f"{tls.url}/")
    assert plain.seen == []
    assert read(client, f"{plain.url}/") == DATA


# -- waiting -------------------------------------------------------------------------------


def test_a_server_that_falls_silent_is_transient(serve):
    """No byte for the time that was set: what came is right, and the error may be tried again."""
    site, client = serve(), HttpClient(read_timeout=0.3)

    def stall(handler):
        handler.say(200, DATA[:1000], Content_Length=str(len(DATA)))
        handler.server.closing.wait(30)

    site.routes = {"/": stall}
    with pytest.raises(TransientError):
        read(client, f"{site.url}/", size=len(DATA))
    client.close()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": email.utils.formatdate(0, usegmt=True)}, 0),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers, seconds):
    """Seconds, a date that is over, or the Hub's own rate-limit header; nonsense is nothing."""
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("status", [403, 429, 503])
def test_what_may_pass_says_what_to_do(serve, client, status):
    """A hint for people, also where an expired link of another host is the fault."""
    site, store = serve(), serve()
    site.routes = {"/": to(f"{store.url}/blob")}
    store.routes = {"/blob": lambda handler: handler.say(status)}
    with pytest.raises(TransientError) as caught:
        read(client, f"{site.url}/")
    assert "again" in caught.value.hint


def test_another_size_says_what_to_do(serve, client):
    """It is another state of the file."""
    site = serve()
    site.routes = {"/": body()}
    with pytest.raises(SourceChangedError) as caught:
        read(client, f"{site.url}/", size=5)
    assert "pull again" in caught.value.hint


def test_waiting_until_a_date():
    """A date to come is the seconds until then."""
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < retry_after({"retry-after": date}) <= 100


@pytest.mark.parametrize(("status", "error"), [(401, AuthError), (599, TransientError)])
def test_no_error_shows_a_secret(serve, client, status, error):
    """Neither the headers that were sent nor the signature of the URL is in any message."""
    site = serve()
    path = "/file?X-Amz-Signature=verySecretSignature&token=alsoVerySecret"
    site.routes = {path: lambda handler: handler.say(status)}
    with pytest.raises(MMError) as caught:
        read(client, f"{site.url}{path}", headers={"Authorization": SECRET})
    assert isinstance(caught.value, error)
    said = f"{caught.value} {caught.value!r} {caught.value.hint}"
    assert "erySecret" not in said
