"""Opening a registry: what it costs, what it begins with, and what is found to be wrong."""

import gzip
import json
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.exceptions import IntegrityError
from mm_core.names import fold
from mm_core.registry import ModelRegistry
from mm_core.registry.checkpoint import checkpoint_key, decode, encode
from mm_core.registry.pack import append, unpack
from mm_core.registry.records import Record, Records
from mm_core.registry.state import State
from mm_core.schemas import canonical_json, sha256_hex
from mm_core.sink import read_bytes
from mm_core.testing.registry import FaultySink, Killed, MortalSink, fill, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def registry(sink):
    return ModelRegistry(sink)


def log_key(seq):
    return f".mm/log/{seq:012d}.json"


def write(registry, count, start=0, **fields):
    for number in range(start, start + count):
        registry.add_model(registered(f"org/model-{number % 9}", str(number), **fields))


def hint_of(sink):
    return json.loads(read_bytes(sink, ".mm/hint.json"))


class Counting(FaultySink):
    """Counts what is asked of a store, by kind."""

    def __init__(self, inner):
        super().__init__(inner, rate=0, seed=0)
        self.asked = []
        self._noting = threading.Lock()

    def _note(self, call, key):
        with self._noting:
            self.asked.append((call, key))

    def read(self, key, start=0, end=None):
        self._note("read", key)
        return super().read(key, start, end)

    def list(self, prefix):
        self._note("list", prefix)
        return super().list(prefix)

    def create(self, key, data):
        self._note("create", key)
        super().create(key, data)

    def put(self, key, data):
        self._note("put", key)
        super().put(key, data)

    def stat(self, key):
        self._note("stat", key)
        return super().stat(key)

    def delete(self, keys):
        self._note("delete", list(keys))
        super().delete(keys)


class Rounds(Counting):
    """Answers reads in rounds: none before all that a round is made of have been asked for."""

    def __init__(self, inner, rounds):
        super().__init__(inner)
        self.rounds = [set(keys) for keys in rounds]
        self._arrived = [threading.Event() for _ in rounds]
        self.seen = [set() for _ in rounds]

    def read(self, key, start=0, end=None):
        place = next(n for n, keys in enumerate(self.rounds) if key in keys)
        with self._noting:
            self.seen[place].add(key)
            if self.seen[place] == self.rounds[place]:
                self._arrived[place].set()
        assert self._arrived[place].wait(60), f"{key} was not asked for along with its round"
        return super().read(key, start, end)


# -- what it costs


@pytest.mark.parametrize("tail", [0, 1, 31, 32])
def test_a_cold_open_is_three_round_trips(sink, registry, monkeypatch, tail):
    """With up to 32 commits that no pack holds: format and hint; checkpoint and pack; the log."""
    write(registry, 64)
    monkeypatch.setattr("mm_core.registry.log.is_due", lambda seq, size: False)
    write(registry, tail, start=64)
    hint = hint_of(sink)
    rounds = Rounds(
        sink,
        [
            [".mm/format.json", ".mm/hint.json"],
            [hint["key"], hint["tail"]["key"]],
            [log_key(seq) for seq in range(64, 64 + 42)],
        ],
    )
    assert len(ModelRegistry(rounds).list_models()) == 64 + tail
    assert {call for call, _ in rounds.asked} == {"read"}
    assert len(rounds.asked) == 2 + 2 + 42


def test_a_young_registry_is_opened_without_listing(sink, registry):
    """Before there is a hint, the log from 1 is all there is."""
    write(registry, 31)
    counting = Counting(sink)
    assert len(ModelRegistry(counting).list_models()) == 31
    assert {call for call, _ in counting.asked} == {"read"}


@pytest.mark.parametrize("commits", [40, 400])
def test_a_commit_is_two_requests(sink, registry, commits):
    """But for every 32nd, which reads hint and pack, and writes a new pack and hint."""
    write(registry, commits)
    counting = Counting(sink)
    heir = ModelRegistry(counting)
    heir.list_models()
    costs = []
    for number in range(64):
        counting.asked.clear()
        write(heir, 1, start=commits + number)
        costs.append(len(counting.asked))
    assert costs.count(2) == 62
    assert max(costs) <= 10
    counting.asked.clear()
    heir.list_models()
    assert [call for call, _ in counting.asked] == ["read"]


