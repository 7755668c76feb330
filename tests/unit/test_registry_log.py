"""The log: its chain, its checkpoints, its formats, and doubtful outcomes."""

import gzip
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_core.exceptions import (
    AlreadyExistsError,
    CommitUnknownError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    StorageError,
    TransientError,
)
from mm_core.registry import ModelRegistry, probe_exclusive_create
from mm_core.registry.deadline import Deadline
from mm_core.registry.operations import operation
from mm_core.schemas import canonical_json, sha256_hex
from mm_core.sink import read_bytes
from mm_core.testing.registry import FaultySink, claimed, fill, manifest_for, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def registry(sink):
    return ModelRegistry(sink)


class Spied(FaultySink):
    """Counts calls, and lets a test say what happens at one of them."""

    def __init__(self, inner):
        super().__init__(inner, rate=0, seed=0)
        self.calls = []
        self.plans = {}

    def create(self, key, data):
        self.calls.append(("create", key))
        plan = self.plans.get("create")
        return plan(key, data) if plan else self.inner.create(key, data)

    def read(self, key, start=0, end=None):
        self.calls.append(("read", key))
        plan = self.plans.get("read")
        return plan(key) if plan else self.inner.read(key, start, end)


def log_key(seq):
    return f".mm/log/{seq:012d}.json"


def write(registry, count, start=0):
    for number in range(start, start + count):
        registry.add_model(registered("org/model", str(number)))


# -- what it costs


def test_a_warm_reader_pays_one_read(sink):
    """Where nothing is new, a query is one read, of the next log number."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 3)
    spied.calls.clear()
    registry.list_models()
    assert spied.calls == [("read", log_key(4))]


def test_a_commit_is_one_create(sink):
    """A warm writer reads the next number, creates it, and is done."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 1)
    spied.calls.clear()
    write(registry, 1, start=1)
    assert spied.calls == [("read", log_key(2)), ("create", log_key(2))]


def test_waiting_writers_share_a_commit(sink):
    """Those who queue behind a committer are committed together, each with its own outcome."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 1)
    inside, go_on = threading.Event(), threading.Event()

    def slow(key, data):
        inside.set()
        assert go_on.wait(60)
        sink.create(key, data)

    spied.plans["create"] = slow
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(write, registry, 1, 1)
        assert inside.wait(60)
        rest = [pool.submit(registry.add_model, registered("other", "1")) for _ in range(4)]
        while len(registry._log._queue) < 4:
            pass
        go_on.set()
        first.result(60)
        outcomes = sorted(future.result(60) for future in rest)
    assert outcomes == [False, False, False, True]
    assert [len(record.operations) for record in registry.history()] == [1, 1, 1]


def test_who_shares_a_commit_sees_the_state_after_its_own_part(sink):
    """What others of the same commit did later in it is not in the answer, as if each had its own."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 1)
    inside, go_on = threading.Event(), threading.Event()

    def slow(key, data):
        inside.set()
        assert go_on.wait(60)
        sink.create(key, data)

    spied.plans["create"] = slow
    steps = [
        lambda: registry.set_alias("org/model", "prod", "0").aliases,
        lambda: registry.remove("org/model", "0").status,
        lambda: registry.sweep("org/model", "0").status,
        lambda: registry.swept("org/model", "0"),
    ]
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(write, registry, 1, 1)
        assert inside.wait(60)
        asked = []
        for count, step in enumerate(steps, 1):
            asked.append(pool.submit(step))
            while len(registry._log._queue) < count:
                pass
        go_on.set()
        first.result(60)
        assert [future.result(60) for future in asked] == [("prod",), "DELETED", "SWEEPING", None]
    assert [len(record.operations) for record in registry.history()] == [1, 1, 4]


def test_a_redo_after_the_version_is_gone_again_is_an_error_of_ours(registry):
    """An add that is done again when others have removed the version and its files says just that."""
    claim = claimed(registry, "org/model", "1")
    registry.add(claim, manifest_for(claim))
    for change in (registry.remove, registry.sweep, registry.swept):
        change("org/model", "1")
    with pytest.raises(NotFoundError, match="gone again"):
        registry.add(claim, manifest_for(claim))


# -- the chain


