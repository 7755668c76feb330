"""What a short command costs, in CPU time, as a ratio to `mm --help` and to two small imports.

    python benchmarks/command_cost.py [ROUNDS] [MODELS]

Prints the median of each, with minimum and maximum, and the ratios. The runs
are interleaved, so that a change in the machine's state hits all of them. The
local backend has MODELS models (200); each command ran once before it is measured.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mm_core import ModelEntry, ModelRegistry, Plugins

BASELINE = "python -c 'import click, yaml'"
HELP = "mm --help"


def cpu_seconds(command: list[str], environment: dict[str, str], folder: str) -> float:
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def fill(root: Path, models: int) -> None:
    kind = Plugins.discover().sink_type("local")
    registry = ModelRegistry(kind(kind.Config(root=str(root), fsync=False)))
    for number in range(models):
        model = ModelEntry(model_id=f"org/model-{number}", version="1", path=f"/models/{number}")
        registry.add_model(model)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    models = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    mm = shutil.which("mm", path=os.path.dirname(sys.executable)) or "mm"
    with tempfile.TemporaryDirectory() as home:
        places = ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
        environment = os.environ | {name: f"{home}/{name.lower()}" for name in places}
        fill(Path(home, "store"), models)
        Path(home, "mm.yaml").write_text("backends: {local: {type: local, root: ./store}}\n")
        commands = {
            BASELINE: [sys.executable, "-c", "import click, yaml"],
            HELP: [mm, "--help"],
            "mm list --limit 20": [mm, "list", "--limit", "20"],
            "mm url": [mm, "url", "org/model-7"],
            "mm history --limit 20": [mm, "history", "--limit", "20"],
            "mm list, nothing remembered": ["env", "MM_CACHE=off", mm, "list", "--limit", "20"],
        }
        for command in commands.values():
            cpu_seconds(command, environment, home)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(cpu_seconds(command, environment, home))
    report(times, rounds, models)


def report(times: dict[str, list[float]], rounds: int, models: int) -> None:
    base, help_ = statistics.median(times[BASELINE]), statistics.median(times[HELP])
    print(f"CPU ms over {rounds} interleaved rounds, {models} models in a local backend:")
    print("median (min to max), ratio of medians to the first and to the second")
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"({min(values) * 1e3:.0f} to {max(values) * 1e3:.0f})"
        ratios = f"{middle / base:5.2f} {middle / help_:5.2f}"
        print(f"{name:32} {middle * 1e3:6.0f} {spread:16} {ratios}")


if __name__ == "__main__":
    main()
