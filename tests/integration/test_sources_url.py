"""The url source against servers of every kind, each on loopback."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mm_core import (
    AuthError,
    IntegrityError,
    InvalidNameError,
    ModelManager,
    ModelStatus,
    NotFoundError,
    PolicyError,
    Request,
    SourceChangedError,
    StorageError,
    TransientError,
    UsageError,
)
from mm_core.testing.sources import SourceTests
from mm_plugins._guard import Guard, is_inside
from mm_plugins.sources.url import UrlSource

pytestmark = pytest.mark.integration

DATA = random.Random(11).randbytes(3_000_000)
OTHER = random.Random(12).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SECRET = "s3cretOfTheVendor"


class Site(ThreadingHTTPServer):
    """A server whose every answer a test settles. `asked` is the log of requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.answer: Callable[[_Handler], None] = serve()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client may leave at any time."""

    def heard(self, header: str) -> list[str | None]:
        return [headers.get(header) for _, _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers.items())))
        try:
            self.server.answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """The log is in `Site.asked`."""

    def say(
        self, status: int, body: bytes = b"", *, length: bool = True, **headers: str | None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        if length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def wanted(self) -> tuple[int, int | None] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        return match and (int(match[1]), int(match[2]) + 1 if match[2] else None)


def serve(
    data=DATA, *, etag='"v1"', ranges=True, length=True, head=200, modified=None, shift=0
) -> Callable[[_Handler], None]:
    """One file, as well-behaved as told."""

    def answer(handler: _Handler) -> None:
        if handler.path.endswith("-that-is-not-there"):
            return handler.say(404)
        if handler.command == "HEAD" and head != 200:
            return handler.say(head)
        facts = {"ETag": etag, "Last_Modified": modified}
        wanted = handler.wanted if ranges else None
        if wanted is None or handler.headers.get("If-Range") not in (None, etag, modified):
            return handler.say(200, data, length=length, **facts)
        start, end = wanted
        if start >= len(data):
            return handler.say(416, Content_Range=f"bytes */{len(data)}")
        body = data[start:end]
        total = len(data) if length else "*"
        place = f"bytes {start + shift}-{start + shift + len(body) - 1}/{total}"
        return handler.say(206, body, Content_Range=place, **facts)

    return answer


@pytest.fixture
def sites():
    """Start as many servers as a test wants."""
    with ExitStack() as stack:

        def start() -> Site:
            site = stack.enter_context(Site())
            threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(site.shutdown)
            return site

        yield start


@pytest.fixture
def site(sites):
    return sites()


@pytest.fixture
def source():
    made = UrlSource(UrlSource.Config(allow_private=True))
    yield made
    made.close()


def configured(**values) -> UrlSource:
    return UrlSource(UrlSource.Config(**{"allow_private": True, **values}))


def shoot(source, url, **options):
    return source.snapshot(Request(url=url, **options))


def read(source, file, start=0, end=None) -> bytes:
    return b"".join(bytes(buffer) for buffer in source.read(file, start, end))


class TestUrl(SourceTests):
    many_files = False
    answer = staticmethod(serve())

    @pytest.fixture
    def source(self, source):
        return source

    @pytest.fixture
    def url(self, site):
        site.answer = self.answer
        return f"{site.url}/some/model.bin"

    @pytest.fixture
    def expected(self):
        return {"model.bin": DATA}


class TestWithoutRanges(TestUrl):
    answer = staticmethod(serve(ranges=False))


class TestWithoutHead(TestUrl):
    answer = staticmethod(serve(head=405))


class TestOnlyATime(TestUrl):
    has_revision = False
    answer = staticmethod(serve(etag=None, modified="Tue, 24 Nov 2026 10:00:00 GMT"))


class TestNoRangesAndOnlyATime(TestUrl):
    has_revision = False
    answer = staticmethod(serve(etag=None, ranges=False, modified="Tue, 24 Nov 2026 10:00:00 GMT"))


# -- what it describes -------------------------------------------------------------------


def test_size_and_etag(site, source):
    """One question answers size and ETag; nothing of the content is read."""
    shot = shoot(source, f"{site.url}/dir/model.bin")
    (file,) = shot.files
    assert (file.path, file.size, file.etag, file.sha256) == ("model.bin", len(DATA), '"v1"', None)
    assert (shot.revision, shot.source) == ("v1", f"{site.url}/dir/model.bin")
    assert [command for command, _, _ in site.asked] == ["HEAD"]


def test_a_sha256_in_the_url_is_the_revision(site, source):
    """The fragment names the content: it is stated, and never sent."""
    shot = shoot(source, f"{site.url}/model.bin#sha256={SHA256.upper()}")
    assert (shot.revision, shot.files[0].sha256) == (SHA256[:40], SHA256)
    assert shot.source == f"{site.url}/model.bin#sha256={SHA256}"
    assert [path for _, path, _ in site.asked] == ["/model.bin"]


@pytest.mark.parametrize("status", [403, 405, 501])
def test_servers_without_head(site, source, status):
    """Where HEAD is refused, one byte is asked for instead."""
    site.answer = serve(head=status)
    assert shoot(source, f"{site.url}/model.bin").files[0].size == len(DATA)
    assert site.asked[-1][0] == "GET"
    assert site.heard("Range")[-1] == "bytes=0-0"


def test_an_empty_file(site, source):
    """A file without a byte is a file, also where only ranges can be asked for."""
    for head in (200, 405):
        site.answer = serve(b"", head=head)
        (file,) = shoot(source, f"{site.url}/empty.txt").files
        assert file.size == 0
        assert read(source, file) == b""


def test_unstated_length(site, source):
    """Without a length the size is unknown, and the file is still read whole."""
    site.answer = serve(length=False, ranges=False)
    (file,) = shoot(source, f"{site.url}/model.bin").files
    assert file.size is None
    assert read(source, file) == DATA
    assert read(source, file, 100, 200) == DATA[100:200]


def test_a_length_that_only_ranges_tell(site, source):
    """Where HEAD is silent about the length, a range of one byte tells it."""
    good = serve()
    silent = lambda h: h.say(200, length=False, ETag='"v1"')  # noqa: E731
    site.answer = lambda h: (silent if h.command == "HEAD" else good)(h)
    assert shoot(source, f"{site.url}/model.bin").files[0].size == len(DATA)


@pytest.mark.parametrize(
    ("etag", "revision"),
    [
        ('"abc-1.2"', "abc-1.2"),
        ('"a/b"', hashlib.sha256(b"a/b").hexdigest()[:40]),
        (f'"{"x" * 65}"', hashlib.sha256(b"x" * 65).hexdigest()[:40]),
        ('"con"', hashlib.sha256(b"con").hexdigest()[:40]),
        ('W/"abc"', None),
        ('""', None),
        (None, None),
    ],
)
def test_revisions_from_etags(site, source, etag, revision):
    """A strong ETag is the revision; no two of them become the same; a weak one says nothing."""
    site.answer = serve(etag=etag)
    assert shoot(source, f"{site.url}/model.bin").revision == revision


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/model%20v1.bin", "model v1.bin"),
        ("model.bin?download=1&x=/y", "model.bin"),
        ("%2541.bin", "%41.bin"),
        ("gewicht-%C3%BC.bin", "gewicht-ü.bin"),
    ],
)
def test_file_names(site, source, path, name):
    """The name is the last part of the path, decoded once."""
    (file,) = shoot(source, f"{site.url}/{path}").files
    assert file.path == name
    assert read(source, file, 0, 10) == DATA[:10]


@pytest.mark.parametrize(
    "path", ["..%2F..%2Fetc%2Fpasswd", "%2Fetc", "a%00b", "..", "a%5Cb", "con"]
)
def test_names_that_are_refused(site, source, path):
    """A name that leaves its folder or cannot stand on a disk is refused before any request."""
    with pytest.raises(InvalidNameError):
        shoot(source, f"{site.url}/{path}")
    assert site.asked == []


@pytest.mark.parametrize(
    "url",
    ["ftp://host/file", "http:///file", "{}/", "{}", "{}/f#sha256=abc", "{}/f#md5=00", "no-url"],
)
def test_what_is_no_file(site, source, url):
    """Other schemes, folders, and fragments that mean nothing are refused in words."""
    with pytest.raises(UsageError):
        shoot(source, url.format(site.url))
    assert site.asked == []


def test_base_url(site):
    """With a base, a path is enough."""
    source = configured(base_url=f"{site.url}/v1")
    assert shoot(source, "sub/model.bin").source == f"{site.url}/v1/sub/model.bin"


# -- servers that answer otherwise ---------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFoundError),
        (410, NotFoundError),
        (401, AuthError),
        (403, AuthError),
        (400, StorageError),
    ],
)
def test_refusals_are_final(site, source, status, error):
    """What a status means, in the snapshot and in the read."""
    (file,) = shoot(source, f"{site.url}/model.bin").files
    site.answer = lambda handler: handler.say(status)
    with pytest.raises(error):
        read(source, file)
    before = len(site.asked)
    with pytest.raises(error):
        shoot(source, f"{site.url}/model.bin")
    assert len(site.asked) - before <= 2


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_was_asked_for_is_told(site, source, status):
    """Retry-After comes with the error; a long wait is the caller's to decide."""
    (file,) = shoot(source, f"{site.url}/model.bin").files
    site.answer = lambda handler: handler.say(status, Retry_After="17")
    for ask in (lambda: read(source, file), lambda: shoot(source, f"{site.url}/model.bin")):
        with pytest.raises(TransientError) as caught:
            ask()
        assert caught.value.retry_after == 17


