"""The page for people, as it is sent: what is hostile is mere text, what others send is refused."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import struct
import time
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

import pytest
from serving import FILES, MODEL, push, serving
from waiting import until

from mm_core import ModelManager
from mm_plugins.hub.tokens import TokenBook

pytestmark = pytest.mark.integration

HOME = "/mm/ui"
HOSTILE_CARD = """---
license: mit
---
# Title
<script>alert(1)</script> <img src=x onerror=alert(1)> <svg/onload=alert(1)>
[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](java&#115;cript:alert(1)) [d](data:text/html,x)
[e](//evil.test/x) [f](config.json) [g](#x) [h](vbscript:x) [ok](https://ok.example/a?b=1&c=2)
<javascript:alert(1)> <https://also.example/> [q](https://ok.example/"onmouseover="alert(1))
![pixel](https://evil.test/pixel.png) ![x" onerror="alert(1)](https://evil.test/y.png)

```"><script>alert(1)</script>
</code></pre><script>alert(2)</script>
```

| a | b |
|---|:-:|
| <b onclick=alert(1)> | x |

[r]: https://evil.test/z.png "x"
![r][r]
<!-- --><style>*{display:none}</style><iframe src="https://evil.test"></iframe>
<form action="https://evil.test"><input name=token></form>
"""


class Tags(HTMLParser):
    """All elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def tokens_of(store, **scopes):
    with ModelManager(backend=store) as manager:
        book = TokenBook(manager.sink())
        return {
            name: book.create(name, scope=scope, models=models)[0]
            for name, (scope, *models) in scopes.items()
        }


@pytest.fixture
def team(tmp_path, store, hub_of):
    """A hub with public, private and gated models, and tokens."""
    push(tmp_path, store, "secret/plan", {"README.md": b"# Secret words"}, version="v1")
    push(tmp_path, store, "gated/llama", {"README.md": b"# Gated words"}, version="v1")
    push(tmp_path, store, "org/two", {"w.bin": b"1"}, version="v1")
    push(tmp_path, store, "org/two", {"w.bin": b"2"}, version="v2")
    config = (
        "{anonymous_read: true, private: ['secret/*'], gated: ['gated/*'], "
        "refresh: 0, token_refresh: 0}"
    )
    with hub_of(config) as served:
        served.tokens = tokens_of(
            store,
            reader=("read", "*"),
            writer=("write", "org/*"),
            admin=("admin", "*"),
            hostile=("read", "*"),
        )
        yield served


def look(served, path, who=None, **headers):
    if who:
        headers["Cookie"] = f"mm_token={served.tokens[who]}"
    status, head, body = served.ask("GET", path, **headers)
    return status, head, body.decode()


def post(served, path, form, who=None, **headers):
    if who:
        headers["Cookie"] = f"mm_token={served.tokens[who]}"
    headers.setdefault("Sec_Fetch_Site", "same-origin")
    headers.setdefault("Content_Type", "application/x-www-form-urlencoded")
    headers = {name: value for name, value in headers.items() if value is not None}
    status, head, body = served.ask("POST", f"{HOME}{path}", body=urlencode(form), **headers)
    return status, head, body.decode()


def aliases(served, model="org/two"):
    return served.get_json(f"/mm/v1/models/{model}/aliases")["aliases"]


# -- what is shown -----------------------------------------------------------------------


def test_all_of_it_needs_no_other_host_and_no_script_within(team):
    """A strict policy, and nothing that it would forbid."""
    assert team.ask("GET", "/")[1]["location"] == HOME
    for path in (HOME, f"{HOME}/models/{MODEL}", f"{HOME}/pulls", f"{HOME}/sign-in", f"{HOME}/x"):
        status, head, text = look(team, path, "admin")
        assert status == (404 if path.endswith("/x") else 200)
        policy = head["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert head["x-content-type-options"] == "nosniff"
        assert head["cache-control"] == "no-store"
        tags = Tags(text)
        for tag, attrs in tags.found:
            assert not [name for name in attrs if name.startswith("on") or name == "style"]
            for name in ("src", "href", "action", "hx-get"):
                assert (attrs.get(name) or "/").startswith(("/", "#")), (tag, attrs)
        assert all(script.get("src") for script in tags.all("script"))
        assert not tags.all("style")
        assert tags.all("html") == [{"lang": "en"}]
        labels = {label.get("for") for label in tags.all("label")}
        for field in tags.all("input") + tags.all("select"):
            assert field.get("type") == "hidden" or field["id"] in labels, field
    for name in ("mm.css", "mm.js", "htmx.min.js", "htmx.LICENSE.txt", "icon.svg"):
        status, head, _ = team.ask("GET", f"{HOME}/static/{name}")
        assert status == 200
        again = team.ask("GET", f"{HOME}/static/{name}", If_None_Match=head["etag"])
        assert (again[0], again[2]) == (304, b"")
    for name in ("none", "../rendering.py", "..%2Frendering.py", ""):
        assert team.ask("GET", f"{HOME}/static/{name}")[0] == 404


def test_models_are_searched_filtered_and_sorted(team):
    """By the same words as in the REST API."""

    def ids(query=""):
        text = look(team, f"{HOME}?{query}")[2]
        return re.findall(rf'<th scope="row"><a href="{HOME}/models/([^"]+)"', text)

    assert ids() == ["gated/llama", MODEL, "org/two"]
    assert ids("search=two") == ["org/two"]
    assert ids("sort=-size")[0] == MODEL
    assert ids("status=AVAILABLE&type=other") == ["gated/llama", MODEL, "org/two"]
    assert ids("search=%3Cscript%3E") == []
    assert "<script>x" not in look(team, f"{HOME}?search=%22%3E%3Cscript%3Ex")[2]
    for odd in ("status=x", "type=%00", "cursor=x", "sort=x", "search=" + "a" * 3000):
        assert look(team, f"{HOME}?{odd}")[0] in (200, 400), odd
    assert look(team, f"{HOME}?cursor=x")[0] == 400


def test_a_model_with_all_that_is_known(team, store):
    """Versions, aliases, files, how to load it; and another version by its link."""
    with ModelManager(backend=store) as manager:
        manager.registry().set_alias("org/two", "prod", "v1")
    text = look(team, f"{HOME}/models/org/two")[2]
    for words in ("v1", "v2", "prod", "w.bin", "HF_ENDPOINT=", "vllm serve org/two", "History"):
        assert words in text
    assert "boto3" not in text
    first = look(team, f"{HOME}/models/org/two?version=prod")[2]
    assert "<dd><code>v1</code></dd>" in first
    assert look(team, f"{HOME}/models/org/two?version=none")[0] == 404
    assert look(team, f"{HOME}/models/org%2Ftwo")[0] == 200
    path = f"{HOME}/files/{MODEL}/resolve/main/config.json"
    status, head, body = team.ask("GET", path)
    assert (status, body) == (200, FILES["config.json"])
    assert "sandbox" in head["content-security-policy"]


def test_a_version_in_s3_is_loaded_from_there_too(tmp_path, s3):
    """The lines name the folder in the bucket, and do what they say."""
    push(tmp_path, s3, "org/in-s3", {"config.json": b"{}", "deep/w.bin": b"w"}, version="v1")
    with serving(tmp_path / "hub", s3) as served:
        text = look(served, f"{HOME}/models/org/in-s3")[2]
    script = html.unescape(re.search(r"<code>(import os, boto3.*?)</code>", text, re.DOTALL)[1])
    folder = tmp_path / "out"
    folder.mkdir()
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(script, {})
    finally:
        os.chdir(before)
    assert (folder / "model" / "deep" / "w.bin").read_bytes() == b"w"


def test_a_hostile_card_is_mere_text(tmp_path, store, hub_of):
    """No element of its own, no image, no link that does anything but lead away."""
    push(tmp_path, store, "org/evil", {"README.md": HOSTILE_CARD.encode()}, version="v1")
    push(tmp_path, store, "org/bytes", {"README.md": b"\xff\xfe<b>\x00" * 100}, version="v1")
    push(tmp_path, store, "org/long", {"README.md": b"# x\n" * 200_000}, version="v1")
    with hub_of() as served:
        plain = Tags(look(served, f"{HOME}/models/{MODEL}")[2])
        text = look(served, f"{HOME}/models/org/evil")[2]
        evil = Tags(text)
        for tag in ("script", "img", "svg", "iframe", "style", "form", "input"):
            assert len(evil.all(tag)) == len(plain.all(tag)), tag
        for _, attrs in evil.found:
            assert not [name for name in attrs if name.startswith("on")]
        links = [a["href"] for a in evil.all("a") if not a.get("href", "/").startswith(("/", "#"))]
        assert all(link.startswith("https://") for link in links)
        assert "https://ok.example/a?b=1&c=2" in links
        for link in evil.all("a"):
            if link.get("href", "").startswith("https://"):
                assert set(link["rel"].split()) == {"noopener", "noreferrer", "nofollow"}
        assert "[image: pixel]" in text
        assert "license: mit" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert look(served, f"{HOME}/models/org/bytes")[0] == 200
        assert "There is none that can be shown" in look(served, f"{HOME}/models/org/long")[2]


@pytest.mark.parametrize(
    "piece", ["[", "*a_ ", "<", "![", "> ", "`", "- ", "[a](", "&", "|", "a\n-\n"]
)
def test_no_card_takes_long(piece):
    """However it is made to be read slowly."""
    from mm_plugins.hub.pages import card

    began = time.monotonic()
    card.rendered(piece * (card.MOST_BYTES // len(piece)))
    assert time.monotonic() - began < 20


def test_odd_headers_are_shown(tmp_path, store, hub_of):
    """A file may state any number, and any words."""
    header = {
        "__metadata__": {"x": "<script>"},
        "<script>": {"dtype": "F32", "shape": [2**62] * 60, "data_offsets": [0, 0]},
    }
    data = json.dumps(header).encode()
    data = struct.pack("<Q", len(data)) + data
    push(tmp_path, store, "org/odd", {"model.safetensors": data}, version="v1")
    with hub_of() as served:
        status, _, text = look(served, f"{HOME}/models/org/odd")
        assert (status, "more than 10^15" in text) == (200, True)
        assert served.ask("GET", "/mm/v1/models/org/odd/versions/v1")[0] == 200


def test_hostile_names_are_mere_text(team):
    """In addresses, in forms, in errors."""
    evil = '"><script>alert(1)</script>'
    for path in (
        f"{HOME}/models/{quote(evil)}",
        f"{HOME}/models/{MODEL}?version={quote(evil)}",
        f"{HOME}/{quote(evil)}",
        f"{HOME}/sign-in?next={quote(evil)}",
        f"{HOME}/files/{quote(evil)}/resolve/main/x",
        f"{HOME}?license={quote(evil)}&status=&sort={quote(evil)}",
        f"{HOME}/models/%00",
        f"{HOME}/models/%ff",
        f"{HOME}/models/",
        f"{HOME}/files/{MODEL}/resolve/main/..%2f..%2fetc%2fpasswd",
    ):
        status, _, text = look(team, path)
        assert status < 500, path
        assert "<script>alert" not in text
    for path, form in (
        ("/alias", {"model_id": "org/two", "alias": evil, "version": evil}),
        ("/remove", {"model_id": evil, "version": evil}),
        ("/pulls", {"source": evil}),
        ("/pulls", {"source": f"hf://org/{evil}", "aliases": evil}),
        ("/sign-in", {"token": evil, "next": evil}),
        ("/pulls/cancel", {"id": evil}),
        ("/nothing", {}),
    ):
        status, _, text = post(team, path, form, "admin")
        assert 400 <= status < 500, path
        assert "<script>alert" not in text


# -- who may see -------------------------------------------------------------------------


def test_private_and_gated_models(team):
    """As with tokens in headers."""
    assert "secret/plan" not in look(team, HOME)[2]
    assert "secret/plan" in look(team, HOME, "reader")[2]
    assert look(team, f"{HOME}/models/secret/plan")[0] == 401
    assert look(team, f"{HOME}/models/secret/plan", "writer")[0] == 404
    assert "Secret words" in look(team, f"{HOME}/models/secret/plan", "reader")[2]
    assert "HF_TOKEN" in look(team, f"{HOME}/models/secret/plan", "reader")[2]
    gated = look(team, f"{HOME}/models/gated/llama")
    assert (gated[0], "Gated words" in gated[2]) == (200, False)
    path = f"{HOME}/files/gated/llama/resolve/v1/README.md"
    assert look(team, path)[0] == 401
    assert look(team, path, "reader")[0] == 200


def test_where_nobody_reads_without_a_token_all_lead_to_the_sign_in(hub_of, store):
    """And back to where one was; to no other place."""
    with hub_of("{anonymous_read: false}") as served:
        served.tokens = tokens_of(store, reader=("read", "*"))
        for path in (HOME, f"{HOME}/models/{MODEL}", f"{HOME}/pulls/events"):
            status, head, _ = look(served, path)
            assert (status, head["location"]) == (303, f"{HOME}/sign-in?next={quote(path)}")
        assert look(served, f"{HOME}/sign-in")[0] == 200
        for where, expected in {
            f"{HOME}/pulls": f"{HOME}/pulls",
            "https://evil.test": HOME,
            "//evil.test": HOME,
            f"{HOME}\\..\\..\\evil": HOME,
            f"{HOME}/\r\nX-Evil: 1": HOME,
            "/api/models": HOME,
        }.items():
            form = {"token": served.tokens["reader"], "next": where}
            status, head, _ = post(served, "/sign-in", form)
            assert (status, head["location"]) == (303, expected)
            assert "x-evil" not in head


def test_the_page_can_be_switched_off(hub_of):
    """The rest goes on."""
    with hub_of("{page: false}") as served:
        assert served.ask("GET", "/")[0] == 404
        assert served.ask("GET", HOME)[0] == 404
        assert served.ask("GET", "/mm/v1/docs")[0] == 200
        assert served.ask("GET", f"/api/models/{MODEL}")[0] == 200


# -- signing in --------------------------------------------------------------------------


def test_the_cookie_is_for_the_page_alone(team):
    """No script reads it, no other site sends it, no other route hears it."""
    token = team.tokens["reader"]
    status, head, _ = post(team, "/sign-in", {"token": token})
    assert status == 303
    name, *flags = [part.strip().lower() for part in head["set-cookie"].split(";")]
    assert name == f"mm_token={token}"
    assert set(flags) == {"httponly", "samesite=strict", "path=/"}
    cookie = {"Cookie": f"mm_token={token}"}
    assert look(team, f"{HOME}/models/secret/plan", **cookie)[0] == 200
    for path in ("/mm/v1/models/secret/plan", "/api/models/secret/plan"):
        assert look(team, path, **cookie)[0] == 401
    status, head, _ = post(team, "/sign-out", {}, "reader")
    assert 'mm_token=""' in head["set-cookie"]
    assert "max-age=0" in head["set-cookie"].lower()


def test_over_tls_the_cookie_is_for_tls_alone(hub_of, store):
    """Also where a proxy speaks TLS, which `url` tells."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with hub_of("{url: 'https://models.example'}", "--port", str(port)) as served:
        served.url = f"http://127.0.0.1:{port}"
        token = tokens_of(store, reader=("read", "*"))["reader"]
        form, own = {"token": token}, "https://models.example"
        status, head, _ = post(served, "/sign-in", form, Sec_Fetch_Site=None, Origin=own)
        assert status == 303
        assert head["set-cookie"].startswith(f"__Host-mm_token={token};")
        assert "; secure" in head["set-cookie"].lower()
        text = look(served, HOME, Cookie=f"__Host-mm_token={token}")[2]
        assert "Sign out" in text
        assert "Sign out" not in look(served, HOME, Cookie=f"mm_token={token}")[2]


def test_a_wrong_token_signs_nobody_in(team):
    """Nor one that ended: the browser forgets it. Who guesses must wait."""
    for text in ("", "x", "hf_abc", "mm_" + "0" * 52):
        status, head, _ = post(team, "/sign-in", {"token": text})
        assert (status, "set-cookie" in head) == (401, False)
    status, head, text = look(team, HOME, Cookie="mm_token=mm_" + "0" * 52)
    assert status == 200
    assert "max-age=0" in head["set-cookie"].lower()
    assert "Sign in" in text
    seen = [post(team, "/sign-in", {"token": "mm_" + f"{n:052x}"})[0] for n in range(30)]
    assert seen[-1] == 429


# -- changing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "cross-site", "Origin": "OWN"},
        {"Sec_Fetch_Site": None, "Origin": "http://evil.test"},
        {"Sec_Fetch_Site": None, "Origin": "null"},
        {"Sec_Fetch_Site": None, "Origin": ""},
        {"Sec_Fetch_Site": None},
    ],
)
def test_what_another_site_sends_is_refused(team, headers):
    """Whatever it is, whoever is signed in."""
    headers = {k: team.url if v == "OWN" else v for k, v in headers.items()}
    for path, form in (
        ("/alias", {"model_id": "org/two", "alias": "prod", "version": "v1"}),
        ("/remove", {"model_id": "org/two", "version": "v1"}),
        ("/pulls", {"source": "hf://org/x"}),
        ("/sign-in", {"token": team.tokens["reader"]}),
        ("/sign-out", {}),
    ):
        status, head, _ = post(team, path, form, "admin", **headers)
        assert (status, "set-cookie" in head) == (403, False)
    assert aliases(team) == {}
    assert team.get_json("/mm/v1/pulls") == {"pulls": []}


def test_who_may_change_what(team):
    """By the page as by the API: nobody, a reader, a writer, an admin."""
    move = {"model_id": "org/two", "alias": "prod", "version": "v1"}
    for who, status in ((None, 401), ("reader", 403), ("writer", 303)):
        assert post(team, "/alias", move, who)[0] == status
    assert aliases(team) == {"prod": "v1"}
    own = {"Sec_Fetch_Site": None, "Origin": team.url}
    assert post(team, "/alias", {**move, "version": "v2"}, "writer", **own)[0] == 303
    assert aliases(team) == {"prod": "v2"}
    for who, status in ((None, 401), ("reader", 403), ("writer", 303)):
        assert post(team, "/alias/remove", move, who)[0] == status
    assert aliases(team) == {}
    gone = {"model_id": "org/two", "version": "v1"}
    for who, status in ((None, 401), ("reader", 403), ("writer", 403), ("admin", 303)):
        assert post(team, "/remove", gone, who)[0] == status
    status, head, _ = post(team, "/remove", {**gone, "version": "v2"}, "admin")
    assert (status, head["location"]) == (303, HOME)
    for who, source, status in (
        (None, "hf://org/x", 401),
        ("reader", "hf://org/x", 403),
        ("writer", "hf://up/x", 403),
        ("admin", "/etc", 403),
        ("admin", "", 403),
    ):
        assert post(team, "/pulls", {"source": source}, who)[0] == status
    for kind in ("text/plain", "multipart/form-data", "application/json"):
        assert post(team, "/alias", move, "admin", Content_Type=kind)[0] == 415
    big = {"model_id": "x" * 100_000}
    assert post(team, "/alias", big, "admin")[0] == 413
    assert team.ask("PUT", f"{HOME}/alias")[0] == 405


def test_only_who_may_is_offered_to(team):
    """Forms are shown to those for whom they would work."""
    for who, offers in (
        (None, ()),
        ("reader", ()),
        ("writer", ("/alias",)),
        ("admin", ("/alias", "/remove")),
    ):
        forms = {
            f["action"] for f in Tags(look(team, f"{HOME}/models/org/two", who)[2]).all("form")
        }
        assert forms - {f"{HOME}/sign-out"} == {HOME + path for path in offers}
        forms = {f["action"] for f in Tags(look(team, f"{HOME}/pulls", who)[2]).all("form")}
        assert (f"{HOME}/pulls" in forms) is (who in ("writer", "admin"))


def test_a_pull_from_the_page(hub_of, hub, store):
    """Begun by a form, shown with its end."""
    hub.add_repo("up/one", {"config.json": b"{}"})
    with hub_of(HF_ENDPOINT=hub.endpoint) as served:
        served.tokens = tokens_of(store, writer=("write", "*"))
        form = {
            "source": " hf://up/one ",
            "aliases": "prod, latest",
            "model_id": "",
            "revision": "",
        }
        status, head, _ = post(served, "/pulls", form, "writer")
        assert (status, head["location"]) == (303, f"{HOME}/pulls")
        until(lambda: "badge done" in look(served, f"{HOME}/pulls")[2])
        assert set(aliases(served, "up/one")) == {"prod", "latest"}
