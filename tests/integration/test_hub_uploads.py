"""Clients of the Hub upload into one's own storage: into the registry, each commit a version."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving import MODEL, mm, rss, serving
from waiting import until

from mm_core import ModelManager
from mm_core.cli.tiny_model import tiny_model
from mm_core.testing.material import noise
from mm_core.testing.xet import chunk, shard
from mm_plugins.hub.xet import Segment

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).with_name("hub_uploads.py")
DOCS = Path(__file__).parents[2] / "docs"
CONFIG = "{uploads: true}"
CARD = b"---\nlicense: mit\npipeline_tag: text-generation\ntags: [tiny]\n---\n# A model\n"


def token_of(served, *flags) -> str:
    return mm(served.folder, "token", "create", "somebody", *flags)["token"]["text"]


def writer(served) -> str:
    return token_of(served, "--scope", "write")


def model_folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    files = {**tiny_model(), "weights.bin": noise(3_000_001), "README.md": CARD, "empty": b""}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def uploaded(python, served, token, folder, cache, **variables) -> dict:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "PYTEST"))
    }
    environment |= {
        "HF_ENDPOINT": served.url,
        "HF_HOME": str(cache),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        **variables,
    }
    run = subprocess.run(
        [str(python), str(SCRIPT), "team/mine", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif("MM_LOADERS" not in os.environ, reason="installs clients: nox -s loaders")
@pytest.mark.parametrize(
    "client",
    ["huggingface_hub==1.31.*", "huggingface_hub==1.33.*", "huggingface_hub", "transformers torch"],
)
def test_each_client_uploads(tmp_path, local, client):
    """The oldest that is supported, the one that most have, and the newest; and `push_to_hub`."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", *client.split()], check=True)
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        seen = uploaded(python, served, writer(served), model_folder(tmp_path), tmp_path / "c")
    assert set(seen["results"].values()) <= {"ok", "not installed"}, seen


def test_the_docs_have_a_row_for_each_upload():
    """As `hub_uploads.py` notes it."""
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "serve-clients.md").read_text(), re.MULTILINE)
    noted = re.findall(r"note\(\"(\w+)\"", SCRIPT.read_text())
    assert set(noted) <= set(rows)


def uploads_in(backend) -> list[str]:
    with ModelManager(backend=backend) as manager:
        return [stored.key for stored in manager.sink().list(".mm/uploads/")]


@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "xet"])
def test_a_client_uploads(tmp_path, backend, lfs):
    """Unmodified: folders, files, deletions, copies, branches, tags, and reads all of it back."""
    variables = {"HF_HUB_DISABLE_XET": "1"} if lfs else {}
    with serving(tmp_path / "hub", backend, config=CONFIG) as served:
        seen = uploaded(
            sys.executable, served, writer(served), model_folder(tmp_path), tmp_path / "c",
            **variables,
        )  # fmt: skip
    assert set(seen["results"].values()) <= {"ok", "not installed"}, seen
    with ModelManager(backend=backend) as manager:
        entry = manager.registry().resolve("team/mine:main")
        manifest = manager.registry().manifest(entry)
        assert (manifest.license, entry.model_type.value) == ("mit", "text-generation")
        assert manifest.facts["commit"]["by"] == "somebody"
        assert manager.verify().ok
    assert uploads_in(backend) == []


def lines(*documents) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in documents)


def file_line(path: str, data: bytes) -> dict:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}}


def commit(served, token, *documents, name="team/mine", branch="main", summary="x", parent=None):
    header = {"summary": summary, **({} if parent is None else {"parentCommit": parent})}
    body = lines({"key": "header", "value": header}, *documents)
    status, _, answer = served.ask(
        "POST", f"/api/models/{name}/commit/{branch}", token=token, body=body
    )
    return status, json.loads(answer)


def offer(served, token, data: bytes, name="team/mine"):
    """What the hub says to an object of LFS."""
    oid = hashlib.sha256(data).hexdigest()
    asked = {"operation": "upload", "objects": [{"oid": oid, "size": len(data)}]}
    status, _, answer = served.ask(
        "POST", f"/{name}.git/info/lfs/objects/batch", token=token, body=json.dumps(asked)
    )
    assert status == 200, answer
    return oid, json.loads(answer)["objects"][0]


def put(served, href: str, data: bytes):
    return served.ask("PUT", href.removeprefix(served.url), body=data)


