"""Jobs run where an executor says; many pulls are jobs that can be carried anywhere."""

from __future__ import annotations

import pickle
import threading

import pytest
from wrong import CAUGHT, methods_of, run_test

from mm_core import (
    CancelledError,
    ConfigError,
    Ended,
    MMError,
    ModelManager,
    PluginConfig,
    PluginError,
    Plugins,
    Request,
    Settings,
    load_settings,
)
from mm_core.config import BackendSettings, settings_from
from mm_core.pulling import make_jobs
from mm_core.testing import ExecutorTests
from mm_core.testing.jobs import Linger, Note
from mm_plugins.executors.threads import ThreadsExecutor

pytestmark = pytest.mark.unit

TOKEN = "hunter2hunter2hunter2"


class TestThreads(ExecutorTests):
    @pytest.fixture
    def executor(self):
        return ThreadsExecutor()


class TestOneThread(ExecutorTests):
    parallel = False

    @pytest.fixture
    def executor(self):
        return ThreadsExecutor(ThreadsExecutor.Config(workers=1))


def test_jobs_that_are_stuck_keep_nobody_waiting():
    """Who stops gets an answer for each job, also for one that hears nothing."""
    release, began, cancelled = threading.Event(), threading.Event(), threading.Event()

    def stuck(_):
        began.set()
        release.wait()

    def stop():
        began.wait()
        cancelled.set()

    threading.Thread(target=stop).start()
    ended = list(ThreadsExecutor().run([stuck, stuck, stuck], cancelled=cancelled))
    release.set()
    assert sorted(one.index for one in ended) == [0, 1, 2]
    assert all(isinstance(one.error, CancelledError) for one in ended)


# -- wrong executors -------------------------------------------------------------------

WRONG: list[tuple[type, str]] = []


def caught_by(*tests):
    def note(executor):
        WRONG.extend((executor, test) for test in tests)
        return executor

    return note


class Eager(ThreadsExecutor):
    """All jobs in turn, in this thread, as soon as they are asked for."""

    def run(self, jobs, *, cancelled):
        yield from [self.ended(index, job) for index, job in enumerate(jobs)]

    def ended(self, index, job):
        try:
            return Ended(index=index, result=job(threading.Event()))
        except Exception as error:
            return Ended(index=index, error=error)


@caught_by("test_it_declares_itself")
class SaysNothing(ThreadsExecutor):
    class Config(PluginConfig):
        workers: int = 2


@caught_by("test_no_jobs_end_at_once")
class EndsNothing(ThreadsExecutor):
    def run(self, jobs, *, cancelled):
        yield Ended(index=0)


@caught_by("test_each_job_is_carried_out_once")
class TriesTwice(Eager):
    def ended(self, index, job):
        super().ended(index, job)
        return super().ended(index, job)


@caught_by("test_a_job_that_fails_stops_no_other")
class StopsAtTheFirst(Eager):
    def run(self, jobs, *, cancelled):
        for index, job in enumerate(jobs):
            one = self.ended(index, job)
            yield one
            if one.error:
                return


@caught_by("test_a_job_that_fails_stops_no_other")
class LosesHints(Eager):
    def ended(self, index, job):
        one = super().ended(index, job)
        return one if one.error is None else Ended(index=index, error=MMError(str(one.error)))


@caught_by("test_results_come_as_they_end")
class TellsAllAtTheEnd(ThreadsExecutor):
    def run(self, jobs, *, cancelled):
        yield from sorted(super().run(jobs, cancelled=cancelled), key=lambda one: one.index)


@caught_by("test_what_is_cancelled_begins_no_more", "test_closing_early_stops_the_rest")
class HearsNothing(Eager):
    pass


@caught_by("test_nothing_begins_where_it_was_cancelled_before")
class LooksTooLate(Eager):
    pass


@caught_by("test_many_threads_use_it")
class HasOneList(ThreadsExecutor):
    def run(self, jobs, *, cancelled):
        self.jobs = [*getattr(self, "jobs", ()), *jobs]
        yield from super().run(self.jobs, cancelled=cancelled)


