"""A registry in a file: backup and restore, export, a JSON registry, and the guide's sample."""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import re
import zipfile
from pathlib import Path

import pytest

from mm_core import backup_and_repair_registry
from mm_core.cli import main
from mm_core.exceptions import (
    AlreadyExistsError,
    ConflictError,
    IntegrityError,
    MMError,
    NotFoundError,
    StorageError,
    UsageError,
)
from mm_core.registry import ModelRegistry
from mm_core.registry.layout import log_key
from mm_core.schemas import ModelEntry, ModelStatus, ModelType
from mm_core.testing.registry import claimed, manifest_for
from mm_core.upkeep.backup import backup, restore
from mm_core.upkeep.check import check
from mm_core.upkeep.copies import Copies
from mm_core.upkeep.export import COLUMNS, rows_of
from mm_core.upkeep.migrate import migrate
from mm_core.upkeep.repair import repair
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


def empty(name: str) -> MemorySink:
    sink = MemorySink(MemorySink.Config(root=f"memory://{name}"))
    sink.delete([found.key for found in list(sink.list(""))])
    return sink


@pytest.fixture
def other(request):
    return empty(re.sub(r"\W", "-", request.node.name) + "-other")


@pytest.fixture
def sink(request):
    """A registry of 40 commits and more: with a checkpoint, an alias and a removed version."""
    sink = empty(re.sub(r"\W", "-", request.node.name))
    grow(sink, range(20))
    ModelRegistry(sink).remove("org/m3", "1")
    return sink


def grow(sink, numbers) -> None:
    registry = ModelRegistry(sink)
    for number in numbers:
        claim = claimed(registry, f"org/m{number}", "1")
        sink.write(f"{claim.prefix}model.bin", [b"hello"], size=5)
        registry.add(claim, manifest_for(claim, license="mit"), aliases=["prod"])


def objects_of(sink, prefix="") -> dict[str, bytes]:
    return {found.key: b"".join(sink.read(found.key)) for found in sink.list(prefix)}


def entries(sink) -> list[dict]:
    rows = ModelRegistry(sink).list_models(include_deleted=True)
    return [{**entry.to_json(), "path": None} for entry in rows]


def rewrite(path: Path, change) -> None:
    """The same zip, with one object changed: `change` takes a key and bytes, None leaves it out."""
    with zipfile.ZipFile(path) as old:
        kept = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in kept.items():
            if data is not None:
                new.writestr(name, data)


# -- backup and restore -------------------------------------------------------------------