def test_the_question_is_repeated(site, source):
    """A passing fault does not end a snapshot."""
    faults = [503, 429]
    good = serve()
    site.answer = lambda h: h.say(faults.pop()) if faults else good(h)
    assert shoot(source, f"{site.url}/model.bin").files[0].size == len(DATA)


def test_nobody_there(source, sites):
    """No server: an error that says that trying again may help."""
    site = sites()
    url = f"{site.url}/model.bin"
    site.server_close()
    with pytest.raises(TransientError):
        shoot(source, url)


def test_another_range_than_asked(site, source):
    """A Content-Range that was not asked for is never taken for the right bytes."""
    (file,) = shoot(source, f"{site.url}/model.bin").files
    site.answer = serve(shift=1)
    with pytest.raises(IntegrityError):
        read(source, file, 1000, 2000)


def test_a_cut_is_transient_after_the_right_bytes(site, source):
    """What came before a cut is right, and the rest can be read later."""
    (file,) = shoot(source, f"{site.url}/model.bin").files

    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        handler.wfile.write(DATA[:2_000_000])
        handler.close_connection = True

    site.answer = cut
    got = bytearray()
    with pytest.raises(TransientError):
        for buffer in source.read(file):
            got += buffer
    assert DATA.startswith(bytes(got))
    site.answer = serve()
    assert bytes(got) + read(source, file, len(got)) == DATA


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("start", [0, 1000])
def test_a_changed_file_is_never_mixed(site, source, ranges, start):
    """Another ETag than the snapshot's: `SourceChangedError`, whatever the server can."""
    (file,) = shoot(source, f"{site.url}/model.bin").files
    site.answer = serve(OTHER, etag='"v2"', ranges=ranges)
    with pytest.raises(SourceChangedError):
        read(source, file, start)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_changed_time_is_a_changed_file(site, source, ranges):
    """Without ETags the time of the last change ties the reads together."""
    site.answer = serve(etag=None, modified="Tue, 24 Nov 2026 10:00:00 GMT")
    (file,) = shoot(source, f"{site.url}/model.bin").files
    site.answer = serve(OTHER, etag=None, ranges=ranges, modified="Tue, 24 Nov 2026 11:00:00 GMT")
    for start in (0, 1000):
        with pytest.raises(SourceChangedError):
            read(source, file, start)