def test_the_chain_is_sha256_of_bytes(sink, registry):
    """Each commit is canonical JSON and names the sha256 of the bytes before it."""
    write(registry, 3)
    head = "0" * 64
    for seq in (1, 2, 3):
        data = read_bytes(sink, log_key(seq))
        commit = json.loads(data)
        assert canonical_json(commit) == data
        assert set(commit) == {"check", "seq", "prev", "id", "writer", "time", "operations"}
        assert (commit["seq"], commit["prev"]) == (seq, head)
        head = sha256_hex(data)
    assert registry.history()[-1].sha256 == head


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_a_changed_commit_is_found(sink, registry, seq):
    """Changing a commit's bytes breaks the chain; the last is compared with what was seen."""
    write(registry, 3)
    commit = json.loads(read_bytes(sink, log_key(seq)))
    commit["writer"] = "mallory"
    del commit["check"]  # which is against accidents only
    sink.put(log_key(seq), canonical_json(commit))
    with pytest.raises(IntegrityError):
        registry.history()
    if seq < 3:
        with pytest.raises(IntegrityError, match=f"commit {seq + 1} "):
            ModelRegistry(sink).list_models()


def test_a_commit_under_another_number_is_found(sink, registry):
    """A commit says its number; one that was moved is refused though the chain fits."""
    write(registry, 1)
    forge(sink, 3, sha256_hex(read_bytes(sink, log_key(1))), [])
    sink.copy(log_key(3), log_key(2))
    sink.delete([log_key(3)])
    with pytest.raises(IntegrityError, match="commit 2 "):
        registry.list_models()


def test_a_lost_commit_is_found(sink, registry):
    """A new reader refuses a log with a hole, and nobody fills the hole."""
    write(registry, 4)
    sink.delete([log_key(2)])
    for action in (ModelRegistry(sink).list_models, registry.history):
        with pytest.raises(IntegrityError, match="commit 2 "):
            action()
    with pytest.raises(IntegrityError):
        write(ModelRegistry(sink), 1, start=9)
    assert sink.stat(log_key(2)) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"seq": 2}', b"\xff"])
def test_rubbish_in_the_log_is_an_integrity_error(sink, registry, data):
    """What is no commit is named with its number, never skipped."""
    write(registry, 1)
    sink.create(log_key(2), data)
    with pytest.raises(IntegrityError, match="commit 2 "):
        registry.list_models()


def test_a_changed_manifest_is_found(sink, registry):
    """A manifest is read by its hash; changed bytes are an IntegrityError."""
    entry = fill(registry, "m", "1")
    key = f".mm/manifests/{entry.manifest}.json"
    sink.put(key, read_bytes(sink, key).replace(b"model.bin", b"other.bin"))
    with pytest.raises(IntegrityError, match="manifest"):
        registry.manifest(entry)
    registry.remove("m", "1")
    claim = claimed(registry, "m", "1")
    with pytest.raises(IntegrityError, match="other bytes"):
        registry.add(claim, manifest_for(claim))


# -- checkpoints


def test_a_new_reader_starts_at_the_checkpoint(sink, registry):
    """With a checkpoint only the commits after it are read."""
    write(registry, 34)
    spied = Spied(sink)
    assert len(ModelRegistry(spied).list_models()) == 34
    assert min(key for _, key in spied.calls if key.startswith(".mm/log/")) == log_key(32)


@pytest.mark.parametrize("part", ["snap", "tail"])
@pytest.mark.parametrize(
    "damage", ["hint lost", "hint rubbish", "hint lies", "part lost", "part cut", "part changed"]
)
def test_lost_and_damaged_checkpoints_harm_nothing(sink, registry, damage, part):
    """Whatever happens to hint, checkpoint and pack, the log says it all."""
    write(registry, 70)
    hint = json.loads(read_bytes(sink, ".mm/hint.json"))
    named = hint if part == "snap" else hint["tail"]
    newest = named["key"]
    number = 32 if part == "snap" else 64
    assert newest.startswith(f".mm/{part}/")
    assert f"{number:012d}-" in newest
    data = read_bytes(sink, newest)
    if damage == "hint lost":
        sink.delete([".mm/hint.json"])
    elif damage == "hint rubbish":
        sink.put(".mm/hint.json", b"\x00{")
    elif damage == "hint lies":
        named["sha256"] = "0" * 64
        sink.put(".mm/hint.json", canonical_json(hint))
    elif damage == "part lost":
        sink.delete([newest])
    elif damage == "part cut":
        sink.put(newest, data[:-20])
    else:
        sink.put(newest, gzip.compress(gzip.decompress(data).replace(b"org/model", b"org/mdoel")))
    assert ModelRegistry(sink).list_models() == registry.list_models()