@caught_by("test_models_are_pulled")
class LosesResults(Eager):
    def ended(self, index, job):
        return Ended(index=index, error=super().ended(index, job).error)


@pytest.mark.parametrize(
    ("wrong", "test"), WRONG, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_wrong_executor_is_caught(wrong, test, tmp_path, monkeypatch):
    """Each is caught by the test of the promise that it breaks, as its author would see it."""
    monkeypatch.setattr("mm_core.testing.jobs.PATIENCE", 0.05)
    given = {"executor": wrong(), "folder": tmp_path, "monkeypatch": monkeypatch}
    with pytest.raises((*CAUGHT, RuntimeError)):
        run_test(ExecutorTests, test, given)


def test_every_test_of_the_suite_catches_something():
    """There is no test in it that cannot fail."""
    assert {test for _, test in WRONG} == methods_of(ExecutorTests)


# -- many pulls ------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two models in folders, and a backend called ``here``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mm.yaml").write_text("backends: {here: {type: local, root: ./store}}")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_text(name)
    return tmp_path


def test_each_pull_is_told_as_it_ends_and_failures_stop_nobody(folders):
    """What failed is in the result, by its source; requests keep their order and their wishes."""
    told = []
    with ModelManager() as manager:
        pulls = manager.pull_many(
            ["./one", Request(url="./absent"), Request(url="./two", aliases=["prod"])],
            tell=told.append,
        )
        assert manager.url("two:prod")
    assert [end.request.url for end in pulls.ends] == ["./one", "./absent", "./two"]
    assert {end.name for end in told} == {"./one", "./absent", "./two"}
    assert [pulled.entry.model_id for pulled in pulls.pulled] == ["one", "two"]
    assert list(pulls.failed) == ["./absent"]
    assert "there is no folder" in str(pulls.failed["./absent"])


def test_a_backend_that_cannot_be_opened_is_one_error(folders):
    """Before any job begins."""
    with ModelManager() as manager, pytest.raises(ConfigError, match="no backend named"):
        manager.pull_many(["./one", "./two"], to="nowhere")


def test_an_executor_is_named_by_its_type(folders):
    """By a word that some plugin offers."""
    with ModelManager() as manager:
        assert len(manager.pull_many(["./one"], executor="threads").pulled) == 1
        with pytest.raises(PluginError, match="no plugin offers executors of type 'clouds'"):
            manager.pull_many(["./one"], executor="clouds")


def test_who_cancels_is_told_so(folders):
    """`CancelledError`, with how to go on; nothing that ended is lost."""
    cancelled = threading.Event()
    cancelled.set()
    with ModelManager() as manager:
        with pytest.raises(CancelledError, match="0 of 2 pulls") as caught:
            manager.pull_many(["./one", "./two"], cancelled=cancelled)
        assert "again" in caught.value.hint
        assert manager.list_models() == []


def test_a_foreign_error_of_a_job_is_told_in_our_words(folders):
    """It is one failure among others, and its secrets are masked."""

    class Breaks(ThreadsExecutor):
        def run(self, jobs, *, cancelled):
            yield Ended(index=0, error=RuntimeError("token=hf_abcdefghijklmnop"))

    with ModelManager() as manager:
        (error,) = manager.pull_many(["./one"], executor=Breaks()).failed.values()
    assert str(error) == "RuntimeError: token=***"
    assert isinstance(error.__cause__, RuntimeError)


# -- jobs are carried ------------------------------------------------------------------


def carried(manager, *sources, to=None):
    """The jobs of these pulls, as they arrive elsewhere."""
    jobs = make_jobs(manager, sources, to=to, jobs=None, wait=True)
    return pickle.loads(pickle.dumps(jobs))


def test_a_job_that_was_carried_makes_its_own_manager(folders, tmp_path, monkeypatch):
    """In another folder, it finds the same backend by what it brought along."""
    with ModelManager() as manager:
        (job,) = carried(manager, str(tmp_path / "one"), to="here")
    assert job.manager is None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pulled = job(threading.Event())
    assert str(pulled.entry.path).startswith(str(tmp_path / "store"))
    with ModelManager(backend=str(tmp_path / "store")) as manager:
        assert manager.url("one")


def test_a_backend_without_a_name_is_found_from_anywhere(folders, tmp_path, monkeypatch):
    """A path goes along as it stands in the folder where it was said."""
    with ModelManager() as manager:
        (job,) = carried(manager, str(tmp_path / "one"), to="./other")
    monkeypatch.chdir("/")
    assert str(job(threading.Event()).entry.path).startswith(str(tmp_path / "other"))


def test_references_are_carried_and_secrets_are_not(tmp_path, monkeypatch):
    """Neither what ``${…}`` stands for nor what an MM_ variable holds is in a job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mm.yaml").write_text(
        "backends: {here: {type: local, root: ./store}}\n"
        "sources: {hf: {type: huggingface, token: '${MY_TOKEN}'}, own: {type: huggingface}}\n"
    )
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    monkeypatch.setenv("MM_SOURCES__OWN__TOKEN", TOKEN[::-1])
    monkeypatch.setenv("MM_DEFAULTS__RETRIES", "3")
    settings = load_settings()
    assert settings.sources["hf"].values["token"] == TOKEN
    carried_along = pickle.dumps(settings.recipe)
    assert TOKEN.encode() not in carried_along
    assert TOKEN[::-1].encode() not in carried_along
    monkeypatch.delenv("MM_DEFAULTS__RETRIES")
    monkeypatch.chdir("/")
    again = settings_from(pickle.loads(carried_along))
    assert again.to_json() == settings.to_json()
    assert (again.sources, again.backends) == (settings.sources, settings.backends)
    assert again.defaults.retries == 3
    monkeypatch.delenv("MM_SOURCES__OWN__TOKEN")
    with pytest.raises(ConfigError, match="MM_SOURCES__OWN__TOKEN is not set here"):
        settings_from(pickle.loads(carried_along))
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(ConfigError):
        settings_from(pickle.loads(carried_along))


def test_dotenv_is_read_where_it_is(tmp_path, monkeypatch):
    """A process on the same machine needs no variables but those in ``.env``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"MY_TOKEN={TOKEN}\n")
    (tmp_path / "mm.yaml").write_text("sources: {hf: {type: huggingface, token: '${MY_TOKEN}'}}")
    recipe = pickle.dumps(load_settings().recipe)
    assert TOKEN.encode() not in recipe
    monkeypatch.chdir("/")
    assert settings_from(pickle.loads(recipe)).sources["hf"].values["token"] == TOKEN