@pytest.mark.parametrize("ranges", [True, False])
def test_nothing_to_know_the_file_by(site, source, ranges):
    """Neither ETag nor time nor hash: read whole, but never gone on with in the middle."""
    site.answer = serve(etag=None, ranges=ranges)
    (file,) = shoot(source, f"{site.url}/model.bin").files
    assert read(source, file) == DATA
    with pytest.raises(SourceChangedError):
        read(source, file, 1000)
    (file,) = shoot(source, f"{site.url}/model.bin#sha256={SHA256}").files
    assert read(source, file, 1000, 2000) == DATA[1000:2000]


NEW = "Tue, 24 Nov 2026 11:00:00 GMT"
OLD = "Tue, 24 Nov 2026 10:00:00 GMT"


def ignoring_if_range(data, headers, *, head):
    """A server that answers ranges of what it has now with `headers`, HEAD with `head`."""

    def answer(handler):
        if handler.command == "HEAD":
            return handler.say(200, data, **head)
        start, end = handler.wanted
        body = data[start:end]
        place = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
        return handler.say(206, body, Content_Range=place, **headers)

    return answer


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize(
    ("head", "told"),
    [
        ({"ETag": '"v1"'}, {}),
        ({"ETag": '"v1"', "Last_Modified": OLD}, {"Last_Modified": OLD}),
        ({"ETag": '"v1"'}, {"ETag": 'W/"v1"'}),
        ({"ETag": '"v1"', "Last_Modified": OLD}, {"ETag": '"v1"', "Last_Modified": NEW}),
        ({"ETag": 'W/"v1"', "Last_Modified": OLD}, {"ETag": 'W/"v1"', "Last_Modified": NEW}),
        ({"Last_Modified": OLD}, {}),
    ],
)
def test_a_range_says_itself_of_which_file_it_is(site, source, start, head, told):
    """If-Range may be ignored: only a strong ETag or the time of the answer itself ties it."""
    site.answer = ignoring_if_range(DATA, told, head=head)
    (file,) = shoot(source, f"{site.url}/model.bin").files
    with pytest.raises(SourceChangedError) as caught:
        read(source, file, start, 2000)
    assert caught.value.hint


