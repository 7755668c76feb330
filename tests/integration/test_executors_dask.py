"""Jobs on a Dask cluster: what every executor must do, and syncs by workers, one of which is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import until

from mm_core import ConfigError, ModelManager, TransientError, load_settings
from mm_core.cli import main
from mm_core.testing import ExecutorTests
from mm_core.testing.material import noise

distributed = pytest.importorskip("distributed")

from mm_plugins.executors.dask import DaskExecutor  # noqa: E402  # needs distributed

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORKERS = 4


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path, environ: dict[str, str], *, workers: int = WORKERS) -> None:
        self.folder = folder
        self._environ = {**os.environ, **environ}
        self._processes: list[subprocess.Popen] = []
        log = folder / "scheduler.log"
        self._start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                    "--no-dashboard", log=log)  # fmt: skip
        self.address = self._found(log, r"Scheduler at:\s+(tcp://\S+)")
        self.workers = [self.add_worker(number) for number in range(workers)]

    def add_worker(self, number: int) -> subprocess.Popen:
        log = self.folder / f"worker-{number}.log"
        words = (self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host",
                 "127.0.0.1", "--name", f"w{number}", "--death-timeout", "60")  # fmt: skip
        process = self._start("distributed.cli.dask_worker", *words, log=log)
        self._found(log, r"Registered to:\s+(tcp://\S+)")
        return process

    def _start(self, module: str, *words: str, log: Path) -> subprocess.Popen:
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=self.folder,
                env=self._environ,
                stdout=file,
                stderr=file,
            )
        self._processes.append(process)
        return process

    @staticmethod
    def _found(log: Path, pattern: str) -> str:
        until(lambda: re.search(pattern, log.read_text()), 60)
        return re.search(pattern, log.read_text())[1]

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"), {})
    yield made
    made.close()


class TestDask(ExecutorTests):
    @pytest.fixture
    def executor(self, cluster):
        made = DaskExecutor(DaskExecutor.Config(scheduler=cluster.address))
        yield made
        made.close()


def test_without_a_scheduler(monkeypatch):
    """It is said how to name one; one that does not answer may answer later."""
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    jobs = [lambda _: None]
    with pytest.raises(ConfigError, match="scheduler"):
        list(DaskExecutor().run(jobs, cancelled=threading.Event()))
    config = DaskExecutor.Config(scheduler="tcp://127.0.0.1:9", timeout=0.5)
    with pytest.raises(TransientError, match="does not answer"):
        list(DaskExecutor(config).run(jobs, cancelled=threading.Event()))


def work_until_stopped(cancelled):
    cancelled.wait(60)


def test_a_scheduler_that_is_lost_is_no_stop(tmp_path):
    """Nobody asked for one: the errors say that it may pass; with another one there it goes on."""
    lost = Cluster(tmp_path, {"PYTHONPATH": str(Path(__file__).parent)}, workers=1)
    executor = DaskExecutor(DaskExecutor.Config(scheduler=lost.address, timeout=2))
    try:
        ended = executor.run([work_until_stopped] * 2, cancelled=threading.Event())
        killer = threading.Timer(1, lost.close)
        killer.start()
        errors = [one.error for one in ended]
        killer.join()
        assert [type(error) for error in errors] == [TransientError] * 2, errors
        with pytest.raises(TransientError, match="does not answer"):
            list(executor.run([work_until_stopped], cancelled=threading.Event()))
    finally:
        executor.close()
        lost.close()


def test_a_sync_by_workers_of_which_one_is_killed(hub, tmp_path, s3):
    """All is as one process would make it; nothing comes twice but what the lost one had in hand."""
    wanted = []
    for number in range(16):
        files = {"config.json": b"%d" % number, "w.safetensors": noise(200_000 + 1000 * number)}
        hub.add_repo(f"org/m{number}", files=files)
        wanted.append(f"  t/m{number}: {{source: 'hf://org/m{number}', to: [a, b], aliases: [x]}}")
    hub.add_repo("org/large", files={"w.safetensors": noise(30 << 20)})
    wanted.append("  t/large: {source: 'hf://org/large', to: [a, b]}")
    text = (
        f"version: 1\nbackends:\n  a: {{type: local, root: ./a}}\n  b: {{type: s3, root: '{s3}'}}\n"
    )
    text += "defaults: {limit_rate: 12MiB}\nmodels:\n" + "\n".join(wanted) + "\n"
    (tmp_path / "mm.yaml").write_text(text)
    settings = load_settings(tmp_path / "mm.yaml")
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder, {"HF_ENDPOINT": hub.endpoint})
    heard, under_way = [], threading.Event()

    def hear(event) -> None:
        heard.append(event)
        if event.kind == "progress" and event.model_id == "t/large":
            under_way.set()

    try:
        with ModelManager(settings, on_event=hear) as manager:
            lock = manager.lock().lock
            total = 2 * sum(model.size_bytes for model in lock.models.values())

            def kill() -> None:
                assert under_way.wait(120)
                cluster.workers[0].send_signal(signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            executor = DaskExecutor(DaskExecutor.Config(scheduler=cluster.address))
            try:
                synced = manager.sync(lock, executor=executor)
            finally:
                executor.close()
            killer.join(30)
            assert synced.failed == {}
            assert {step.done for step in synced.steps} == {True}
            assert {event.kind for event in heard} >= {"planned", "progress", "stored", "committed"}
            for backend in ("a", "b"):
                entries = manager.registry(backend).list_models()
                assert sorted(e.model_id for e in entries) == sorted(lock.models)
                assert {e.status.value for e in entries} == {"AVAILABLE"}
                assert {e.version for e in entries} == {m.version for m in lock.models.values()}
                assert manager.verify(backend=backend).ok
        assert hub.sent_bytes <= total + (30 << 20) + 400_000
    finally:
        cluster.close()


@pytest.fixture
def large(hub, tmp_path, s3):
    """A model with one file of 40 MiB, a bucket, and a cluster that knows both."""
    hub.add_repo("org/large", files={"w.safetensors": noise(40 << 20), "config.json": b"{}"})
    (tmp_path / "mm.yaml").write_text(
        f"version: 1\nbackends: {{b: {{type: s3, root: '{s3}'}}}}\n"
        "defaults: {backend: b, limit_rate: 8MiB}\n"
        "models: {t/large: {source: 'hf://org/large', aliases: [prod]}}\n"
    )
    folder = tmp_path / "cluster"
    folder.mkdir()
    dask = tmp_path / "dask.yaml"
    dask.write_text("logging: {distributed: info, mm_core: info}\n")
    made = Cluster(folder, {"HF_ENDPOINT": hub.endpoint, "DASK_CONFIG": str(dask)})
    yield made
    made.close()


@pytest.mark.parametrize("killed", [False, True])
def test_one_file_in_ranges_by_all_workers(large, killed, hub, tmp_path, s3_server):
    """Each brings parts of the one upload, which one of them ends: nothing comes twice, but what a
    lost worker had in hand, and the bytes are read back before the one commit."""
    heard, under_way = [], threading.Event()

    def hear(event) -> None:
        heard.append(event)
        if event.kind == "progress" and event.done > 4 << 20:
            under_way.set()

    with ModelManager(load_settings(tmp_path / "mm.yaml"), on_event=hear) as manager:
        lock = manager.lock().lock
        s3_server.requests.clear()

        def kill() -> None:
            assert under_way.wait(120)
            large.workers[0].send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill if killed else lambda: None)
        killer.start()
        executor = DaskExecutor(DaskExecutor.Config(scheduler=large.address, split=32 << 20))
        try:
            synced = manager.sync(lock, executor=executor)
        finally:
            executor.close()
        killer.join(30)
        assert synced.failed == {}
        (entry,) = manager.registry().list_models()
        assert (entry.status.value, entry.aliases) == ("AVAILABLE", ("prod",))
        assert manager.verify().ok
    verbs = [(verb, path.rpartition("/")[2]) for verb, path in s3_server.requests]
    # One upload begun, and ended once; before that, one was tried with checksums, and given up.
    assert verbs.count(("POST", "w.safetensors")) == 3
    assert verbs.count(("DELETE", "w.safetensors")) == 1
    parts = verbs.count(("PUT", "w.safetensors"))
    logs = [(large.folder / f"worker-{number}.log").read_text() for number in range(WORKERS)]
    workers = [text for text in logs if "range of w.safetensors" in text]
    assert len(workers) == WORKERS, "every worker had a share"
    slack = (20 << 20) if killed else 400_000
    assert hub.sent_bytes <= (40 << 20) + slack
    assert parts >= 5
    done = [e.done for e in heard if e.kind == "progress" and e.path == "w.safetensors"]
    assert max(done) == 40 << 20


def test_a_single_pull_in_ranges_by_the_command(large, hub, tmp_path, monkeypatch, capfd):
    """And where the workers fail, the pull does it alone, or tells why it cannot."""
    monkeypatch.chdir(tmp_path)
    words = ["pull", "hf://org/large", "--executor", "dask", "--scheduler", large.address]
    assert main([*words, "--split", "32MiB", "--limit-rate", "1GiB", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["entry"]["size_bytes"] == (40 << 20) + 2
    assert main(["pull", "hf://org/none", *words[2:], "--split", "32MiB"]) == 3
