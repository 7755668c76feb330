"""Many processes write to one registry at once, are cut off and killed; then everything is counted.

Each process carries out steps (register, begin, add, alias, swap, remove, sweep, swept, abandon)
and notes in a journal of its own what it is about to do and what was acknowledged. One that was
killed is started again, and does the step again that it does not know the end of. Afterwards the
log is read by `PlainRegistry`, which allows no step twice, and compared with the journals::

    report = raise_storm(Storm(root="s3://bucket/prefix", journals=folder, processes=16))
    check_store(sink, report)

Needs an operating system with ``fork``.
"""

from __future__ import annotations

import gzip
import multiprocessing
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_core.exceptions import ConflictError, NotFoundError, TransientError
from mm_core.plugins import Plugins
from mm_core.registry import Claim, ModelRegistry
from mm_core.registry.log import Log
from mm_core.schemas import ModelStatus
from mm_core.sink import Sink, read_bytes
from mm_core.testing.clocks import wrong_clock
from mm_core.testing.plain import PlainRegistry, rows_of
from mm_core.testing.registry import FaultySink, manifest_for, registered

MODELS = 4
STEPS = (
    ("register", "other"),
    ("begin", "pulled"),
    ("add", "pulled"),
    ("alias", "pulled"),
    ("swap", "pulled"),
    ("remove", "other"),
    ("sweep", "other"),
    ("swept", "other"),
    ("begin", "failed"),
    ("abandon", "failed"),
)
"""What a process does, over and over, and to which of its versions; each is one commit."""

_HEAVY = ("s3fs", "gcsfs")
"""What takes long to import is so once, for all processes."""

_LOG = ".mm/log/"
_SNAP = ".mm/snap/"
_TAIL = ".mm/tail/"
_FORMAT = ".mm/format.json"
_HINT = ".mm/hint.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What shall happen to the store at `root`.

    Each of `processes` makes `commits` commits. Of the calls to the store, the share
    `rate` fails, half of these after they took effect (for stores without a
    `FaultProxy` before them). `kills` times some process is killed, at moments
    spread over the whole. `environment` is what the store's client needs. `clocks` are
    by how many years the processes' clocks are wrong, in turn.
    """

    root: str
    journals: Path
    processes: int = 4
    commits: int = 22
    rate: float = 0.0
    kills: int = 0
    seed: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    clocks: tuple[float, ...] = (0,)
    timeout: float = 300.0
    """Seconds within which all must be done; also of a commit."""


@dataclass(slots=True)
class Report:
    """What came of it. `done` are the acknowledged steps, by process and number."""

    done: list[tuple[int, int]] = field(default_factory=list)
    kills: int = 0
    repeats: int = 0
    seconds: float = 0.0
    commits: int = 0
    checkpoints: int = 0
    packs: int = 0

    def __str__(self) -> str:
        return (
            f"{len(self.done)} steps acknowledged, {self.commits} commits, {self.repeats} steps "
            f"done again, {self.checkpoints} checkpoints, {self.packs} packs, {self.kills} kills, "
            f"{self.seconds:.1f} s"
        )


def raise_storm(storm: Storm) -> Report:
    """Let it happen. `AssertionError` if a process ends otherwise than done or killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_HEAVY])
    started = time.monotonic()
    crew = _Crew(storm, context)
    try:
        kills = crew.run(started + storm.timeout)
    finally:
        crew.end()
    report = Report(kills=kills, seconds=time.monotonic() - started)
    for number in range(storm.processes):
        entries = _Journal(storm.journals, number).entries()
        report.done += [(number, step) for step in entries.done]
        report.repeats += entries.tries - len(entries.done)
    return report


def check_store(sink: Sink, report: Report) -> PlainRegistry:
    """Raise `AssertionError` unless nothing was lost, doubled or damaged.

    The log is contiguous, and a history that the rules allow; every acknowledged
    step is in it once; every checkpoint is equal to the log up to it; a new client
    sees what the rules say. `sink` must not fail.
    """
    commits = _commits(sink)
    plain = PlainRegistry()
    operations = [operation for data in commits for operation in plain.commit(data)]
    report.commits = len(commits)
    _check_done(operations, report)
    _check_checkpoints(sink, commits, report)
    registry = ModelRegistry(sink)
    assert rows_of(registry) == plain.rows()
    assert len(registry.history()) == len(commits)
    return plain


# -- one process


