"""A writer may die at any step: what it left is found, and the next one goes on."""

import itertools

import pytest

from mm_core.registry import Claim, ModelRegistry
from mm_core.registry.processes import this_process
from mm_core.schemas import ModelStatus
from mm_core.testing.registry import Killed, MortalSink, fill, manifest_for
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

STEPS = 10
"""Writing calls from a store's first probe to the first version's deleted heartbeat."""


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


def die(sink, monkeypatch):
    """Fill a version with a process that is dead by the time anybody looks."""
    place = this_process()
    if place is None:
        pytest.skip("needs /proc")
    dead = {**place, "pid": 2**22 + 1}
    with monkeypatch.context() as patched:
        patched.setattr("mm_core.registry.begin.this_process", lambda: dead)
        fill(ModelRegistry(sink), "org/model", "1", aliases=("prod",))


def test_the_number_of_steps_is_known(sink, monkeypatch):
    """The next test tries each step there is."""
    whole = MortalSink(sink, 1000, after=False)
    die(whole, monkeypatch)
    assert 1000 - whole.left == STEPS - 1


@pytest.mark.parametrize(("step", "after"), list(itertools.product(range(1, STEPS), [False, True])))
def test_a_writer_may_die_at_any_step(sink, monkeypatch, step, after):
    """The next caller has the version in the end, added exactly once, without waiting."""
    with pytest.raises(Killed):
        die(MortalSink(sink, step, after=after), monkeypatch)
    registry = ModelRegistry(sink, claim_timeout=3600)
    begun = registry.begin("org/model", "1", wait=False)
    if isinstance(begun, Claim):
        registry.add(begun, manifest_for(begun), aliases=["prod"])
    assert registry.resolve("org/model:prod").status is ModelStatus.AVAILABLE
    history = ModelRegistry(sink).history()
    assert [o["op"] for record in history for o in record.operations].count("add") == 1
    assert [record.seq for record in history] == list(range(1, len(history) + 1))
