"""The hub's answers, asked by hand: ranges, conditions, errors, tokens, stopping."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import FILES, MODEL, mm, push, serving
from waiting import until

from mm_core import ModelManager

pytestmark = pytest.mark.integration


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
        until(lambda: served.ask("GET", "/api/models/org/late")[0] == 200)
        with ModelManager(backend=store) as manager:
            manager.remove("org/late")
        until(lambda: served.ask("GET", "/api/models/org/late")[0] == 401)


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
    for name in ("all", "brief"):
        until(lambda: team.ask("GET", f"/api/models/{MODEL}", token=team.tokens[name])[0] == 401)
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


def test_a_token_that_cannot_be_read_can_be_revoked(team, store):
    """And stops nobody else: each is an object of its own."""
    broken = "0123456789ab"
    Path(store, ".mm", "tokens", f"{broken}.json").write_text("{")
    assert team.ask("GET", f"/api/models/{MODEL}", token=team.tokens["all"])[0] == 200
    assert team.ask("GET", f"/api/models/{MODEL}", token=f"mm_{broken}{'0' * 40}")[0] == 502
    mm(team.folder, "token", "revoke", broken)
    assert len(mm(team.folder, "token", "list")["tokens"]) == 4


def test_a_backend_that_cannot_be_is_told_at_once(tmp_path):
    """Whoever starts the hub hears it, and not the first client."""
    run = subprocess.run(
        [sys.executable, "-m", "mm_core", "serve", "--port", "0", "--backend", "none://x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 2
    assert "no plugin answers none://" in run.stderr
    assert "Traceback" not in run.stderr
