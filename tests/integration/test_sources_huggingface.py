"""The huggingface source against a hub on loopback, and that hub against the Hub's own client."""

from __future__ import annotations

import hashlib
import json

import pytest

from mm_core import (
    AuthError,
    GatedError,
    IntegrityError,
    InvalidNameError,
    ModelManager,
    NotFoundError,
    OfflineError,
    RemoteFile,
    Request,
    SourceChangedError,
    StorageError,
    TransientError,
    UsageError,
)
from mm_core.testing.hub import Fault, HubServer, Zeros, git_sha1
from mm_core.testing.sources import SourceTests
from mm_plugins.sources.huggingface import HuggingFaceSource

pytestmark = pytest.mark.integration

TOKEN = "hf_" + "anotherTokenThatIsSecret"
WEIGHTS = bytes(range(256)) * 20_000


@pytest.fixture
def source(hub):
    made = HuggingFaceSource()
    yield made
    made.close()


def read(source, file, start=0, end=None) -> bytes:
    return b"".join(bytes(buffer) for buffer in source.read(file, start, end))


def snapshot(source, url="hf://org/m", **options):
    return source.snapshot(Request(url=url, **options))


def test_the_snapshot_is_fixed_and_states_hashes(hub, source):
    """A branch becomes its commit; each file has its size and the hash that the hub knows."""
    commit = hub.add_repo(
        "org/m",
        files={"config.json": b"{}", "w.bin": WEIGHTS},
        pipeline_tag="fill-mask",
        license="mit",
    )
    shot = snapshot(source)
    assert (shot.revision, shot.source) == (commit, f"hf://org/m@{commit}")
    assert (shot.model_id, shot.model_type.value, shot.license) == ("org/m", "fill-mask", "mit")
    config, weights = shot.files
    assert (config.size, config.sha256, config.git_sha1) == (2, None, git_sha1(b"{}"))
    assert (weights.size, weights.git_sha1) == (len(WEIGHTS), None)
    assert weights.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_older_commits_stay_reachable(hub, source):
    """A commit, short of any branch, can be asked for: in the URL and by --revision."""
    old = hub.add_repo("org/m", files={"a.txt": b"old"})
    new = hub.add_repo("org/m", files={"a.txt": b"new"})
    assert snapshot(source).revision == new
    assert snapshot(source, f"hf://org/m@{old}").revision == old
    assert snapshot(source, revision=old).revision == old
    (file,) = snapshot(source, f"hf://org/m@{old}").files
    assert read(source, file) == b"old"


def test_a_tree_of_many_pages(source, hub):
    """2,500 files come whole through pages of 1,000."""
    hub.add_repo("org/m", files={f"d{i % 7}/f{i}.txt": b"%d" % i for i in range(2500)})
    shot = snapshot(source)
    assert len({file.path for file in shot.files}) == 2500
    assert len([r for r in hub.requests if "/tree/" in r.path]) == 3


def test_ranges(hub, source):
    """[start, end) of the bytes; beyond the end there is nothing."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    (file,) = snapshot(source).files
    assert read(source, file, 10, 20) == WEIGHTS[10:20]
    assert read(source, file, len(WEIGHTS) - 5) == WEIGHTS[-5:]
    assert read(source, file, 0, 10**12) == WEIGHTS
    assert read(source, file, len(WEIGHTS) + 5) == b""


def test_more_than_fifty_gigabytes(source, hub):
    """No request asks for more than a CDN gives: a file of 120 GB is read in several ranges."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    (file,) = snapshot(source).files
    huge = RemoteFile(path="w.bin", size=120 << 30, extra=file.extra)
    reading = source.read(huge, 1000)
    with pytest.raises(SourceChangedError):
        next(reading)  # the hub's true file is smaller, and says so
    asked = [r.range for r in hub.requests if r.range]
    assert asked[-1] == f"bytes=1000-{1000 + (8 << 30) - 1}"