def test_a_backup_makes_the_same_registry_elsewhere(sink, other, tmp_path):
    """All entries, aliases, commits and manifests come back; the models' bytes are not in it."""
    written = backup(sink, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    done = restore(other, tmp_path / "b")
    assert done.created == written.objects
    assert entries(other) == entries(sink)
    assert objects_of(other, ".mm/log/") == objects_of(sink, ".mm/log/")
    assert ModelRegistry(other).id == ModelRegistry(sink).id
    assert objects_of(other, "models/") == {}
    assert {f.code for f in check(other).problems} == {"object_missing"}
    grow(other, [77])
    assert ModelRegistry(other).resolve("org/m77:prod").version == "1"


def test_a_restore_creates_what_is_missing_and_nothing_else(sink, tmp_path):
    """Into the registry that it was made of: lost objects are there again, others stay."""
    backup(sink, tmp_path / "b")
    before = objects_of(sink)
    lost = [
        log_key(5),
        log_key(6),
        ".mm/format.json",
        next(iter(objects_of(sink, ".mm/manifests/"))),
    ]
    sink.delete(lost)
    assert restore(sink, tmp_path / "b").created == len(lost)
    after = objects_of(sink)
    assert {k: v for k, v in after.items() if k != ".mm/hint.json" and "/snap/" not in k} == {
        k: v for k, v in before.items() if k != ".mm/hint.json" and "/snap/" not in k
    }
    assert check(sink).ok
    assert restore(sink, tmp_path / "b").created == 0


def test_a_restore_never_replaces(sink, other, tmp_path):
    """Another registry, and one that went on otherwise, are conflicts; nothing is written."""
    backup(sink, tmp_path / "b")
    grow(other, [1])
    before = objects_of(other)
    with pytest.raises(ConflictError, match="another registry"):
        restore(other, tmp_path / "b")
    assert objects_of(other) == before
    sink.put(log_key(7), b"damaged")
    before = objects_of(sink)
    with pytest.raises(ConflictError, match="000000000007"):
        restore(sink, tmp_path / "b")
    assert objects_of(sink) == before


def test_repair_takes_what_is_lost_from_a_backup(sink, tmp_path):
    """With a backup nothing is lost: commits, manifests and the registry's id are as before."""
    backup(sink, tmp_path / "b")
    before = objects_of(sink)
    last = max(objects_of(sink, ".mm/log/"))
    manifests = list(objects_of(sink, ".mm/manifests/"))
    sink.delete([log_key(4), manifests[0], ".mm/format.json"])
    sink.put(last, b"{}")
    sink.put(manifests[1], b"?")
    repair(sink, copies=Copies(tmp_path / "b"))
    after = objects_of(sink)
    kinds = (".mm/log/", ".mm/manifests/", ".mm/format.json")
    assert {k: v for k, v in after.items() if k.startswith(kinds) and k in before} == {
        k: v for k, v in before.items() if k.startswith(kinds)
    }
    assert check(sink).ok


def test_a_backup_brings_back_what_nothing_tells_of(sink, tmp_path):
    """The end of the log, lost without a trace, is there again; what was committed since stays."""
    backup(sink, tmp_path / "b")
    before = objects_of(sink, ".mm/log/")
    sink.delete(sorted(before)[-3:])
    repair(sink, copies=Copies(tmp_path / "b"))
    assert objects_of(sink, ".mm/log/") == before
    sink.delete(sorted(before)[-1:])
    ModelRegistry(sink).set_alias("org/m5", "since", "1")
    after = objects_of(sink)
    assert repair(sink, copies=Copies(tmp_path / "b")).steps == ()
    assert objects_of(sink) == after


def test_a_backup_of_another_registry_mends_nothing(sink, other, tmp_path):
    """Its commits belong elsewhere."""
    grow(other, [1])
    backup(other, tmp_path / "b")
    sink.put(log_key(1), b"x")
    before = objects_of(sink)
    with pytest.raises(ConflictError, match="another registry"):
        repair(sink, copies=Copies(tmp_path / "b"))
    assert objects_of(sink) == before


def test_a_backup_of_a_repaired_registry_can_be_restored(sink, other, tmp_path):
    """A stand-in and the checkpoint that bridges the gap go along."""
    sink.put(log_key(20), b"")
    sink.delete([k for prefix in (".mm/snap/", ".mm/tail/") for k in objects_of(sink, prefix)])
    repair(sink)
    assert check(sink).ok
    backup(sink, tmp_path / "b")
    restore(other, tmp_path / "b")
    assert entries(other) == entries(sink)


def test_a_backup_goes_on_while_others_commit(sink, other, tmp_path):
    """It ends with a commit that was made, and is whole."""
    import threading

    stop = threading.Event()

    def work():
        registry = ModelRegistry(sink)
        while not stop.wait(0.002):
            registry.set_alias("org/m1", "busy", "1")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(3):
            backup(sink, tmp_path / str(number))
    finally:
        stop.set()
        thread.join()
    done = restore(other, tmp_path / "2")
    assert ModelRegistry(other).history()[-1].seq == done.seq


def test_a_damaged_registry_is_not_backed_up(sink, tmp_path):
    """The error says what to do, and no file is left."""
    sink.put(log_key(9), b"x")
    with pytest.raises(IntegrityError) as caught:
        backup(sink, tmp_path / "b")
    assert "repair" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_backup_does_not_replace_a_file_unasked(sink, tmp_path):
    """A file that is there stays, unless it is said that it may go."""
    (tmp_path / "b").write_text("precious")
    with pytest.raises(AlreadyExistsError):
        backup(sink, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "precious"
    backup(sink, tmp_path / "b", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "b")


def test_nothing_to_back_up_is_said(other, tmp_path):
    """A store without a registry, and a file that is not there, are not found."""
    with pytest.raises(NotFoundError):
        backup(other, tmp_path / "b")
    with pytest.raises(NotFoundError):
        restore(other, tmp_path / "none")
    assert objects_of(other) == {}


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_of_a_backup_is_said_in_words(sink, other, tmp_path, seed):
    """Whatever bits turn, or are cut off: an error of ours, and nothing is written; or all is well."""
    dice = random.Random(seed)
    data = bytearray(backup(sink, tmp_path / "b").path.read_bytes())
    for _ in range(dice.choice([1, 1, 3])):
        data[dice.choice([dice.randrange(len(data)), -dice.randrange(1, 200)])] ^= 1 << seed % 8
    (tmp_path / "b").write_bytes(data[: dice.randrange(len(data))] if seed % 10 == 0 else data)
    try:
        restore(other, tmp_path / "b")
    except MMError:
        assert objects_of(other) == {}
    else:
        assert entries(other) == entries(sink)


@pytest.mark.parametrize("what", ["commit", "manifest", "lost", "contents"])
def test_a_damaged_backup_restores_nothing(sink, other, tmp_path, what):
    """Whatever of it was changed is seen before anything is written."""

    def change(key, data):
        if what == "commit" and key == log_key(3):
            return data.replace(b"org/m1", b"org/m2")
        if what == "manifest" and "manifests" in key:
            return data + b" "
        if what == "lost" and key == log_key(3):
            return None
        return (
            data.replace(b'"seq":', b'"sec":')
            if (what, key) == ("contents", "backup.json")
            else data
        )

    backup(sink, tmp_path / "b")
    rewrite(tmp_path / "b", change)
    with pytest.raises(IntegrityError):
        restore(other, tmp_path / "b")
    assert objects_of(other) == {}


@pytest.mark.parametrize("name", ["../../etc/passwd", "models/a/1/x", ".mm/hint.json"])
def test_a_backup_with_anything_else_in_it_is_refused(sink, other, tmp_path, name):
    """No other key is ever written."""
    backup(sink, tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "b", "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UsageError, match="no part of a registry"):
        restore(other, tmp_path / "b")


def test_other_files_are_no_backups(other, tmp_path):
    """What is no zip, no backup or of a newer version is refused with words."""
    (tmp_path / "text").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a", b"x")
    with zipfile.ZipFile(tmp_path / "newer", "w") as archive:
        archive.writestr("backup.json", '{"format": "model-manager-backup", "version": 99}')
    for name, error in (("text", UsageError), ("zip", UsageError), ("newer", StorageError)):
        with pytest.raises(error) as caught:
            restore(other, tmp_path / name)
        assert caught.value.hint


# -- export ---------------------------------------------------------------------------------


def test_the_export_has_a_row_for_each_version(sink):
    """JSON lines are the entries; the CSV has the same values in its columns."""
    found = ModelRegistry(sink).list_models(include_deleted=True)
    lines = [json.loads(line) for line in rows_of(found, "jsonl")]
    assert lines == [entry.to_json() for entry in found]
    rows = list(csv.DictReader(io.StringIO("".join(rows_of(found, "csv")), newline="")))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["model_id"] for row in rows] == [line["model_id"] for line in lines]
    assert rows[0]["aliases"] == "prod"
    assert json.loads(rows[0]["metadata"]) == {"license": "mit"}
    assert {row["status"] for row in rows} == {"AVAILABLE", "DELETED"}


def test_no_cell_is_a_formula():
    """What a spreadsheet would run is made a text."""
    entry = ModelEntry(model_id="m", version="1", path="s3://b/m", source='=cmd|"/c calc"!A1')
    assert "\r\n" in "".join(rows_of([entry], "csv"))
    [row] = csv.DictReader(io.StringIO("".join(rows_of([entry], "csv")), newline=""))
    assert row["source"] == '\'=cmd|"/c calc"!A1'


# -- a registry that is one JSON file ---------------------------------------------------------

GUIDE = {
    "org/model": {
        "model_id": "org/model",
        "model_type": "text-generation",
        "path": "/models/org/model",
        "status": "available",
        "version": "1.0",
        "size_bytes": 1000,
        "download_date": "2024-01-31T12:00:00",
        "metadata": {"licence": "mit"},
    },
    "half": {"path": "half", "status": "ModelStatus.DOWNLOADING", "model_type": "FILL_MASK"},
}


def written(tmp_path, data) -> Path:
    path = tmp_path / "models.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_a_json_registry_is_brought_over(other, tmp_path):
    """Each entry becomes a version with the same facts; a download that was cut short is FAILED."""
    done = migrate(other, written(tmp_path, GUIDE))
    assert done.added == ("org/model@1.0", "half@1")
    entry = ModelRegistry(other).get_model("org/model")
    assert (entry.path, entry.size_bytes) == (Path("/models/org/model"), 1000)
    assert (entry.model_type, entry.status) == (ModelType.TEXT_GENERATION, ModelStatus.AVAILABLE)
    assert entry.metadata == {"licence": "mit"}
    assert entry.download_date.year == 2024
    half = ModelRegistry(other).get_model("half")
    assert (half.status, half.model_type) == (ModelStatus.FAILED, ModelType.FILL_MASK)
    assert half.path == tmp_path / "half"
    assert check(other).ok


def test_migrating_again_adds_nothing(other, tmp_path):
    """Only what is new is added, and one commit holds it all."""
    path = written(tmp_path, GUIDE)
    migrate(other, path)
    again = migrate(other, path)
    assert (again.added, len(again.present)) == ((), 2)
    assert len(ModelRegistry(other).history()) == 1


@pytest.mark.parametrize(
    "form",
    [
        list(GUIDE.values())[:1],
        {"models": GUIDE},
        {"version": 1, "models": [GUIDE["org/model"]]},
        {"org/model": [GUIDE["org/model"]]},
        {"org/model": {"1.0": {"path": "/models/org/model"}}},
    ],
)
def test_the_forms_of_the_file(other, tmp_path, form):
    """A mapping, a list, either under models, and several versions of a model are read."""
    migrate(other, written(tmp_path, form))
    assert ModelRegistry(other).get_model("org/model", "1.0").path == Path("/models/org/model")


def test_our_own_view_can_be_migrated(sink, other, tmp_path):
    """What this registry writes for people is such a file."""
    view = {
        "format": "model-manager-view",
        "models": [e.to_json() for e in ModelRegistry(sink).list_models()],
    }
    migrate(other, written(tmp_path, view))
    assert ModelRegistry(other).resolve("org/m1:prod").version == "1"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("text", "not a mapping"),
        ({"model_id": "bad"}, "no path"),
        ({"path": "/x", "model_id": "../up"}, "not allowed"),
        ({"path": "/x", "status": "dancing"}, "status"),
        ({"path": "/x", "download_date": "yesterday"}, "date"),
        ({"path": "/x", "size_bytes": -1}, "negative"),
        ({"path": "/x", "metadata": "m"}, "mapping"),
        ({"path": "/x", "size_bytes": float("inf")}, "infinity"),
        ({"path": "/x", "download_date": 1e30}, "out of range"),
        ({"path": "~nobody-of-that-name/x"}, "home"),
        ({"path": "/x", "source": "\ud800"}, "surrogates"),
        ({"path": "/x", "aliases": 5}, "int"),
    ],
)
def test_a_bad_entry_is_named(other, tmp_path, bad, why):
    """Nothing is done unless it is said that bad entries may be left out."""
    path = written(tmp_path, {**GUIDE, "bad": bad})
    with pytest.raises(UsageError, match="bad") as caught:
        migrate(other, path)
    assert why in str(caught.value)
    assert objects_of(other) == {}
    done = migrate(other, path, skip_bad=True)
    assert [one.where for one in done.bad] == ["bad"]
    assert len(done.added) == 2


