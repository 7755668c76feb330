"""The tables."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from paired.measure import Usage
from paired.peers import Peers
from paired.runner import Results, gigabytes
from paired.ways import HF, HF_AWS

OURS = ("model-manager", "fsspec", "s3fs", "obstore", "huggingface_hub", "hf-xet", "urllib3")

HOW_TO_READ = (
    "Wall time is the median (minimum to maximum), from the start of the process to its end; "
    "GB are 10^9 bytes; the CPU of origin and store is not counted; peak is the largest process "
    "(about 30 MiB is the least that can be seen); disk is what the way wrote to a disk, its "
    "result included. Xet is off (HF_HUB_DISABLE_XET=1) but for the scenario of that name; "
    "payloads are unsigned but where it says signed."
)


def machine(peers: Peers) -> dict[str, Any]:
    """Where and when it was measured, and with what."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(pages * page / 2**30),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "nginx": _first_line("nginx", "-v"),
        "ours": dict(_versions()),
        "peers": peers.versions(),
    }


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "absent"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _versions() -> Iterator[tuple[str, str]]:
    for name in OURS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def as_json(about: Mapping[str, Any], every: Sequence[Results]) -> dict[str, Any]:
    """All figures of all rounds."""
    return {
        "machine": dict(about),
        "scenarios": [
            {
                "name": results.scenario.name,
                "title": results.scenario.title,
                "bytes": results.size,
                "bytes_checked": results.checked,
                "dd_mib": results.dd_mib,
                "dd_seconds": results.dd_seconds,
                "failures": results.failures,
                "connections": results.connections,
                "ways": {
                    name: [dataclasses.asdict(usage) for usage in usages]
                    for name, usages in results.usages.items()
                },
            }
            for results in every
        ],
    }


def as_markdown(about: Mapping[str, Any], every: Sequence[Results]) -> str:
    """The report: a paragraph about the machine, then a table for each scenario."""
    ours = ", ".join(f"{name} {version}" for name, version in about["ours"].items())
    theirs = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    head = (
        f"Measured on {about['date']}: {about['cpu']}, {about['cores']} cores, "
        f"{about['memory_gib']} GiB, Linux {about['kernel']}, Python {about['python']}, "
        f"{about['nginx']} (load before the start: {about['load']:.1f}).\n\n"
        f"Ours: {ours}. Peers: {theirs}.\n\n{HOW_TO_READ}"
    )
    return "\n\n".join([head, *(as_table(results) for results in every)]) + "\n"


def as_table(results: Results) -> str:
    """One scenario."""
    shape = results.scenario.shape
    names = [
        "way",
        "wall s",
        "x limit",
        _against(results),
        _cpu_unit(results),
        "peak MiB",
        "disk MiB",
    ]
    names += ["share of the line", "connections"] if shape else []
    rows = [_row(results, name, usages) for name, usages in results.usages.items() if usages]
    lines = [
        f"### {results.scenario.name}: {results.scenario.title}",
        "",
        _cells(names),
        _cells(["---", *["---:"] * (len(names) - 1)]),
        *(_cells(row) for row in rows),
        "",
        f"Limited by: {results.scenario.limited_by}",
        _footer(results),
        *(
            f"FAILED: {name}: {error.strip().splitlines()[-1]}"
            for name, error in results.failures.items()
        ),
    ]
    return "\n".join(lines)


def _row(results: Results, name: str, usages: Sequence[Usage]) -> list[str]:
    walls = [usage.wall for usage in usages]
    wall = statistics.median(walls)
    cpu = statistics.median(usage.cpu for usage in usages)
    if not _is_tiny(results):
        cpu /= gigabytes(results)
    peak = max(usage.peak_mib for usage in usages)
    disk = statistics.median(usage.disk_mib for usage in usages)
    row = [name, f"{wall:.2f} ({min(walls):.2f} to {max(walls):.2f})"]
    row += [
        _ratio(wall, _median(results, results.scenario.ways[0].name)),
        _ratio(_median(results, _rival(results)), wall),
    ]
    row += [f"{cpu:.2f}", f"{peak:.0f}", f"{disk:.0f}"]
    if results.scenario.shape:
        row += [f"{results.scenario.shape.seconds(results.size) / wall:.2f}"]
        row += [str(max(results.connections[name]))]
    return row


def _is_tiny(results: Results) -> bool:
    return results.size < 1 << 20


def _cpu_unit(results: Results) -> str:
    return "CPU s" if _is_tiny(results) else "CPU s/GB"


def _rival(results: Results) -> str:
    return HF_AWS.name if HF_AWS.name in results.usages else HF.name


def _against(results: Results) -> str:
    return "faster than hf + aws" if _rival(results) == HF_AWS.name else "faster than hf"


def _median(results: Results, name: str) -> float | None:
    usages = results.usages.get(name)
    return statistics.median(usage.wall for usage in usages) if usages else None


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else "-"


def _footer(results: Results) -> str:
    rounds = max(len(usages) for usages in results.usages.values())
    checked = "bytes checked for every way" if results.checked else "bytes not checked here"
    control = ""
    if results.dd_seconds:
        middle, least, most = (
            statistics.median(results.dd_seconds),
            min(results.dd_seconds),
            max(results.dd_seconds),
        )
        control = f"; dd of {results.dd_mib} MiB: {middle:.2f} s ({least:.2f} to {most:.2f})"
    return f"Rounds: {rounds}, in shuffled order; {checked}{control}."


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
