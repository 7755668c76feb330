"""What the registry costs as it grows: to open, to commit to, to hold in memory, in requests.

    python benchmarks/registry.py [--versions N ...] [--store local|ministack|moto] [--json FILE]

For each size a store is built by a synthetic writer (large commits, straight into
the log, and a checkpoint at the end; ten versions to a model) and a tail of 32
commits that no pack holds. Then, each in a process of its own:

- cold open: the newest state, from nothing, with and without taking all rows apart;
- commits: begin and add of new versions of random models, over whole cycles from
  one checkpoint to the next, so that packs and checkpoints are in the average (on
  S3 over 256 commits: packs are in it, the checkpoint stands apart);
- the peak of the memory of both, and of writing a checkpoint.

Requests are counted at the sink. Nothing fails because of a figure. Only public
releases of the format are made: what is built here any reader opens.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_core.plugins import Plugins
from mm_core.registry import ModelRegistry
from mm_core.registry.layout import log_key
from mm_core.registry.operations import apply_all, operation
from mm_core.registry.pack import Recent
from mm_core.registry.saving import save
from mm_core.registry.seal import seal
from mm_core.registry.state import GENESIS, State
from mm_core.schemas import sha256_hex
from mm_core.sink import Sink

PER_COMMIT = 100
TAIL = 32
TARGETS = {"local": 1.5, "ministack": 2.5}


# -- what is committed


def pull_of(number: int, models: int) -> list[dict[str, Any]]:
    """The operations of one pull: begin and add."""
    place = number % models
    model, version = f"org-{place % 97}/model-{place}", f"{number:040x}"
    claim = uuid.UUID(int=random.Random(number).getrandbits(128)).hex
    owner = {"host": "worker-7", "boot": uuid.uuid4().hex, "pid": 4711, "started": 1234567}
    source, date = f"hf://{model}", "2026-01-31T12:00:00Z"
    begin = operation(
        "begin", model, version=version, claim=claim, timeout=60.0, owner=owner,
        model_type="text-generation", source=source, date=date,
    )  # fmt: skip
    add = operation(
        "add", model, id=f"{claim}-add", version=version, claim=claim,
        manifest=hashlib.sha256(claim.encode()).hexdigest(), size_bytes=number * 1000003,
        model_type="text-generation", source=source, date=date,
        metadata={"license": "apache-2.0", "revision": version},
    )  # fmt: skip
    return [begin, add]


def build(sink: Sink, versions: int) -> None:
    """A store of so many versions, a checkpoint, and a tail of single commits."""
    ModelRegistry(sink)._log.commit(pull_of(0, 1))  # noqa: SLF001  # the format, and commit 1
    state = ModelRegistry(sink)._log.refresh()  # noqa: SLF001
    models, tail = max(versions // 10, 1), min(TAIL // 2, versions - 1)
    bulk = versions - 1 - tail
    for start in range(1, 1 + bulk, PER_COMMIT):
        numbers = range(start, min(start + PER_COMMIT, 1 + bulk))
        state = append(sink, state, [o for n in numbers for o in pull_of(n, models)])
    save(sink, state, Recent(), whole=True)
    for number in range(1 + bulk, versions):
        for item in pull_of(number, models):
            state = append(sink, state, [item])


def append(sink: Sink, state: State, operations: list[dict[str, Any]]) -> State:
    seq = state.seq + 1
    commit = {
        "seq": seq, "prev": state.head if state.seq else GENESIS, "id": uuid.uuid4().hex,
        "writer": "ci@worker-7/4711", "time": "2026-01-31T12:00:00Z", "operations": operations,
    }  # fmt: skip
    data = seal(commit)
    sink.create(log_key(seq), data)
    return apply_all(state, operations, seq, sha256_hex(data))


# -- what is measured, each in a process of its own


def open_cold(sink: Sink, _versions: int, *, whole: bool) -> dict[str, float]:
    baseline = peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    registry = ModelRegistry(sink)
    registry.refresh()
    if whole:
        found = sum(1 for _ in registry._log.known.rows())  # type: ignore[union-attr]  # noqa: SLF001
        assert found >= _versions
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": peak_mib(),
        "baseline": baseline,
    }


def save_whole(sink: Sink, _versions: int) -> dict[str, float]:
    state = ModelRegistry(sink)._log.refresh()  # noqa: SLF001
    before, wall = peak_mib(), time.perf_counter()
    save(sink, state, Recent(), whole=True)
    return {"wall": time.perf_counter() - wall, "peak": peak_mib(), "before": before}


def commit_cycles(sink: Sink, versions: int, *, least: int) -> dict[str, float]:
    """The mean cost of a commit, `least` commits or more; locally from checkpoint to checkpoint."""
    whole_cycles = "://" not in sink.root
    counting = Counting(sink)
    log = ModelRegistry(counting)._log  # noqa: SLF001
    chance = random.Random(uuid.uuid4().int)
    models = max(versions // 10, 1)

    def commit() -> bool:
        """Whether a checkpoint was written along with it."""
        if not pending:
            number = chance.getrandbits(64)
            pending.extend(pull_of(number, models))
        counting.put_checkpoint = False
        log.commit([pending.pop(0)])
        return counting.put_checkpoint

    pending: list[dict[str, Any]] = []
    made, ended = 0, not whole_cycles
    while whole_cycles and not commit():
        pass
    wall, cpu = time.perf_counter(), time.process_time()
    while not (ended and made >= least):
        ended = commit() or not whole_cycles
        made += 1
    costs = [time.perf_counter() - wall, time.process_time() - cpu]
    return {"wall": costs[0] / made, "cpu": costs[1] / made, "made": made, "peak": peak_mib()}


def requests(sink: Sink, versions: int) -> dict[str, Any]:
    counting = Counting(sink)
    registry = ModelRegistry(counting)
    costs = {}
    for name, action in (
        ("cold open", registry.refresh),
        ("warm lookup", registry.refresh),
        ("commit", lambda: registry._log.commit(pull_of(10**9 + versions, 1)[:1])),  # noqa: SLF001
    ):
        counting.calls.clear()
        action()
        costs[name] = dict(sorted((kind, counting.calls.count(kind)) for kind in {*counting.calls}))
    return costs


class Counting(Sink):
    """Counts what is asked of a sink, and sees checkpoints go by."""

    type = "counting"

    def __init__(self, inner: Sink) -> None:
        super().__init__(None)
        self.inner = inner
        self.calls: list[str] = []
        self.put_checkpoint = False
        self._lock = threading.Lock()

    def _note(self, call: str) -> None:
        with self._lock:
            self.calls.append(call)

    @property
    def root(self) -> str:
        return self.inner.root

    def write(self, key: str, chunks: Any, *, size: int | None) -> None:
        self.inner.write(key, chunks, size=size)

    def create(self, key: str, data: bytes) -> None:
        self._note("create")
        self.inner.create(key, data)

    def put(self, key: str, data: bytes) -> None:
        self._note("put")
        self.put_checkpoint = self.put_checkpoint or key.startswith(".mm/snap/")
        self.inner.put(key, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Any]:
        self._note("read")
        return self.inner.read(key, start, end)

    def stat(self, key: str) -> Any:
        self._note("stat")
        return self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[Any]:
        self._note("list")
        return self.inner.list(prefix)

    def copy(self, source_key: str, key: str) -> None:
        self.inner.copy(source_key, key)

    def delete(self, keys: Any) -> None:
        self._note("delete")
        self.inner.delete(keys)

    def url(self, key: str) -> str:
        return self.inner.url(key)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


STEPS = {
    "build": build,
    "open": lambda sink, n: open_cold(sink, n, whole=False),
    "open-all": lambda sink, n: open_cold(sink, n, whole=True),
    "save": save_whole,
    "commits": lambda sink, n: commit_cycles(sink, n, least=256 if "://" in sink.root else 512),
    "requests": requests,
}


# -- the runs


def sink_at(root: str, *, durable: bool = True) -> Sink:
    plugins = Plugins.discover()
    if root.startswith("s3://"):
        s3 = plugins.sink_type("s3")
        return s3(s3.Config(root=root))
    local = plugins.sink_type("local")
    return local(local.Config(root=root, fsync=durable))


def in_a_process(step: str, root: str, versions: int, environment: dict[str, str]) -> Any:
    command = [
        sys.executable,
        __file__,
        "--step",
        step,
        "--root",
        root,
        "--versions",
        f"{versions}",
    ]
    done = subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True
    )
    return json.loads(done.stdout)


@contextlib.contextmanager
def store(name: str, work: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The root of an empty store, and what a process needs in its environment to use it."""
    if name == "local":
        yield str(Path(work, "store")), {}
        return
    from mm_core.testing.s3 import MinistackServer, S3Server

    with MinistackServer() if name == "ministack" else S3Server() as server:
        server.make_bucket("registry")
        yield "s3://registry/store", server.environment