def test_an_alias_may_stand_without_a_list(other, tmp_path):
    """One name is one alias, and not one for each of its letters."""
    migrate(other, written(tmp_path, {"m": {"path": "/x", "aliases": "prod"}}))
    assert ModelRegistry(other).aliases() == {"m": {"prod": "1"}}


@pytest.mark.parametrize("text", ["{", '"text"', "5", "[" * 100_000])
def test_a_file_that_is_no_registry_is_refused(other, tmp_path, text):
    """The error says why, and a file that is not there is not found."""
    with pytest.raises(UsageError):
        migrate(other, written(tmp_path, text))
    with pytest.raises(NotFoundError):
        migrate(other, tmp_path / "none.json")


# -- the guide's sample -------------------------------------------------------------------------


def guides_backup_and_repair_registry(registry: ModelRegistry):
    """Create backup and attempt registry repair."""
    import json
    import shutil

    logger = logging.getLogger("sample")
    registry_file = registry.registry_file
    backup_file = registry_file.with_suffix(".json.backup")

    # Create backup
    if registry_file.exists():
        shutil.copy2(registry_file, backup_file)

    # Attempt repair
    try:
        registry.load()
    except json.JSONDecodeError:
        logger.error("Registry corrupted, restoring from backup")
        if backup_file.exists():
            shutil.copy2(backup_file, registry_file)
            registry.load()