# -- packs and checkpoints


def test_a_pack_holds_the_bytes_of_all_commits_since_the_checkpoint(sink, registry):
    """Each line of it is one commit as the log has it."""
    write(registry, 130)
    hint = hint_of(sink)
    lines = gzip.decompress(read_bytes(sink, hint["tail"]["key"])).splitlines()
    assert (hint["seq"], hint["tail"]["seq"]) == (32, 128)
    assert lines == [read_bytes(sink, log_key(seq)) for seq in range(33, 129)]
    assert hint["head"] == sha256_hex(lines[-1])


def test_what_a_new_reader_replays_is_bounded(sink, registry):
    """A pack never has more bytes than 128 KiB or its checkpoint; then there is a checkpoint."""
    for number in range(0, 640, 32):
        write(registry, 32, start=number, metadata={"note": "x" * 300})
        hint = hint_of(sink)
        if "tail" in hint:
            lines = gzip.decompress(read_bytes(sink, hint["tail"]["key"]))
            assert len(lines) == hint["tail"]["size"] <= max(128 << 10, hint["size"])
        assert hint["size"] == sink.stat(hint["key"]).size
    assert hint["seq"] >= 320
    assert ModelRegistry(sink).list_models() == registry.list_models()


@pytest.fixture
def short_tails(monkeypatch):
    """A pack of more than 24 KiB becomes the middle one: two levels, without 1,000s of commits."""
    monkeypatch.setattr("mm_core.registry.saving._TAIL_BYTES", 24 << 10)
    monkeypatch.setattr("mm_core.registry.saving._LEAST_BYTES", 1 << 20)


def named_packs(sink):
    return [part for name in ("middle", "tail") if (part := hint_of(sink).get(name))]


def test_a_pack_that_has_grown_large_becomes_the_middle_one(sink, registry, short_tails):
    """Most savings write a short pack. Together the two hold all commits since the checkpoint."""
    forms = set()
    for number in range(0, 1024, 32):
        write(registry, 32, start=number)
        packs = named_packs(sink)
        forms.add((*(name for name in ("middle", "tail") if name in hint_of(sink)),))
        lines = [gzip.decompress(read_bytes(sink, part["key"])) for part in packs]
        assert [len(text) for text in lines] == [part["size"] for part in packs]
        held = b"".join(lines).splitlines()
        assert held == [read_bytes(sink, log_key(seq)) for seq in range(33, number + 33)]
        assert hint_of(sink).get("tail", {"size": 0})["size"] <= 24 << 10
        assert len(list(sink.list(".mm/tail/"))) <= 4
    assert forms == {(), ("tail",), ("middle",), ("middle", "tail")}
    counting = Counting(sink)
    assert ModelRegistry(counting).list_models() == registry.list_models()
    assert {call for call, _ in counting.asked} == {"read"}


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize("lost", ["middle", "tail", "both"])
def test_a_lost_pack_of_two_costs_reading_the_log(sink, registry, short_tails, lost, hint):
    """Neither state nor commits are lost; whoever commits next leaves a way that needs no listing."""
    made = 0
    while len(named_packs(sink) if made else ()) < 2:
        write(registry, 32, start=made)
        made += 32
    names = hint_of(sink)
    sink.delete([names[name]["key"] for name in ("middle", "tail") if lost in (name, "both")])
    if not hint:
        sink.delete([".mm/hint.json"])
    heir = ModelRegistry(sink)
    assert heir.list_models() == registry.list_models()
    write(heir, 32, start=made)
    counting = Counting(sink)
    assert ModelRegistry(counting).list_models() == heir.list_models()
    assert {call for call, _ in counting.asked} == {"read"}


