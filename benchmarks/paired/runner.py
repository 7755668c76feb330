"""Run a scenario: servers up, bytes checked once, then rounds of all ways in shuffled order."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from paired import servers
from paired.checks import WrongBytesError, check_folder, check_store
from paired.inputs import Repo, make_repo
from paired.measure import CommandError, Usage, run
from paired.scenarios import LOCAL, NOTHING, WEED, Scenario, Shape
from paired.servers import Certificate
from paired.ways import Tools, Trip, Way


@dataclass
class Results:
    """All that was measured of one scenario."""

    scenario: Scenario
    size: int
    dd_mib: int
    usages: dict[str, list[Usage]] = field(default_factory=dict)
    dd_seconds: list[float] = field(default_factory=list)
    connections: dict[str, list[int]] = field(default_factory=dict)
    checked: bool = False
    failures: dict[str, str] = field(default_factory=dict)


class Runner:
    """Runs scenarios in a work folder. Inputs of the same sizes are made once."""

    def __init__(self, work: Path, tools: Tools, *, dd_mib: int, seed: int) -> None:
        self._work = work
        self._dd_mib = dd_mib
        self._tools = tools
        self._random = random.Random(seed)
        self._certificate: Certificate | None = None
        self._repos: dict[tuple[object, ...], Repo] = {}
        self._trips = 0

    def run(self, scenario: Scenario, rounds: int) -> Results:
        """Measure every way `rounds` times, in turns."""
        with self._origin(scenario) as start:
            results = Results(scenario, start.repo.size, self._dd_mib)
            results.usages = {way.name: [] for way in scenario.ways}
            if scenario.checked:
                self._check(start, results)
            for turn in range(min(rounds, scenario.most_rounds)):
                _say(f"{scenario.name}: round {turn + 1}")
                self._round(replace(start, jobs=scenario.jobs), results)
        return results

    @contextmanager
    def _origin(self, scenario: Scenario) -> Iterator[Trip]:
        """The origin of a scenario, up, and all that its trips have in common."""
        folder = self._fresh("origin")
        start = Trip(tools=self._tools, scratch=folder, by_ranges=scenario.by_ranges)
        if scenario.store == NOTHING:
            with servers.xet_hub(folder, sum(scenario.sizes)) as (hub, repo, xet_hash):
                yield replace(start, hub=hub, repo=repo, xet_hash=xet_hash)
            shutil.rmtree(folder)
            return
        repo = self._repo(scenario)
        certificate = self._certify() if scenario.tls else None
        with servers.origin(folder, self._work / "repos", [repo], certificate) as hub:
            yield replace(start, hub=hub, repo=repo, certificate=certificate)

    def _round(self, start: Trip, results: Results) -> None:
        """All ways once, into a fresh store."""
        results.dd_seconds.append(self._dd())
        ways = results.scenario.ways
        with self._store(results.scenario, start.certificate, keep=False) as store:
            for way in self._random.sample(ways, len(ways)):
                trip = self._trip(replace(start, store=store))
                with self._noting_failure(results, way, trip):
                    self._measure(way, trip, results)

    def _measure(self, way: Way, trip: Trip, results: Results) -> None:
        with self._lines(results.scenario.shape, trip) as (shaped, lines):
            usage = self._go(way, shaped)
        results.usages[way.name].append(usage)
        if lines:
            most = max(line.connections for line in lines)
            results.connections.setdefault(way.name, []).append(most)
        _say(f"  {way.name:36} {usage.wall:8.2f} s")

    def _check(self, start: Trip, results: Results) -> None:
        scenario = results.scenario
        with self._store(scenario, start.certificate, keep=True) as store:
            for way in scenario.ways:
                _say(f"{scenario.name}: check the bytes of {way.name}")
                trip = self._trip(replace(start, store=store))
                with self._noting_failure(results, way, trip):
                    self._go(way, trip)
                    if store is None:
                        check_folder(trip.repo, trip.to)
                    else:
                        check_store(trip.repo, store, trip.prefix, trip.certificate)
        results.checked = True

    @contextmanager
    def _noting_failure(self, results: Results, way: Way, trip: Trip) -> Iterator[None]:
        """One way that fails does not take the others' figures along. Cleans up in any case."""
        try:
            yield
        except (CommandError, WrongBytesError) as error:
            _say(f"  {way.name} failed: {error}")
            results.failures[way.name] = str(error)
        finally:
            _settle(trip)

    def _go(self, way: Way, trip: Trip) -> Usage:
        environment = trip.environment()
        return run(way.commands(trip), environment, trip.scratch / "log.txt")

    def _trip(self, start: Trip) -> Trip:
        scratch = self._fresh("trip")
        scratch.mkdir()
        return replace(start, scratch=scratch, prefix=scratch.name)

    @contextmanager
    def _store(
        self, scenario: Scenario, certificate: Certificate | None, *, keep: bool
    ) -> Iterator[str | None]:
        if scenario.store in (LOCAL, NOTHING):
            yield None
        elif scenario.store == WEED:
            folder = self._fresh("weed")
            with servers.seaweed(Path(self._tools.peers.command("weed")), folder) as url:
                yield url
            shutil.rmtree(folder)
        else:
            binary, log = self._tools.native.nullstore, self._work / "nullstore.log"
            with servers.null_store(binary, log, keep=keep, certificate=certificate) as url:
                yield url

    @contextmanager
    def _lines(self, shape: Shape | None, trip: Trip) -> Iterator[tuple[Trip, list[servers.Line]]]:
        if shape is None:
            yield trip, []
            return
        with ExitStack() as stack:

            def line(to: str) -> servers.Line:
                log = self._work / "shape.log"
                return stack.enter_context(
                    servers.line(
                        self._tools.native.shape,
                        to,
                        log,
                        rtt_ms=shape.rtt_ms,
                        mbit=shape.mbit,
                        most=shape.connections,
                    )
                )

            lines = [line(trip.hub)]
            trip = replace(trip, hub=lines[0].url)
            if shape.to_store and trip.store:
                lines.append(line(trip.store))
                trip = replace(trip, store=lines[1].url)
            yield trip, lines

    def _repo(self, scenario: Scenario) -> Repo:
        key = (scenario.sizes, scenario.sparse)
        if key not in self._repos:
            _say(f"{scenario.name}: make the input")
            name = f"repo{len(self._repos) + 1}"
            self._repos[key] = make_repo(
                self._work / "repos", name, list(scenario.sizes), sparse=scenario.sparse
            )
        return self._repos[key]

    def _certify(self) -> Certificate:
        if self._certificate is None:
            self._certificate = servers.make_certificate(self._work)
        return self._certificate

    def _fresh(self, kind: str) -> Path:
        self._trips += 1
        return self._work / f"{kind}-{self._trips}"

    def _dd(self) -> float:
        """How long a new file takes now: what the machine's state does to all that stage."""
        target = self._work / "dd"
        command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={self._dd_mib}"]
        seconds = run([command], os.environ, self._work / "dd.log").wall
        target.unlink()
        return seconds


def gigabytes(results: Results) -> float:
    """What was pulled, in units of 10^9 bytes."""
    return results.size / 1e9


def _settle(trip: Trip) -> None:
    """Leave nothing for the next one to pay: no file, and no page on its way to the disk."""
    shutil.rmtree(trip.scratch)
    os.sync()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