@pytest.fixture
def registry(tmp_path):
    registry = ModelRegistry(registry_file=tmp_path / "models.json")
    for number in range(3):
        path = Path(f"/models/{number}")
        registry.add_model(ModelEntry(model_id=f"m{number}", version="1", path=path))
    return registry


@pytest.mark.parametrize("content", [None, "", '{"format": "model-ma', "garbage"])
@pytest.mark.parametrize(
    "look_after", [guides_backup_and_repair_registry, backup_and_repair_registry]
)
def test_the_sample_of_the_guide_works(registry, look_after, content):
    """A registry file that is whole, empty, cut short or garbage is backed up and whole again."""
    file = registry.registry_file
    view = file.read_text()
    if content is not None:
        file.write_text(content)
    look_after(registry)
    assert file.read_text() == view
    assert file.with_suffix(".json.backup").read_text() == (view if content is None else content)
    aside = [path.read_text() for path in file.parent.glob("*.damaged-*")]
    assert aside == ([content] if content else [])
    assert {entry.model_id for entry in registry.list_models()} == {"m0", "m1", "m2"}


@pytest.mark.parametrize("seqs", [(1,), (2,), (3,), (1, 2, 3)])
def test_the_log_behind_the_file_is_mended(registry, seqs):
    """Damaged commits come back from the last good backup of the log, which stays."""
    backup_and_repair_registry(registry)
    backup_file = registry.registry_file.with_suffix(".mmbackup")
    before = backup_file.read_bytes(), objects_of(registry.sink, ".mm/log/")
    for seq in seqs:
        registry.sink.put(log_key(seq), b"damaged")
    done = backup_and_repair_registry(registry)
    assert {log_key(seq) for seq in seqs} <= {step.key for step in done.steps}
    assert (backup_file.read_bytes(), objects_of(registry.sink, ".mm/log/")) == before
    assert {entry.model_id for entry in registry.list_models()} == {"m0", "m1", "m2"}


