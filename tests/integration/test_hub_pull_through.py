"""What is missing comes from upstream: served while it comes, once for all, verified, and kept."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from serving import push, serving
from waiting import until

from mm_core import ModelManager
from mm_core.testing.hub import Fault
from mm_core.testing.material import noise
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.integration

CONFIG = "{pull_through: {}}"
SLOW = {"MM_DEFAULTS__LIMIT_RATE": "20MiB"}
BIG = noise(40 << 20)
FILES = {"config.json": b'{"a": 1}', "deep/notes.txt": b"notes", "model.safetensors": BIG}
ID = "up/model"


@pytest.fixture
def upstream(hub):
    """A Hub with one model; what `mm serve` asks for as well, by HF_ENDPOINT."""
    hub.commit = hub.add_repo(ID, files=FILES, license="mit")
    return hub


def entry_of(backend):
    with ModelManager(backend=backend) as manager:
        return manager.registry().get_model(ID)


def kept_in(folder) -> int:
    """The bytes of files that are not whole."""
    return sum(left.size or 0 for left in LocalSink(LocalSink.Config(root=folder)).unfinished(""))


def read(url: str, path: str, **headers):
    """One GET: its bytes, and when the first of them and the last came."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        data, first = bytearray(), None
        while piece := answer.read1(1 << 20):
            first = first or time.monotonic()
            data += piece
        return answer.status, bytes(data), first, time.monotonic()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_many_ask_at_once(upstream, request, tmp_path, kind):
    """Upstream sees each byte once; all get right bytes, the first long before the last is here."""
    backend = request.getfixturevalue(kind)
    slower = {"MM_DEFAULTS__LIMIT_RATE": "6MiB"}  # twenty clients share two cores with all else
    config = "{pull_through: {patience: 60}}"
    with serving(tmp_path / "hub", backend, config=config, **slower) as served:
        path = f"/{ID}/resolve/main/model.safetensors"
        with ThreadPoolExecutor(21) as pool:
            sent = pool.submit(when, lambda: upstream.sent_bytes >= len(BIG))
            ends = list(pool.map(lambda _: read(served.url, path), range(20)))
        assert all((status, data == BIG) == (200, True) for status, data, _, _ in ends)
        assert all(first < sent.result() for _, _, first, _ in ends)
        until(lambda: (e := entry_of(backend)) is not None and e.status.value == "AVAILABLE")
        assert upstream.sent_bytes < 1.1 * sum(map(len, FILES.values()))
        before = upstream.sent_bytes
        assert read(served.url, f"/{ID}/resolve/{upstream.commit}/model.safetensors")[1] == BIG
        assert read(served.url, f"/{ID}/resolve/main/deep/notes.txt")[1] == b"notes"
        assert upstream.sent_bytes == before
    entry = entry_of(backend)
    assert (entry.version, entry.aliases) == (upstream.commit, ("main",))
    with ModelManager(backend=backend) as manager:
        assert manager.verify().ok


def test_what_is_told_is_the_same_before_and_after(upstream, tmp_path, local):
    """Names, commit and hashes: a client's cache stays good. Asking alone brings nothing here."""
    with serving(tmp_path / "hub", local, config=CONFIG) as served:

        def told():
            info = served.get_json(f"/api/models/{ID}?blobs=true")
            paths = sorted(one["rfilename"] for one in info["siblings"])
            heads = [served.ask("HEAD", f"/{ID}/resolve/main/{path}")[1] for path in paths]
            return (
                info["sha"],
                [(h["etag"], h["x-linked-size"], h["x-repo-commit"]) for h in heads],
                sorted(e["path"] for e in served.get_json(f"/api/models/{ID}/tree/main")),
            )

        before = told()
        assert entry_of(local) is None
        assert before[0] == upstream.commit
        assert served.get_json(f"/api/models/{ID}/refs")["branches"][0]["name"] == "main"
        read(served.url, f"/{ID}/resolve/main/config.json")
        until(lambda: (e := entry_of(local)) is not None and e.status.value == "AVAILABLE")
        until(lambda: served.get_json("/api/models") != [])
        assert told() == before
        (pull,) = served.get_json("/mm/v1/pulls")["pulls"]
        assert (pull["kind"], pull["status"], pull["model_id"]) == ("through", "done", ID)
        digest = hashlib.sha256(FILES["config.json"]).hexdigest()
        assert before[1][0][0] == f'"{digest}"'


def test_ranges_of_what_is_on_its_way(upstream, tmp_path, local):
    """From the front, from the end, and across what has passed already."""
    with serving(tmp_path / "hub", local, config=CONFIG, **SLOW) as served:
        path = f"/{ID}/resolve/main/model.safetensors"
        spans = [(0, 99), (30 << 20, (30 << 20) + 5), (len(BIG) - 8, len(BIG) - 1), (5, 3 << 20)]
        with ThreadPoolExecutor(4) as pool:
            asked = [f"bytes={first}-{last}" for first, last in spans]
            ends = list(pool.map(lambda r: read(served.url, path, Range=r), asked))
        for (first, last), (status, data, _, _) in zip(spans, ends, strict=True):
            assert (status, data == BIG[first : last + 1]) == (206, True)


def test_a_small_window_and_a_late_client(upstream, tmp_path, local):
    """Who comes late and finds the bytes gone reads them from upstream after a while."""
    config = "{pull_through: {window: 16MiB, patience: 0.2}}"
    with serving(tmp_path / "hub", local, config=config, MM_DEFAULTS__LIMIT_RATE="15MiB") as served:
        path = f"/{ID}/resolve/main/model.safetensors"
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(read, served.url, path)
            time.sleep(1.8)  # more than a window has passed
            late = pool.submit(read, served.url, path)
            assert late.result()[1] == first.result()[1] == BIG


