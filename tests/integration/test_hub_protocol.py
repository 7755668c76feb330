"""The hub's answers, asked by hand: ranges, conditions, errors, tokens, stopping."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from serving import mm, serving

from mm_core import ModelManager
from mm_core.testing.material import noise

pytestmark = pytest.mark.integration

MODEL = "org/model"
FILES = {"config.json": b'{"a": 1}', "big.bin": noise(3_000_003), "deep/x.txt": b"x", "empty": b""}


def push(folder, backend, model_id=MODEL, files=FILES, **options):
    source = folder / "source" / model_id
    for path, data in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    with ModelManager(backend=backend) as manager:
        return manager.push(source, model_id, **options).entry


@pytest.fixture
def store(tmp_path, local):
    push(tmp_path, local)
    return local


@pytest.fixture
def hub_of(tmp_path, store):
    """Serves the store with some settings: ``with hub_of("{…}") as served``."""

    def serve(config="{}", *flags, **environ):
        return serving(tmp_path / "hub", store, *flags, config=config, **environ)

    return serve


@pytest.fixture
def served(hub_of):
    with hub_of() as running:
        yield running


def test_ranges(served):
    """As RFC 9110 has them; what is not understood means the whole file."""
    data = FILES["big.bin"]
    path, size = f"/{MODEL}/resolve/main/big.bin", len(FILES["big.bin"])
    for asked, status, expected in [
        (None, 200, data),
        ("bytes=0-9", 206, data[:10]),
        ("bytes=5-", 206, data[5:]),
        ("bytes=-7", 206, data[-7:]),
        (f"bytes=-{size + 5}", 206, data),
        (f"bytes=0-{size + 100}", 206, data),
        (f"bytes={size - 1}-", 206, data[-1:]),
        (f"bytes={size}-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=9-5", 200, data),
        ("bytes=1-2,4-5", 200, data),
        ("lines=1-2", 200, data),
        ("bytes=" + "9" * 30 + "-", 200, data),
        ("bytes=x-y", 200, data),
    ]:
        headers = {} if asked is None else {"Range": asked}
        got, told, body = served.ask("GET", path, **headers)
        assert (got, body == expected) == (status, True), asked
        if got == 416:
            assert told["content-range"] == f"bytes */{size}"
        if got == 206:
            first = (
                size - len(expected)
                if asked.startswith("bytes=-")
                else int(asked[6:].split("-")[0])
            )
            assert told["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{size}"
    status, _, body = served.ask("GET", f"/{MODEL}/resolve/main/empty")
    assert (status, body) == (200, b"")
    assert served.ask("GET", f"/{MODEL}/resolve/main/empty", Range="bytes=0-")[0] == 416


def test_conditions(served):
    """What a cache has is not sent again; a range of another state of a file is not mixed in."""
    path, data = f"/{MODEL}/resolve/main/big.bin", FILES["big.bin"]
    _, head, body = served.ask("HEAD", path)
    etag = head["etag"]
    assert body == b""
    assert etag == f'"{hashlib.sha256(data).hexdigest()}"' == head["x-linked-etag"]
    assert int(head["content-length"]) == int(head["x-linked-size"]) == len(data)
    assert served.ask("GET", path, If_None_Match=etag)[0] == 304
    assert served.ask("GET", path, If_None_Match=f'"other", W/{etag}')[0] == 304
    assert served.ask("GET", path, If_None_Match='"other"')[0] == 200
    assert served.ask("GET", path, Range="bytes=0-1", If_Range=etag)[0] == 206
    status, _, body = served.ask("GET", path, Range="bytes=0-1", If_Range='"other"')
    assert (status, body) == (200, data)


def test_what_a_file_is_can_harm_no_browser(tmp_path, local):
    """A page among the files is bytes: it is never shown as one of this hub's own."""
    push(tmp_path, local, files={"x.html": b"<script>1</script>", "x.svg": b"<svg/>", "R.md": b"#"})
    with serving(tmp_path / "hub", local) as served:
        for name, type_ in [
            ("x.html", "application/octet-stream"),
            ("x.svg", "application/octet-stream"),
            ("R.md", "text/plain; charset=utf-8"),
        ]:
            _, head, _ = served.ask("GET", f"/{MODEL}/resolve/main/{name}")
            assert head["content-type"] == type_
            assert head["content-security-policy"] == "default-src 'none'; sandbox"
            assert head["x-content-type-options"] == "nosniff"