@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("after", [False, True])
def test_a_writer_may_die_while_it_makes_the_middle_pack(sink, registry, short_tails, step, after):
    """At the pack, at the hint, or when what was merged is deleted: all of it can be read."""
    write(registry, 31)
    made = 31
    while made < 31 + 32 * 24:
        before = hint_of(sink) if made > 31 else {}
        merges = before.get("tail", {"size": 0})["size"] + (9 << 10) > 24 << 10
        mortal = MortalSink(sink, step, after=after)
        try:
            write(ModelRegistry(mortal) if merges else registry, 1, start=made)
        except Killed:
            pass
        made += 1
        heir = ModelRegistry(sink)
        assert len(heir.list_models()) == made
        write(heir, 31, start=made)
        made += 31
    counting = Counting(sink)
    assert len(ModelRegistry(counting).list_models()) == made
    assert {call for call, _ in counting.asked} == {"read"}


def test_a_large_commit_is_saved_at_once(sink, registry):
    """One commit of more than 64 KiB does not wait for the 32nd: no reader replays many of them."""
    write(registry, 2, metadata={"note": "x" * (65 << 10)})
    assert hint_of(sink)["seq"] == 1


def test_old_checkpoints_and_packs_go(sink, registry):
    """A few are kept, and of the older ones one for each doubling of the distance."""
    for number in range(0, 32 * 64, 32):
        write(registry, 32, start=number, metadata={"note": "x" * 3000})
        packs = list(sink.list(".mm/tail/"))
        assert len(packs) <= 4
    numbers = [int(stored.key[9:21]) for stored in sink.list(".mm/snap/")]
    assert 3 <= len(numbers) <= 14
    assert hint_of(sink)["key"] in {stored.key for stored in sink.list(".mm/snap/")}


def test_a_reader_who_is_overtaken_begins_again(sink, registry):
    """What its hint named may be gone by then: it reads the hint again, and needs no listing."""
    write(registry, 64)
    overtaken = Counting(sink)
    gone = hint_of(sink)["tail"]["key"]
    real = overtaken.read

    def read(key, start=0, end=None):
        if key == gone and sink.stat(gone):
            write(registry, 64, start=64)
            sink.delete([gone])
        return real(key, start, end)

    overtaken.read = read
    assert len(ModelRegistry(overtaken).list_models()) == 128
    assert {call for call, _ in overtaken.asked} == {"read"}


def test_a_new_reader_mends_what_it_found_damaged(sink, registry):
    """Whoever could not begin with the hint writes a checkpoint with its next commit."""
    write(registry, 70)
    lost = hint_of(sink)["key"]
    sink.delete([lost])
    heir = ModelRegistry(sink)
    write(heir, 1, start=70)
    assert hint_of(sink)["seq"] == 71
    counting = Counting(sink)
    ModelRegistry(counting).list_models()
    assert {call for call, _ in counting.asked} == {"read"}


def test_a_hint_of_another_log_is_replaced(sink, registry, tmp_path):
    """Commits are never packed behind a checkpoint that they do not follow."""
    other = MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}-other"))
    write(ModelRegistry(other), 40)
    write(registry, 60)
    hint = hint_of(other)
    sink.put(hint["key"], read_bytes(other, hint["key"]))
    sink.put(".mm/hint.json", canonical_json(hint))
    write(registry, 4, start=60)
    assert hint_of(sink)["seq"] == 64
    assert ModelRegistry(sink).list_models() == registry.list_models()


def test_stores_of_the_first_form_are_read(sink, registry):
    """A hint without a pack, and a checkpoint in one line, lead to the same state."""
    write(registry, 40)
    state = json.loads(gzip.decompress(read_bytes(sink, hint_of(sink)["key"])))
    sink.delete([stored.key for stored in sink.list(".mm/snap/")])
    data = gzip.compress(canonical_json(state), mtime=0)
    key = checkpoint_key(32, data)
    sink.put(key, data)
    first = {"seq": 32, "key": key, "sha256": sha256_hex(data)}
    sink.put(".mm/hint.json", canonical_json(first))
    counting = Counting(sink)
    heir = ModelRegistry(counting)
    assert heir.list_models() == registry.list_models()
    assert log_key(31) not in {key for _, key in counting.asked}
    write(heir, 24, start=40)
    assert hint_of(sink)["seq"] == 64
    assert ModelRegistry(sink).list_models() == heir.list_models()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize(("made", "note"), [(31, ""), (127, ""), (127, "x" * 1500)])
