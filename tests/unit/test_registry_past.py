"""As of: every former state can be asked for, by number and by what writers noted."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from mm_core.exceptions import IntegrityError, NotFoundError, UsageError
from mm_core.registry import ModelRegistry, log
from mm_core.registry.layout import CHECKPOINT_PREFIX, log_key
from mm_core.registry.queries import Query
from mm_core.schemas import parse_rfc3339
from mm_core.sink import read_bytes
from mm_core.testing.registry import fill, registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

ALL = Query(removed=True)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def store(tmp_path):
    return lambda: MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture(params=["cached", "plain"])
def reader(request, store, tmp_path):
    """A new client for each call, with a cache and without."""
    cache = tmp_path / "cache" if request.param == "cached" else None
    return lambda: ModelRegistry(store(), cache=cache)


@pytest.fixture
def at(monkeypatch):
    """Set what a writer's clock says."""

    class Clock(datetime):
        moment = START

        @classmethod
        def now(cls, tz=None):
            return cls.moment

    monkeypatch.setattr(log, "datetime", Clock)

    def set_(moment: datetime) -> None:
        Clock.moment = moment

    return set_


def names(reading):
    return [f"{e.model_id}@{e.version} {e.status.value} {e.aliases}" for e in reading.query(ALL)]


def test_every_former_state_comes_back(store, reader):
    """After each commit, what was then is what as_of gives later: across checkpoints, too."""
    writer, then = ModelRegistry(store()), {0: []}

    def note():
        then[writer.state().seq] = names(writer.reading())

    for number in range(40):
        fill(writer, f"m{number % 7}", str(number), aliases=("prod",))
        note()
        if number % 5 == 4:
            writer.remove(f"m{number % 7}", str(number))
            note()
    assert any(store().list(CHECKPOINT_PREFIX))
    registry = reader()
    for seq in [*list(then)[::6], max(then)]:
        reading = registry.reading(as_of=seq)
        assert names(reading) == then[seq], seq
        assert reading.as_of.commit == seq


def test_lost_and_damaged_checkpoints_only_cost_time(store, reader):
    """The log alone leads to the same state."""
    writer = ModelRegistry(store())
    for number in range(20):
        fill(writer, "m", str(number))
    wanted = names(reader().reading(as_of=35))
    keys = [found.key for found in store().list(CHECKPOINT_PREFIX)]
    assert keys
    for key in keys:
        store().put(key, b"damaged")
    assert names(reader().reading(as_of=35)) == wanted
    store().delete(keys)
    assert names(reader().reading(as_of=35)) == wanted


def test_a_time_means_the_last_commit_noted_by_then(store, reader, at):
    """Between two commits it is the former; at the very time of one, that one."""
    writer = ModelRegistry(store())
    for hour in range(6):
        at(START + timedelta(hours=hour))
        writer.add_model(registered("m", str(hour)))
    registry = reader()
    for hour in range(6):
        for minutes, wanted in ((0, hour + 1), (59, hour + 1)):
            moment = START + timedelta(hours=hour, minutes=minutes)
            reading = registry.reading(as_of=moment)
            assert reading.as_of.commit == wanted
            assert len(names(reading)) == wanted
    assert registry.reading(as_of="2026-01-01T02:30:00Z").as_of.commit == 3
    assert registry.reading(as_of=START + timedelta(days=900)).as_of.commit == 6
    with pytest.raises(NotFoundError, match="noted at or before"):
        registry.reading(as_of=START - timedelta(seconds=1))


@pytest.mark.parametrize("wrong", [timedelta(days=3650), timedelta(days=-3650), None])
def test_a_wrong_clock_leads_to_a_commit_that_fits_all_the_same(store, reader, at, wrong):
    """It was noted by then, and its successor later or not at all; the answer says which it is."""
    writer = ModelRegistry(store())
    for number in range(9):
        off = wrong if wrong is not None else timedelta(days=(-1) ** number * 3650)
        at(START + timedelta(hours=number) + (off if number in (3, 4, 8) else timedelta()))
        writer.add_model(registered("m", str(number)))
    noted = [
        parse_rfc3339(json.loads(read_bytes(store(), log_key(seq)))["time"]) for seq in range(1, 10)
    ]
    for hours in (0.5, 2.5, 3.5, 6.5, 100):
        moment = START + timedelta(hours=hours)
        seq = reader().reading(as_of=moment).as_of.commit
        assert noted[seq - 1] <= moment
        assert seq == 9 or noted[seq] > moment


def test_an_age_is_before_now(store, reader):
    """`as_of="1h"` of a registry made just now is before its first commit; of `0s` the newest."""
    writer = ModelRegistry(store())
    writer.add_model(registered("m", "1"))
    with pytest.raises(NotFoundError):
        reader().reading(as_of="1h")
    assert reader().reading(as_of="0s").as_of.commit == 1


@pytest.mark.parametrize("point", ["", "soon", "-1", "1.5", "2026-13-01"])
def test_a_point_that_means_nothing_is_refused(store, reader, point):
    """UsageError with what may be written."""
    ModelRegistry(store()).add_model(registered("m", "1"))
    with pytest.raises(UsageError) as caught:
        reader().reading(as_of=point)
    assert "42" in caught.value.hint


@pytest.mark.parametrize("point", [2, "99", -1])
def test_a_number_that_is_not_there_is_not_found(store, reader, point):
    """It says which is the newest."""
    ModelRegistry(store()).add_model(registered("m", "1"))
    with pytest.raises(NotFoundError, match="newest is 1"):
        reader().reading(as_of=point)


def test_references_and_sums_are_of_then(store, reader):
    """What `prod` was, what was not there yet, and what it took."""
    writer = ModelRegistry(store())
    fill(writer, "m", "1", aliases=("prod",))
    then = writer.state().seq
    fill(writer, "m", "2", aliases=("prod",))
    writer.remove("m", "1")
    reading = reader().reading(as_of=then)
    assert reading.resolve("m:prod").version == "1"
    assert reading.aliases() == {"m": {"prod": "1"}}
    assert [usage.versions for usage in reading.usage(Query())] == [1]
    with pytest.raises(NotFoundError):
        reading.resolve("m@2")


def test_a_changed_commit_is_an_error(store, reader):
    """The chain is checked from the checkpoint on: the past is not made up."""
    writer = ModelRegistry(store())
    for number in range(4):
        writer.add_model(registered("m", str(number)))
    raw = json.loads(read_bytes(store(), log_key(2)))
    store().put(log_key(2), json.dumps(raw | {"writer": "mallory"}).encode())
    with pytest.raises(IntegrityError, match="commit [23] "):
        reader().reading(as_of=4)