def test_two_servers_bring_it_once(upstream, tmp_path, s3):
    """The claim of the one is waited for by the other, whose clients read what stands."""
    patient = "{pull_through: {patience: 60}}"  # whatever else the machine does
    with (
        serving(tmp_path / "one", s3, config=patient, **SLOW) as one,
        serving(tmp_path / "two", s3, config=patient, **SLOW) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        path = f"/{ID}/resolve/main/model.safetensors"
        ends = [pool.submit(read, served.url, path) for served in (one, two)]
        assert all(end.result()[1] == BIG for end in ends)
        assert upstream.sent_bytes < 1.1 * sum(map(len, FILES.values()))


def test_a_killed_server_leaves_what_the_next_goes_on_with(upstream, tmp_path, local):
    """What it had stored is not fetched again."""
    path = f"/{ID}/resolve/main/model.safetensors"
    with serving(tmp_path / "hub", local, config=CONFIG, **SLOW) as served:
        thread = threading.Thread(target=lambda: _ignoring(read, served.url, path))
        thread.start()
        until(lambda: kept_in(local) >= 16 << 20, 20)
        served.process.kill()
        served.process.wait()
        thread.join(20)
    before, kept = upstream.sent_bytes, kept_in(local)
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        assert read(served.url, path)[1] == BIG
        until(lambda: (e := entry_of(local)) is not None and e.status.value == "AVAILABLE", 30)
    assert upstream.sent_bytes - before < len(BIG) - kept + (4 << 20)


def test_wrong_bytes_reach_nobody_whole(upstream, tmp_path, local):
    """The last byte is held back until all are verified; nothing enters the registry."""
    upstream.faults.append(Fault("model.safetensors", kind="corrupt", times=99))
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        path = f"/{ID}/resolve/main/model.safetensors"
        try:
            _, data, _, _ = read(served.url, path)
        except http.client.IncompleteRead as cut:
            data = cut.partial
        assert len(data) < len(BIG)
        assert entry_of(local) is None or entry_of(local).status.value != "AVAILABLE"
        until(lambda: any("did not come" in line["event"] for line in served.log()))
        upstream.faults.clear()
        until(lambda: _whole(served, path) == BIG, 30)


def test_upstream_away(upstream, tmp_path, local):
    """What is stored still serves; for what is not, clients hear when to ask again."""
    push(tmp_path, local, "org/own", files={"x": b"x"})
    with serving(
        tmp_path / "hub", local, config=CONFIG, HF_ENDPOINT="http://127.0.0.1:9"
    ) as served:
        assert served.ask("GET", "/org/own/resolve/main/x")[2] == b"x"
        status, head, _ = served.ask("GET", f"/api/models/{ID}")
        assert status == 503
        assert int(head["retry-after"]) >= 1
    upstream.faults.append(Fault(f"/api/models/{ID}*", kind="429", times=9, retry_after=600))
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        status, head, _ = served.ask("GET", f"/api/models/{ID}")
        assert (status, head["retry-after"]) == (503, "600")
    upstream.faults[:] = [Fault(f"/api/models/{ID}*", kind="429", times=1, retry_after=10)]
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        status, head, _ = served.ask("GET", f"/api/models/{ID}")
        assert (status, head["retry-after"]) == (503, "5")  # sooner than the client gives up
        until(lambda: served.ask("GET", f"/api/models/{ID}")[0] == 200)


def test_what_may_not_come(upstream, tmp_path, local):
    """Missing, gated, left out by the settings, refused by a policy: each in the Hub's words."""
    upstream.add_repo("up/gated", files={"config.json": b"{}", "w.bin": b"w"}, gated=True)
    upstream.add_repo("other/model", files={"config.json": b"{}"})
    config = "{pull_through: {models: ['up/*']}}"
    with serving(tmp_path / "hub", local, config=config) as served:
        for path, status, code in [
            ("/api/models/up/none", 401, "RepoNotFound"),
            ("/api/models/other/model", 401, "RepoNotFound"),
            ("/api/models/up/model/revision/none", 404, "RevisionNotFound"),
            ("/api/models/up/..%2Fx", 401, "RepoNotFound"),
            (f"/{ID}/resolve/main/none", 404, "EntryNotFound"),
            ("/up/gated/resolve/main/w.bin", 401, "GatedRepo"),
        ]:
            got, head, body = served.ask("GET", path)
            assert (got, head.get("x-error-code")) == (status, code), (path, body)
    policies = "\npolicies: {default: {licenses: {allow: [apache-2.0]}}}"
    with serving(tmp_path / "refused", local, config=CONFIG + policies) as served:
        status, _, body = served.ask("GET", f"/{ID}/resolve/main/config.json")
        assert status == 403
        assert "mit" in json.loads(body)["error"]
    assert entry_of(local) is None


def test_a_client_of_the_hub(upstream, tmp_path, local):
    """Unmodified, by HF_ENDPOINT alone, into an empty backend."""
    script = (
        "import sys; from huggingface_hub import snapshot_download; "
        f"print(snapshot_download({ID!r}))"
    )
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    folder = run.stdout.strip()
    for path, data in FILES.items():
        with open(os.path.join(folder, path), "rb") as file:
            assert file.read() == data


def when(holds) -> float:
    """The moment from which on `holds()` does."""
    until(holds, 60)
    return time.monotonic()


def _ignoring(work, *arguments):
    try:
        return work(*arguments)
    except (OSError, http.client.HTTPException):
        return None


def _whole(served, path):
    try:
        return read(served.url, path)[1]
    except http.client.IncompleteRead:
        return None