@pytest.mark.parametrize("ranges", [True, False])
def test_a_weak_etag_ties_nothing(site, source, ranges):
    """Read whole by one request, and never gone on with in the middle, unless a hash is known."""
    site.answer = serve(etag='W/"v1"', ranges=ranges)
    (file,) = shoot(source, f"{site.url}/model.bin").files
    assert not source.splits(file)
    assert read(source, file) == DATA
    with pytest.raises(SourceChangedError, match="from the middle"):
        read(source, file, 1000)
    (file,) = shoot(source, f"{site.url}/model.bin#sha256={SHA256}").files
    assert read(source, file, 1000, 2000) == DATA[1000:2000]


def test_a_hash_needs_no_tie(site, source):
    """What the server leaves out does no harm where the bytes are checked; what it says counts."""
    site.answer = ignoring_if_range(DATA, {}, head={"ETag": '"v1"', "Last_Modified": OLD})
    (file,) = shoot(source, f"{site.url}/model.bin#sha256={SHA256}").files
    assert source.splits(file)
    assert read(source, file, 1000, 2000) == DATA[1000:2000]
    site.answer = serve(OTHER, etag='"v2"')
    with pytest.raises(SourceChangedError):
        read(source, file, 1000)


def test_another_size(site, source):
    """The same ETag and another size is no longer the same file."""
    (file,) = shoot(source, f"{site.url}/model.bin").files
    for ranges in (True, False):
        site.answer = serve(DATA + b"more", ranges=ranges)
        with pytest.raises(SourceChangedError):
            read(source, file, 1000)


# -- redirects, hosts, secrets ------------------------------------------------------------


