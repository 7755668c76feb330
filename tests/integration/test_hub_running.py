"""The hub at work: health, numbers, its log, stopping, settings read again, memory, rubbish."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from serving import FILES, MODEL, push, rss, serving
from waiting import until

from mm_core import ModelManager
from mm_core.testing.material import noise

pytestmark = pytest.mark.integration


def is_closed(host, port) -> bool:
    """Whether nobody takes connections there."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return True
    return False


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
    until(lambda: {"mine-1", made} <= {line.get("request_id") for line in served.log()})
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
            until(lambda: is_closed(at.hostname, at.port))
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
        until(lambda: any("was not taken" in line["event"] for line in served.log()))
        assert served.ask("GET", path)[0] == 200
        config.write_text(good.replace("anonymous_read: true", "anonymous_read: false"))
        served.process.send_signal(signal.SIGHUP)
        until(lambda: served.ask("GET", path)[0] == 401)


def test_memory_does_not_grow_with_slow_clients(hub_of, tmp_path, store):
    """Each holds a piece of the file at most, however little of it is taken."""
    push(tmp_path, store, "org/large", files={"w.bin": bytes(256 << 20)})
    with hub_of() as served:
        served.ask("GET", f"/{MODEL}/resolve/main/big.bin")
        before = rss(served.process.pid)
        at = urlsplit(served.url)
        lines = []
        for _ in range(32):
            line = socket.create_connection((at.hostname, at.port))
            line.sendall(b"GET /org/large/resolve/main/w.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            assert line.recv(100)
            lines.append(line)
        until(lambda: b"in_flight 33.0" in served.ask("GET", "/metrics")[2])
        seen = [0, 1]
        until(lambda: seen.append(rss(served.process.pid)) or seen[-1] == seen[-2] == seen[-3])
        grown = seen[-1] - before
        for line in lines:
            line.close()
        assert grown < 32 * (3 << 20), grown
        until(
            lambda: (
                served.get_json("/healthz") and b"in_flight 1.0" in served.ask("GET", "/metrics")[2]
            )
        )


def test_rubbish_is_answered(served):
    """Two thousand odd requests: no 500, no hang, nothing from outside of the model."""
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
    requests = 2_000

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


def test_small_answers_come_at_once(served):
    """On one connection: none waits for the client to confirm what came before, 40 ms each."""
    at = urlsplit(served.url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
    began = time.monotonic()
    for _ in range(100):
        connection.request("GET", f"/{MODEL}/resolve/main/config.json")
        assert connection.getresponse().read() == FILES["config.json"]
    connection.close()
    assert time.monotonic() - began < 3


def test_requests_that_break_off_are_no_fault_of_the_hub(served):
    """A body that is shorter than it was said to be: a line that says so, and no error."""
    at = urlsplit(served.url)
    for path in ("/api/validate-yaml", f"/api/models/{MODEL}/paths-info/main"):
        with socket.create_connection((at.hostname, at.port)) as line:
            line.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
    until(lambda: sum("broke off" in str(entry.get("failure")) for entry in served.log()) == 2)
    assert not [entry for entry in served.log() if entry.get("level") == "error"]


def test_requests_that_do_not_wait_for_answers(served):
    """On one connection, all at once: answered in their order, each whole, also ranges."""
    at = urlsplit(served.url)
    path = f"/{MODEL}/resolve/main"
    wanted = [
        ("config.json", None),
        ("big.bin", None),
        ("empty", None),
        ("big.bin", (5, 1_000_000)),
        ("deep/x.txt", None),
    ] * 6
    heads = []
    for name, span in wanted:
        extra = "" if span is None else f"Range: bytes={span[0]}-{span[1] - 1}\r\n"
        heads.append(f"GET {path}/{name} HTTP/1.1\r\nHost: x\r\n{extra}\r\n")
    with socket.create_connection((at.hostname, at.port), timeout=30) as line:
        line.sendall("".join(heads).encode())
        stream = line.makefile("rb")
        for name, span in wanted:
            status = stream.readline()
            assert status.split()[1] == (b"200" if span is None else b"206")
            length = 0
            while (header := stream.readline()) != b"\r\n":
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            data = FILES[name]
            assert stream.read(length) == (data if span is None else data[slice(*span)])


def test_a_file_that_is_shorter_than_it_should_be(tmp_path, store, hub_of):
    """Nobody gets a whole answer of it; other files are answered as ever."""
    with ModelManager(backend=store) as manager:
        place = manager.registry().resolve(MODEL).path / "big.bin"
    with hub_of() as served:
        assert served.ask("GET", f"/{MODEL}/resolve/main/big.bin")[0] == 200
        place.chmod(0o644)
        with place.open("r+b") as file:
            file.truncate(1000)
        try:
            body = served.ask("GET", f"/{MODEL}/resolve/main/big.bin")[2]
        except http.client.IncompleteRead as cut:
            body = cut.partial
        assert len(body) < len(FILES["big.bin"])
        assert served.ask("GET", f"/{MODEL}/resolve/main/config.json")[0] == 200