def test_a_cut_is_transient_after_the_right_bytes(hub, source):
    """What came before a cut is right, and the error says that trying again may help."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    hub.faults.append(Fault("w.bin", kind="cut", after_bytes=3_000_000))
    (file,) = snapshot(source).files
    got = bytearray()
    with pytest.raises(TransientError):
        for buffer in source.read(file):
            got += buffer
    assert 0 < len(got) <= 3_000_000
    assert bytes(got) == WEIGHTS[: len(got)]


def test_retry_after_is_told(hub, source):
    """A 429 carries the seconds that the hub asks to wait."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    hub.faults.append(Fault("w.bin", kind="429", retry_after=17))
    (file,) = snapshot(source).files
    with pytest.raises(TransientError) as caught:
        read(source, file)
    assert caught.value.retry_after == 17


@pytest.mark.parametrize("kind", ["ignore-range", "wrong-range"])
def test_servers_that_do_ranges_wrong(hub, source, kind):
    """A 200 to a range is read from its start; another range than asked is an error."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    (file,) = snapshot(source).files
    hub.faults.append(Fault("w.bin", kind=kind))
    if kind == "ignore-range":
        assert read(source, file, 1_000_000, 1_000_010) == WEIGHTS[1_000_000:1_000_010]
    else:
        with pytest.raises(IntegrityError):
            read(source, file, 1_000_000)


def test_the_token_never_follows_a_redirect(hub, source, monkeypatch):
    """The hub sees the token; another origin to which it redirects does not."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add_repo("org/m", files={"w.bin": WEIGHTS}, private=True, token=TOKEN)
    hub.faults.append(Fault("w.bin", kind="redirect"))
    (file,) = snapshot(source).files
    assert read(source, file) == WEIGHTS
    seen = {r.origin: r.authorized for r in hub.requests if "/resolve/" in r.path}
    assert seen == {"hub": True, "other": False}
    assert not any(TOKEN in str(r.headers) for r in hub.requests if r.origin == "other")


def test_an_expired_link_is_asked_for_again(hub, local):
    """A 403 from the other origin is no refusal: the hub is asked for a new link."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    hub.faults += [Fault("w.bin", kind="redirect"), Fault("w.bin", kind="403")]
    with ModelManager(backend=local) as manager:
        assert manager.pull("hf://org/m").fetched_bytes == len(WEIGHTS)


def test_the_hub_is_asked_once_where_the_ranges_of_a_file_are():
    """A link is used for all ranges, until it is refused: then the hub is asked for another."""
    with HubServer(redirect_lfs=True) as hub:
        hub.add_repo("org/m", files={"w.bin": WEIGHTS})
        source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=hub.endpoint))
        (file,) = snapshot(source).files
        step = len(WEIGHTS) // 5 + 1

        def read_all():
            hub.requests.clear()
            ranges = range(0, len(WEIGHTS), step)
            assert b"".join(read(source, file, at, at + step) for at in ranges) == WEIGHTS
            return [r.origin for r in hub.requests]

        assert read_all() == ["hub", *["other"] * 5]
        assert read_all() == ["other"] * 5
        hub.faults.append(Fault("w.bin", kind="403"))
        assert read_all() == ["other", "hub", *["other"] * 5]


def test_gated(hub, source, monkeypatch):
    """Gated: an error that says how to get in; with the owner's leave it is read."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS}, gated=True, token=TOKEN)
    with pytest.raises(GatedError) as caught:
        snapshot(source)
    assert f"{hub.endpoint}/org/m" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_wrongTokenWrongToken")
    with pytest.raises(GatedError) as caught:
        snapshot(source)
    assert "hf_wrong" not in str(caught.value) + str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read(source, snapshot(source).files[0]) == WEIGHTS