def redirect(to: str, status: int = 302) -> Callable[[_Handler], None]:
    return lambda handler: handler.say(status, Location=to)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_headers_never_follow_to_another_origin(sites, status):
    """The configured headers reach the URL's own origin, and no other port, on no request."""
    first, second = sites(), sites()
    first.answer = redirect(f"{second.url}/bucket/x?sig=1", status)
    source = configured(headers={"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET})
    (file,) = shoot(source, f"{first.url}/model.bin").files
    assert read(source, file) == DATA
    assert read(source, file, 5, 10) == DATA[5:10]
    assert first.heard("X-Api-Key") == [SECRET] * 3
    assert len(second.asked) == 3
    assert SECRET not in str(second.asked)


def test_headers_stay_within_one_origin(site):
    """A redirect on the same origin is followed with them."""
    good = serve()
    site.answer = lambda h: redirect("/moved/x")(h) if h.path == "/model.bin" else good(h)
    source = configured(headers={"X-Api-Key": SECRET})
    (file,) = shoot(source, f"{site.url}/model.bin").files
    assert read(source, file) == DATA
    assert site.heard("X-Api-Key") == [SECRET] * 4


def test_redirects_without_end(site, source):
    """A circle is left."""
    site.answer = redirect("/model.bin")
    with pytest.raises(StorageError):
        shoot(source, f"{site.url}/model.bin")


def test_a_redirect_to_another_scheme(site, source, tmp_path):
    """Neither a local file nor anything else that is not http is read."""
    (tmp_path / "secret").write_text("secret")
    for target in ((tmp_path / "secret").as_uri(), "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"):
        site.answer = redirect(target)
        with pytest.raises(StorageError):
            shoot(source, f"{site.url}/model.bin")


def test_hosts_that_are_not_allowed(sites):
    """Only hosts of the list are asked, and only they may be led to."""
    first, second = sites(), sites()
    with pytest.raises(PolicyError, match=r"127\.0\.0\.1"):
        shoot(configured(allow_hosts=["*.vendor.example"]), f"{first.url}/model.bin")
    assert first.asked == []
    first.answer = redirect(second.url.replace("127.0.0.1", "localhost") + "/x")
    source = configured(allow_hosts=["127.0.0.*"])
    with pytest.raises(PolicyError, match="localhost"):
        shoot(source, f"{first.url}/model.bin")
    assert second.asked == []
    first.answer = serve()
    assert shoot(source, f"{first.url}/model.bin").files


@pytest.mark.parametrize(
    "inner",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "10.0.0.5",
        "169.254.169.254",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[fd00::1]",
    ],
)
def test_a_public_host_does_not_lead_inside(sites, monkeypatch, inner):
    """A redirect from outside to this machine or its network is refused unasked."""
    source = UrlSource()
    outside, inside = sites(), sites()
    monkeypatch.setenv("http_proxy", outside.url)
    monkeypatch.setenv("no_proxy", "")
    port = inside.server_address[1]
    outside.answer = redirect(f"http://{inner}:{port}/latest/meta-data")
    with pytest.raises(PolicyError, match="inside"):
        shoot(source, "http://203.0.114.7/model.bin")
    assert [path for _, path, _ in outside.asked] == ["http://203.0.114.7/model.bin"]
    assert inside.asked == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"],
)
def test_an_inner_host_is_asked_only_by_allow_private(sites, host):
    """However it is written; no connection is made, and the way to allow it is told."""
    site = sites()
    url = f"http://{host}:{site.server_address[1]}/model.bin"
    with pytest.raises(PolicyError, match="inside this network") as caught:
        shoot(UrlSource(), url)
    assert "allow_private: true" in caught.value.hint
    assert site.asked == []


def test_a_name_is_looked_up_once_for_judging_and_connecting(sites, monkeypatch):
    """Who answers with another address the second time gains nothing."""
    site, real, asked = sites(), socket.getaddrinfo, []

    def rebinding(host, *args, **options):
        if host != "rebinding.test":
            return real(host, *args, **options)
        asked.append(host)
        inner = "198.51.100.7" if len(asked) % 2 else "127.0.0.1"
        return real(inner, *args, **options)

    connected = []
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, place: connected.append(place) or 1 / 0
    )
    with pytest.raises(PolicyError, match="inside this network"):
        shoot(UrlSource(), f"http://rebinding.test:{site.server_address[1]}/model.bin")
    assert (len(asked), connected) == (1, [])
    assert site.asked == []


def test_what_a_hub_of_ones_own_leads_to_may_be_inside():
    """A host that the settings name may be inside, and then its store may; a public one leads nowhere inside."""
    public, own, anything = (
        Guard(chosen="hub.example"),
        Guard(chosen="hub.local"),
        Guard(allow_private=True),
    )
    public("hub.example", "8.8.8.8")
    with pytest.raises(PolicyError):
        public("store.example", "10.0.0.5")
    with pytest.raises(PolicyError):
        own("store.local", "10.0.0.5")
    own("Hub.local", "10.0.0.4")
    own("store.local", "10.0.0.5")
    anything("x", "169.254.169.254")


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "127.8.8.8", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "240.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
     "2002:a00:1::", "2001:db8::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe"],
)  # fmt: skip
def test_what_is_inside(address):
    """Private, shared, link-local, this machine, multicast, and what leads to such through a gateway."""
    assert is_inside(address)
    assert not is_inside("8.8.8.8")
    assert not is_inside("2606:4700::1111")


def test_user_and_password_in_the_url(sites, source):
    """They are sent as HTTP wants it, to their host alone, and never written down."""
    first, second = sites(), sites()
    first.answer = redirect(f"{second.url}/x")
    url = f"{first.url}/model.bin".replace("://", f"://me:{SECRET}@")
    shot = shoot(source, url)
    token = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert first.heard("Authorization") == [f"Basic {token}"]
    assert read(source, shot.files[0], 0, 9) == DATA[:9]
    assert second.heard("Authorization") == [None, None]
    assert shot.source == f"{first.url}/model.bin"
    assert SECRET not in repr(shot)