def test_a_backup_that_is_of_no_use_keeps_nobody_from_a_repair(registry, tmp_path):
    """Neither garbage nor another registry's: then an empty commit stands in for the lost one."""
    other = ModelRegistry(registry_file=tmp_path / "other.json")
    other.add_model(ModelEntry(model_id="m", version="1", path=Path("/m")))
    backup_and_repair_registry(other)
    backup_file = registry.registry_file.with_suffix(".mmbackup")
    for seq, content in ((3, b"garbage"), (2, (tmp_path / "other.mmbackup").read_bytes())):
        backup_file.write_bytes(content)
        registry.sink.put(log_key(seq), b"damaged")
        done = backup_and_repair_registry(registry)
        assert {"stand_in"} <= {step.action for step in done.steps}
        assert check(registry.sink).ok


# -- the command line ------------------------------------------------------------------------


@pytest.fixture
def mm(capfd, tmp_path, monkeypatch):
    """Run mm on a local backend with a few versions: (exit code, JSON document)."""
    monkeypatch.chdir(tmp_path)
    sink = LocalSink(LocalSink.Config(root=str(tmp_path / "store")))
    grow(sink, range(3))

    def run(*arguments):
        code = main([*arguments, "--backend", "./store", "--json"])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, json.loads(out) if out else None

    run.sink = sink
    return run