def test_private_looks_like_absent(hub, source, monkeypatch):
    """A private repository without a token: not found, and the hint tells where the token goes."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS}, private=True, token=TOKEN)
    with pytest.raises(NotFoundError) as caught:
        snapshot(source)
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(snapshot(source).files) == 1


def test_a_token_in_the_settings_wins_and_never_shows(hub):
    """The configured token is used, and no repr of settings or source shows it."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS}, private=True, token=TOKEN)
    config = HuggingFaceSource.Config(token=TOKEN)
    source = HuggingFaceSource(config)
    assert len(snapshot(source).files) == 1
    assert TOKEN not in repr(config) + repr(source) + repr(snapshot(source))


@pytest.mark.parametrize("url", ["hf://datasets/org/m", "hf://a/b/c", "hf://"])
def test_what_is_no_model(source, url):
    """Datasets, spaces and other shapes are refused in words."""
    with pytest.raises(UsageError):
        snapshot(source, url)


def test_unknown_revision(hub, source):
    """A revision that is not there is not found, though the repository is."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    with pytest.raises(NotFoundError, match="revision"):
        snapshot(source, "hf://org/m@nope")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "MM_OFFLINE"])
def test_offline(hub, source, monkeypatch, name):
    """Switched off, nobody is asked; the error names the switch."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    monkeypatch.setenv(name, "1")
    with pytest.raises(OfflineError, match=name):
        snapshot(source)
    assert hub.requests == []


def test_a_hub_that_is_not_there(source, monkeypatch):
    """No connection is a passing fault, told without a traceback of the client."""
    with HubServer() as gone:
        endpoint = gone.endpoint
    source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=endpoint))
    with pytest.raises(TransientError, match="org/m"):
        snapshot(source)


def test_a_wrong_token_route_for_xet(tmp_path, monkeypatch):
    """Where the hub refuses the Xet token, the error is one of ours."""
    with HubServer(xet=tmp_path / "cas") as hub:
        hub.add_repo("org/m", files={"w.bin": WEIGHTS})
        source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=hub.endpoint))
        (file,) = snapshot(source).files
        hub.repos["org/m"].gated = True
        with pytest.raises(AuthError):
            read(source, file)


def test_xet_streams_from_a_real_content_store(tmp_path, local):
    """Where Xet is offered, the bytes come through hf_xet, whole and in ranges, verified."""
    with HubServer(xet=tmp_path / "cas") as hub:
        hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": b"{}"})
        source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=hub.endpoint))
        weights = next(f for f in snapshot(source).files if f.path == "w.bin")
        assert weights.extra["xet"]
        assert read(source, weights) == WEIGHTS
        assert read(source, weights, 1_000_000, 1_000_100) == WEIGHTS[1_000_000:1_000_100]
        assert not [r for r in hub.requests if r.path.endswith("w.bin")]
        plain = HuggingFaceSource(HuggingFaceSource.Config(endpoint=hub.endpoint, xet=False))
        assert read(plain, weights, 0, 100) == WEIGHTS[:100]


def test_the_hubs_own_client_works_against_this_hub(hub, tmp_path):
    """snapshot_download and HfApi take the loopback server for the Hub."""
    from huggingface_hub import HfApi, snapshot_download

    files = {"config.json": b"{}", "d/w.bin": WEIGHTS}
    commit = hub.add_repo("org/m", files=files)
    folder = snapshot_download(
        "org/m", endpoint=hub.endpoint, local_dir=tmp_path / "dl", token=False
    )
    assert folder
    for path, data in files.items():
        assert (tmp_path / "dl" / path).read_bytes() == data
    api = HfApi(endpoint=hub.endpoint, token=False)
    assert api.model_info("org/m").sha == commit
    assert api.file_exists("org/m", "d/w.bin")
    assert [model.id for model in api.list_models(search="org/")] == ["org/m"]
    assert api.get_paths_info("org/m", ["config.json"])[0].size == 2