def test_signatures_are_never_written_down(site, source):
    """A signed URL is asked for as it is; what is kept and shown of it is not signed."""
    url = f"{site.url}/model.bin?X-Amz-Signature={SECRET}&part=1"
    shot = shoot(source, url)
    assert read(source, shot.files[0], 0, 9) == DATA[:9]
    assert site.asked[-1][1] == f"/model.bin?X-Amz-Signature={SECRET}&part=1"
    assert "part=1" in shot.source
    assert SECRET not in repr(shot)
    for status in (401, 404, 503):
        site.answer = lambda handler, status=status: handler.say(status)
        for ask in (lambda: shoot(source, url), lambda: read(source, shot.files[0])):
            with pytest.raises((AuthError, NotFoundError, TransientError)) as caught:
                ask()
            assert SECRET not in f"{caught.value!r} {caught.value.hint}"


def test_settings_never_show_the_headers(site):
    """Neither the settings nor the source show what they send."""
    config = UrlSource.Config(headers={"X-Api-Key": SECRET})
    assert SECRET not in f"{config!r} {UrlSource(config)!r} {config.model_dump_json()}"


# -- down the street ---------------------------------------------------------------------


@pytest.fixture
def street(local, monkeypatch):
    """A local backend, and settings that let the servers of these tests be asked."""
    monkeypatch.setenv("MM_SOURCES__HTTP__TYPE", "url")
    monkeypatch.setenv("MM_SOURCES__HTTP__ALLOW_PRIVATE", "true")
    monkeypatch.setenv("MM_SOURCES__HTTP__ALLOW_HOSTS", '["127.0.0.1"]')
    return local


def test_an_inner_url_is_refused_down_the_street(site, local):
    """Exit code 7 for people, with the way to allow it; nothing is asked and nothing stays."""
    with ModelManager(backend=local) as manager:
        with pytest.raises(PolicyError) as caught:
            manager.pull(f"{site.url}/model.bin", model_id="vendor/model", version="1")
        assert caught.value.exit_code == 7
        assert manager.list_models() == []
    assert site.asked == []


def test_the_right_sha256_is_stored(site, street):
    """A URL that names its content is pulled under that name; again, nothing is fetched."""
    with ModelManager(backend=street) as manager:
        pulled = manager.pull(f"{site.url}/model.bin#sha256={SHA256}", model_id="vendor/model")
        assert pulled.entry.version == SHA256[:40]
        folder = manager.get("vendor/model").path
        assert (folder / "model.bin").read_bytes() == DATA
        again = manager.pull(f"{site.url}/model.bin#sha256={SHA256}", model_id="vendor/model")
        assert again.fetched_bytes == 0


def test_the_wrong_sha256_is_never_visible(site, street, tmp_path):
    """Other bytes than the URL names: an error, and no file and no version of them."""
    site.answer = serve(OTHER)
    with ModelManager(backend=street) as manager:
        with pytest.raises(IntegrityError):
            manager.pull(f"{site.url}/model.bin#sha256={SHA256}", model_id="vendor/model")
        assert [e.status for e in manager.list_models()] == [ModelStatus.FAILED]
    assert not list((tmp_path / "store").rglob("model.bin"))


def test_a_version_must_be_named_where_there_is_none(site, street):
    """Without ETag and sha256: the error names --version, with which it works."""
    site.answer = serve(etag=None)
    with ModelManager(backend=street) as manager:
        with pytest.raises(UsageError) as caught:
            manager.pull(f"{site.url}/model.bin")
        assert "--version" in caught.value.hint
        entry = manager.pull(f"{site.url}/model.bin", version="1.0").entry
        assert (entry.model_id, entry.version) == ("model", "1.0")


def test_a_change_in_mid_read_fails_the_pull(site, street):
    """Cut, then another file under the same URL: nothing of either becomes visible."""
    good, changed = serve(), serve(OTHER, etag='"v2"')

    def answer(handler):
        if handler.command == "HEAD":
            return good(handler)
        site.answer = changed
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        handler.wfile.write(DATA[:1_500_000])
        handler.close_connection = True

    site.answer = answer
    with ModelManager(backend=street) as manager:
        with pytest.raises(SourceChangedError):
            manager.pull(f"{site.url}/model.bin")
        assert [e.status for e in manager.list_models()] == [ModelStatus.FAILED]
    assert [asked[0] for asked in site.asked].count("GET") == 2