def test_check_and_repair_tell_and_mend(mm):
    """Exit 0 when all is well, 6 with findings when it is not, and 0 again after a repair."""
    assert mm("registry", "check", "--deep") == (0, {**mm("registry", "check", "--deep")[1]})
    mm.sink.put(log_key(2), b"damaged")
    code, document = mm("registry", "check")
    assert code == 6
    assert document["ok"] is False
    assert [f["code"] for f in document["findings"] if f["severity"] != "note"] == ["log_damaged"]
    assert "repair" in document["error"]["hint"]
    assert mm("list")[0] == 6
    code, planned = mm("registry", "repair", "--dry-run")
    assert (code, planned["dry_run"]) == (0, True)
    code, done = mm("registry", "repair")
    assert (code, done["steps"]) == (0, planned["steps"])
    assert mm("registry", "check")[0] == 0
    assert len(mm("list")[1]["models"]) == 3


def test_a_repaired_end_is_seen_by_a_warm_client(mm):
    """The cache and the memory of this machine, which knew the lost commit, do not stand in the way."""
    assert len(mm("list")[1]["models"]) == 3
    last = max(objects_of(mm.sink, ".mm/log/"))
    mm.sink.put(last, b"damaged")
    assert mm("registry", "repair")[0] == 0
    code, document = mm("list")
    assert (code, len(document["models"])) == (0, 3)
    assert mm("alias", "set", "org/m1@1", "new")[0] == 0
    assert mm("registry", "check")[0] == 0


def test_backup_restore_and_accept(mm, capfd):
    """A backup goes to another root; a registry that went back is refused until it is accepted."""
    code, document = mm("registry", "backup", "b")
    assert (code, document["path"]) == (0, "b")
    assert mm("registry", "backup", "b")[0] == 8
    assert mm("registry", "backup", "b", "--force")[0] == 0
    assert mm("registry", "restore", "b", "--to", "./new")[0] == 0
    assert main(["list", "--backend", "./new", "--quiet"]) == 0
    assert capfd.readouterr().out.count("org/m") == 3
    grow(mm.sink, [9])
    assert mm("history")[0] == 0
    mm.sink.delete([max(objects_of(mm.sink, ".mm/log/"))])
    assert mm("history")[0] == 6
    code, document = mm("registry", "accept")
    assert (code, document["seq"]) == (0, 7)
    assert mm("history")[0] == 0


def test_export_to_stdout_and_to_a_file(mm, capfd, tmp_path):
    """Rows go to stdout, or at once into a file."""
    assert main(["registry", "export", "--as", "csv", "--backend", "./store"]) == 0
    text = capfd.readouterr().out
    assert text.startswith("model_id,version")
    assert text.count("org/m") >= 3
    code, document = mm("registry", "export", "-o", "rows")
    assert (code, document["rows"]) == (0, 3)
    assert len((tmp_path / "rows").read_text().splitlines()) == 3


def test_migrate_from_the_command_line(mm, tmp_path):
    """Bad entries are an error with exit 2, or are left out with exit 10."""
    path = written(tmp_path, {**GUIDE, "bad": 1})
    assert mm("registry", "migrate", str(path))[0] == 2
    code, document = mm("registry", "migrate", str(path), "--skip-bad")
    assert (code, len(document["added"]), len(document["bad"])) == (10, 2, 1)
    assert mm("registry", "migrate", str(written(tmp_path, GUIDE)))[1]["added"] == []