def test_a_writer_may_die_while_it_saves(sink, registry, made, note, step, after):
    """At the commit, the pack or checkpoint, the hint, or when old ones are deleted."""
    write(registry, made, metadata={"note": note})
    mortal = MortalSink(sink, step, after=after)
    try:
        write(ModelRegistry(mortal), 1, start=made, metadata={"note": note})
    except Killed:
        pass
    else:
        assert step == 4  # there was nothing old to delete
    heir = ModelRegistry(sink)
    write(heir, 40, start=200)
    sink_alone = MemorySink(MemorySink.Config(root=f"{sink.root}-log"))
    for stored in sink.list(".mm/log/"):
        sink_alone.put(stored.key, read_bytes(sink, stored.key))
    alone = ModelRegistry(sink_alone)
    versions = [(entry.version, entry.metadata) for entry in alone.list_models()]
    for reader in (heir, ModelRegistry(sink)):
        assert [(entry.version, entry.metadata) for entry in reader.list_models()] == versions
    assert len(versions) == made + 40 + (step > 1 or after)
    counting = Counting(sink)
    ModelRegistry(counting).list_models()
    assert {call for call, _ in counting.asked} == {"read"}


# -- what is found to be wrong


@pytest.mark.parametrize("lost", [65, 70, 72, 100])
def test_a_lost_commit_after_the_checkpoint_is_found(sink, registry, monkeypatch, lost):
    """An absent number with later ones behind it is a gap, wherever it is; nobody fills it."""
    write(registry, 64)
    monkeypatch.setattr("mm_core.registry.log.is_due", lambda seq, size: False)
    write(registry, 60, start=64)
    sink.delete([log_key(lost)])
    for _ in range(2):
        heir = ModelRegistry(sink)
        with pytest.raises(IntegrityError, match=f"commit {lost} is missing"):
            write(heir, 1, start=500)
    assert sink.stat(log_key(lost)) is None


def test_a_hint_beyond_the_log_is_found(sink, registry):
    """If the log has lost what the checkpoint holds, nobody takes those numbers again."""
    write(registry, 70)
    sink.delete([log_key(seq) for seq in range(50, 71)])
    with pytest.raises(IntegrityError, match="commit 64 is missing"):
        write(ModelRegistry(sink), 1, start=500)
    assert sink.stat(log_key(50)) is None


def test_a_commit_that_is_not_the_one_of_the_pack_is_found(sink, registry):
    """The last commit that the hint covers is compared with the log's."""
    write(registry, 66)
    commit = json.loads(read_bytes(sink, log_key(64)))
    sink.put(log_key(64), canonical_json({**commit, "writer": "mallory"}))
    with pytest.raises(IntegrityError, match="commit 64 "):
        ModelRegistry(sink).list_models()


def test_a_commit_made_while_others_are_read_is_no_gap(sink, registry):
    """A number that was absent when it was asked for, and is there now, was not lost."""
    write(registry, 40)
    late = Counting(sink)
    real, asked = late.read, threading.Event()

    def read(key, start=0, end=None):
        if key == log_key(41):
            if not asked.is_set():
                try:
                    return list(real(key, start, end))
                finally:
                    write(registry, 2, start=40)
                    asked.set()
        elif key == log_key(42):
            assert asked.wait(60)
        return real(key, start, end)

    late.read = read
    assert len(ModelRegistry(late).list_models()) == 42