def test_without_a_hint_the_newest_checkpoint_is_found(sink, registry):
    """Listing finds the newest valid checkpoint and pack, so that little of the log is read."""
    write(registry, 96)
    sink.delete([".mm/hint.json"])
    spied = Spied(sink)
    assert len(ModelRegistry(spied).list_models()) == 96
    read = {key for _, key in spied.calls}
    assert not read & {log_key(seq) for seq in range(50, 96)}


def test_a_checkpoint_under_another_number_harms_nothing(sink, registry):
    """A checkpoint that was given a later number does not make commits be skipped."""
    write(registry, 40)
    data = read_bytes(sink, next(iter(sink.list(".mm/snap/"))).key)
    sink.delete([stored.key for stored in sink.list(".mm/snap/")])
    sink.put(f".mm/snap/000000000038-{sha256_hex(data)[:12]}.json.gz", data)
    sink.delete([".mm/hint.json"])
    assert ModelRegistry(sink).list_models() == registry.list_models()


def test_a_forged_checkpoint_is_found_by_history(sink, registry):
    """A checkpoint that passes its own hash must still agree with the chain."""
    write(registry, 32)
    hint = json.loads(read_bytes(sink, ".mm/hint.json"))
    state = json.loads(gzip.decompress(read_bytes(sink, hint["key"])))
    data = gzip.compress(canonical_json({**state, "head": "1" * 64}))
    key = f".mm/snap/000000000032-{sha256_hex(data)[:12]}.json.gz"
    sink.put(key, data)
    sink.put(".mm/hint.json", canonical_json({**hint, "key": key, "sha256": sha256_hex(data)}))
    with pytest.raises(IntegrityError):
        ModelRegistry(sink).history()


def test_a_checkpoint_that_cannot_be_written_harms_nothing(sink, monkeypatch):
    """The commit stands, and the next reader reads the log."""
    spied = Spied(sink)

    def full(key, data):
        raise StorageError("the disk is full")

    monkeypatch.setattr(spied, "put", full)
    registry = ModelRegistry(spied)
    write(registry, 33)
    assert list(sink.list(".mm/snap/")) == []
    assert len(ModelRegistry(sink).list_models()) == 33


# -- formats


def test_a_newer_format_is_refused(sink, registry):
    """A store of a newer format version is neither read nor written, and the error says why."""
    write(registry, 1)
    found = json.loads(read_bytes(sink, ".mm/format.json"))
    assert found == {"format": "model-manager", "version": 1, "id": registry.id}
    sink.put(".mm/format.json", canonical_json({**found, "version": 2}))
    before = [stored.key for stored in sink.list("")]
    for action in (lambda r: r.list_models(), lambda r: write(r, 1, start=5)):
        with pytest.raises(StorageError, match="format version 2") as caught:
            action(ModelRegistry(sink))
        assert "upgrade" in caught.value.hint
    assert [stored.key for stored in sink.list("")] == before


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": "other", "version": 1, "id": "x"}'])
def test_a_foreign_format_file_is_refused(sink, data):
    """A root that is somebody else's is left alone."""
    sink.put(".mm/format.json", data)
    with pytest.raises(IntegrityError):
        write(ModelRegistry(sink), 1)
    assert [stored.key for stored in sink.list("")] == [".mm/format.json"]


def test_an_unknown_operation_is_refused(sink, registry):
    """An operation that this release does not know could mean anything: it asks for an upgrade."""
    write(registry, 1)
    head = sha256_hex(read_bytes(sink, log_key(1)))
    forge(sink, 2, head, [{"op": "teleport", "id": "x", "model_id": "m", "version": "1"}])
    with pytest.raises(StorageError, match="teleport") as caught:
        registry.list_models()
    assert "upgrade" in caught.value.hint