def test_a_pulled_model_keeps_its_commit_and_another_has_a_stable_one(hub, tmp_path, local):
    """Whichever server tells it."""
    commit = hub.add_repo("up/one", files={"config.json": b"{}"})
    with ModelManager(backend=local) as manager:
        manager.pull("hf://up/one")
        manager.pull("hf://up/one", model_id="org/named", version="v1")
    push(tmp_path, local, "org/own", version="v2", aliases=["prod"])
    told = []
    for number in range(2):
        with serving(tmp_path / f"hub{number}", local) as served:
            told.append(
                {
                    n: served.get_json(f"/api/models/{n}")["sha"]
                    for n in ("up/one", "org/named", "org/own")
                }
            )
            own = told[-1]["org/own"]
            for revision in ("main", "v2", "prod", own, "refs%2Fheads%2Fprod", "refs%2Ftags%2Fv2"):
                assert served.get_json(f"/api/models/org/own/revision/{revision}")["sha"] == own
    assert told[0] == told[1]
    assert told[0]["up/one"] == told[0]["org/named"] == commit
    assert len(own) == 40
    assert own != commit


def test_errors_are_the_hubs_own(served):
    """By their codes clients tell them apart."""
    for path, status, code in [
        ("/api/models/org/none", 401, "RepoNotFound"),
        ("/org/none/resolve/main/x", 401, "RepoNotFound"),
        (f"/api/models/{MODEL}/revision/none", 404, "RevisionNotFound"),
        (f"/{MODEL}/resolve/none/config.json", 404, "RevisionNotFound"),
        (f"/{MODEL}/resolve/main/none", 404, "EntryNotFound"),
        (f"/{MODEL}/resolve/main/..%2F..%2Fmm.yaml", 404, "EntryNotFound"),
        (f"/api/models/{MODEL}/tree/main/none", 404, "EntryNotFound"),
        ("/api/datasets/org/none", 404, None),
        ("/api/whoami-v2", 401, None),
        ("/nothing", 404, None),
    ]:
        got, head, body = served.ask("GET", path)
        assert (got, head.get("x-error-code")) == (status, code), path
        assert json.loads(body)["error"]
        assert head["x-error-message"]


def test_a_changed_registry_is_seen(tmp_path, store):
    """What another process does shows within `refresh` seconds."""
    with serving(tmp_path / "hub", store, config="{refresh: 0.2}") as served:
        assert served.ask("GET", "/api/models/org/late")[0] == 401
        push(tmp_path, store, "org/late")
        time.sleep(0.3)
        assert served.ask("GET", "/api/models/org/late")[0] == 200
        with ModelManager(backend=store) as manager:
            manager.remove("org/late")
        time.sleep(0.3)
        assert served.ask("GET", "/api/models/org/late")[0] == 401


# -- who may -----------------------------------------------------------------------------


@pytest.fixture
def team(tmp_path, store, hub_of):
    """A hub with a public, a private and a gated model, and tokens of several kinds."""
    push(tmp_path, store, "secret/plan")
    push(tmp_path, store, "gated/llama")
    config = "{anonymous_read: true, private: ['secret/*'], gated: ['gated/*'], token_refresh: 0.1}"
    with hub_of(config) as served:
        served.tokens = {
            name: mm(served.folder, "token", "create", name, *flags)["token"]["text"]
            for name, flags in {
                "all": [],
                "org": ["--model", "org/*"],
                "writer": ["--scope", "write"],
                "brief": ["--expires", "1s"],
            }.items()
        }
        yield served


