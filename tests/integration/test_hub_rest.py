"""The REST API below /mm/v1, asked of a hub that runs."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving import FILES, MODEL, mm, push
from waiting import until

from mm_core import ModelManager
from mm_plugins.hub.tokens import TokenBook

pytestmark = pytest.mark.integration

BASE = "/mm/v1"


@pytest.fixture
def team(tmp_path, store, hub_of, hub):
    """A hub with public and private models, tokens of several kinds, and one to pull from."""
    with ModelManager(backend=store) as manager:
        manager.registry().set_alias(MODEL, "prod", manager.list_models()[0].version)
    push(tmp_path, store, "secret/plan", version="v1")
    push(tmp_path, store, "secret/versions", version="history")
    hub.add_repo("up/one", {"config.json": b"{}", "w.bin": bytes(3_000_000)}, license="mit")
    config = "{anonymous_read: true, private: ['secret/*'], refresh: 0, token_refresh: 0}"
    with hub_of(config, HF_ENDPOINT=hub.endpoint, MM_DEFAULTS__LIMIT_RATE="2MiB") as served:
        with ModelManager(backend=store) as manager:
            book = TokenBook(manager.sink())
            served.tokens = {
                name: book.create(name, scope=scope, models=models)[0]
                for name, scope, models in (
                    ("reader", "read", ["*"]),
                    ("writer", "write", ["org/*"]),
                    ("all", "write", ["*"]),
                    ("admin", "admin", ["*"]),
                    ("admin-up", "admin", ["up/*"]),
                )
            }
        yield served


def call(served, method, path, who=None, body=None):
    """Status and document."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    data = None if body is None else json.dumps(body)
    token = who and served.tokens[who]
    status, head, answer = served.ask(method, BASE + path, token=token, body=data, **headers)
    if status >= 400:
        assert json.loads(answer)["error"]
        assert head["content-type"] == "application/json"
    return status, json.loads(answer) if answer else None


def ended(served, id_, who="all"):
    """A pull, once it is over."""
    until(lambda: call(served, "GET", f"/pulls/{id_}", who)[1]["ended"], 30)
    return call(served, "GET", f"/pulls/{id_}", who)[1]


# -- reading -----------------------------------------------------------------------------


def test_models_are_listed_found_and_sorted(team, tmp_path, store):
    """In pages that neither lose nor repeat one."""
    for number, size in enumerate((30, 10, 20)):
        push(tmp_path, store, f"many/m{number}", {"w.bin": bytes(size)}, version="v1")
    push(tmp_path, store, "many/m1", {"w.bin": bytes(99)}, version="v2")
    status, page = call(team, "GET", "/models")
    assert status == 200
    assert [m["id"] for m in page["models"]] == ["many/m0", "many/m1", "many/m2", MODEL]
    for query, wanted in {
        "?id=many/*&sort=size": ["m2", "m0", "m1"],
        "?id=many/*&sort=-size": ["m1", "m0", "m2"],
        "?id=many/*&sort=updated": ["m0", "m2", "m1"],
        "?search=many+m2": ["m2"],
        "?search=nothing-like-it": [],
        "?id=many/*&status=AVAILABLE": ["m0", "m1", "m2"],
        "?id=many/*&status=deleted": [],
        "?id=many/*&license=mit": [],
        "?id=many/*&type=other": ["m0", "m1", "m2"],
    }.items():
        found = call(team, "GET", f"/models{query}")[1]["models"]
        assert [m["id"].removeprefix("many/") for m in found] == wanted, query
    for sort in ("id", "-id", "size", "-size", "updated", "-updated"):
        whole = [m["id"] for m in call(team, "GET", f"/models?sort={sort}")[1]["models"]]
        seen, cursor = [], ""
        while cursor is not None:
            page = call(team, "GET", f"/models?sort={sort}&limit=1&cursor={cursor}")[1]
            assert page["total"] == 4
            seen += [m["id"] for m in page["models"]]
            cursor = page["next"]
        assert seen == whole
    for odd in ("status=x", "type=x", "sort=x", "limit=0", "limit=x", "cursor=x", "cursor=W10="):
        assert call(team, "GET", f"/models?{odd}")[0] in (400, 422), odd


