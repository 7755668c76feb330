"""Stores that releases wrote are kept as they are, and every later release opens them.

They are made by tests/fixtures/storage-format/make_golden.py, once for each release.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from storage_format import second
from storage_format.programs import Ours, Second, document, local

from mm_core import ModelManager, load_settings
from mm_core.cli import main
from mm_core.registry import ModelRegistry

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).parents[1] / "fixtures/storage-format"
GOLDEN = sorted(path.parent / path.stem for path in FIXTURES.glob("golden-*.json"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request):
    """The folder of a golden store as it is kept."""
    return request.param


@pytest.fixture
def copied(golden, tmp_path):
    """A copy that can be written."""
    return Path(shutil.copytree(golden, tmp_path / "store"))


@pytest.fixture
def sealed(copied):
    """A copy that cannot be written, and that must be the same afterwards."""
    before = contents(copied)
    parts = [copied, *copied.rglob("*")]
    for part in parts:
        part.chmod(0o555 if part.is_dir() else 0o444)
    yield copied
    for part in parts:
        part.chmod(0o755 if part.is_dir() else 0o644)
    assert contents(copied) == before


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def recorded(golden):
    return json.loads(golden.with_name(f"{golden.name}.json").read_text(encoding="utf-8"))


def holds(answer, expected):
    """Whether an answer says all that was recorded. It may say more: later releases know more."""
    if isinstance(expected, dict):
        return isinstance(answer, dict) and all(
            name in answer and holds(answer[name], value) for name, value in expected.items()
        )
    if isinstance(expected, list):
        return len(answer) == len(expected) and all(map(holds, answer, expected))
    return answer == expected


def test_there_is_one():
    """The store of the first release is kept, with a checkpoint, a pack and commits after both."""
    (first,) = (path for path in GOLDEN if path.name == "golden-0.1")
    hint = json.loads((first / ".mm/hint.json").read_bytes())
    assert hint["seq"] < hint["tail"]["seq"] < len(list((first / ".mm/log").iterdir()))
    assert sum(map(len, contents(first).values())) < 300_000


@pytest.mark.parametrize("program", [Ours(), Second()], ids=["ours", "second"])
@pytest.mark.parametrize("without_hint", [False, True], ids=["by the hint", "by the log"])
def test_its_state(program, without_hint, golden, copied):
    """Both programs come to the state that its release knew, with and without checkpoint and pack."""
    if without_hint:
        for part in (".mm/hint.json", ".mm/snap", ".mm/tail"):
            path = copied / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert program.open(copied) == ("the state", document(recorded(golden)["state"]))


def test_its_files(sealed):
    """The second program finds every file of every version that is offered, byte by byte."""
    reader = second.Reader(sealed)
    state, files = reader.refresh(), 0
    for model in state.models.values():
        for row in model["versions"]:
            if row["status"] == "AVAILABLE" and "manifest" in row:
                for file in reader.manifest(row)["files"]:
                    data = reader.store.read(file["key"])
                    assert (len(data), second.sha256(data)) == (file["size"], file["sha256"])
                    files += 1
    assert files


def test_its_piles(copied):
    """What its aliases named before is the same to both programs."""
    aliases = ModelRegistry(local(copied)).aliases()
    for model_id, names in aliases.items():
        for alias in names:
            piles = [program.pile(copied, model_id, alias) for program in (Ours(), Second())]
            assert piles[0] == piles[1] != []


@pytest.mark.parametrize("name", recorded(GOLDEN[0])["commands"])
def test_its_answers(name, golden, sealed, capfd, tmp_path, monkeypatch):
    """Commands answer what they answered in its release, and nothing is written where it lies."""
    monkeypatch.chdir(tmp_path)
    command = recorded(golden)["commands"][name]
    code = main([*command["arguments"], "--backend", str(sealed), "--json"])
    text = capfd.readouterr().out.replace(json.dumps(str(sealed))[1:-1], "ROOT")
    assert code == command["exit_code"]
    assert holds(json.loads(text), command["answer"])


def test_it_goes_on(copied, tmp_path):
    """A copy takes commits of both programs, and a pull; then there is still nothing to repair."""
    new = tmp_path / "new"
    new.mkdir()
    (new / "w.bin").write_bytes(b"hello")
    seq = ModelRegistry(local(copied)).state().seq
    with ModelManager(load_settings(), backend=str(copied)) as manager:
        entry = manager.push(new, "org/new", version="1", aliases=["prod"]).entry
    writer = second.Writer(copied)
    writer.pull("org/new", "2", {"w.bin": b"hello again"})
    writer.commit({"op": "alias", "model_id": "org/new", "version": "2", "alias": "prod"})
    registry = ModelRegistry(local(copied))
    assert registry.resolve("org/new:prod").version == "2"
    assert writer.state.resolve("org/new@1")["manifest"] == entry.manifest
    assert registry.state().seq == seq + 5
    assert main(["registry", "check", "--deep", "--backend", str(copied)]) == 0


def damage(folder, chance):
    """Do harm to some of the registry's objects: lose, flip, cut, or exchange them."""
    log = sorted((folder / ".mm/log").iterdir())
    others = sorted(
        path for path in (folder / ".mm").rglob("*") if path.is_file() and path not in log
    )
    for path in {
        chance.choice(chance.choice([log, others])) for _ in range(chance.choice([1, 1, 2, 3]))
    }:
        data, how = bytearray(path.read_bytes()), chance.choice(["lose", "flip", "cut", "exchange"])
        path.unlink()
        if how == "flip":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif how == "cut":
            del data[chance.randrange(len(data)) :]
        elif how == "exchange":
            data[:] = chance.choice([path for path in log if path.exists()]).read_bytes()
        if how != "lose":
            path.write_bytes(data)


@pytest.mark.parametrize("seed", range(20))
def test_damaged(seed, copied):
    """Whatever is lost or damaged of it, both programs come to the same state, or find damage."""
    damage(copied, random.Random(seed))
    assert Ours().open(copied) == Second().open(copied)
