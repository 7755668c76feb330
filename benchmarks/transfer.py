"""The transfer engine against its limit and its peers, in turns on the same input.

    python benchmarks/transfer.py [--rounds N] [--scenario NAME]... [--size-mib M]
                                  [--json FILE] [--markdown FILE]

Starts its own origin (nginx) and stores, checks the bytes that every way
brought, and prints one table for each scenario. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from paired import native, peers, report
from paired.runner import Results, Runner
from paired.scenarios import Scenario, scenarios
from paired.ways import Tools


def main() -> None:
    options = _options()
    chosen = _chosen(scenarios(options.size_mib), options.scenario)
    if options.no_check:
        chosen = [scenario.unchecked() for scenario in chosen]
    if options.way:
        chosen = [scenario.only(options.way) for scenario in chosen]
    if options.list:
        for scenario in chosen:
            print(f"{scenario.name:18} {scenario.title}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and folders go away, too
    their = peers.install()
    about = report.machine(their)
    every: list[Results] = []
    with tempfile.TemporaryDirectory(prefix="mm-benchmark-", dir=options.work) as work:
        built = native.build(Path(work, "native"))
        tools = Tools(built, their, *([shlex.split(options.mm)] if options.mm else []))
        runner = Runner(Path(work), tools, dd_mib=8 * options.size_mib, seed=options.seed)
        for scenario in chosen:
            every.append(runner.run(scenario, options.rounds))
            print(report.as_table(every[-1]), end="\n\n", flush=True)
            _save(options, about, every)
    if any(results.failures for results in every):
        sys.exit("some ways failed: see above")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scenario", action="append", help="a name, or what names start with")
    parser.add_argument("--way", action="append", help="a part of a way's name, besides the limit")
    parser.add_argument("--size-mib", type=int, default=256, help="of a large file; all scale")
    parser.add_argument("--json", type=Path, help="write all figures of all rounds")
    parser.add_argument("--markdown", type=Path, help="write the report")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the ways")
    parser.add_argument("--no-check", action="store_true", help="leave the round of checks out")
    parser.add_argument("--mm", metavar="COMMAND", help="another mm than this interpreter's")
    parser.add_argument("--work", help="where the work folder is made; the temp folder by default")
    parser.add_argument("--list", action="store_true", help="name the scenarios, and stop")
    return parser.parse_args()


def _chosen(every: list[Scenario], wanted: list[str] | None) -> list[Scenario]:
    """`large` is that one; `wan` is all whose names start with ``wan-``."""
    if not wanted:
        return every
    names = {scenario.name for scenario in every}
    found = [
        scenario
        for scenario in every
        if any(
            scenario.name == name or (name not in names and scenario.name.startswith(f"{name}-"))
            for name in wanted
        )
    ]
    if not found:
        sys.exit(f"no such scenario; there are {', '.join(sorted(names))}")
    return found


def _save(options: argparse.Namespace, about: dict[str, object], every: list[Results]) -> None:
    """After each scenario, so that a run that is cut leaves what it measured."""
    if options.json:
        options.json.write_text(json.dumps(report.as_json(about, every), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.as_markdown(about, every))


if __name__ == "__main__":
    main()
