"""A store that takes no more, or whose right was lost, in the middle of anything: a clear error, nothing
half visible, and reading goes on."""

import itertools

import pytest

from mm_core.exceptions import AuthError, CommitUnknownError, StorageError
from mm_core.registry import Claim, ModelRegistry
from mm_core.registry.processes import this_process
from mm_core.schemas import ModelStatus
from mm_core.testing.plain import rows_of
from mm_core.testing.registry import FaultySink, claimed, fill, manifest_for, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

STEPS = 9
"""Writing calls from a store's first probe to the first version's deleted heartbeat."""

REFUSALS = {
    "full": StorageError("no space left on device", hint="free some space"),
    "forbidden": AuthError("permission denied", hint="check the owner"),
}


class Refusing(FaultySink):
    """Takes `left` writing calls, and then refuses all of them with one error."""

    def __init__(self, inner, error, *, left):
        super().__init__(inner, rate=0, seed=0)
        self.error, self.left = error, left

    def _write(self, action):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return action()

    def create(self, key, data):
        self._write(lambda: self.inner.create(key, data))

    def put(self, key, data):
        self._write(lambda: self.inner.put(key, data))

    def delete(self, keys):
        keys = list(keys)
        self._write(lambda: self.inner.delete(keys))


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def ended(monkeypatch):
    """Claims are those of a process that has ended by the time anybody looks."""
    place = this_process()
    if place is None:
        pytest.skip("needs /proc")
    dead = {**place, "pid": 2**22 + 1}
    monkeypatch.setattr("mm_core.registry.begin.this_process", lambda: dead)


@pytest.mark.parametrize(("left", "why"), list(itertools.product(range(STEPS), REFUSALS)))
def test_a_refusal_in_the_middle_is_told_and_harms_nothing(sink, ended, left, why):
    """Whatever call is the first to be refused: its own error is told, or it did not matter; readers
    see all or nothing; and when the store takes writes again, the next one goes on."""
    error = REFUSALS[why]
    refusing = Refusing(sink, error, left=left)
    registry = ModelRegistry(refusing)
    claim = None
    try:
        claim = claimed(registry, "org/model", "1")
        registry.add(claim, manifest_for(claim), aliases=["prod"])
        told = None
    except (StorageError, AuthError, CommitUnknownError) as failure:
        told = failure
    finally:
        if claim is not None:
            claim.close()
    available = ("org/model", "1", "AVAILABLE", ("prod",))
    rows = rows_of(ModelRegistry(sink))
    assert rows_of(registry) == rows
    if told is None:
        assert rows == [available]
    else:
        assert (type(told), told.message, told.hint) == (type(error), error.message, error.hint)
        assert rows in ([], [("org/model", "1", "DOWNLOADING", ())])
    begun = ModelRegistry(sink).begin("org/model", "1", wait=False)
    if isinstance(begun, Claim):
        fresh = ModelRegistry(sink)
        fresh.add(begun, manifest_for(begun), aliases=["prod"])
    assert rows_of(ModelRegistry(sink)) == [available]
    assert rows_of(registry) == [available]


def test_the_number_of_calls_is_known(sink, ended):
    """The test before this tries each writing call that there is, and one refusal too late."""
    refusing = Refusing(sink, REFUSALS["full"], left=1000)
    fill(ModelRegistry(refusing), "org/model", "1", aliases=("prod",))
    assert 1000 - refusing.left == STEPS


@pytest.mark.parametrize("why", REFUSALS)
def test_a_read_only_store_is_read(sink, why):
    """Queries ask for no right to write; each change tells why it cannot be made."""
    entry = fill(ModelRegistry(sink), "org/model", "1", aliases=("prod",))
    error = REFUSALS[why]
    registry = ModelRegistry(Refusing(sink, error, left=0))
    assert registry.resolve("org/model:prod") == entry
    assert registry.aliases() == {"org/model": {"prod": "1"}}
    assert registry.manifest(entry).version == "1"
    assert len(registry.history()) == 2
    changes = [
        lambda: registry.add_model(registered("org/other", "1")),
        lambda: registry.set_alias("org/model", "prod", "1"),
        lambda: registry.remove("org/model", "1"),
        lambda: registry.update_model_status("org/model", ModelStatus.FAILED),
        lambda: registry.begin("org/model", "2", wait=False),
    ]
    for change in changes:
        with pytest.raises(type(error), match=error.message):
            change()
    assert ModelRegistry(sink).list_models() == [entry]