def test_a_tag_names_its_commit(hub, source):
    """Tags are revisions, and the snapshot is at the commit."""
    old = hub.add_repo("org/m", files={"a.txt": b"old"}, tags=("v1.0",))
    hub.add_repo("org/m", files={"a.txt": b"new"})
    assert snapshot(source, "hf://org/m@v1.0").revision == old
    assert snapshot(source, "hf://org/m@v1.0").facts["requested_revision"] == "v1.0"


def test_ranges_of_a_file_of_sixty_gigabytes(hub, source):
    """Size is no limit: any range of a file above 50 GB is one ranged request."""
    hub.add_repo("org/m", files={"w.bin": Zeros(60 << 30, "ab" * 32)})
    (file,) = snapshot(source).files
    assert (file.size, file.sha256) == (60 << 30, "ab" * 32)
    assert read(source, file, 55 << 30, (55 << 30) + 1000) == bytes(1000)
    assert read(source, file, (60 << 30) - 10) == bytes(10)
    reading = source.read(file)
    assert bytes(next(reading)).strip(b"\0") == b""
    reading.close()
    (first, last, whole) = [r.range for r in hub.requests if r.range]
    assert (first, last) == (
        f"bytes={55 << 30}-{(55 << 30) + 999}",
        f"bytes={(60 << 30) - 10}-{(60 << 30) - 1}",
    )
    assert whole == f"bytes=0-{(8 << 30) - 1}"


def test_ranges_join_without_a_seam(hub, source, monkeypatch):
    """A file that is larger than one request may ask for comes whole, range after range."""
    monkeypatch.setattr("mm_plugins.sources.huggingface.RANGE_LIMIT", 1_000_000)
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    (file,) = snapshot(source).files
    assert read(source, file, 10) == WEIGHTS[10:]
    asked = [r.range for r in hub.requests if r.range]
    assert (len(asked), asked[1]) == (6, "bytes=1000010-2000009")


def test_fewer_bytes_than_promised(hub, source):
    """A body that ends early, though its own length fits, is a passing fault after what came."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS})
    hub.faults.append(Fault("w.bin", kind="truncate", after_bytes=2_000_000))
    (file,) = snapshot(source).files
    got = bytearray()
    with pytest.raises(TransientError):
        for buffer in source.read(file):
            got += buffer
    assert bytes(got) == WEIGHTS[:2_000_000]


@pytest.mark.parametrize("path", ["../up", "/abs", "a/../../b", "c:\\x", "a\0b", "nul", "a//b"])
def test_evil_paths_are_refused_before_anything(hub, source, path):
    """One name that leaves its folder refuses the snapshot, even if no pattern lets it through."""
    hub.add_repo("org/m", files={"a.txt": b"a"}, raw_tree_paths=(path,))
    with pytest.raises(InvalidNameError) as caught:
        snapshot(source, include=["a.txt"])
    assert repr(path) in str(caught.value)
    assert not [r for r in hub.requests if "/resolve/" in r.path]


def test_metadata_is_asked_for_again(hub, source, monkeypatch):
    """Passing faults of the API are waited out, as long as the hub asks for."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    commit = hub.add_repo("org/m", files={"a.txt": b"a"})
    hub.faults += [
        Fault("/api/models/org/m/revision/*", kind="503", times=2),
        Fault("/api/models/org/m/tree/*", kind="429", retry_after=7),
    ]
    assert snapshot(source).revision == commit
    assert len(pauses) == 3
    assert pauses[-1] == 7


@pytest.mark.parametrize(("retry_after", "tries"), [(3600, 1), (0.01, 4)])
def test_metadata_is_not_asked_for_for_ever(hub, source, retry_after, tries):
    """After four tries, or where the wait would be long, the error tells how long."""
    hub.add_repo("org/m", files={"a.txt": b"a"})
    hub.faults.append(Fault("/api/*", kind="429", times=99, retry_after=retry_after))
    with pytest.raises(TransientError) as caught:
        snapshot(source)
    assert caught.value.retry_after == retry_after
    assert len(hub.requests) == tries