def test_one_model_and_one_version(team):
    """By a version, an alias or a commit; slashes as they are, or encoded."""
    whole = call(team, "GET", f"/models/{MODEL}")[1]
    version = whole["versions"][0]["version"]
    assert whole["aliases"] == {"prod": version}
    assert call(team, "GET", "/models/org%2Fmodel")[1] == whole
    told = call(team, "GET", f"/models/{MODEL}/versions/prod")[1]
    assert call(team, "GET", f"/models/org%2fmodel/versions/{version}")[1] == told
    assert {f["path"]: f["size"] for f in told["files"]} == {p: len(d) for p, d in FILES.items()}
    for file in told["files"]:
        assert team.ask("GET", file["url"])[2] == FILES[file["path"]]
    assert told["checks"]["scan"]["ok"] is True
    assert told["signatures"] == []
    assert {o["op"] for c in told["history"] for o in c["operations"]} >= {"begin", "add", "alias"}
    history = call(team, "GET", f"/models/{MODEL}/history?limit=1")[1]
    assert (len(history["commits"]), history["whole"]) == (1, False)
    assert call(team, "GET", f"/models/{MODEL}/history")[1]["whole"] is True
    assert call(team, "GET", f"/models/{MODEL}/aliases")[1] == {"aliases": {"prod": version}}
    assert call(team, "GET", f"/models/{MODEL}/aliases/prod")[1]["version"] == version
    for missing in ("/versions/none", "/aliases/none"):
        assert call(team, "GET", f"/models/{MODEL}{missing}")[0] == 404
    assert call(team, "GET", "/models/org/none")[0] == 401
    assert call(team, "GET", "/models/org/none", "reader")[0] == 404


def test_an_id_that_looks_like_a_path_of_ours(team):
    """With its slashes encoded it is an id, and nothing else."""
    path = "/models/secret%2Fversions"
    assert call(team, "GET", path, "reader")[1]["id"] == "secret/versions"
    assert call(team, "GET", f"{path}/versions/history", "reader")[1]["version"] == "history"


def test_private_models_are_hidden(team):
    """From lists, and from who names them."""
    assert "secret/plan" not in [m["id"] for m in call(team, "GET", "/models")[1]["models"]]
    assert "secret/plan" in [m["id"] for m in call(team, "GET", "/models", "reader")[1]["models"]]
    for rest in ("", "/versions/v1", "/history", "/aliases", "/aliases/x"):
        assert call(team, "GET", f"/models/secret/plan{rest}")[0] == 401
        assert call(team, "GET", f"/models/secret/plan{rest}", "writer")[0] == 404
        assert call(team, "GET", f"/models/secret/plan{rest}", "reader")[0] in (200, 404)


# -- changing ----------------------------------------------------------------------------


def test_who_may_move_an_alias(team):
    """A token of scope write for that model; at once seen by all routes."""
    version = call(team, "GET", f"/models/{MODEL}")[1]["versions"][0]["version"]
    path = f"/models/{MODEL}/aliases/stage"
    for who, status in ((None, 401), ("reader", 403), ("admin-up", 403), ("writer", 200)):
        assert call(team, "PUT", path, who, {"version": version})[0] == status, who
    assert team.get_json(f"/api/models/{MODEL}/revision/stage")["id"] == MODEL
    assert call(team, "PUT", path, "writer", {"version": version, "expect": None})[0] == 409
    assert call(team, "PUT", path, "writer", {"version": version, "expect": version})[0] == 200
    assert call(team, "PUT", path, "writer", {"version": "none"})[0] == 404
    assert call(team, "PUT", path, "writer", {})[0] == 422
    assert call(team, "PUT", f"/models/{MODEL}/aliases/..x", "writer", {"version": "v"})[0] == 400
    assert call(team, "PUT", "/models/secret/plan/aliases/x", "writer", {"version": "v1"})[0] == 403
    for who, status in ((None, 401), ("reader", 403), ("writer", 204), ("writer", 404)):
        assert call(team, "DELETE", path, who)[0] == status, who
    assert team.ask("GET", f"/api/models/{MODEL}/revision/stage")[0] == 404


def test_who_may_remove(team, store):
    """A token of scope admin for that model; a version by its own name only."""
    version = call(team, "GET", f"/models/{MODEL}")[1]["versions"][0]["version"]
    path = f"/models/{MODEL}/versions"
    for who, status in ((None, 401), ("reader", 403), ("writer", 403), ("admin-up", 403)):
        assert call(team, "DELETE", f"{path}/{version}", who)[0] == status, who
    assert call(team, "DELETE", f"{path}/prod", "admin")[0] == 404
    status, removed = call(team, "DELETE", f"{path}/{version}", "admin")
    assert (status, removed["status"], removed["aliases"]) == (200, "DELETED", [])
    assert team.ask("GET", f"/{MODEL}/resolve/main/config.json", token=team.tokens["all"])[0] == 404
    assert call(team, "GET", f"/models/{MODEL}", "all")[0] == 404
    assert call(team, "GET", f"/models/{MODEL}?removed=true", "all")[0] == 200
    found = call(team, "GET", "/models?status=DELETED", "all")[1]["models"]
    assert [m["id"] for m in found] == [MODEL]


# -- pulling -----------------------------------------------------------------------------