def test_who_sees_what(team):
    """Public, private and gated models, with and without a token that fits."""
    for token, model, info, file in [
        (None, MODEL, 200, 200),
        (None, "secret/plan", 401, 401),
        (None, "gated/llama", 200, 401),
        ("all", MODEL, 200, 200),
        ("all", "secret/plan", 200, 200),
        ("all", "gated/llama", 200, 200),
        ("org", "secret/plan", 404, 404),
        ("org", "gated/llama", 200, 403),
        ("writer", "secret/plan", 200, 200),
    ]:
        text = token and team.tokens[token]
        got = [
            team.ask("GET", path, token=text)
            for path in (f"/api/models/{model}", f"/{model}/resolve/main/config.json")
        ]
        assert [one[0] for one in got] == [info, file], (token, model)
        codes = {200: None, 401: {"gated/llama": "GatedRepo"}.get(model, "RepoNotFound")}
        codes |= {403: "GatedRepo", 404: "RepoNotFound"}
        assert [one[1].get("x-error-code") for one in got] == [codes[info], codes[file]]
    listed = {model["id"] for model in team.get_json("/api/models")}
    assert listed == {MODEL, "gated/llama"}
    listed = {model["id"] for model in team.get_json("/api/models", token=team.tokens["org"])}
    assert listed == {MODEL, "gated/llama"}
    listed = {model["id"] for model in team.get_json("/api/models", token=team.tokens["all"])}
    assert listed == {MODEL, "gated/llama", "secret/plan"}
    who = team.get_json("/api/whoami-v2", token=team.tokens["writer"])
    assert (who["name"], who["auth"]["accessToken"]["role"]) == ("writer", "write")
    assert team.ask("GET", "/api/models/gated/llama/auth-check")[0] == 401
    assert team.ask("GET", "/api/models/gated/llama/auth-check", token=team.tokens["all"])[0] == 200


def test_tokens_end(team):
    """Revoked ones and those whose time is up are wrong ones; a foreign hub's is no token at all."""
    path = "/api/models/secret/plan"
    assert team.ask("GET", path, token=team.tokens["all"])[0] == 200
    listed = mm(team.folder, "token", "list")["tokens"]
    assert {one["name"] for one in listed} == {"all", "org", "writer", "brief"}
    assert all("text" not in one and "sha256" not in one for one in listed)
    mm(team.folder, "token", "revoke", next(o["id"] for o in listed if o["name"] == "all"))
    time.sleep(1.2)
    for name in ("all", "brief"):
        status, head, _ = team.ask("GET", f"/api/models/{MODEL}", token=team.tokens[name])
        assert (status, head["x-error-message"]) == (
            401,
            "Invalid credentials in Authorization header",
        )
    assert team.ask("GET", f"/api/models/{MODEL}", token="hf_ofanotherhub")[0] == 200
    assert team.ask("GET", path, token="hf_ofanotherhub")[0] == 401


def test_no_token_is_written_anywhere(team, store, local):
    """Neither in the log, nor in the store: only a hash."""
    for text in team.tokens.values():
        team.ask("GET", f"/api/models/{MODEL}?token={text}", token=text)
        team.ask("GET", f"/{text}/resolve/main/x", token=text)
        team.ask("GET", "/api/models/x/y", token=text + "0")
    team.stop()
    written = team.log_file.read_bytes()
    for folder, _, names in os.walk(store):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                written += file.read()
    assert b'"route": "api"' in written
    for text in team.tokens.values():
        assert text.encode() not in written
        assert text[15:].encode() not in written