def test_a_reader_who_is_far_behind_begins_anew(sink, registry):
    """It reads some commits, then checkpoint and pack, and not all that lies between."""
    write(registry, 40)
    counting = Counting(sink)
    idle = ModelRegistry(counting)
    idle.list_models()
    write(registry, 1000, start=40)
    counting.asked.clear()
    assert idle.list_models() == registry.list_models()
    assert len(counting.asked) < 350
    assert log_key(800) not in {key for _, key in counting.asked}


def test_a_reader_who_begins_anew_knows_the_log_again(sink, registry):
    """If what it had seen is not in the log any more, it does not take up another one."""
    write(registry, 40)
    idle = ModelRegistry(sink)
    idle.list_models()
    sink.delete([stored.key for stored in sink.list(".mm/") if "format" not in stored.key])
    write(ModelRegistry(sink), 300)
    with pytest.raises(IntegrityError):
        idle.list_models()


# -- records


NAMES = st.sampled_from(["a", "A", "a/b", "a/b/c", "b/\u00e9", "b/E\u0301", "c-1", "c/1", "\u00df"])


@given(st.lists(st.tuples(NAMES, st.booleans(), st.integers(0, 9)), max_size=40), st.randoms())
@settings(max_examples=150, deadline=None)
def test_records_are_as_a_dict(steps, chance):
    """Whatever is put, dropped, settled or saved in between, and no copy changes another."""
    records, plain = Records.of({}), {}
    for name, kept, number in steps:
        before, was = records, dict(plain)
        records = records.copy()
        if kept:
            record = Record(name, {str(number): {"version": str(number)}}, {})
            records.put(fold(name), record)
            plain[fold(name)] = record
        else:
            records.drop(fold(name))
            plain.pop(fold(name), None)
        assert before == was
        if chance.random() < 0.2:
            records = Records.of(dict(records))
        if chance.random() < 0.2:
            records = decode(encode(State(models=records))).models
        assert records == plain
        assert len(records) == len(plain)
        folder = fold(chance.choice(["a", "a/b", "b", "c"]))
        below = [k for k in plain if k == folder or k.startswith(f"{folder}/")]
        assert sorted(fold(r.model_id) for r in records.below(folder)) == sorted(below)
    whole = json.loads(gzip.decompress(encode(State(models=records))))
    assert State.from_json(whole) == State(models=plain)


def test_many_new_records_are_settled(registry):
    """Beyond 256 changed models the next state holds them among the others, and all are there."""
    for number in range(600):
        registry.add_model(registered(f"m{number}", "1"))
    assert len(registry.list_models()) == 600
    assert len(registry._log.known.models._new) <= 256


def test_what_is_written_again_is_not_taken_apart(sink, registry):
    """A line of a checkpoint that nobody asked for is saved as it was read, unknown fields too."""
    fill(registry, "org/model", "1")
    state = registry._log.refresh()
    raw = {**state.to_json()}
    raw["models"]["org/model"]["later"] = [1]
    old = decode(encode(State.from_json(raw)))
    assert all(isinstance(held, bytes) for held in old.models._base.held.values())
    assert json.loads(gzip.decompress(encode(old)))["models"] == raw["models"]
    assert all(isinstance(held, bytes) for held in old.models._base.held.values())


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_checkpoint_is_an_integrity_error(registry, seed):
    """Cut, changed or foreign bytes are refused as such, never half read."""
    chance = random.Random(seed)
    write(registry, 20)
    data = encode(registry._log.refresh())
    text = gzip.decompress(data)
    cut = chance.randrange(len(text))
    damaged = [data[: chance.randrange(len(data))], gzip.compress(text[:cut]), text[:cut]]
    for broken in damaged:
        with pytest.raises(IntegrityError):
            decode(broken)


def test_a_pack_is_a_row_of_members():
    """What was packed is not packed again, and all of it comes out in order."""
    first = append(b"", [b"1", b"2"])
    second = append(first, [b"3"])
    assert second.startswith(first)
    assert unpack(second) == [b"1", b"2", b"3"]
    assert append(first, [b"4\n"]) is None
    with pytest.raises((ValueError, EOFError, OSError)):
        unpack(second[:-3])