def test_a_pull_is_told_of_until_it_is_there(team):
    """By its id, in the list, and as events."""
    at = urlsplit(team.url)
    line = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
    headers = {"Authorization": f"Bearer {team.tokens['reader']}"}
    line.request("GET", f"{BASE}/pulls/events", headers=headers)
    stream = line.getresponse()
    assert stream.getheader("content-type").startswith("text/event-stream")
    body = {"source": "hf://up/one", "aliases": ["prod"], "exclude": ["*.md"]}
    status, pull = call(team, "POST", "/pulls", "all", body)
    assert (status, pull["status"], pull["by"]) == (202, "waiting", "all")
    seen = []
    while not seen or seen[-1]["ended"] is None:
        if (text := stream.readline().decode()).startswith("data: "):
            seen.append(json.loads(text.removeprefix("data: ")))
    line.close()
    assert {one["id"] for one in seen} == {pull["id"]}
    assert (seen[-1]["status"], seen[-1]["done"]) == ("done", 3_000_002)
    assert any(0 < one["done"] < one["total"] for one in seen if one["total"])
    assert call(team, "GET", f"/pulls/{pull['id']}")[1] == seen[-1]
    assert call(team, "GET", "/pulls")[1]["pulls"] == [seen[-1]]
    told = call(team, "GET", "/models/up/one/versions/prod")[1]
    assert (told["license"], told["source"]) == ("mit", f"hf://up/one@{told['version']}")


def test_who_may_pull_and_from_where(team, tmp_path):
    """A token of scope write that fits the model; from what the settings list, and no folder."""
    push(tmp_path, str(tmp_path / "elsewhere"))
    for who, source, status in [
        (None, "hf://up/one", 401),
        ("reader", "hf://up/one", 403),
        ("writer", "hf://up/one", 403),
        ("all", str(tmp_path / "source" / MODEL), 403),
        ("all", f"file://{tmp_path}/source/{MODEL}", 403),
        ("all", ".", 403),
        ("all", f"mm://{tmp_path}/elsewhere/{MODEL}", 403),
        ("all", "https://127.0.0.1:1/x", 403),
        ("all", "hf://up/../../x", 403),
        ("all", "", 422),
    ]:
        assert call(team, "POST", "/pulls", who, {"source": source})[0] == status, (who, source)
    for odd in (
        {"model_id": "../x"},
        {"version": "a/b"},
        {"aliases": ["0" * 40]},
        {"aliases": "x"},
        {"to": "elsewhere"},
        {"include": [1]},
    ):
        status = call(team, "POST", "/pulls", "all", {"source": "hf://up/one", **odd})[0]
        assert status in (400, 422), odd
    assert call(team, "GET", "/pulls", "all")[1] == {"pulls": []}
    body = {"source": "hf://up/one", "model_id": "org/mine"}
    pull = call(team, "POST", "/pulls", "writer", body)[1]
    assert ended(team, pull["id"])["model_id"] == "org/mine"
    body = {"source": "hf://up/one", "model_id": "secret/one"}
    pull = call(team, "POST", "/pulls", "all", body)[1]
    assert call(team, "GET", f"/pulls/{pull['id']}")[0] == 404
    assert call(team, "GET", "/pulls")[1]["pulls"][0]["model_id"] == "org/mine"
    assert call(team, "DELETE", f"/pulls/{pull['id']}", "writer")[0] == 404


def test_what_the_source_calls_it_counts_too(hub_of, hub, tmp_path):
    """A token for some models pulls nothing under the id of another."""
    other = tmp_path / "files" / "other"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    config = json.dumps({"pull_sources": [f"{other.parent}/*"]})
    with hub_of(config) as served:
        flags = ("--scope", "write", "--model", "org/*")
        served.tokens = {"w": mm(served.folder, "token", "create", "w", *flags)["token"]["text"]}
        pull = call(served, "POST", "/pulls", "w", {"source": str(other)})[1]
        assert ended(served, pull["id"], "w")["status"] == "failed"
        assert "not for" in ended(served, pull["id"], "w")["message"]
        body = {"source": str(other), "model_id": "org/other"}
        pull = call(served, "POST", "/pulls", "w", body)[1]
        assert ended(served, pull["id"], "w")["status"] == "done"
        assert call(served, "POST", "/pulls", "w", {"source": str(tmp_path)})[0] == 403


def test_a_pull_is_cancelled(team, hub):
    """By who may begin one; what fails says why."""
    hub.add_repo("up/large", {"w.bin": bytes(60_000_000)})
    pull = call(team, "POST", "/pulls", "all", {"source": "hf://up/large"})[1]
    until(lambda: call(team, "GET", f"/pulls/{pull['id']}")[1]["done"], 20)
    for who, status in ((None, 401), ("reader", 403), ("writer", 403), ("all", 200)):
        assert call(team, "DELETE", f"/pulls/{pull['id']}", who)[0] == status
    assert ended(team, pull["id"])["status"] == "cancelled"
    failed = call(team, "POST", "/pulls", "all", {"source": "hf://up/none"})[1]
    failed = ended(team, failed["id"])
    assert failed["status"] == "failed"
    assert "up/none" in failed["message"]
    assert call(team, "DELETE", "/pulls/none", "all")[0] == 404