def test_settings_that_were_made_by_hand_go_along_as_they_are(folders, tmp_path):
    """There is no file to make them of anew."""
    here = BackendSettings(type="local", values={"root": str(tmp_path / "by-hand")})
    with ModelManager(Settings(backends={"here": here}), backend="here") as manager:
        (job,) = carried(manager, str(tmp_path / "one"), to="here")
    assert str(job(threading.Event()).entry.path).startswith(str(tmp_path / "by-hand"))


def test_every_error_of_ours_can_be_carried():
    """With its hint, and whatever else it holds."""

    def below(kind):
        yield kind
        for inner in kind.__subclasses__():
            yield from below(inner)

    for kind in {k for k in below(MMError) if k.__module__ == "mm_core.exceptions"}:
        error = kind("what happened", hint="what to do")
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), back.hint) == (kind, "what happened", "what to do")
        assert vars(back) == vars(error)


def test_jobs_of_the_suite_are_values(tmp_path):
    """Equal ones are equal wherever they are."""
    for job in (Note(tmp_path, "a"), Linger(tmp_path, "a")):
        assert pickle.loads(pickle.dumps(job)) == job


def test_executors_are_looked_up_alike():
    """By type, as sources and sinks are."""
    plugins = Plugins.discover()
    assert plugins.executor_type("threads") is plugins.executors()["threads"] is ThreadsExecutor