def test_nobody_writes_where_it_is_not_allowed(tmp_path, local):
    """Off by default; then by tokens of the right scope for that model alone."""
    one = file_line("x", b"x")
    with serving(tmp_path / "off", local) as served:
        assert commit(served, writer(served), one)[0] == 403
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        reader = token_of(served, "--scope", "read")
        other = token_of(served, "--scope", "write", "--model", "other/*")
        for token, status in ((None, 401), (reader, 403), (other, 403), (writer(served), 200)):
            assert commit(served, token, one)[0] == status, token
        made = json.dumps({"name": "mine", "organization": "team", "type": "model"})
        for token, status in ((None, 401), (reader, 403), (other, 403)):
            for method, path, body in [
                ("POST", "/api/repos/create", made),
                ("DELETE", "/api/repos/delete", made),
                ("POST", "/api/models/team/mine/preupload/main", '{"files": []}'),
                ("POST", "/api/models/team/mine/branch/dev", "{}"),
                ("DELETE", "/api/models/team/mine/branch/dev", None),
                ("POST", "/api/models/team/mine/tag/main", '{"tag": "v"}'),
                ("GET", "/api/models/team/mine/xet-write-token/main", None),
                ("POST", "/team/mine.git/info/lfs/objects/batch", "{}"),
            ]:
                assert served.ask(method, path, token=token, body=body)[0] == status, path
        writes = writer(served)
        assert served.ask("DELETE", "/api/repos/delete", token=writes, body=made)[0] == 403
        admin = token_of(served, "--scope", "admin")
        assert served.ask("DELETE", "/api/repos/delete", token=admin, body=made)[0] == 200
        assert served.ask("GET", "/api/models/team/mine", token=admin)[0] == 404
        private = json.dumps({"name": "mine", "organization": "team", "private": True})
        status, _, body = served.ask("POST", "/api/repos/create", token=writes, body=private)
        assert (status, "Anybody may read" in json.loads(body)["error"]) == (400, True)


def test_large_objects_in_parts(tmp_path, local):
    """In any order, again and again, with the ticket alone; none of it is seen before its commit."""
    data = noise(64 << 20) * 2 + noise(1000)
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        token = writer(served)
        oid, offered = offer(served, token, data)
        upload = offered["actions"]["upload"]
        size = int(upload["header"].pop("chunk_size"))
        hrefs = [upload["header"][name] for name in sorted(upload["header"])]
        assert len(hrefs) == 3
        pointer = {"key": "lfsFile", "value": {"path": "w.bin", "oid": oid, "size": len(data)}}
        for number in (2, 0, 0):
            part = data[number * size : (number + 1) * size]
            status, head, _ = put(served, hrefs[number], part)
            assert (status, bool(head["etag"])) == (200, True)
        at = upload["href"].removeprefix(served.url)
        assert served.ask("POST", at, body="{}")[0] == 422
        assert commit(served, token, pointer)[0] == 422
        assert served.ask("GET", "/api/models/team/mine")[0] == 401
        put(served, hrefs[1], data[size : 2 * size])
        assert served.ask("POST", at, body="{}")[0] == 200
        assert commit(served, token, pointer)[0] == 200
        assert served.ask("GET", "/team/mine/resolve/main/w.bin")[2] == data
        assert "actions" not in offer(served, token, data)[1]
        assert uploads_in(local) == []
        text = served.log_file.read_text()
        assert "mac=" not in text


def test_tickets_are_for_one_object_of_one_model(tmp_path, local):
    """Neither another object nor another size, not after the token is gone, and no wrong bytes."""
    with serving(tmp_path / "hub", local, config="{uploads: true, token_refresh: 0}") as served:
        token = writer(served)
        oid, offered = offer(served, token, b"some bytes")
        href = offered["actions"]["upload"]["href"]
        other = hashlib.sha256(b"other").hexdigest()
        for wrong in (
            href.replace(oid, other),
            href.replace("size=10", "size=11"),
            href.replace("team%2Fmine", "team%2Fyours"),
            href.replace("until=", "until=9"),
            href.partition("?")[0],
            href.replace("mac=", "mac=0"),
        ):
            assert put(served, wrong, b"some bytes")[0] == 403, wrong
        assert put(served, href, b"some bytez")[0] == 400
        assert put(served, href, b"some bytes and more")[0] == 400
        assert uploads_in(local) == []
        mm(served.folder, "token", "revoke", token[3:15])
        assert put(served, href, b"some bytes")[0] == 403


def test_xet_that_is_not_what_it_says(tmp_path, local):
    """A shard of xorbs that did not come, rubbish, a place of another's, and pieces of another file."""
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        token = writer(served)
        grant = served.get_json("/api/models/team/mine/xet-write-token/main", token=token)
        place, access = grant["casUrl"].removeprefix(served.url), grant["accessToken"]
        assert served.ask("POST", f"{place}/v1/shards", token=access, body=b"junk")[0] == 400
        xorb, oid = "ab" * 32, hashlib.sha256(b"wanted").hexdigest()
        told = shard([Segment(xorb, 0, 1, 6)], oid)
        assert served.ask("POST", f"{place}/v1/shards", token=access, body=told)[0] == 400
        other = place[:-1] + ("0" if place[-1] != "0" else "1")
        for at, key in ((other, access), (place, token), (place, "")):
            path = f"{at}/v1/xorbs/default/{xorb}"
            assert served.ask("POST", path, token=key, body=b"x")[0] == 403
        path = f"{place}/v1/xorbs/default/{xorb}"
        for piece, status in ((b"rubbish", 422), (chunk(b"unwant"), 422),
                              (chunk(b"wanted"), 200)):  # fmt: skip
            assert served.ask("POST", path, token=access, body=piece)[0] == 200
            assert served.ask("POST", f"{place}/v1/shards", token=access, body=told)[0] == 200
            pointer = {"key": "lfsFile", "value": {"path": "w", "oid": oid, "size": 6}}
            assert commit(served, token, pointer)[0] == status
        assert served.ask("GET", "/team/mine/resolve/main/w")[2] == b"wanted"
        assert uploads_in(local) == []


