"""Two programs, one store: whatever one of them does, the other sees, allows and refuses alike."""

from __future__ import annotations

import base64
import json
import random

import pytest
from storage_format import second
from storage_format.programs import Ours, Second, document, local

from mm_core.cli import main
from mm_core.exceptions import ConflictError, NotFoundError
from mm_core.registry import Keys, ModelRegistry
from mm_core.schemas import Manifest, ModelType, StoredFile
from mm_core.testing.registry import registered

pytestmark = pytest.mark.unit

MODELS = ["org/a", "org/ä", "org/a/b"]
VERSIONS = ["1", "2", "x"]


class OurWriter:
    """Model Manager as a writer."""

    def __init__(self, root):
        self.sink = local(root)
        self.registry = ModelRegistry(self.sink)

    def state(self):
        return document(self.registry.state().to_json())

    def commit(self, operation):
        self.registry.commit([operation])

    def pull(self, model_id, version, data):
        claim = self.registry.begin(model_id, version, wait=False)
        key = f"{claim.prefix}w.bin"
        self.sink.put(key, data)
        file = StoredFile(path="w.bin", key=key, size=len(data), sha256=second.sha256(data))
        files = {"model_id": model_id, "version": version, "model_type": ModelType.OTHER}
        self.registry.add(claim, Manifest(files=(file,), **files))


class SecondWriter:
    """The second program as a writer."""

    def __init__(self, root):
        self.writer = second.Writer(root)

    def state(self):
        return document(self.writer.refresh().document)

    def commit(self, operation):
        self.writer.commit(operation)

    def pull(self, model_id, version, data):
        self.writer.pull(model_id, version, {"w.bin": data})


def operation(chance, state, number):
    """Any operation, allowed or not."""
    model_id, version = chance.choice(MODELS), chance.choice(VERSIONS)
    rows = {
        (m, row["version"]): row for m in state["models"] for row in state["models"][m]["versions"]
    }
    row = rows.get((model_id, version), {})
    claim = chance.choice([row.get("claim", "none"), "other"])
    sweeper = chance.choice([row.get("sweeper", "s"), f"s{number}"])
    fields = chance.choice([
        {"op": "begin", "claim": f"c{number}", "timeout": 60.0},
        {"op": "begin", "claim": f"c{number}", "timeout": 60},
        {"op": "abandon", "claim": claim, "reason": "é"},
        {"op": "register", "status": "AVAILABLE", "path": f"/srv/{number}", "path_is": "path"},
        {"op": "status", "status": chance.choice(["AVAILABLE", "FAILED", "DELETED"])},
        {"op": "remove", "expect": chance.choice([[], ["prod"]])},
        {"op": "remove"},
        {"op": "sweep", "sweeper": sweeper, "expect": row.get("ended", [])},
        {"op": "sweep", "sweeper": f"s{number}", "over": sweeper, "new_field": number},
        {"op": "swept", "sweeper": sweeper},
        {"op": "alias", "alias": chance.choice(["prod", "PROD", "ß"])},
        {"op": "alias", "alias": "prod", "expect": chance.choice(["", *VERSIONS]), "back": 1},
        {"op": "unalias", "alias": chance.choice(["prod", "SS"])},
    ])  # fmt: skip
    name = {"model_id": model_id} | ({} if fields["op"] == "unalias" else {"version": version})
    return {"id": f"o{number}", **name, **fields}


