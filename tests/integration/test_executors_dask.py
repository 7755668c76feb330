"""Jobs on a Dask cluster: what every executor must do, and syncs by workers, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mm_core import ConfigError, ModelManager, TransientError, load_settings
from mm_core.testing import ExecutorTests
from mm_core.testing.material import noise

distributed = pytest.importorskip("distributed")

from mm_plugins.executors.dask import DaskExecutor  # noqa: E402  # needs distributed

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORKERS = 4


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self._environ = {**os.environ, **environ}
        self._processes: list[subprocess.Popen] = []
        log = folder / "scheduler.log"
        self._start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                    "--no-dashboard", log=log)  # fmt: skip
        self.address = self._found(log, r"Scheduler at:\s+(tcp://\S+)")
        self.workers = [self.add_worker(number) for number in range(WORKERS)]

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
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return match[1]

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
    heard = []
    try:
        with ModelManager(settings, on_event=heard.append) as manager:
            lock = manager.lock().lock
            total = 2 * sum(model.size_bytes for model in lock.models.values())

            def kill() -> None:
                while not any(e.kind == "progress" and e.model_id == "t/large" for e in heard):
                    time.sleep(0.02)
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
