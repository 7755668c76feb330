"""Clocks that are wrong by ten years decide nothing."""

import time

import pytest

from mm_core.exceptions import ConflictError
from mm_core.registry import Claim, ModelRegistry
from mm_core.testing.clocks import wrong_clock
from mm_core.testing.plain import rows_of
from mm_core.testing.registry import claimed, fill, manifest_for
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit

TEN_YEARS = [-10, 10]


@pytest.fixture
def sink(tmp_path):
    return LocalSink(LocalSink.Config(root=str(tmp_path / "store")))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """All claims are those of another machine: nothing but their heartbeats tells of them."""
    monkeypatch.setattr("mm_core.registry.begin.this_process", lambda: None)


@pytest.mark.parametrize("years", TEN_YEARS)
def test_the_clock_that_is_wrong_is_believed_by_nobody_but_people(sink, years):
    """The helper of these tests works: the commit of such a machine notes its wrong time."""
    with wrong_clock(years):
        fill(ModelRegistry(sink), "org/model", "1")
    year = int(ModelRegistry(sink).history()[-1].time[:4])
    assert abs(year - time.gmtime().tm_year - years) <= 1


@pytest.mark.parametrize("years", TEN_YEARS)
def test_a_living_claim_is_not_taken_over(sink, years):
    """Who thinks that it is ten years later, or earlier, waits for a heartbeat like anybody else."""
    held = claimed(ModelRegistry(sink, claim_timeout=60), "org/model", "1")
    with wrong_clock(years):
        other = ModelRegistry(sink, claim_timeout=60)
        with pytest.raises(ConflictError):
            other.begin("org/model", "1", wait=False)
        assert other.claimed_prefixes(silent_for=60) == ["models/org/model/1/"]
    ModelRegistry(sink).add(held, manifest_for(held))


@pytest.mark.parametrize("years", TEN_YEARS)
def test_a_claim_of_a_wrong_clock_is_not_taken_over(sink, years):
    """Nor does it help, or harm, a holder that its own clock is wrong."""
    with wrong_clock(years):
        held = claimed(ModelRegistry(sink, claim_timeout=60), "org/model", "1")
    with pytest.raises(ConflictError):
        ModelRegistry(sink, claim_timeout=60).begin("org/model", "1", wait=False)
    held.close()


@pytest.mark.parametrize("years", TEN_YEARS)
def test_a_dead_claim_is_taken_over(sink, years):
    """Silence is measured by the store's clock, whatever either machine's says."""
    with wrong_clock(-years):
        dead = claimed(ModelRegistry(sink, claim_timeout=0.3), "org/model", "1")
    dead.close()
    with wrong_clock(years):
        heir = ModelRegistry(sink, claim_timeout=0.3)
        begun = heir.begin("org/model", "1")
        assert isinstance(begun, Claim)
        heir.add(begun, manifest_for(begun))
    with pytest.raises(ConflictError):
        ModelRegistry(sink).add(dead, manifest_for(dead))


def test_the_log_alone_settles_the_order(sink):
    """Of versions added by machines of different centuries, the one added last is the newest."""
    for version, years in enumerate([10, -10, 0]):
        with wrong_clock(years):
            fill(ModelRegistry(sink), "org/model", str(version), aliases=("prod",))
    registry = ModelRegistry(sink)
    assert registry.resolve("org/model").version == "2"
    assert registry.resolve("org/model:prod").version == "2"
    assert [row[1] for row in rows_of(registry)] == ["0", "1", "2"]
