"""Large files in ranges: what they must not cost, and whom they must not disturb.

The executor here carries jobs out in this process, each as a copy that was pickled, so that
what happens is seen step by step; those of Dask are in test_executors_dask.
"""

from __future__ import annotations

import pickle
import threading

import pytest

from mm_core import ConflictError, Ended, Executor, ModelManager, Request, load_settings
from mm_core.executor import heard_by
from mm_core.testing.material import noise
from mm_plugins.sources.huggingface import HuggingFaceSource

pytestmark = pytest.mark.integration

SIZE = 40 << 20
SMALL = 200_000
"""More than all answers beside the files take."""


class Elsewhere(Executor):
    type = "elsewhere"

    def __init__(self, *, split: int | None = 32 << 20, pickled: bool = True) -> None:
        super().__init__()
        self.split = split
        self.pickled = pickled
        self.jobs: list[str] = []

    @property
    def split_bytes(self) -> int | None:
        return self.split

    def run(self, jobs, *, cancelled):
        for index, job in enumerate(jobs):
            self.jobs.append(type(job).__name__)
            carried = pickle.loads(pickle.dumps(job)) if self.pickled else job
            try:
                with heard_by(job.heard):
                    yield Ended(index=index, result=carried(cancelled))
            except Exception as error:
                yield Ended(index=index, error=error)


@pytest.fixture
def settings(hub, tmp_path, s3):
    hub.add_repo("org/large", files={"w.safetensors": noise(SIZE), "config.json": b"{}"})
    file = tmp_path / "mm.yaml"
    file.write_text(f"backends: {{b: {{type: s3, root: '{s3}'}}}}\ndefaults: {{backend: b}}\n")
    return load_settings(file)


@pytest.fixture
def sent(hub):
    """The bytes that the hub sent since it was asked last."""
    before = [0]

    def since() -> int:
        count = hub.sent_bytes - before[0]
        before[0] = hub.sent_bytes
        return count

    return since


def unfinished(manager: ModelManager) -> list[str]:
    return [upload.key for upload in manager.sink().unfinished("")]


@pytest.mark.parametrize("pickled", [True, False])
def test_a_file_comes_once_in_ranges(settings, sent, pickled):
    """Its progress only rises, over all ranges; the version is one, and verified."""
    heard = []
    executor = Elsewhere(pickled=pickled)
    with ModelManager(settings, on_event=heard.append) as manager:
        pulls = manager.pull_many(["hf://org/large"], executor=executor)
        assert pulls.failed == {}
        assert executor.jobs == ["RangeJob"] * 5 + ["PullJob"]
        assert SIZE <= sent() < SIZE + SMALL
        assert unfinished(manager) == []
        assert manager.verify().ok
    done = [e.done for e in heard if e.kind == "progress" and e.path == "w.safetensors"]
    ranges = done[: done.index(SIZE) + 1]
    assert ranges == sorted(ranges)
    assert max(done) == SIZE


def test_mending_takes_no_ranges(settings, sent):
    """A file of a version that is there is fetched once, and no upload stays behind."""
    with ModelManager(settings) as manager:
        (pulled,) = manager.pull_many(["hf://org/large"], executor=Elsewhere()).pulled
        manager.sink().delete([f"models/org/large/{pulled.entry.version}/w.safetensors"])
        sent()
        executor = Elsewhere()
        assert manager.pull_many(["hf://org/large"], executor=executor).failed == {}
        assert executor.jobs == ["PullJob"]
        assert SIZE <= sent() < SIZE + SMALL
        assert unfinished(manager) == []
        assert manager.verify().ok