def test_what_is_no_commit(tmp_path, local):
    """Each is an answer that says so, and changes nothing."""
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        token = writer(served)
        assert commit(served, token, file_line("a", b"1"))[0] == 200
        before = served.get_json("/api/models/team/mine")["sha"]
        bad = [
            ({"key": "file", "value": {"content": "!", "path": "x", "encoding": "base64"}}, 400),
            ({"key": "file", "value": {"path": "x"}}, 400),
            (file_line("../x", b"x"), 400),
            (file_line("", b"x"), 400),
            (file_line("a/b", b"x"), 400),
            ({"key": "lfsFile", "value": {"path": "x", "oid": "0" * 64, "size": 1}}, 422),
            ({"key": "lfsFile", "value": {"path": "x", "oid": "zz"}}, 400),
            ({"key": "deletedFile", "value": {"path": "none"}}, 404),
            ({"key": "deletedFile", "value": {"path": "a"}}, 400),  # nothing would be left
            ({"key": "magic", "value": {}}, 400),
            ({"no": "key"}, 400),
            ([], 400),
        ]
        for document, status in bad:
            got, answer = commit(served, token, document)
            assert (got, "error" in answer) == (status, True), (document, answer)
        path = "/api/models/team/mine/commit/main"
        assert served.ask("POST", path, token=token, body=b"\xff{}\n")[0] == 400
        assert served.ask("POST", f"{path}?create_pr=1", token=token, body=b"")[0] == 400
        many = b'{"key": "deletedFile", "value": {"path": "none"}}\n' * 100_001
        assert served.ask("POST", path, token=token, body=many)[0] == 413
        assert commit(served, token, file_line("b", b""), branch="none")[0] == 404
        assert commit(served, token, file_line("b", b""), parent="0" * 40)[0] == 412
        assert served.get_json("/api/models/team/mine")["sha"] == before
        assert uploads_in(local) == []


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_many_commit_at_once_through_two_servers(request, tmp_path, kind):
    """Each has its file in the end: a branch that was moved meanwhile is followed."""
    backend = request.getfixturevalue(kind)
    with (
        serving(tmp_path / "one", backend, config=CONFIG) as one,
        serving(tmp_path / "two", backend, config=CONFIG) as two,
    ):
        token = writer(one)
        assert commit(one, token, file_line("first", b"first"))[0] == 200

        def work(number: int) -> int:
            served = (one, two)[number % 2]
            for _ in range(20):
                status, _ = commit(served, token, file_line(f"f{number}", b"%d" % number))
                if status != 412:
                    return status
            return status

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(work, range(8))) == {200}
        until(lambda: len(two.get_json("/api/models/team/mine/tree/main")) == 9)
        for number in range(8):
            path = f"/team/mine/resolve/main/f{number}"
            assert two.ask("GET", path)[2] == b"%d" % number


def test_a_large_file_within_a_commit_takes_no_memory(tmp_path, local):
    """It goes to the store as it comes."""
    data = bytes(300 << 20)
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        token = writer(served)
        commit(served, token, file_line("small", b"x"))
        before, most, done = rss(served.process.pid), [0], threading.Event()

        def watch():
            while not done.wait(0.02):
                most.append(rss(served.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert commit(served, token, file_line("large.bin", data))[0] == 200
        finally:
            done.set()
            watcher.join()
        assert max(most) - before < 200 << 20
        entries = {e["path"]: e["size"] for e in served.get_json("/api/models/team/mine/tree/main")}
        assert entries == {"small": 1, "large.bin": len(data)}
        assert uploads_in(local) == []


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path, local):
    """In the middle of an object, and in the middle of a commit."""
    with serving(tmp_path / "hub", local, config=CONFIG) as served:
        token = writer(served)
        oid, offered = offer(served, token, b"x" * 1000)
        at = urlsplit(offered["actions"]["upload"]["href"])
        big = base64.b64encode(bytes(20 << 20))
        body = b'{"key": "file", "value": {"content": "' + big
        path, allowed = f"/api/models/{MODEL}/commit/main", f"Authorization: Bearer {token}"
        for head, part in [
            (f"PUT {at.path}?{at.query} HTTP/1.1\r\nContent-Length: 1000", b"x" * 500),
            (f"POST {path} HTTP/1.1\r\nContent-Length: 99000000\r\n{allowed}", body),
        ]:
            with socket.create_connection((at.hostname, at.port)) as line:
                line.sendall(f"{head}\r\nHost: x\r\n\r\n".encode() + part)
                time.sleep(0.3)
        until(lambda: sum("broke off" in str(entry.get("failure")) for entry in served.log()) == 2)
        assert uploads_in(local) == []
        assert not [entry for entry in served.log() if entry.get("level") == "error"]