def test_the_token_never_goes_to_another_page(hub, source, monkeypatch):
    """A list of files that goes on at another server is refused; nothing is sent there."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add_repo("org/m", files={f"{i}.txt": b"a" for i in range(3)})
    hub.page_size = 2
    hub.page_origin = hub.other_origin
    with pytest.raises(StorageError, match="astray"):
        snapshot(source)
    assert not [r for r in hub.requests if r.origin == "other"]


def test_what_will_not_pass_is_asked_once(hub, source):
    """A refusal that asking again cannot change is final."""
    hub.add_repo("org/m", files={"a.txt": b"a"})
    hub.faults.append(Fault("/api/*", kind="400"))
    with pytest.raises(StorageError):
        snapshot(source)
    assert len(hub.requests) == 1


def test_a_token_that_the_hub_does_not_know(hub, source, monkeypatch):
    """401 to a token is an error of the credentials."""
    hub.add_repo("org/m", files={"a.txt": b"a"})
    hub.faults.append(Fault("/api/*", kind="401"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AuthError) as caught:
        snapshot(source)
    assert TOKEN not in f"{caught.value!r} {caught.value.hint}"


def test_a_token_with_a_line_break(hub):
    """A token from a file often ends in one; it is not part of the token."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS}, private=True, token=TOKEN)
    source = HuggingFaceSource(HuggingFaceSource.Config(token=f"{TOKEN}\n"))
    assert read(source, snapshot(source).files[0], 0, 10) == WEIGHTS[:10]


def test_the_page_to_ask_for_access_is_the_configured_hubs():
    """The endpoint in the settings is the one that the hint names."""
    with HubServer() as hub:
        hub.add_repo("org/m", files={"w.bin": WEIGHTS}, gated=True, token=TOKEN)
        source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=hub.endpoint + "/"))
        with pytest.raises(GatedError) as caught:
            snapshot(source)
        assert f"{hub.endpoint}/org/m," in caught.value.hint


def test_a_commit_that_is_none(hub, source):
    """What the hub calls a commit must be one: it becomes the name of the version."""
    hub.add_repo("org/m", files={"a.txt": b"a"})
    repo = hub.repos["org/m"]
    repo.commits["../x"] = repo.commits[repo.refs["main"]]
    repo.refs["main"] = "../x"
    with pytest.raises(StorageError, match="commit"):
        snapshot(source)


def test_a_server_that_is_no_hub(hub, monkeypatch):
    """An endpoint that answers something else is an error of ours, not of a JSON parser."""
    hub.add_repo("org/m", files={"w.bin": b"<html>"})
    place = f"{hub.endpoint}/org/m/resolve/main/w.bin?"
    source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=place))
    with pytest.raises(StorageError):
        snapshot(source)


def test_facts_are_json_and_small(hub, source, local):
    """Whatever a card holds can be written down: no NaN, no half characters, no megabytes."""
    deep: list = []
    for _ in range(400):
        deep = [deep]
    hub.add_repo(
        "org/m",
        files={"a.txt": b"a"},
        card={"score": float("nan"), "half": "\ud800", "license": "apache-2.0", "base_model": "x"},
    )
    hub.add_repo("org/big", files={"a.txt": b"a"}, card={"text": "x" * 100_000})
    hub.add_repo("org/deep", files={"a.txt": b"a"}, card={"deep": deep})
    shot = snapshot(source)
    assert shot.license == "apache-2.0"
    assert shot.facts["card"]["score"] == "nan"
    assert shot.facts["card"]["base_model"] == "x"
    assert "note" in snapshot(source, "hf://org/big").facts["card"]
    assert json.dumps(snapshot(source, "hf://org/deep").facts["card"]).count("[") < 30
    with ModelManager(backend=local) as manager:
        for model in ("org/m", "org/big", "org/deep"):
            assert manager.pull(f"hf://{model}").entry.model_id == model