def test_equal_files_and_equal_requests_come_once(settings, sent, hub):
    """As they would without ranges: the second is a copy, or is there already."""
    hub.add_repo("org/copy", files={"w.safetensors": noise(SIZE), "more": b"more"})
    with ModelManager(settings) as manager:
        again = Request(url="hf://org/large", aliases=("x",))
        asked = ["hf://org/large", again, "hf://org/copy"]
        pulls = manager.pull_many(asked, executor=Elsewhere())
        assert pulls.failed == {}
        assert SIZE <= sent() < SIZE + SMALL
        assert unfinished(manager) == []
        assert manager.registry().resolve("org/large:x").version
        assert manager.verify().ok


def test_who_holds_the_claim_is_left_alone(settings, sent, tmp_path):
    """Who pulls already goes on with its upload; who may not wait is refused before a byte moved."""
    text = (tmp_path / "mm.yaml").read_text()
    (tmp_path / "slow.yaml").write_text(
        text.replace("backend: b}", "backend: b, limit_rate: 8MiB}")
    )
    begun, retries = threading.Event(), []

    def hear(event) -> None:
        if event.kind == "progress":
            begun.set()
        if event.kind == "retry":
            retries.append(event)

    slow = ModelManager(load_settings(tmp_path / "slow.yaml"), on_event=hear)
    pulled = []
    thread = threading.Thread(target=lambda: pulled.append(slow.pull("hf://org/large")))
    thread.start()
    assert begun.wait(60)
    with ModelManager(settings) as manager:
        executor = Elsewhere()
        pulls = manager.pull_many(["hf://org/large"], executor=executor, wait=False)
        assert [type(error) for error in pulls.failed.values()] == [ConflictError]
        assert executor.jobs == ["PullJob"]
        thread.join(60)
        slow.close()
        assert [one.entry.status.value for one in pulled] == ["AVAILABLE"]
        assert retries == []
        assert SIZE <= sent() < SIZE + SMALL
        assert unfinished(manager) == []


def test_a_claim_is_held_while_ranges_come(settings, hub):
    """Nobody else pulls the version meanwhile; then it is free, whatever became of the ranges."""
    refused = []

    class Fails(Elsewhere):
        def run(self, jobs, *, cancelled):
            if type(jobs[0]).__name__ == "RangeJob":
                with ModelManager(settings) as another, pytest.raises(ConflictError) as told:
                    another.pull("hf://org/large", wait=False)
                refused.append(told)
                yield from (Ended(index=i, error=KeyError("a bug")) for i in range(len(jobs)))
            else:
                yield from super().run(jobs, cancelled=cancelled)

    with ModelManager(settings) as manager:
        assert manager.pull_many(["hf://org/large"], executor=Fails(), wait=False).failed == {}
        assert len(refused) == 1
        assert manager.verify().ok
        assert unfinished(manager) == []


def test_a_faulty_source_stops_no_other(settings, hub, monkeypatch):
    """With ranges as without: it fails, and the others come."""
    ours = HuggingFaceSource.snapshot

    def snapshot(self, request):
        if "bad" in request.url:
            raise KeyError("a bug of a source")
        return ours(self, request)

    monkeypatch.setattr(HuggingFaceSource, "snapshot", snapshot)
    with ModelManager(settings) as manager:
        pulls = manager.pull_many(["hf://org/bad", "hf://org/large"], executor=Elsewhere())
        assert list(pulls.failed) == ["hf://org/bad"]
        assert len(pulls.pulled) == 1


def test_a_file_that_changed_comes_anew(settings, hub):
    """Ranges of another file are refused; what is AVAILABLE is the new one, whole."""
    new = noise(SIZE + 1)

    class Changes(Elsewhere):
        def run(self, jobs, *, cancelled):
            if type(jobs[0]).__name__ == "RangeJob":
                hub.add_repo("org/large", files={"w.safetensors": new, "config.json": b"{}"})
            yield from super().run(jobs, cancelled=cancelled)

    with ModelManager(settings) as manager:
        (pulled,) = manager.pull_many(["hf://org/large"], executor=Changes()).pulled
        assert pulled.entry.size_bytes == SIZE + 3
        assert manager.verify().ok
