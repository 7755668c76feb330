"""docs/storage-format.md is complete: ours and a second program, written from it, agree on all examples."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mm_core.exceptions import (
    ConflictError,
    IntegrityError,
    InvalidNameError,
    NotFoundError,
    StorageError,
)
from mm_core.names import check_alias, check_model_id, check_path, check_version, fold
from mm_core.registry import Keys, ModelRegistry
from mm_core.registry.chain import parse_commits
from mm_core.registry.checkpoint import decode, encode
from mm_core.registry.history import newest_first, plan_rollback
from mm_core.registry.operations import check_folder, replay, transition
from mm_core.registry.references import find_available
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import Manifest, canonical_json, sha256_hex
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parents[1]
FIXTURES = TESTS / "fixtures/storage-format"


def load_second():
    """The second implementation, which is a file and in no package."""
    name = "storage_format_second"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / "storage_format/second.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


second = load_second()


def examples(name):
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


def document(state):
    """A state as the examples have it: the order of versions means nothing."""
    found = json.loads(json.dumps(state))
    for model in found["models"].values():
        model["versions"].sort(key=lambda row: row["version"])
    return found


def local(root):
    return LocalSink(LocalSink.Config(root=str(root), fsync=False))


class Ours:
    """Model Manager, by the functions that it uses itself."""

    canonical = staticmethod(canonical_json)
    checks = {
        "model_ids": check_model_id,
        "versions": check_version,
        "aliases": check_alias,
        "paths": check_path,
    }

    def allows(self, kind, name):
        try:
            return self.checks[kind](name) == name
        except InvalidNameError:
            return False

    def same(self, one, other):
        return fold(one) == fold(other)

    def nests(self, one, other):
        row = {"version": other[1], "status": "FAILED", "added": [1, 0]}
        models = {other[0]: {"versions": [row], "aliases": {}}}
        state = State.from_json({"seq": 1, "head": "", "operations": [], "models": models})
        try:
            check_folder(state, *one)
        except ConflictError:
            return True
        return False

    def follow(self, found, text):
        state, sink = State.from_json(found), local("unused")
        commits = parse_commits(sink, [text.encode()], state.seq, state.head)
        return document(replay(state, [record for record, _ in commits]).to_json())

    def outcome(self, found, operations):
        state = State.from_json(found)
        before = document(state.to_json())
        try:
            transition(state, operations)
        except ConflictError:
            result = "refused"
        except NotFoundError:
            result = "not found"
        else:
            result = "done"
        assert document(state.to_json()) == before
        return result

    def resolve(self, found, reference):
        try:
            return find_available(State.from_json(found), reference)[1]["version"]
        except NotFoundError:
            return None

    def read_checkpoint(self, packed):
        return document(decode(packed).to_json())

    def checkpoint_text(self, found):
        return gzip.decompress(encode(State.from_json(found)))

    def open(self, root, trusted=()):
        try:
            registry = ModelRegistry(local(root), keys=Keys(trusted_keys=tuple(trusted)))
            return "the state", document(registry.state().to_json())
        except IntegrityError:
            return "damage", None
        except StorageError:
            return "something newer", None

    def pile(self, root, model_id, alias):
        """By asking where each number of steps back leads to."""
        sink, pile = local(root), []
        state = ModelRegistry(sink).state()
        record = state.record(model_id)
        now = record and record.aliases.get(fold(alias))
        pile = [now[1]] if now else []
        while True:
            try:
                records = newest_first(sink, state, ModelRegistry(sink)._deadline)
                steps = len(pile) + (not now)
                pile.append(plan_rollback(state, records, model_id, alias, steps=steps).version)
            except NotFoundError as error:
                if "named before" not in str(error):
                    return pile[::-1]
                pile.append(str(error).split(",")[0].rpartition("@")[2])

    def believes_commit(self, text, key):
        try:
            Trust(Keys(trusted_keys=(key,))).check_commit(json.loads(text), 1, "")
        except IntegrityError:
            return False
        return True

    def believes_checkpoint(self, text, key):
        try:
            decode(gzip.compress(text.encode()), Trust(Keys(trusted_keys=(key,))))
        except IntegrityError:
            return False
        return True


class Second:
    """The program that was written from the document alone."""

    canonical = staticmethod(second.canonical)
    checks = {
        "model_ids": second.is_model_id,
        "versions": second.is_segment,
        "aliases": second.is_alias,
        "paths": second.is_path,
    }

    def allows(self, kind, name):
        return self.checks[kind](name)

    def same(self, one, other):
        return second.fold(one) == second.fold(other)

    def nests(self, one, other):
        return second.nests("/".join(one), "/".join(other))

    def follow(self, found, text):
        state = second.State(document(found))
        state.follow(text.encode())
        return document(state.document)

    def outcome(self, found, operations):
        state = second.State(document(found))
        try:
            for place, operation in enumerate(operations):
                state.check(operation)
                state.apply(operation, [state.seq + 1, place])
        except second.Refused:
            return "refused"
        return "done"

    def resolve(self, found, reference):
        try:
            return second.State(document(found)).resolve(reference)["version"]
        except second.NotFound:
            return None

    def read_checkpoint(self, packed):
        return document(json.loads(gzip.decompress(packed)))

    def checkpoint_text(self, found):
        return second.checkpoint_text(second.State(document(found)))

    def open(self, root, trusted=()):
        try:
            reader = second.Reader(root, trusted=set(trusted) or None)
            return "the state", document(reader.refresh().document)
        except second.Damaged:
            return "damage", None
        except second.TooNew:
            return "something newer", None

    def pile(self, root, model_id, alias):
        reader = second.Reader(root)
        reader.refresh()
        return reader.pile(model_id, alias)

    def believes_commit(self, text, key):
        return second.is_commit_signed(text.encode(), {key})

    def believes_checkpoint(self, text, key):
        return second.is_checkpoint_signed(text.encode(), {key})


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


@pytest.mark.parametrize("case", examples("checkpoints")["cases"], ids=lambda case: case["seq"])
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
    checkpoint, pack = objects[hint["key"]], objects[hint["tail"]["key"]]
    assert (hint["sha256"], hint["size"]) == (sha256_hex(checkpoint), len(checkpoint))
    assert (hint["tail"]["sha256"], hint["tail"]["size"]) == (
        sha256_hex(pack),
        len(gzip.decompress(pack)),
    )
    lines = [LOG["commits"][seq - 1]["text"] + "\n" for seq in range(7, 13)]
    assert gzip.decompress(pack).decode() == "".join(lines)
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