def test_the_endpoint_is_that_of_the_time_of_making(hub, monkeypatch):
    """HF_ENDPOINT is read when a source is made, not when the module is imported."""
    hub.add_repo("org/m", files={"a.txt": b"a"})
    source = HuggingFaceSource()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert snapshot(source).files


def test_xet_can_be_switched_off(tmp_path, monkeypatch):
    """HF_HUB_DISABLE_XET is honoured: the bytes come over HTTP."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with HubServer(xet=tmp_path / "cas") as hub:
        hub.add_repo("org/m", files={"w.bin": WEIGHTS})
        source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=hub.endpoint))
        assert read(source, snapshot(source).files[0], 0, 100) == WEIGHTS[:100]
        assert [r for r in hub.requests if r.path.endswith("w.bin")]


def test_large_files_of_a_second_origin(tmp_path):
    """As on the Hub, large files are elsewhere: our reader and the Hub's own client both follow."""
    from huggingface_hub import snapshot_download

    with HubServer(redirect_lfs=True) as hub:
        files = {"config.json": b"{}", "w.bin": WEIGHTS}
        hub.add_repo("org/m", files=files, private=True, token=TOKEN)
        config = HuggingFaceSource.Config(endpoint=hub.endpoint, token=TOKEN)
        source = HuggingFaceSource(config)
        for file in snapshot(source).files:
            assert read(source, file) == files[file.path]
        elsewhere = [r for r in hub.requests if r.origin == "other"]
        assert [(r.path.rpartition("/")[2], r.authorized) for r in elsewhere] == [("w.bin", False)]
        assert TOKEN not in str(elsewhere)
        snapshot_download("org/m", endpoint=hub.endpoint, token=TOKEN, local_dir=tmp_path / "dl")
        assert (tmp_path / "dl" / "w.bin").read_bytes() == WEIGHTS


SUITE = {"config.json": b"{}", "empty.txt": b"", "sub/w eight+%20#1.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def xet_hub(tmp_path_factory):
    with HubServer(xet=tmp_path_factory.mktemp("cas")) as hub:
        hub.add_repo("org/m", files=SUITE)
        yield hub


@pytest.fixture(scope="module")
def two_origins():
    with HubServer(redirect_lfs=True, page_size=1) as hub:
        hub.add_repo("org/m", files=SUITE)
        yield hub


class TestOverXet(SourceTests):
    @pytest.fixture
    def source(self, xet_hub):
        made = HuggingFaceSource(HuggingFaceSource.Config(endpoint=xet_hub.endpoint))
        yield made
        made.close()

    @pytest.fixture
    def url(self):
        return "hf://org/m"

    @pytest.fixture
    def expected(self):
        return SUITE


class TestFromASecondOrigin(TestOverXet):
    @pytest.fixture
    def source(self, two_origins):
        made = HuggingFaceSource(HuggingFaceSource.Config(endpoint=two_origins.endpoint))
        yield made
        made.close()


@pytest.mark.parametrize("page", [b"[]", b"null", b"7"])
def test_a_tree_that_never_ends_is_given_up(page):
    """A page that names itself as the next, or that is no list, ends with a clear error."""
    import http.server
    import json
    import threading

    from mm_core import StorageError

    class Liar(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            commit = "a" * 40
            tree = "/tree/" in self.path
            card = {"id": "org/m", "sha": commit, "tags": [], "siblings": []}
            body = page if tree else json.dumps(card).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if tree:
                host = f"http://127.0.0.1:{self.server.server_address[1]}"
                self.send_header("Link", f'<{host}{self.path}>; rel="next"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        source = HuggingFaceSource(HuggingFaceSource.Config(endpoint=endpoint))
        with pytest.raises(StorageError):
            snapshot(source)
    finally:
        server.shutdown()
        server.server_close()
