"""What it costs to ask a registry, cold, warm and brought forward, as it grows.

    python benchmarks/queries.py [--versions N ...] [--rounds N] [--json FILE]

For each size a local store is built as `benchmarks/registry.py` does (ten versions to
a model). Each question is put by a process of its own, by `ModelRegistry`, with the
imports left out; "no cache" loads the state, as a first command must, and makes no
file. Wall and CPU seconds, medians of the rounds. Nothing fails because of a figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import registry as building

from mm_core.registry import ModelRegistry
from mm_core.registry.queries import Query
from mm_plugins.sinks.local import LocalSink

NAME = "org-5/model-5"
QUESTIONS: dict[str, Callable[[ModelRegistry], Any]] = {
    "list --limit 20": lambda r: r.query(Query(limit=20)),
    "list --filter size>1GB --sort size:desc --limit 20": lambda r: r.query(
        Query.parse("size>1GB", sort="size:desc", limit=20)
    ),
    "list, all": lambda r: r.query(Query()),
    "search model-77 apache --limit 20": lambda r: r.query(
        Query.parse(text="model-77 apache", limit=20)
    ),
    "du --limit 20": lambda r: r.reading().usage(Query(limit=20)),
    "url of one name": lambda r: r.resolve(NAME),
    "list --as-of (1 commit back) --limit 20": lambda r: r.reading(
        as_of=r.reading(offline=True).freshness.commit - 1  # type: ignore[union-attr]
    ).query(Query(limit=20)),
}


def open_(folder: Path, *, cache: bool) -> ModelRegistry:
    sink = LocalSink(LocalSink.Config(root=str(folder / "store")))
    return ModelRegistry(sink, cache=folder / "cache" if cache else None)


def ask(folder: Path, question: str, *, cache: bool) -> dict[str, float]:
    registry = open_(folder, cache=cache)
    wall, cpu = time.perf_counter(), time.process_time()
    QUESTIONS[question](registry)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": peak_mib(),
    }


def peak_mib() -> float:
    """The most that this process ever held; not what its parent did."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def in_process(folder: Path, question: str, how: str) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, __file__, "--ask", question, "--folder", str(folder), "--how", how],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def measure(versions: int, rounds: int, folder: Path) -> dict[str, Any]:
    sink = LocalSink(LocalSink.Config(root=str(folder / "store")))
    building.build(sink, versions)
    found: dict[str, Any] = {}
    first = in_process(folder, "list --limit 20", "cached")
    found["the first command, cache made"] = first
    size = sum(path.stat().st_size for path in (folder / "cache").glob("*.sqlite3"))
    for question in QUESTIONS:
        found[question] = medians([in_process(folder, question, "cached") for _ in range(rounds)])
    for question in ("list --limit 20", "url of one name"):
        found[f"{question}, no cache"] = in_process(folder, question, "plain")
    state = ModelRegistry(sink).state()
    for number in range(100):
        state = building.append(sink, state, building.pull_of(versions + number, versions // 10))
    found["url of one name, 100 commits later"] = in_process(folder, "url of one name", "cached")
    return {"versions": versions, "cache_mib": size / 2**20, "questions": found}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['versions']:,} versions; the cache has {result['cache_mib']:.1f} MiB\n")
    print("| question | wall s | CPU s | peak MiB |\n|---|---:|---:|---:|")
    for question, found in result["questions"].items():
        print(
            f"| `{question}` | {found['wall']:.3f} | {found['cpu']:.3f} | {found['peak']:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ask", choices=QUESTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="cached", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        print(json.dumps(ask(given.folder, given.ask, cache=given.how == "cached")))
        return
    results = []
    for versions in given.versions:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(versions, given.rounds, Path(folder)))
        show(results[-1])
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