def test_without_tokens_nobody_guesses(hub_of):
    """A wrong token costs: after some, their address is not listened to for a while."""
    with hub_of("{anonymous_read: false, failures: 3}") as served:
        good = mm(served.folder, "token", "create", "good")["token"]["text"]
        assert served.ask("GET", f"/api/models/{MODEL}")[0] == 401
        assert served.ask("GET", f"/api/models/{MODEL}", token=good)[0] == 200
        wrong = good[:-1] + ("0" if good[-1] != "0" else "1")
        assert [served.ask("GET", "/api/models", token=wrong)[0] for _ in range(5)] == [401] * 3 + [
            429
        ] * 2
        status, head, _ = served.ask("GET", f"/api/models/{MODEL}", token=good)
        assert (status, 0 < int(head["retry-after"]) <= 61) == (429, True)


# -- running -----------------------------------------------------------------------------


def test_health_and_numbers(served):
    """For those who watch it."""
    assert served.get_json("/healthz") == {"status": "ok"}
    assert served.get_json("/readyz") == {"status": "ready"}
    served.ask("GET", f"/{MODEL}/resolve/main/big.bin")
    served.ask("GET", f"/{MODEL}/resolve/main/none")
    text = served.ask("GET", "/metrics")[2].decode()
    assert 'mm_hub_requests_total{method="GET",route="resolve",status="200"} 1.0' in text
    assert 'mm_hub_requests_total{method="GET",route="resolve",status="404"} 1.0' in text
    sent = next(
        line
        for line in text.splitlines()
        if line.startswith('mm_hub_sent_bytes_total{route="resolve"')
    )
    assert float(sent.split()[-1]) >= len(FILES["big.bin"])


def test_every_request_has_an_id(served):
    """The client's own, where it is one; the same in the log."""
    assert served.ask("GET", "/api/models", X_Request_Id="mine-1")[1]["x-request-id"] == "mine-1"
    made = served.ask("GET", "/api/models", X_Request_Id="no good\there")[1]["x-request-id"]
    assert len(made) == 16
    _until(lambda: {"mine-1", made} <= {line.get("request_id") for line in served.log()})
    lines = {line.get("request_id"): line for line in served.log()}
    assert lines["mine-1"]["route"] == "api"


def test_ready_says_when_the_backend_is_away(tmp_path, s3, s3_server):
    """Health is of this process alone."""
    push(tmp_path, s3)
    with serving(
        tmp_path / "hub",
        s3,
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        MM_DEFAULTS__COMMIT_TIMEOUT="0.5",
    ) as served:
        assert served.ask("GET", "/healthz")[0] == 200
        status, _, body = served.ask("GET", "/readyz")
        assert (status, json.loads(body)["status"]) == (503, "not ready")
        status, head, _ = served.ask("GET", f"/api/models/{MODEL}")
        assert status == 503
        assert int(head["retry-after"]) >= 1