def measure(name: str, versions: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work, store(name, work) as (root, environment):
        in_a_process("build", root, versions, environment)
        result: dict[str, Any] = {"store": name, "versions": versions}
        result["requests"] = in_a_process("requests", root, versions, environment)
        for step in ("open", "open-all"):
            runs = [in_a_process(step, root, versions, environment) for _ in range(rounds)]
            result[step] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            result[step]["range"] = [min(r["wall"] for r in runs), max(r["wall"] for r in runs)]
        result["save"] = in_a_process("save", root, versions, environment)
        runs = [in_a_process("commits", root, versions, environment) for _ in range(min(rounds, 3))]
        result["commits"] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        return result


def report(results: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(result["store"] for result in results):
        own = [result for result in results if result["store"] == name]
        print(f"\n{name}: medians; commits are begin or add of one version, all writes counted")
        print("| versions | open s (range) | + all rows s | peak MiB | commit ms wall | CPU |"
              " wall, to the smallest | CPU, to it | checkpoint s | peak MiB |")  # fmt: skip
        print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
        first = own[0]["commits"]
        for result in own:
            opened, rows, commits = result["open"], result["open-all"], result["commits"]
            low, high = opened["range"]
            print(
                f"| {result['versions']:,} | {opened['wall']:.3f} ({low:.3f} to {high:.3f}) "
                f"| {rows['wall']:.3f} | {rows['peak']:.0f} | {commits['wall'] * 1e3:.2f} "
                f"| {commits['cpu'] * 1e3:.2f} | {commits['wall'] / first['wall']:.2f} "
                f"| {commits['cpu'] / first['cpu']:.2f} | {result['save']['wall']:.2f} "
                f"| {max(result['save']['peak'], commits['peak']):.0f} |"
            )
        print(f"requests: {own[-1]['requests']}")
        if name in TARGETS:
            print(f"cold open of the largest: {own[-1]['open']['wall']:.2f} s, "
                  f"aim {TARGETS[name]} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--store", action="append", choices=["local", "ministack", "moto"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        sink = sink_at(options.root, durable=options.step != "build")
        print(json.dumps(STEPS[options.step](sink, options.versions[0])))
        return
    results = [
        measure(name, versions, options.rounds)
        for name in options.store or ["local"]
        for versions in options.versions
    ]
    report(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
