"""Bytes that were damaged on their way from the store are seen, and read again."""

import pytest

from mm_core.exceptions import IntegrityError
from mm_core.registry import ModelRegistry
from mm_core.registry.layout import log_key
from mm_core.registry.seal import seal
from mm_core.schemas import canonical_json, sha256_hex
from mm_core.sink import read_bytes
from mm_core.testing.plain import rows_of
from mm_core.testing.registry import FaultySink, claimed, fill, manifest_for, registered
from mm_core.upkeep.repair import repair
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


class Flipping(FaultySink):
    """Of the objects below `prefix`, the next `times` reads are with a bit turned, at `place`,
    always the same one.

    `place` is found in the bytes: what follows it is still JSON, but says something else.
    """

    def __init__(self, inner, prefix, *, times, place=b'"writer":"'):
        super().__init__(inner, rate=0, seed=0)
        self.prefix, self.times, self.place = prefix, times, place

    def read(self, key, start=0, end=None):
        data = bytearray(b"".join(self.inner.read(key, start, end)))
        if key.startswith(self.prefix) and self.times:
            self.times -= 1
            data[data.index(self.place) + len(self.place)] ^= 1
        return iter([bytes(data)])


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_no_commit_is_chained_to_what_was_never_there(sink, times):
    """A client that was told a damaged commit reads it again, and writes on after the true one."""
    ModelRegistry(sink, writer="somebody").add_model(registered("org/model", "1"))
    damaged = Flipping(sink, ".mm/log/", times=times)
    ModelRegistry(damaged).add_model(registered("org/model", "2"))
    assert damaged.times == 0
    assert len(ModelRegistry(sink).history()) == 2


def test_a_warm_client_reads_a_damaged_commit_again(sink):
    """The same for one that follows the log and was told what came meanwhile."""
    damaged = Flipping(sink, ".mm/log/", times=0)
    warm = ModelRegistry(damaged)
    warm.add_model(registered("org/model", "1"))
    ModelRegistry(sink, writer="somebody").add_model(registered("org/model", "2"))
    damaged.times = 1
    assert rows_of(warm) == rows_of(ModelRegistry(sink))
    warm.add_model(registered("org/model", "3"))
    assert len(ModelRegistry(sink).history()) == 3


class FlippingBit(FaultySink):
    """The next read of a commit has bit `bit` of it turned."""

    def __init__(self, inner, bit):
        super().__init__(inner, rate=0, seed=0)
        self.bit = bit

    def read(self, key, start=0, end=None):
        data = bytearray(b"".join(self.inner.read(key, start, end)))
        if key.startswith(".mm/log/") and self.bit is not None:
            data[self.bit // 8] ^= 1 << self.bit % 8
            self.bit = None
        return iter([bytes(data)])


def test_whichever_bit_is_turned_the_commit_is_read_again(sink):
    """Those of the checksum and of the text around it, and some of the rest."""
    ModelRegistry(sink, writer="somebody").add_model(registered("org/model", "1"))
    before = ModelRegistry(sink).list_models()
    length = 8 * len(read_bytes(sink, log_key(1)))
    for bit in (*range(8 * 32), *range(8 * 32, length, 29)):
        assert ModelRegistry(FlippingBit(sink, bit)).list_models() == before, bit


def test_a_commit_that_is_damaged_in_the_store_is_told(sink):
    """What is wrong each time it is read is damage, also of the newest commit, which none follows."""
    ModelRegistry(sink, writer="somebody").add_model(registered("org/model", "1"))
    damaged = Flipping(sink, ".mm/log/", times=1000)
    with pytest.raises(IntegrityError, match="commit 1"):
        ModelRegistry(damaged).list_models()


def test_a_commit_without_a_checksum_is_read(sink):
    """Logs of the first release have none; such a commit is as good as its place in the chain."""
    registry = ModelRegistry(sink)
    registry.add_model(registered("org/model", "1"))
    key = f".mm/log/{2:012d}.json"
    head = sha256_hex(read_bytes(sink, f".mm/log/{1:012d}.json"))
    operation = {"op": "remove", "id": "x", "model_id": "org/model", "version": "1"}
    old = {
        "seq": 2,
        "prev": head,
        "id": "y",
        "writer": "old",
        "time": "",
        "operations": [operation],
    }
    sink.create(key, canonical_json(old))
    assert rows_of(registry) == [("org/model", "1", "DELETED", ())]
    registry.add_model(registered("org/model", "2"))
    assert len(ModelRegistry(sink).history()) == 3


def test_a_store_is_not_refused_for_a_probe_that_came_back_damaged(sink):
    """Whether there is an exclusive create is found out anew where what was read is neither try."""
    damaged = Flipping(sink, ".mm/probe/", times=1, place=b"")
    assert ModelRegistry(damaged).add_model(registered("org/model", "1"))
    assert damaged.times == 0


@pytest.mark.parametrize("place", [b"", b'"format":"', b'"version":'])
def test_a_format_that_was_damaged_on_its_way_is_read_again(sink, place):
    """A store is not refused as foreign, or too new, for one wrong bit of what it says of itself."""
    ModelRegistry(sink).add_model(registered("org/model", "1"))
    damaged = Flipping(sink, ".mm/format.json", times=1, place=place)
    assert len(ModelRegistry(damaged).list_models()) == 1
    assert damaged.times == 0


def test_a_manifest_that_is_read_back_damaged_is_not_somebody_elses(sink):
    """A manifest that is there already, and whose bytes come back damaged, is read again."""
    fill(ModelRegistry(sink), "org/model", "1")
    ModelRegistry(sink).remove("org/model", "1")
    damaged = Flipping(sink, ".mm/manifests/", times=1, place=b'"path":"')
    registry = ModelRegistry(damaged)
    claim = claimed(registry, "org/model", "1")
    assert registry.add(claim, manifest_for(claim)).version == "1"
    assert damaged.times == 0


@pytest.mark.parametrize("wrong", [{"model_id": ["m"]}, {"alias": {}}, {"alias": 5}, {"id": []}])
def test_an_operation_that_makes_no_sense_is_damage(sink, wrong):
    """And no fault of the program that reads it; a repair sets the commit aside."""
    ModelRegistry(sink).add_model(registered("m", "1"))
    named = {"op": "alias", "id": "x", "model_id": "m", "version": "1", "alias": "prod"}
    head = sha256_hex(read_bytes(sink, log_key(1)))
    commit = {"seq": 2, "prev": head, "id": "x", "writer": "w", "time": "t"}
    sink.put(log_key(2), seal({**commit, "operations": [{**named, **wrong}]}))
    with pytest.raises(IntegrityError, match="commit 2 holds a broken operation"):
        ModelRegistry(sink).list_models()
    repair(sink)
    assert [entry.model_id for entry in ModelRegistry(sink).list_models()] == ["m"]


def test_old_damage_is_nothing_to_who_has_read_past_it(sink):
    """Also where others have committed so much that a look at the checkpoint would be shorter."""
    warm, others = ModelRegistry(sink), ModelRegistry(sink, writer="others")
    for number in range(40):
        warm.add_model(registered(f"org/old{number}", "1"))
    for number in range(150):
        others.add_model(registered(f"org/new{number}", "1"))
    for key in [log_key(20), *(found.key for found in sink.list(".mm/snap/"))]:
        sink.put(key, b"{")
    sink.delete([found.key for found in sink.list(".mm/tail/")])
    with pytest.raises(IntegrityError):
        ModelRegistry(sink).refresh()
    warm.add_model(registered("org/last", "1"))
    assert len(warm.list_models()) == 191