def work(storm: Storm, number: int) -> None:
    """Carry out the steps of process `number` that its journal does not know as done."""
    os.environ.update(storm.environment)
    with wrong_clock(storm.clocks[number % len(storm.clocks)]):
        _work(storm, number)


def _work(storm: Storm, number: int) -> None:
    journal = _Journal(storm.journals, number)
    sink_type = Plugins.discover().sink_for(storm.root)
    sink = sink_type(sink_type.Config(root=storm.root))
    if storm.rate:
        sink = FaultySink(sink, rate=storm.rate, seed=storm.seed * 1000 + number)
    registry = ModelRegistry(
        sink, writer=f"storm-{number}", claim_timeout=3600, commit_timeout=storm.timeout
    )
    worker = _Worker(registry, number)
    entries = journal.entries()
    for step in range(len(entries.done), storm.commits):
        doubtful = step in entries.tried
        while True:
            journal.note("try", step)
            try:
                worker.carry_out(step, doubtful=doubtful)
            except TransientError:
                doubtful = True
            else:
                break
        journal.note("done", step)


class _Worker:
    """The steps of one process, each safe to do again when it is `doubtful`."""

    def __init__(self, registry: ModelRegistry, number: int) -> None:
        self._registry = registry
        self._number = number
        self._model = f"org/model-{number % MODELS}"
        self._claims: dict[str, Claim] = {}

    def carry_out(self, step: int, *, doubtful: bool) -> None:
        name, version = _step(self._number, step)
        getattr(self, f"_{name}")(version, doubtful)

    def _register(self, version: str, doubtful: bool) -> None:
        added = self._registry.add_model(registered(self._model, version))
        assert added or doubtful, f"{version} was there before"

    def _begin(self, version: str, doubtful: bool) -> None:
        claim = self._registry.begin(self._model, version)
        assert isinstance(claim, Claim), f"{version} was there before"
        self._claims[version] = claim

    def _add(self, version: str, doubtful: bool) -> None:
        claim = self._claim(version)
        if claim is not None:
            self._registry.add(claim, manifest_for(claim), aliases=["prod"])

    def _abandon(self, version: str, doubtful: bool) -> None:
        entry = self._registry.get_model(self._model, version)
        if entry is None or entry.status is not ModelStatus.FAILED:
            claim = self._claim(version)
            assert claim is not None
            self._registry.abandon(claim, "the storm said so")

    def _alias(self, version: str, doubtful: bool) -> None:
        self._registry.set_alias(self._model, "stable", version)

    def _swap(self, version: str, doubtful: bool) -> None:
        while True:
            held = self._registry.aliases(self._model).get(self._model, {}).get("turn")
            with suppress(ConflictError):
                self._registry.set_alias(self._model, "turn", version, expect=held)
                return

    def _remove(self, version: str, doubtful: bool) -> None:
        try:
            self._registry.remove(self._model, version)
        except NotFoundError:
            assert doubtful, f"{version} was removed before"

    def _sweep(self, version: str, doubtful: bool) -> None:
        self._registry.sweep(self._model, version)

    def _swept(self, version: str, doubtful: bool) -> None:
        try:
            self._registry.swept(self._model, version)
        except NotFoundError:
            assert doubtful, f"{version} was swept before"

    def _claim(self, version: str) -> Claim | None:
        """The claim on a version; one that died with a killed process is taken over."""
        if version not in self._claims:
            begun = self._registry.begin(self._model, version)
            if not isinstance(begun, Claim):
                return None
            self._claims[version] = begun
        return self._claims[version]


def _step(process: int, step: int) -> tuple[str, str]:
    """What a process does as its step of that number, and to which version."""
    name, kind = STEPS[step % len(STEPS)]
    return name, f"{kind}-{process}.{step // len(STEPS)}"


@dataclass(frozen=True, slots=True)
class _Entries:
    tried: frozenset[int]
    tries: int
    done: list[int]


class _Journal:
    """What one process tried and what was acknowledged, line by line; a kill loses none."""

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"{number}.journal"

    def note(self, word: str, step: int) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{word} {step}\n".encode())

    def entries(self) -> _Entries:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        pairs = [line.split() for line in lines]
        return _Entries(
            tried=frozenset(int(step) for word, step in pairs if word == "try"),
            tries=sum(word == "try" for word, _ in pairs),
            done=[int(step) for word, step in pairs if word == "done"],
        )

    def length(self) -> int:
        """Bytes of it: how far the process is."""
        return self._path.stat().st_size if self._path.exists() else 0


# -- all processes