def test_pulls_outlive_new_settings_but_not_the_server(team, hub):
    """SIGHUP leaves them alone; SIGTERM ends them and all who look on, at once."""
    hub.add_repo("up/large", {"w.bin": bytes(60_000_000)})
    pull = call(team, "POST", "/pulls", "all", {"source": "hf://up/large"})[1]
    until(lambda: call(team, "GET", f"/pulls/{pull['id']}")[1]["done"], 20)
    team.process.send_signal(signal.SIGHUP)
    until(lambda: any("read again" in line["event"] for line in team.log()))
    before = call(team, "GET", f"/pulls/{pull['id']}")[1]["done"]
    until(lambda: call(team, "GET", f"/pulls/{pull['id']}")[1]["done"] > before, 20)
    at = urlsplit(team.url)
    line = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
    line.request("GET", f"{BASE}/pulls/events")
    stream = line.getresponse()
    assert stream.readline() == b"retry: 1000\n"
    team.process.send_signal(signal.SIGTERM)
    stream.read()  # to its end
    assert team.process.wait(15) == 0
    with ModelManager(backend=str(team.folder.parent / "store")) as manager:
        assert manager.registry().get_model("up/large").status.value == "FAILED"


# -- rubbish -----------------------------------------------------------------------------


def test_errors_are_in_the_hubs_words(team):
    """Whatever it is that cannot be."""
    for method, path, status in [
        ("GET", "", 404),
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/models/", 401),
        ("GET", "/models/%00", 401),
        ("GET", "/models/%ff%fe", 401),
        ("GET", "/models/..%2f..%2fetc", 401),
        ("GET", f"/models/{MODEL}/versions/%00", 404),
        ("GET", f"/models/{MODEL}/versions/a%2Fb", 404),
        ("GET", "/models/" + "a" * 5000, 401),
        ("GET", "/pulls/%00", 404),
        ("PUT", "/models", 405),
        ("PATCH", "/pulls", 405),
    ]:
        assert call(team, method, path)[0] == status, path
    odd = team.ask("GET", f"/api/models/{MODEL}/revision/%00%0d%0ax")
    assert (odd[0], odd[1]["x-error-message"]) == (404, "Invalid rev id:    x")
    for body in ("{", "[]", "1", '"x"', "null", '{"source": "\\ud800"}', "[" * 100_000):
        data = body.encode()
        status, _, answer = team.ask(
            "POST", f"{BASE}/pulls", token=team.tokens["all"], body=data,
            Content_Type="application/json",
        )  # fmt: skip
        assert status in (400, 403, 413, 422), body
        assert json.loads(answer)["error"]
    big = team.ask("POST", f"{BASE}/pulls", token=team.tokens["all"], body=b"x" * 2_000_000)
    assert big[0] in (400, 413)
    assert call(team, "GET", "/models")[0] == 200


def test_the_description_has_all_routes_and_its_page_asks_nobody(team):
    """Made of the same document, without a line of script."""
    document = team.get_json(f"{BASE}/openapi.json")
    assert set(document["paths"]) == {
        f"{BASE}{path}"
        for path in (
            "/models",
            "/models/{model_id}",
            "/models/{model_id}/history",
            "/models/{model_id}/versions/{version}",
            "/models/{model_id}/aliases",
            "/models/{model_id}/aliases/{alias}",
            "/pulls",
            "/pulls/events",
            "/pulls/{pull_id}",
        )
    }
    status, head, body = team.ask("GET", f"{BASE}/docs")
    assert (status, head["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in head["content-security-policy"]
    page = body.decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page


@pytest.mark.slow
def test_no_input_is_a_fault_of_ours(team):
    """What schemathesis makes of the description: thousands of requests, no 5xx, no other shape."""
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    for who, phases in ((None, "coverage"), ("admin", "examples,coverage,fuzzing")):
        flags = ["-H", f"Authorization: Bearer {team.tokens[who]}"] if who else []
        run = subprocess.run(
            [
                command, "run", f"{team.url}{BASE}/openapi.json", "--checks", checks,
                "--max-examples", "15", "--seed", "1", "--exclude-path", f"{BASE}/pulls/events",
                "--phases", phases, "--suppress-health-check", "all",
                "--generation-database", "none", *flags,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=team.folder,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert not [line for line in team.log() if line.get("level") == "error"]
    assert call(team, "GET", f"/models/{MODEL}", "all")[0] == 200
