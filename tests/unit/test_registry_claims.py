"""Claims: one fetch for many callers, and what happens when the one who fetches dies."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mm_core.exceptions import CancelledError, ConflictError, TransientError, UsageError
from mm_core.registry import Claim, ModelRegistry
from mm_core.registry import processes as processes_module
from mm_core.registry.claims import Watch
from mm_core.registry.processes import is_dead, this_process
from mm_core.schemas import ModelEntry, ModelStatus, StoredObject
from mm_core.testing.registry import FaultySink, claimed, fill, manifest_for
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def registry(sink):
    return ModelRegistry(sink)


class Aged(FaultySink):
    """A store on which heartbeats look older than they are, by its own clock."""

    def __init__(self, inner, age, *, only=None):
        super().__init__(inner, rate=0, seed=0)
        self.prefix = f".mm/claims/{only.id if only else ''}"
        self.age = timedelta(seconds=age)
        self.lost = False

    def stat(self, key):
        found = self.inner.stat(key)
        if found is None or not key.startswith(self.prefix):
            return found
        if self.lost:
            return None
        return StoredObject(key=key, size=found.size, modified=found.modified - self.age)


def test_an_available_version_is_given_at_once(registry):
    """begin of what is there returns its entry, and writes nothing."""
    entry = fill(registry, "m", "1")
    count = len(registry.history())
    assert registry.begin("m", "1") == entry
    assert len(registry.history()) == count


def test_no_wait_is_a_conflict(sink, registry):
    """With wait=False a version under way is a ConflictError, and nobody is told to wait."""
    claimed(registry, "m", "1")
    with pytest.raises(ConflictError, match="m@1"):
        ModelRegistry(sink).begin("m", "1", wait=False, on_wait=lambda _: pytest.fail("told"))


def test_waiting_can_be_cancelled(sink, registry):
    """Setting the event ends the wait with CancelledError; the claim stays the other's."""
    claim = claimed(registry, "m", "1")
    cancelled = threading.Event()
    with pytest.raises(CancelledError):
        ModelRegistry(sink).begin("m", "1", cancelled=cancelled, on_wait=lambda _: cancelled.set())
    assert registry.add(claim, manifest_for(claim)).status is ModelStatus.AVAILABLE


def test_who_waits_takes_up_what_was_abandoned(sink, registry):
    """If the other gives up, the one who waits gets the claim."""
    claim = claimed(registry, "m", "1")
    waiting = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(ModelRegistry(sink).begin, "m", "1", on_wait=lambda _: waiting.set())
        assert waiting.wait(60)
        registry.abandon(claim, "cut")
        heir = second.result(60)
    assert isinstance(heir, Claim)
    assert heir.id != claim.id


def test_an_old_heartbeat_is_taken_over_in_one_commit(sink, registry):
    """By the store's clock the heartbeat is too old: abandon and begin are one commit."""
    old = claimed(registry, "m", "1")
    heir = claimed(ModelRegistry(Aged(sink, 61)), "m", "1")
    last = registry.history()[-1]
    assert [o["op"] for o in last.operations] == ["abandon", "begin"]
    assert (last.operations[0]["claim"], last.operations[1]["claim"]) == (old.id, heir.id)
    with pytest.raises(ConflictError, match="taken over"):
        registry.add(old, manifest_for(old))
    registry.abandon(old, "late")
    assert registry.get_model("m").status is ModelStatus.DOWNLOADING


def test_a_young_heartbeat_is_left_alone(sink, registry):
    """A claim whose heartbeat is younger than its own time-out is never taken over."""
    claimed(registry, "m", "1")
    for hasty in (ModelRegistry(Aged(sink, 59)), ModelRegistry(Aged(sink, 59), claim_timeout=1)):
        with pytest.raises(ConflictError):
            hasty.begin("m", "1", wait=False)


def test_a_lost_heartbeat_counts_from_when_it_was_missed(sink, registry, monkeypatch):
    """A missing heartbeat must be missing for the whole time-out."""
    claimed(registry, "m", "1")
    row = registry._log.refresh().row("m", "1")
    aged = Aged(sink, 0)
    aged.lost = True
    now = [1000.0]
    monkeypatch.setattr("mm_core.registry.claims.time.monotonic", lambda: now[0])
    watch = Watch(aged, 60)
    assert not watch.is_stale(row)
    now[0] += 59
    assert not watch.is_stale(row)
    aged.lost = False
    now[0] += 10
    assert not watch.is_stale(row)
    aged.lost = True
    now[0] += 10
    assert not watch.is_stale(row)
    now[0] += 61
    assert watch.is_stale(row)


def test_a_store_that_cannot_be_asked_proves_nothing(sink, registry):
    """While the store's clock cannot be read nobody is declared dead."""
    claimed(registry, "m", "1")
    aged = Aged(sink, 999)
    aged.put = lambda key, data: (_ for _ in ()).throw(TransientError("cut"))
    with pytest.raises(ConflictError):
        ModelRegistry(aged).begin("m", "1", wait=False)


