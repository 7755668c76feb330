"""docs/storage-format.md is complete: ours and a second program, written from it, agree on all examples."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
from storage_format.programs import Ours, Second, document

from mm_core.registry.state import State
from mm_core.schemas import Manifest, canonical_json, sha256_hex

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).parents[1] / "fixtures/storage-format"


def examples(name):
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.fixture(params=[Ours, Second], ids=["ours", "second"])
def program(request):
    return request.param()


LOG = examples("log")
STORE = examples("store")
STATES = [document(State().to_json()), *(commit["state"] for commit in LOG["commits"])]


def laid_out(root, changes=()):
    """The store of the examples as a folder, with some objects changed, or absent."""
    for key, data in {**STORE["objects"], **dict(changes)}.items():
        if data is not None:
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(data))
    return root


@pytest.mark.parametrize("case", examples("canonical")["cases"], ids=lambda case: case["text"][:20])
def test_canonical_json(program, case):
    """Every value has one text, whoever writes it, and so one hash."""
    text = program.canonical(case["value"])
    assert text == case["text"].encode()
    assert sha256_hex(text) == case["sha256"]
    assert program.canonical(json.loads(text)) == text


@pytest.mark.parametrize("kind", ["model_ids", "versions", "aliases", "paths"])
def test_names(program, kind):
    """What is a name to one is a name to all, and stands in a store as it is."""
    names = examples("names")[kind]
    assert [name for name in names["allowed"] if not program.allows(kind, name)] == []
    assert [name for name in names["refused"] if program.allows(kind, name)] == []


def test_same_names(program):
    """What is one name on a disk that ignores case is one name to all, and its folders nest."""
    names = examples("names")
    assert [pair for pair in names["same"] if not program.same(*pair)] == []
    assert [pair for pair in names["not_the_same"] if program.same(*pair)] == []
    for expected, kind in ((True, "nest"), (False, "do_not_nest")):
        for a, b, c, d in names[kind]:
            assert program.nests((a, b), (c, d)) is expected, (a, b, c, d)
            assert program.nests((c, d), (a, b)) is expected, (a, b, c, d)


@pytest.mark.parametrize("seq", range(1, len(STATES)))
def test_commits(program, seq):
    """A commit's bytes lead from one state to the next, and hang on the one before."""
    commit = LOG["commits"][seq - 1]
    assert sha256_hex(commit["text"].encode()) == commit["sha256"] == commit["state"]["head"]
    assert program.canonical(json.loads(commit["text"])) == commit["text"].encode()
    assert program.follow(STATES[seq - 1], commit["text"]) == commit["state"]


@pytest.mark.parametrize("case", named(examples("operations")["cases"]))
def test_operations(program, case):
    """What may be committed is the same to all. (The document knows one kind of refusal.)"""
    outcome = program.outcome(STATES[case["after"]], case["operations"])
    assert outcome == case["outcome"] or (outcome, case["outcome"]) == ("refused", "not found")


@pytest.mark.parametrize(
    "case", examples("references")["cases"], ids=lambda case: case["reference"]
)
def test_references(program, case):
    """A reference means the same version to all."""
    assert program.resolve(STATES[case["after"]], case["reference"]) == case["version"]


@pytest.mark.parametrize("pile", LOG["piles"], ids=lambda pile: pile["alias"])
def test_piles(program, pile, tmp_path):
    """What an alias named before is the same to all, also what is no version any more."""
    later = range(pile["after"] + 1, len(STATES))
    gone = {f".mm/log/{seq:012d}.json": None for seq in later}
    root = laid_out(tmp_path, {**gone, ".mm/hint.json": None} if gone else {})
    assert program.pile(root, pile["model_id"], pile["alias"]) == pile["pile"]


@pytest.mark.parametrize("case", examples("checkpoints")["cases"])
def test_checkpoints(program, case):
    """A state has one text as a checkpoint, and the checkpoint is that state again."""
    packed = base64.b64decode(case["object"])
    assert (
        gzip.decompress(packed) == program.checkpoint_text(case["state"]) == case["text"].encode()
    )
    assert program.read_checkpoint(packed) == case["state"]


def test_checkpoints_in_another_form(program):
    """Who writes the same document in other words is understood."""
    case = examples("checkpoints")["another_form"]
    assert program.read_checkpoint(base64.b64decode(case["object"])) == case["state"]


@pytest.mark.parametrize("case", named(STORE["cases"]))
def test_stores(program, case, tmp_path):
    """A store with any of its parts lost, damaged or newer is the same state to all, or an error."""
    finds, state = program.open(laid_out(tmp_path, case["change"]))
    if case["finds"] in ("damage", "something newer"):
        assert finds == case["finds"]
        return
    assert finds == "the state"
    expected = STATES[-1]
    if case["finds"] == "the state, with another head":
        expected = {**expected, "head": state["head"]}
        assert state["head"] != STATES[-1]["head"]
    if case["finds"] == "one commit more":
        (added,) = (data for key, data in case["change"].items() if key.startswith(".mm/log/"))
        expected = program.follow(expected, base64.b64decode(added).decode())
    assert state == expected


def test_the_hint_names_what_stands(tmp_path):
    """The example of a hint is one: its hashes, sizes and numbers are those of the objects."""
    hint, objects = STORE["hint"], {k: base64.b64decode(v) for k, v in STORE["objects"].items()}
    checkpoint = objects[hint["key"]]
    assert (hint["sha256"], hint["size"]) == (sha256_hex(checkpoint), len(checkpoint))
    for name, first, last in (("middle", 7, 9), ("tail", 10, 12)):
        packed = objects[hint[name]["key"]]
        text = gzip.decompress(packed)
        assert hint[name]["seq"] == last
        assert (hint[name]["sha256"], hint[name]["size"]) == (sha256_hex(packed), len(text))
        lines = [LOG["commits"][seq - 1]["text"] + "\n" for seq in range(first, last + 1)]
        assert text.decode() == "".join(lines)
    assert hint["head"] == STATES[12]["head"]
    assert canonical_json(hint) == objects[".mm/hint.json"]


@pytest.mark.parametrize(
    "case", examples("manifests")["cases"], ids=lambda case: case["sha256"][:8]
)
def test_manifests(program, case):
    """A manifest's bytes have its name, and are made again from what is read, unknown fields and all."""
    assert program.canonical(json.loads(case["text"])) == case["text"].encode()
    assert sha256_hex(case["text"].encode()) == case["sha256"]
    manifest = Manifest.from_bytes(case["text"].encode())
    assert manifest.to_bytes() == case["text"].encode()
    assert manifest.size_bytes == case["size_bytes"]


def test_signatures(program):
    """Who trusts a key believes what it signed, as it was signed, and nobody else's."""
    pytest.importorskip("cryptography")
    cases = examples("signatures")
    for kind, believes in (
        ("commits", program.believes_commit),
        ("checkpoints", program.believes_checkpoint),
    ):
        for case in cases[kind]:
            assert believes(case["text"], cases["key"]) is case["believed"], case["name"]
            assert not believes(case["text"], cases["another_key"]), case["name"]
