"""ExecutorTests: what every executor must do, wherever its jobs run.

Subclass it and give a fixture `executor`::

    class TestMyExecutor(ExecutorTests):
        @pytest.fixture
        def executor(self):
            made = MyExecutor(MyExecutor.Config(workers=2))
            yield made
            made.close()
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from mm_core.exceptions import CancelledError, NotFoundError
from mm_core.executor import Ended, Executor, Job
from mm_core.manager import ModelManager
from mm_core.testing.jobs import Fail, Linger, Note, WaitFor

MANY = 40
"""More jobs than any executor in these tests begins at once."""


class ExecutorTests:
    """One executor. Override what it declares and the fixtures, and never a test."""

    parallel: ClassVar[bool] = True
    """Whether at least two jobs run at once."""

    hears: ClassVar[bool] = True
    """Whether a job that runs hears that it is to stop; where not, it is left to its end."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError("give a fixture `executor` that returns the executor")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """An empty folder that is seen from wherever jobs run, under the same path."""
        return tmp_path

    def test_it_declares_itself(self, executor: Executor) -> None:
        """A type for the command line, and settings that say what they mean."""
        assert isinstance(executor.type, str)
        fields = executor.Config.model_fields
        assert all(field.description for field in fields.values())

    def test_no_jobs_end_at_once(self, executor: Executor) -> None:
        """Nothing to do is nothing to wait for."""
        assert list(executor.run([], cancelled=threading.Event())) == []

    def test_each_job_is_carried_out_once(self, executor: Executor, folder: Path) -> None:
        """There is one `Ended` for each, with what the job at that place returned."""
        names = [f"job-{number}" for number in range(MANY)]
        ended = _run(executor, [Note(folder, name) for name in names])
        assert [ended[index].result[0] for index in range(MANY)] == names
        assert {(folder / name).read_text() for name in names} == {"done\n"}

    def test_a_job_that_fails_stops_no_other(self, executor: Executor, folder: Path) -> None:
        """Its error comes back whole, with its hint; all others are carried out."""
        jobs: list[Job] = [Note(folder, str(number)) for number in range(6)]
        jobs[1], jobs[4] = Fail("one"), Fail("four", foreign=True)
        ended = _run(executor, jobs)
        ours, foreign = ended[1].error, ended[4].error
        assert isinstance(ours, NotFoundError)
        assert (str(ours), ours.hint) == ("one is not there", "look elsewhere")
        assert isinstance(foreign, ValueError)
        assert str(foreign) == "four is no number"
        assert [ended[i].result and ended[i].result[0] for i in range(6)] == [
            "0", None, "2", "3", None, "5"
        ]  # fmt: skip

    def test_results_come_as_they_end(self, executor: Executor, folder: Path) -> None:
        """What ended is told while another job still runs."""
        if not self.parallel:
            pytest.skip("this executor declares that it does one job at a time")
        order = []
        jobs: list[Job] = [WaitFor(folder, "go"), Note(folder, "quick")]
        for one in executor.run(jobs, cancelled=threading.Event()):
            order.append(one.index)
            if one.index == 1:
                (folder / "go").touch()
        assert order == [1, 0]

    def test_what_is_cancelled_begins_no_more(self, executor: Executor, folder: Path) -> None:
        """Those that did not begin, and those that heard it, ended with `CancelledError`."""
        cancelled = threading.Event()
        jobs = [Linger(folder, str(number)) for number in range(MANY)]

        def stop() -> None:
            WaitFor(folder, "began-0")(threading.Event())
            cancelled.set()
            if not self.hears:
                (folder / "over").touch()

        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(stop)
            ended = {one.index: one for one in executor.run(jobs, cancelled=cancelled)}
            stopping.result()
        began = _began(folder)
        assert set(ended) == set(range(MANY))
        assert len(began) < MANY
        stopped = {i for i, one in ended.items() if isinstance(one.error, CancelledError)}
        assert stopped == set(range(MANY)) if self.hears else stopped >= set(range(MANY)) - began

    def test_nothing_begins_where_it_was_cancelled_before(
        self, executor: Executor, folder: Path
    ) -> None:
        """All jobs ended with `CancelledError`, and none was carried out."""
        cancelled = threading.Event()
        cancelled.set()
        jobs = [Note(folder, str(number)) for number in range(3)]
        ended = list(executor.run(jobs, cancelled=cancelled))
        assert sorted(one.index for one in ended) == [0, 1, 2]
        assert all(isinstance(one.error, CancelledError) for one in ended)
        assert list(folder.iterdir()) == []

    def test_closing_early_stops_the_rest(self, executor: Executor, folder: Path) -> None:
        """Who has seen enough goes; the event of the caller is not set, and others go on."""
        cancelled = threading.Event()
        jobs: list[Job] = [Note(folder, "quick")]
        jobs += [Linger(folder, str(number)) for number in range(MANY)]
        running = executor.run(jobs, cancelled=cancelled)
        assert next(running).index == 0
        running.close()
        if not self.hears:
            (folder / "over").touch()
        assert not cancelled.is_set()
        assert _run(executor, [Note(folder, "after")])[0].error is None
        assert len(_began(folder)) < MANY

    def test_many_threads_use_it(self, executor: Executor, folder: Path) -> None:
        """Each caller gets what became of its own jobs."""

        def use(caller: int) -> list[str]:
            ended = _run(executor, [Note(folder, f"{caller}-{number}") for number in range(5)])
            return [ended[index].result[0] for index in range(5)]

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(use, range(4)))
        assert results == [[f"{caller}-{number}" for number in range(5)] for caller in range(4)]

    def test_models_are_pulled(
        self, executor: Executor, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`ModelManager.pull_many` brings models into a backend by it, and tells what failed."""
        monkeypatch.chdir(folder)
        (folder / "mm.yaml").write_text("backends: {here: {type: local, root: ./store}}")
        for name in ("one", "two"):
            (folder / name).mkdir()
            (folder / name / "weights.bin").write_text(name)
        addresses = [str(folder / name) for name in ("one", "absent", "two")]
        with ModelManager() as manager:
            pulls = manager.pull_many(addresses, executor=executor)
            stored = {entry.model_id: entry for entry in manager.list_models()}
        assert [pulled.entry for pulled in pulls.pulled] == [stored["one"], stored["two"]]
        assert list(pulls.failed) == [addresses[1]]


def _run(executor: Executor, jobs: list[Job]) -> dict[int, Ended]:
    """How each ended, by its index; there is one for each."""
    ended = list(executor.run(jobs, cancelled=threading.Event()))
    assert sorted(one.index for one in ended) == list(range(len(jobs)))
    return {one.index: one for one in ended}


def _began(folder: Path) -> set[int]:
    return {int(file.name.removeprefix("began-")) for file in folder.glob("began-*")}