def test_of_many_heirs_one_takes_over(sink, registry):
    """Of many who would take over at once one does, and the others see its claim."""
    old = claimed(registry, "m", "1")
    aged, barrier = Aged(sink, 61, only=old), threading.Barrier(5)

    def take(_):
        heir = ModelRegistry(aged)
        heir.refresh()
        barrier.wait(60)
        try:
            return claimed(heir, "m", "1")
        except ConflictError:
            return None

    with ThreadPoolExecutor(5) as pool:
        heirs = [claim for claim in pool.map(take, range(5)) if claim is not None]
    assert len(heirs) == 1
    assert registry._log.refresh().row("m", "1")["claim"] == heirs[0].id
    assert len(registry.history()) == 2


def _begin_and_die(root):
    registry = ModelRegistry(LocalSink(LocalSink.Config(root=root)))
    claimed(registry, "m", "1")


@pytest.mark.skipif(this_process() is None, reason="needs /proc")
def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    """Without waiting for any time-out, since its process can be seen to be gone."""
    process = multiprocessing.get_context("spawn").Process(
        target=_begin_and_die, args=(str(tmp_path),)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    registry = ModelRegistry(LocalSink(LocalSink.Config(root=str(tmp_path))), claim_timeout=3600)
    assert registry.get_model("m").status is ModelStatus.DOWNLOADING
    claim = claimed(registry, "m", "1")
    assert registry.add(claim, manifest_for(claim)).status is ModelStatus.AVAILABLE


@pytest.mark.skipif(this_process() is None, reason="needs /proc")
@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_processes_elsewhere_are_never_declared_dead(field):
    """A pid means something only on its own boot of its own machine, in its own namespace."""
    here = {**this_process(), "pid": 2**22 + 1}
    assert is_dead(here)
    assert not is_dead({**here, field: "elsewhere"})
    assert not is_dead({key: value for key, value in here.items() if key != field})


@pytest.mark.skipif(this_process() is None, reason="needs /proc")
def test_a_process_that_nobody_has_reaped_is_dead():
    """A zombie pulls nothing any more, though its pid is still there."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = {**this_process(), "pid": child.pid, "started": processes_module._started(child.pid)}
    assert not is_dead(owner)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert is_dead(owner)
    child.wait()


@pytest.mark.skipif(this_process() is None, reason="needs /proc")
def test_a_pid_given_again_is_another_process():
    """The start time tells a process from a later one with the same pid."""
    assert not is_dead(this_process())
    assert is_dead({**this_process(), "started": "1"})
    for nonsense in (None, {}, {**this_process(), "pid": "x"}, {**this_process(), "started": 1}):
        assert not is_dead(nonsense)


def test_without_proc_nothing_is_said(monkeypatch, tmp_path):
    """On other systems a claim has no owner, and only heartbeats count."""
    monkeypatch.setattr(processes_module, "_PROC", tmp_path)
    assert this_process() is None
    assert not is_dead({"pid": 1})
    monkeypatch.setattr(processes_module.sys, "platform", "darwin")
    assert this_process() is None


def test_a_heartbeat_is_put_again_and_again(sink):
    """The thread overwrites the claim's object, also after a put that failed."""
    beats, enough = [], threading.Event()

    class Heard(FaultySink):
        def put(self, key, data):
            if key.startswith(".mm/claims/"):
                beats.append(key)
                if len(beats) == 2:
                    raise TransientError("cut")
                if len(beats) == 4:
                    enough.set()
            self.inner.put(key, data)

    registry = ModelRegistry(Heard(sink, rate=0, seed=0), claim_timeout=0.04)
    with claimed(registry, "m", "1") as claim:
        assert enough.wait(60)
        assert {f".mm/claims/{claim.id}"} == set(beats)
        assert claim.id in repr(claim)
    assert not claim._thread.is_alive()


def test_a_claim_that_nobody_holds_falls_silent(registry):
    """A claim that was dropped without add or abandon stops its heartbeat."""
    thread = claimed(registry, "m", "1")._thread
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_losing_the_race_to_begin_is_waiting(sink, registry):
    """If another's begin comes between look and commit, the loser waits for it like anybody."""
    fill(registry, "other", "1")

    class Beaten(FaultySink):
        beaten = False

        def create(self, key, data):
            if not self.beaten:
                Beaten.beaten = True
                fill(registry, "m", "1")
            self.inner.create(key, data)

    begun = ModelRegistry(Beaten(sink, rate=0, seed=0)).begin("m", "1")
    assert begun == registry.get_model("m")
    assert list(sink.list(".mm/claims/")) == []


def test_a_failed_begin_leaves_no_heartbeat(sink, registry):
    """If the commit is refused, the heartbeat that went before it is deleted."""
    fill(registry, "a", "b")
    with pytest.raises(ConflictError):
        registry.begin("a/b", "c")
    assert list(sink.list(".mm/claims/")) == []


def test_a_manifest_of_another_version_is_refused(registry):
    """A claim is ended by a manifest of its own version only."""
    claim, other = claimed(registry, "m", "1"), claimed(registry, "m", "2")
    with pytest.raises(UsageError):
        registry.add(claim, manifest_for(other))


def test_a_removed_version_can_be_pulled_again(registry):
    """DELETED and FAILED versions may begin again; the alias of the first life is gone."""
    fill(registry, "m", "1", aliases=("prod",))
    registry.remove("m", "1")
    entry = fill(registry, "m", "1")
    assert isinstance(entry, ModelEntry)
    assert (entry.status, entry.aliases) == (ModelStatus.AVAILABLE, ())