def test_unknown_fields_are_kept(sink, registry):
    """Fields of a later release survive in the history, in the state and in checkpoints."""
    registry.add_model(registered("org/model", "0"))
    head = sha256_hex(read_bytes(sink, log_key(1)))
    operation = {
        "op": "register", "id": "x", "model_id": "new/model", "version": "1",
        "status": "AVAILABLE", "path": "/x", "path_is": "path", "rating": 5,
    }  # fmt: skip
    forge(sink, 2, head, [operation], signature="abc")
    write(registry, 30, start=1)
    registry.update_model_status("new/model", "FAILED")
    state = json.loads(gzip.decompress(read_bytes(sink, next(iter(sink.list(".mm/snap/"))).key)))
    state["later"] = {"a": 1}
    state["models"]["new/model"]["owner"] = "them"
    data = gzip.compress(canonical_json(state))
    key = f".mm/snap/000000000032-{sha256_hex(data)[:12]}.json.gz"
    sink.delete([stored.key for stored in sink.list(".mm/snap/")])
    sink.put(key, data)
    heir = ModelRegistry(sink)
    write(heir, 32, start=50)
    hint = json.loads(read_bytes(sink, ".mm/hint.json"))
    assert (hint["seq"], hint["tail"]["seq"]) == (34, 64)
    after = json.loads(gzip.decompress(read_bytes(sink, hint["key"])))
    assert after["later"] == {"a": 1}
    assert after["models"]["new/model"]["owner"] == "them"
    assert after["models"]["new/model"]["versions"][0]["rating"] == 5
    assert heir.history()[1].to_json()["signature"] == "abc"


def forge(sink, seq, prev, operations, **extra):
    commit = {
        "seq": seq,
        "prev": prev,
        "id": "i",
        "writer": "w",
        "time": "t",
        "operations": operations,
    }
    sink.create(log_key(seq), canonical_json({**commit, **extra}))


# -- stores without an exclusive create


class Overwriting(FaultySink):
    """A store whose create overwrites."""

    def __init__(self, inner, *, complains):
        super().__init__(inner, rate=0, seed=0)
        self.complains = complains

    def create(self, key, data):
        taken = self.inner.stat(key) is not None
        self.inner.put(key, data)
        if taken and self.complains:
            raise AlreadyExistsError("taken, but overwritten all the same")


@pytest.mark.parametrize("complains", [False, True])
def test_a_store_without_exclusive_create_is_refused(sink, complains):
    """Nothing is written to it, and nothing of the probe is left."""
    bad = Overwriting(sink, complains=complains)
    for action in (lambda: write(ModelRegistry(bad), 1), lambda: probe_exclusive_create(bad)):
        with pytest.raises(StorageError, match="no exclusive create"):
            action()
    assert list(sink.list("")) == []


# -- doubtful outcomes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("writers", [1, 4])
def test_lost_answers_neither_lose_nor_double(sink, seed, writers):
    """At 20 % faults, half of them after the request took effect, each operation is there once."""

    def work(number):
        registry = ModelRegistry(FaultySink(sink, rate=0.2, seed=seed * 10 + number))
        for version in range(12):
            assert registry.add_model(registered(f"m{number}", str(version)))

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(work, range(writers)))
    registry = ModelRegistry(sink)
    ids = [o["id"] for record in registry.history() for o in record.operations]
    assert len(ids) == len(set(ids)) == writers * 12 == len(registry.list_models())


