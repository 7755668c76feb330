"""What a short command costs, in CPU time, as a ratio to importing its two smallest libraries.

    python benchmarks/command_cost.py [ROUNDS]

Prints the median of each, with minimum and maximum, and the ratios. The runs
are interleaved, so that a change in the machine's state hits all of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile

BASELINE = "python -c 'import click, yaml'"


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    mm = shutil.which("mm", path=os.path.dirname(sys.executable)) or "mm"
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
        commands = {
            BASELINE: [sys.executable, "-c", "import click, yaml"],
            "mm --help": [mm, "--help"],
            "mm list (local, empty)": [mm, "list"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(cpu_seconds(command, environment))
    base = statistics.median(times[BASELINE])
    print(f"CPU ms over {rounds} interleaved rounds: median (min to max), ratio of medians")
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"({min(values) * 1e3:.0f} to {max(values) * 1e3:.0f})"
        print(f"{name:32} {middle * 1e3:6.0f} {spread:16} {middle / base:5.2f}")


if __name__ == "__main__":
    main()