@pytest.mark.parametrize("seed", range(2))
def test_in_turn(seed, tmp_path):
    """Both write in turn, beyond a checkpoint and a pack: same states, same refusals, same piles."""
    chance = random.Random(seed)
    writers, programs = [OurWriter(tmp_path), SecondWriter(tmp_path)], [Ours(), Second()]
    number = pulls = refused = 0
    while (state := writers[0].state())["seq"] < 80:
        assert writers[1].state() == state
        number += 1
        writer = chance.choice(writers)
        item = operation(chance, state, number)
        first, other = (program.outcome(state, [item]) for program in programs)
        assert (first == "done") is (other == "done"), item
        if item["op"] == "begin" and first == "done" and chance.random() < 0.6:
            writer.pull(item["model_id"], item["version"], b"%d" % number)
            pulls += 1
            continue
        try:
            writer.commit(item)
        except (ConflictError, NotFoundError, second.Refused):
            assert first != "done", item
            refused += 1
        else:
            assert first == "done", item
            assert item["id"] in writer.state()["operations"]
    assert pulls > 5
    assert refused > 5
    hint = json.loads((tmp_path / ".mm/hint.json").read_bytes())
    assert (hint["seq"], hint["tail"]["seq"]) == (32, 64)
    for program in programs:
        assert program.open(tmp_path) == ("the state", writers[1].state())
    for model_id in state["models"]:
        for alias in ("prod", "ß"):
            piles = [program.pile(tmp_path, model_id, alias) for program in programs]
            assert piles[0] == piles[1]
    assert main(["registry", "check", "--deep", "--backend", str(tmp_path)]) == 0


def test_in_turn_with_packs_of_two_levels(tmp_path, monkeypatch):
    """A pack that has grown large becomes the middle one, whoever of the two writes it."""
    monkeypatch.setattr("mm_core.registry.saving._TAIL_BYTES", 20 << 10)
    monkeypatch.setattr(second, "TAIL_PACK", 20 << 10)
    writers, seen = [OurWriter(tmp_path), SecondWriter(tmp_path)], set()
    register = {"op": "register", "status": "AVAILABLE", "path": "/x", "path_is": "path"}
    for number in range(12 * 32):
        fields = register if number == 0 else {"op": "alias", "alias": f"a{number % 32}"}
        saver = writers[number // 64 % 2]
        saver.commit({"id": f"o{number}", "model_id": "org/a", "version": "1", **fields})
        if number % 32 == 31:
            hint = json.loads((tmp_path / ".mm/hint.json").read_bytes())
            seen.add((type(saver), *(name for name in ("middle", "tail") if name in hint)))
            assert writers[0].state() == writers[1].state()
            for program in (Ours(), Second()):
                assert program.open(tmp_path) == ("the state", writers[1].state())
    assert seen >= {
        (kind, *form)
        for kind in (OurWriter, SecondWriter)
        for form in (("middle",), ("middle", "tail"))
    }
    assert main(["registry", "check", "--deep", "--backend", str(tmp_path)]) == 0


def test_signed(tmp_path):
    """A signed store, beyond a checkpoint, is believed by both who trust the key, and by nobody else."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(pem)
    root = tmp_path / "store"
    registry = ModelRegistry(local(root), keys=Keys(signing_key=str(tmp_path / "key.pem")))
    for number in range(70):
        registry.add_model(registered("org/model", str(number)))
    for program in (Ours(), Second()):
        key, another = (
            base64.b64encode(one.public_key().public_bytes_raw()).decode()
            for one in (private, other)
        )
        assert program.open(root, {key}) == ("the state", document(registry.state().to_json()))
        assert program.open(root, {another}) == ("damage", None)
    second.Writer(root).pull("org/unsigned", "1", {})
    assert {program.open(root, {key})[0] for program in (Ours(), Second())} == {"damage"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "a b"},
        {"status": "RETIRED"},
        {"date": "yesterday"},
        {"size_bytes": "7"},
        {"metadata": None},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_program_that_breaks_the_format(wrong, tmp_path, capfd):
    """What no program that keeps to the format writes is named, with where to look, and is no fault in mm."""
    row = {"version": "1", "status": "AVAILABLE", "path": "/x", "path_is": "path", **wrong}
    writer = second.Writer(tmp_path)
    writer.commit({"op": "register", "model_id": "org/odd", **row})
    assert main(["list", "--backend", str(tmp_path)]) == 6
    error = capfd.readouterr().err
    assert f"org/odd@{row['version']} is not as the registry's format" in error
    assert "mm history org/odd" in error
    assert main(["history", "org/odd", "--backend", str(tmp_path)]) == 0