class _Crew:
    """The processes; who is killed is started again."""

    def __init__(self, storm: Storm, context: Any) -> None:
        self._storm = storm
        self._context = context
        self._dice = random.Random(storm.seed)
        self._running = {number: self._start(number) for number in range(storm.processes)}

    def run(self, deadline: float) -> int:
        """Until all is done; how many were killed."""
        kills = 0
        while self._running:
            assert time.monotonic() < deadline, "the storm took too long"
            for number, process in list(self._running.items()):
                if process.exitcode is not None:
                    assert process.exitcode == 0, f"process {number} ended with {process.exitcode}"
                    del self._running[number]
            if kills < self._storm.kills and self._progress() >= self._due(kills):
                kills += self._kill()
            time.sleep(0.005)
        return kills

    def end(self) -> None:
        for process in self._running.values():
            process.kill()
            process.join()

    def _start(self, number: int) -> Any:
        process = self._context.Process(target=work, args=(self._storm, number), daemon=True)
        process.start()
        return process

    def _progress(self) -> float:
        """From 0 to 1, by the length of the journals."""
        storm = self._storm
        length = sum(_Journal(storm.journals, n).length() for n in range(storm.processes))
        return length / (len("try 10\ndone 10\n") * storm.processes * storm.commits)

    def _due(self, kills: int) -> float:
        return 0.95 * (kills + 0.5) / self._storm.kills

    def _kill(self) -> int:
        """Kill somebody at some moment, and start it again; 0 if it was done by then."""
        number = self._dice.choice(sorted(self._running)) if self._running else None
        if number is None:
            return 0
        victim = self._running[number]
        time.sleep(self._dice.uniform(0, 0.03))
        with suppress(ProcessLookupError):  # it was done by then
            os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        self._running[number] = self._start(number)
        return int(victim.exitcode == -signal.SIGKILL)


# -- afterwards


def _commits(sink: Sink) -> list[bytes]:
    keys = [found.key for found in sink.list(_LOG)]
    assert keys == [f"{_LOG}{seq:012d}.json" for seq in range(1, len(keys) + 1)], "there is a gap"
    return [read_bytes(sink, key) for key in keys]


def _check_done(operations: list[Mapping[str, Any]], report: Report) -> None:
    """Every acknowledged step is in the log, and once, as `PlainRegistry` has seen to, too."""
    counted = Counter((o["op"], o.get("version")) for o in operations)
    for process, step in report.done:
        name, version = _step(process, step)
        op = "alias" if name == "swap" else name
        assert counted[op, version], f"{op} of {version} was acknowledged, and is lost"
        if op in ("register", "add", "remove", "swept"):
            assert counted[op, version] == 1, f"{op} of {version} was done twice"
    if not report.kills and not report.repeats:
        assert report.commits == len(report.done), "there are commits that nobody asked for"


def _check_checkpoints(sink: Sink, commits: list[bytes], report: Report) -> None:
    """Each checkpoint, and each pack of commits, must say what the log up to it says.

    A checkpoint is loaded from a store that holds nothing before it.
    """
    memory = Plugins.discover().sink_type("memory")

    def store() -> Sink:
        made = memory(memory.Config(root=f"memory://{uuid.uuid4().hex}"))
        made.put(_FORMAT, read_bytes(sink, _FORMAT))
        return made

    replayed = store()
    log, seq = Log(replayed, timeout=60, writer="storm"), 0
    for found in sink.list(_SNAP):
        number = int(found.key.removeprefix(_SNAP)[:12])
        for later in range(seq + 1, number + 1):
            replayed.put(f"{_LOG}{later:012d}.json", commits[later - 1])
        seq = max(seq, number)
        assert number == seq, "checkpoints are listed in order"
        alone = store()
        alone.put(found.key, read_bytes(sink, found.key))
        alone.put(_HINT, b"lost: look for a checkpoint by listing")
        alone.put(f"{_LOG}{number:012d}.json", commits[number - 1])
        loaded = Log(alone, timeout=60, writer="storm").refresh()
        assert loaded.to_json() == log.refresh().to_json(), f"{found.key} is not what the log says"
        report.checkpoints += 1
    for found in sink.list(_TAIL):
        first, last = (int(part) for part in found.key.removeprefix(_TAIL).split("-")[:2])
        packed = gzip.decompress(read_bytes(sink, found.key)).split(b"\n")[:-1]
        assert packed == commits[first - 1 : last], f"{found.key} is not what the log says"
        report.packs += 1