@pytest.mark.parametrize("error", [AlreadyExistsError, TransientError, StorageError, ConflictError])
def test_own_bytes_read_back_mean_done(sink, error):
    """Whatever the answer to a create was: what is stored is the judge."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 1)

    def lose(key, data):
        sink.create(key, data)
        raise error("an answer that lies")

    spied.plans["create"] = lose
    assert registry.add_model(registered("m", "1"))
    assert len(registry.history()) == 2


def test_an_unknown_outcome_is_told_and_a_redo_is_safe(sink):
    """In doubt at the deadline: CommitUnknownError with ids; the redo finds its own commit."""
    spied = Spied(sink)
    registry = ModelRegistry(spied, commit_timeout=0.2)
    claim = claimed(registry, "m", "1")

    def cut(key):
        raise TransientError("cut")

    def lose(key, data):
        sink.create(key, data)
        if key.startswith(".mm/log/"):
            spied.plans["read"] = cut
            raise TransientError("lost")

    spied.plans["create"] = lose
    with pytest.raises(CommitUnknownError) as caught:
        registry.add(claim, manifest_for(claim), aliases=["prod"])
    assert caught.value.operation_ids == (f"{claim.id}-add", f"{claim.id}-alias-prod")
    assert caught.value.hint
    spied.plans.clear()
    assert registry.add(claim, manifest_for(claim), aliases=["prod"]).aliases == ("prod",)
    assert [len(record.operations) for record in registry.history()] == [1, 2]


def test_a_redo_is_known_after_many_other_commits(sink, registry):
    """The add of a claim is known as done by the state, also when its ids are long forgotten."""
    claim = claimed(registry, "m", "1")
    entry = registry.add(claim, manifest_for(claim))
    write(registry, 520)
    count = len(registry.history())
    assert registry.add(claim, manifest_for(claim)) == entry
    assert len(registry.history()) == count


def test_operations_that_are_in_the_log_are_not_repeated(sink, registry):
    """Operation ids tell a redo: it returns, and changes nothing, even if it were not allowed."""
    fill(registry, "m", "1")
    move = operation("alias", "m", version="1", alias="prod", expect="")
    registry._log.commit([move])
    assert ModelRegistry(sink)._log.commit([move]).seq == 3
    assert len(registry.history()) == 3


def test_a_store_that_refuses_for_good_is_not_asked_again(sink):
    """StorageError with nothing stored is raised at once, and nothing changed."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 1)

    def refuse(key, data):
        raise StorageError("the disk is full")

    spied.plans["create"] = refuse
    spied.calls.clear()
    with pytest.raises(StorageError, match="full"):
        write(registry, 1, start=1)
    assert len([call for call, _ in spied.calls if call == "create"]) == 1
    spied.plans.clear()
    write(registry, 1, start=1)
    assert len(registry.history()) == 2


def test_offline_is_not_retried(sink):
    """With the network switched off the first answer is the last."""
    spied = Spied(sink)

    def off(key):
        raise OfflineError("offline")

    spied.plans["read"] = off
    with pytest.raises(OfflineError):
        ModelRegistry(spied).list_models()
    assert sorted(spied.calls) == [("read", ".mm/format.json"), ("read", ".mm/hint.json")]


def test_reads_are_retried_until_the_deadline(sink):
    """A store that stays away for good is a TransientError, not a hang and not an empty list."""
    spied = Spied(sink)

    def away(key):
        raise TransientError("cut")

    spied.plans["read"] = away
    with pytest.raises(TransientError):
        ModelRegistry(spied, commit_timeout=0.1).list_models()
    assert len(spied.calls) > 1


@pytest.mark.parametrize(("silence", "told"), [(60.0, []), (0.0, ["the store does not answer"])])
def test_who_waits_for_a_store_is_told_why(monkeypatch, caplog, silence, told):
    """Once, and not where the store comes back soon."""
    monkeypatch.setattr("mm_core.registry.deadline._SILENCE", silence)
    faults = iter(range(3))

    def read() -> bytes:
        if next(faults, None) is not None:
            raise TransientError("cut")
        return b"{}"

    assert Deadline(30).persist(read) == b"{}"
    assert [record.getMessage()[:25] for record in caplog.records] == told


def test_losing_every_race_is_not_a_doubt(sink):
    """If others are always first, the error says so and nothing of ours is in the log."""
    spied = Spied(sink)
    registry = ModelRegistry(spied, commit_timeout=0.2)
    write(registry, 1)
    rival, number = ModelRegistry(sink), iter(range(10_000))

    def beaten(key, data):
        rival.add_model(registered("rival", str(next(number))))
        sink.create(key, data)

    spied.plans["create"] = beaten
    with pytest.raises(TransientError, match="busy") as caught:
        registry.add_model(registered("m", "1"))
    assert not isinstance(caught.value, CommitUnknownError)
    assert ModelRegistry(sink).get_model("m") is None


def test_checks_see_what_the_winner_did(sink):
    """Who loses a number checks again: a version begun by the winner is a conflict."""
    spied = Spied(sink)
    registry = ModelRegistry(spied)
    write(registry, 1)

    def beaten(key, data):
        spied.plans.clear()
        fill(ModelRegistry(sink), "m", "1")
        sink.create(key, data)

    spied.plans["create"] = beaten
    assert registry.add_model(registered("m", "1")) is False
    assert registry.get_model("m").manifest is not None