def test_a_stop_lets_running_answers_end(hub_of, tmp_path, store):
    """SIGTERM: nobody new is let in, who is being answered gets all of it."""
    data = noise(40 << 20)
    push(tmp_path, store, "org/large", files={"w.bin": data})
    with hub_of("{drain: 30}") as served:
        at = urlsplit(served.url)
        with socket.create_connection((at.hostname, at.port)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            line.sendall(
                b"GET /org/large/resolve/main/w.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            got = line.recv(1 << 16)
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection((at.hostname, at.port), timeout=2).close()
            while piece := line.recv(1 << 20):
                got += piece
        assert got.partition(b"\r\n\r\n")[2] == data
        assert served.process.wait(30) == 0


def test_settings_are_read_again(hub_of, store):
    """SIGHUP takes what is good, and leaves what is not."""
    with hub_of("{anonymous_read: true}") as served:
        path = f"/api/models/{MODEL}"
        assert served.ask("GET", path)[0] == 200
        config = served.folder / "mm.yaml"
        good = config.read_text()
        config.write_text(good.replace("anonymous_read: true", "no_such_setting: 1"))
        served.process.send_signal(signal.SIGHUP)
        _until(lambda: any("was not taken" in line["event"] for line in served.log()))
        assert served.ask("GET", path)[0] == 200
        config.write_text(good.replace("anonymous_read: true", "anonymous_read: false"))
        served.process.send_signal(signal.SIGHUP)
        _until(lambda: served.ask("GET", path)[0] == 401)


def test_memory_does_not_grow_with_slow_clients(hub_of, tmp_path, store):
    """Each holds a piece of the file at most, however little of it is taken."""
    push(tmp_path, store, "org/large", files={"w.bin": bytes(256 << 20)})
    with hub_of() as served:
        served.ask("GET", f"/{MODEL}/resolve/main/big.bin")
        before = _rss(served.process.pid)
        at = urlsplit(served.url)
        lines = []
        for _ in range(32):
            line = socket.create_connection((at.hostname, at.port))
            line.sendall(b"GET /org/large/resolve/main/w.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            assert line.recv(100)
            lines.append(line)
        time.sleep(2)
        grown = _rss(served.process.pid) - before
        for line in lines:
            line.close()
        assert grown < 32 * (3 << 20), grown
        _until(
            lambda: (
                served.get_json("/healthz") and b"in_flight 1.0" in served.ask("GET", "/metrics")[2]
            )
        )


def test_rubbish_is_answered(served):
    """Ten thousand odd requests: no 500, no hang, nothing from outside of the model."""
    chance = random.Random(7)
    at = urlsplit(served.url)
    words = [
        "api", "models", "org", "model", "resolve", "main", "tree", "..", "%2e%2e", "%2F", "", ".",
        "%00", "\\", "%5c", "config.json", "revision", "raw", "paths-info", "refs", "é", "%ff", "~",
        "//", "etc", "passwd", "%252e%252e", "deep", "mm.yaml", "?", "limit=x", "cursor=%", "#", "a" * 300,
    ]  # fmt: skip
    ranges = [
        "bytes=0-",
        "bytes=-1",
        "bytes=99999999999999999999-",
        "bytes=1-0",
        "x",
        "bytes=0-0,2-3",
        "bytes=\x01",
    ]
    methods = [
        "GET",
        "GET",
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "BREW",
    ]
    seen: dict[int, int] = {}
    requests = 10_000 if "MM_STORM" in os.environ else 2_000

    def some(count, seed):
        own = random.Random(seed)
        for _ in range(count):
            parts = [own.choice(words) for _ in range(own.randrange(1, 9))]
            target = "/" + own.choice(["/", "/", "%2F", "?"]).join(parts)
            if own.random() < 0.3:
                target = f"/{MODEL}/resolve/main/" + target
            head = [f"{own.choice(methods)} {target} HTTP/1.1", "Host: x", "Connection: close"]
            if own.random() < 0.3:
                head.append(f"Range: {own.choice(ranges)}")
            if own.random() < 0.1:
                head.append(
                    f"Authorization: Bearer {own.choice(['', 'x', 'mm_', 'mm_' + '0' * 52])}"
                )
            if own.random() < 0.1:
                head.append(f"X-{own.randrange(9)}: " + own.choice(["", "\xff", "a" * 5000]))
            body = own.randbytes(own.choice([0, 0, 10, 3000]))
            head.append(f"Content-Length: {len(body)}")
            with socket.create_connection((at.hostname, at.port), timeout=20) as line:
                try:
                    line.sendall(
                        "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + body
                    )
                    got = b""
                    while piece := line.recv(1 << 16):
                        got += piece
                except ConnectionError:
                    continue
            status = int(got.split(b" ", 2)[1]) if got else 0
            seen[status] = seen.get(status, 0) + 1
            assert b"root:" not in got
            assert b"serve:" not in got

    threads = [
        threading.Thread(target=some, args=(requests // 4, chance.random())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not {status for status in seen if status >= 500}, seen
    assert served.ask("GET", f"/{MODEL}/resolve/main/config.json")[2] == FILES["config.json"]
    assert not [line for line in served.log() if line.get("level") == "error"]


def _until(holds, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
