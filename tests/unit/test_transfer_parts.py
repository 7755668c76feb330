"""Large files in parts: parallel ranges, one budget, resume, and every way it can end."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_core import (
    CancelledError,
    IntegrityError,
    RemoteFile,
    Request,
    ResumableSink,
    Snapshot,
    Source,
    SourceChangedError,
    StorageError,
    TransientError,
    UnfinishedUpload,
    Upload,
    UploadLostError,
    UsageError,
)
from mm_core.manifests import bytes_by_action
from mm_core.planning import make_plan
from mm_core.sink import read_bytes
from mm_core.transfer import RateLimit, TransferOptions, engine, transfer
from mm_core.transfer import parts as engine_parts
from mm_core.transfer.buffers import Buffers
from mm_core.transfer.connections import Connections
from mm_core.transfer.retry import RetryPolicy
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

PART = 1000
NO_WAIT = RetryPolicy(retries=3, base=0.0)


class RangeSource(Source):
    """Serves `files` in ranges. `turns` maps a path to what happens at each open, in turn."""

    type = "ranges"

    def __init__(self, files, *, splits=True, seed=None, turns=None, hashed=True):
        super().__init__()
        self.files = files
        self.opened: list[tuple[str, int, int]] = []
        self.fetched = 0
        self.most_at_once = 0
        self.turns = turns or {}
        self._splits = splits
        self._hashed = hashed
        self._random = None if seed is None else random.Random(seed)
        self._open_now = 0
        self._lock = threading.Lock()

    def snapshot(self, request: Request) -> Snapshot:
        return Snapshot(
            source="ranges://m",
            revision="r",
            model_id="m",
            files=tuple(
                RemoteFile(
                    path=path,
                    size=len(data),
                    sha256=hashlib.sha256(data).hexdigest() if self._hashed else None,
                )
                for path, data in self.files.items()
            ),
        )

    def splits(self, file: RemoteFile) -> bool:
        return self._splits

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        data = self.files[file.path][start:end]
        with self._lock:
            self.opened.append((file.path, start, start + len(data)))
            self._open_now += 1
            self.most_at_once = max(self.most_at_once, self._open_now)
            turn = self.turns.get(file.path, [])
            after, error = turn.pop(0) if turn else (None, None)
        try:
            for position in range(0, len(data), 300):
                piece = data[position : position + 300]
                if after is not None and position + len(piece) > after:
                    yield data[position:after]
                    if error is not None:
                        raise error
                    return
                with self._lock:
                    self.fetched += len(piece)
                if self._random is not None:
                    time.sleep(self._random.random() * 0.002)
                yield piece
        finally:
            with self._lock:
                self._open_now -= 1


class PartSink(MemorySink, ResumableSink):
    """Parts of 1,000 bytes in a dictionary; `faults` is called before each part is stored."""

    def __init__(self, name, *, readable, faults=None, commit_faults=None):
        super().__init__(MemorySink.Config(root=f"memory://{name}"))
        self.readable = readable
        self.kept: dict[str, tuple[int, dict[int, bytes]]] = {}
        self.faults = faults or (lambda _number: None)
        self.commit_faults = commit_faults or []
        self.ended: list[str] = []
        self.written: list[int] = []

    def begin_upload(self, key, *, size, identity):
        if size <= PART:
            return None
        old_size, parts = self.kept.pop(key, (size, {}))
        return PartUpload(self, key, size, parts if identity and old_size == size else {})

    def unfinished(self, prefix) -> Iterator[UnfinishedUpload]:
        raise NotImplementedError

    def discard_unfinished(self, upload) -> bool:
        raise NotImplementedError


class PartUpload(Upload):
    part_size = PART

    def __init__(self, sink, key, size, parts):
        self.size = size
        self.kept = frozenset(parts)
        self.readable = sink.readable
        self._sink = sink
        self._key = key
        self._parts = dict(parts)
        self._open = True

    def write_part(self, number, data):
        assert self._open, "nobody may touch an upload that has ended"
        self._sink.faults(number)
        assert len(data) == min(PART, self.size - number * PART)
        self._parts[number] = bytes(data)
        self._sink.written.append(number)

    def read_part(self, number, buffer):
        if len(self._parts[number]) != len(buffer):
            raise TransientError("it is short")
        buffer[:] = self._parts[number]

    def commit(self):
        if self._sink.commit_faults:
            raise self._sink.commit_faults.pop(0)
        assert set(self._parts) == set(range(-(-self.size // PART)))
        self._end("commit")
        self._sink.put(self._key, b"".join(self._parts[n] for n in sorted(self._parts)))

    def keep(self):
        self._end("keep")
        self._sink.kept[self._key] = (self.size, self._parts)

    def discard(self):
        self._end("discard")

    def _end(self, how):
        assert self._open
        self._open = False
        self._sink.ended.append(how)


@pytest.fixture(params=[True, False], ids=["readable", "unreadable"])
def readable(request):
    return request.param


@pytest.fixture
def make_sink(request):
    return lambda readable=True, **more: PartSink(request.node.name, readable=readable, **more)


def run(source, sink, *, connections=4, memory=64 * PART, jobs=4, **options):
    events = []
    request = Request(url="ranges://m")
    plan = make_plan(request, source.snapshot(request), present={}, known={})
    cancelled, more = options.pop("cancelled", None), options.pop("on_event", lambda _event: None)

    def note(event):
        events.append(event)
        more(event)

    stored = transfer(
        plan,
        source,
        sink,
        options=TransferOptions(
            jobs=jobs, connections=connections, memory=memory, retry=NO_WAIT, **options
        ),
        on_event=note,
        cancelled=cancelled,
    )
    return stored, events


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def stands(sink, source):
    return {path: read_bytes(sink, f"models/m/r/{path}") for path in source.files} == source.files


@pytest.mark.parametrize("size", [PART + 1, 2 * PART, 64_321])
def test_a_file_is_read_in_parallel_ranges_that_cover_it_once(make_sink, size):
    source, sink = RangeSource({"w": noise(size)}, seed=1), make_sink()
    (stored,), _ = run(source, sink)
    assert stands(sink, source)
    assert stored.sha256 == hashlib.sha256(source.files["w"]).hexdigest()
    assert source.fetched == size
    ranges = sorted((start, end) for _, start, end in source.opened)
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    if size > 10 * PART:
        assert 2 <= source.most_at_once <= 4
    assert sink.ended == ["commit"]


def test_a_source_that_does_not_split_is_asked_once(make_sink):
    source, sink = RangeSource({"w": noise(50 * PART)}, splits=False), make_sink()
    run(source, sink)
    assert stands(sink, source)
    assert source.opened == [("w", 0, 50 * PART)]


def test_no_more_connections_than_allowed_over_all_files(make_sink):
    files = {f"f{n}": noise(20_000, n) for n in range(6)} | {"small": b"s"}
    source, sink = RangeSource(files, seed=2), make_sink()
    run(source, sink, connections=3, jobs=8)
    assert stands(sink, source)
    assert source.most_at_once == 3


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_smallest_budget_never_locks_up(make_sink, seed, parts):
    """Files whose parts wait for one another share fewer buffers than there are readers."""
    chance = random.Random(seed)
    files = {f"f{n}": noise(chance.randrange(PART + 1, 25 * PART), n) for n in range(5)}
    sink = make_sink(faults=lambda _number: time.sleep(chance.random() * 0.002))
    source = RangeSource(files, seed=seed)
    run(source, sink, connections=8, memory=parts * PART, jobs=5)
    assert stands(sink, source)


def test_the_budget_holds(make_sink, monkeypatch):
    most = 0
    take = Buffers.take

    def noting(self, size, **more):
        nonlocal most
        buffer = take(self, size, **more)
        most = max(most, self._used)
        return buffer

    monkeypatch.setattr(Buffers, "take", noting)
    source, sink = RangeSource({"w": noise(90 * PART), "v": noise(70 * PART)}, seed=3), make_sink()
    run(source, sink, connections=8, memory=6 * PART)
    assert stands(sink, source)
    assert 3 * PART < most <= 6 * PART


def test_a_cut_goes_on_where_it_stopped(make_sink):
    cuts = [(450, TransientError("cut")), (0, TransientError("cut")), (700, None)]
    source = RangeSource({"w": noise(40 * PART)}, turns={"w": cuts})
    sink = make_sink()
    _, events = run(source, sink, connections=1)
    assert stands(sink, source)
    assert [start for _, start, _ in source.opened] == [0, 450, 450, 1150]
    assert len([event for event in events if event.kind == "retry"]) == 3


def test_a_source_that_never_comes_back_ends_it_and_keeps_the_parts(make_sink):
    dead = [(4_500, None), *[(0, TransientError("gone"))] * 9]
    source = RangeSource({"w": noise(40 * PART)}, turns={"w": dead}, splits=False)
    sink = make_sink()
    with pytest.raises(TransientError, match="gone"):
        run(source, sink)
    assert sink.ended == ["keep"]
    assert set(sink.kept["models/m/r/w"][1]) == {0, 1, 2, 3}


def test_kept_parts_are_not_fetched_again(make_sink, readable):
    content = noise(20 * PART + 5)
    sink = make_sink(readable)
    parts = {n: content[n * PART : (n + 1) * PART] for n in (0, 1, 5, 7, 20)}
    sink.kept["models/m/r/w"] = (len(content), parts)
    source = RangeSource({"w": content})
    (stored,), _ = run(source, sink)
    assert stands(sink, source)
    assert source.fetched == len(content) - 4 * PART - 5
    assert not set(parts) & set(sink.written)
    assert stored.kept == 4 * PART + 5
    assert bytes_by_action([stored]) == {
        "fetched_bytes": source.fetched,
        "copied_bytes": 0,
        "present_bytes": 4 * PART + 5,
    }
    assert stored.sha256 == hashlib.sha256(content).hexdigest()


def test_kept_parts_of_other_bytes_are_found_and_all_is_fetched_anew(make_sink, readable):
    content = noise(20 * PART)
    sink = make_sink(readable)
    sink.kept["models/m/r/w"] = (len(content), {3: noise(PART, 99)})
    source = RangeSource({"w": content})
    _, events = run(source, sink)
    assert stands(sink, source)
    assert source.fetched == 39 * PART
    assert any("fetched anew" in (event.message or "") for event in events)
    assert sink.ended == (["discard", "commit"] if readable else ["commit", "commit"])


def test_a_kept_part_that_is_short_is_fetched(make_sink):
    content = noise(20 * PART)
    sink = make_sink()
    kept = {2: content[2 * PART : 3 * PART], 3: b"short"}
    sink.kept["models/m/r/w"] = (len(content), kept)
    source = RangeSource({"w": content})
    run(source, sink)
    assert stands(sink, source)
    assert source.fetched == 19 * PART


@pytest.mark.parametrize("seed", range(5))
def test_wrong_bytes_are_never_committed(make_sink, seed):
    content = bytearray(noise(30 * PART))
    source = RangeSource({"w": bytes(content)}, seed=seed)
    snapshot = source.snapshot(Request(url="ranges://m"))
    content[random.Random(seed).randrange(len(content))] ^= 1
    source.files = {"w": bytes(content)}
    source.snapshot = lambda _request: snapshot
    sink = make_sink()
    with pytest.raises(IntegrityError, match="sha256"):
        run(source, sink)
    assert sink.ended == ["discard"]
    assert sink.stat("models/m/r/w") is None


def test_a_part_that_is_refused_is_sent_again_and_not_fetched_again(make_sink):
    failing = {4: 2, 11: 1}

    def faults(number):
        if failing.get(number, 0):
            failing[number] -= 1
            raise TransientError("the store is busy")

    source, sink = RangeSource({"w": noise(16 * PART)}), make_sink(faults=faults)
    run(source, sink)
    assert stands(sink, source)
    assert source.fetched == 16 * PART


def test_a_store_that_stays_unwilling_ends_it(make_sink):
    def faults(number):
        if number == 2:
            raise TransientError("the store is busy")

    source, sink = RangeSource({"w": noise(16 * PART)}), make_sink(faults=faults)
    with pytest.raises(TransientError, match="busy"):
        run(source, sink)
    assert sink.ended == ["keep"]


def test_a_lost_upload_begins_anew(make_sink):
    lost = [True]

    def faults(number):
        if number == 5 and lost:
            lost.pop()
            raise UploadLostError("there is no such upload")

    source, sink = RangeSource({"w": noise(16 * PART)}), make_sink(faults=faults)
    run(source, sink)
    assert stands(sink, source)
    assert sink.ended == ["discard", "commit"]


def test_a_commit_that_fails_for_a_while_is_tried_again_without_a_fetch(make_sink, readable):
    sink = make_sink(readable, commit_faults=[TransientError("busy")])
    source = RangeSource({"w": noise(16 * PART)})
    run(source, sink)
    assert stands(sink, source)
    assert source.fetched == 16 * PART
    assert sink.ended == ["keep", "commit"]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (SourceChangedError("it changed"), "discard"),
        (StorageError("the disk is full"), "keep"),
        (IntegrityError("another range than was asked for"), "keep"),
    ],
)
def test_what_is_left_depends_on_how_it_ended(make_sink, error, ending):
    source = RangeSource({"w": noise(50 * PART)}, turns={"w": [(4_500, error)]}, splits=False)
    sink = make_sink()
    with pytest.raises(type(error)):
        run(source, sink)
    assert sink.ended == [ending]


def test_parts_that_nothing_could_verify_are_not_kept(make_sink):
    dead = [(4_500, StorageError("gone"))]
    source = RangeSource({"w": noise(50 * PART)}, turns={"w": dead}, splits=False, hashed=False)
    sink = make_sink()
    with pytest.raises(StorageError):
        run(source, sink)
    assert sink.ended == ["discard"]


def test_cancel_keeps_what_came_and_the_next_goes_on(make_sink, readable):
    cancelled = threading.Event()
    content = noise(400 * PART)
    sink = make_sink(readable)

    def faults(number):
        if number > 40:
            cancelled.set()

    sink.faults = faults
    source = RangeSource({"w": content}, seed=4)
    events = []
    with pytest.raises(CancelledError):
        run(source, sink, cancelled=cancelled, on_event=events.append)
    assert not [event for event in events if event.kind == "failed"]
    assert sink.ended == ["keep"]
    sink.faults = lambda _number: None
    before = source.fetched
    assert before < len(content)
    run(source, sink)
    assert stands(sink, source)
    assert source.fetched < len(content) + 8 * PART + 8 * 300


@pytest.mark.timeout(20)
def test_a_failure_of_one_file_stops_the_others(make_sink):
    files = {"bad": noise(5 * PART), **{f"f{n}": noise(3_000 * PART, n) for n in range(3)}}
    source = RangeSource(files, seed=5, turns={"bad": [(100, StorageError("no"))]})
    with pytest.raises(StorageError, match="no"):
        run(source, make_sink(), jobs=4)


def test_progress_counts_every_byte_of_a_file_once(make_sink):
    source, sink = RangeSource({"w": noise(300 * PART)}, seed=6), make_sink()
    _, events = run(source, sink)
    done = [event.done for event in events if event.kind == "progress"]
    assert done == sorted(done)
    assert all(count <= 300 * PART for count in done)


def test_a_rate_limit_holds_over_two_transfers_at_once(make_sink):
    rate = RateLimit(100_000)
    sources = [RangeSource({"w": noise(20 * PART, n), "s": b"x" * 900}) for n in range(2)]
    sinks = [make_sink(), PartSink("the-other", readable=True)]
    start = time.monotonic()
    threads = [
        threading.Thread(target=run, args=pair, kwargs={"rate": rate})
        for pair in zip(sources, sinks, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(stands(sink, source) for sink, source in zip(sinks, sources, strict=True))
    assert time.monotonic() - start >= 41_800 / 100_000 * 0.8


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError):
        RateLimit(0)
    with pytest.raises(UsageError):
        Connections(0)


def test_a_bad_answer_costs_no_parts_that_were_kept(make_sink, readable):
    content = noise(20 * PART)
    sink = make_sink(readable)
    kept = {n: content[n * PART : (n + 1) * PART] for n in range(5)}
    sink.kept["models/m/r/w"] = (len(content), kept)
    turns = {"w": [(0, IntegrityError("another range than was asked for"))]}
    source = RangeSource({"w": content}, turns=turns, splits=False)
    with pytest.raises(IntegrityError, match="another range"):
        run(source, sink)
    assert sink.ended == ["keep"]
    run(source, sink)
    assert stands(sink, source)
    assert source.fetched == 15 * PART


def test_after_a_clean_restart_parts_are_kept_again(make_sink, readable):
    content = noise(20 * PART)
    sink = make_sink(readable)
    sink.kept["models/m/r/w"] = (len(content), {3: noise(PART, 99)})
    # the parts before the kept one, those after it, and then all anew
    turns = {"w": [(None, None), (None, None), (4_500, StorageError("gone"))]}
    source = RangeSource({"w": content}, turns=turns, splits=False)
    with pytest.raises(StorageError, match="gone"):
        run(source, sink)
    assert sink.ended[-1] == "keep"
    assert set(sink.kept["models/m/r/w"][1]) == {0, 1, 2, 3}


def test_a_fault_of_the_read_back_fetches_nothing_again(make_sink):
    content = noise(20 * PART)
    sink = make_sink(readable=False)
    sink.kept["models/m/r/w"] = (len(content), {3: content[3 * PART : 4 * PART]})
    faults = [TransientError("busy"), TransientError("busy")]
    read = sink.read

    def unwilling(key, *span):
        if faults:
            raise faults.pop()
        return read(key, *span)

    sink.read = unwilling
    source = RangeSource({"w": content})
    run(source, sink)
    assert stands(sink, source)
    assert not faults
    assert source.fetched == 19 * PART


def test_a_kept_part_that_cannot_be_read_is_fetched(make_sink, monkeypatch):
    content = noise(20 * PART)
    sink = make_sink()
    sink.kept["models/m/r/w"] = (len(content), {3: content[3 * PART : 4 * PART]})

    def broken(*_):
        raise StorageError("input/output error")

    monkeypatch.setattr(PartUpload, "read_part", broken)
    source = RangeSource({"w": content})
    run(source, sink)
    assert stands(sink, source)
    assert source.fetched == 20 * PART


def test_progress_of_a_resumed_file_never_goes_backwards(make_sink, readable, monkeypatch):
    monkeypatch.setattr(engine_parts, "PROGRESS_EVERY", 0.0)
    monkeypatch.setattr(engine, "PROGRESS_EVERY", 0.0)
    content = noise(40 * PART)
    sink = make_sink(readable)
    parts = {n: content[n * PART : (n + 1) * PART] for n in range(30)}
    sink.kept["models/m/r/w"] = (len(content), parts)
    _, events = run(RangeSource({"w": content}), sink, connections=1)
    done = [event.done for event in events if event.kind == "progress"]
    assert done == sorted(done)
    assert done[-1] == len(content)
    assert readable or done[0] > 30 * PART


@pytest.mark.timeout(30)
def test_an_upload_is_let_go_by_the_last_thread_that_is_stuck_in_it(make_sink):
    stuck, free = threading.Event(), threading.Event()

    def faults(number):
        if number == 1:
            stuck.set()
            free.wait()

    cancelled = threading.Event()
    sink = make_sink(faults=faults)
    source = RangeSource({"w": noise(20 * PART)})
    work = threading.Thread(target=lambda: stuck.wait() and cancelled.set())
    work.start()
    with pytest.raises(CancelledError):
        run(source, sink, cancelled=cancelled)
    assert sink.ended == []
    free.set()
    deadline = time.monotonic() + 10
    while not sink.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sink.ended == ["keep"]


@pytest.mark.timeout(30)
def test_a_system_without_threads_to_give_still_moves_a_file(make_sink, monkeypatch):
    start = threading.Thread.start

    def sparing(self):
        if self.name.startswith(("mm-read", "mm-write")):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", sparing)
    source, sink = RangeSource({"w": noise(20 * PART)}), make_sink()
    run(source, sink)
    assert stands(sink, source)


def test_streams_count_in_the_budget(make_sink, monkeypatch):
    monkeypatch.setattr(engine, "STREAM", 2 * PART)
    most = 0
    write = MemorySink.write

    def noting(self, *arguments, **more):
        nonlocal most
        with lock:
            holding.append(1)
            most = max(most, len(holding))
        time.sleep(0.01)
        try:
            write(self, *arguments, **more)
        finally:
            with lock:
                holding.pop()

    holding: list[int] = []
    lock = threading.Lock()
    monkeypatch.setattr(MemorySink, "write", noting)
    files = {f"s{n}": noise(PART, n) for n in range(12)} | {"w": noise(30 * PART)}
    source, sink = RangeSource(files), make_sink()
    run(source, sink, jobs=8, connections=8, memory=3 * PART)
    assert stands(sink, source)
    assert most <= 3


class FarSource(RangeSource):
    """Answers take a while. Counts the readers that are open; `refusals` opens fail first."""

    def __init__(self, files, *, refusals=0):
        super().__init__(files)
        self.open_now = 0
        self.refusals = refusals
        self.second_was_asked = threading.Event()

    def open(self, file, start=0, end=None):
        if start:
            self.second_was_asked.set()
        time.sleep(2 * engine_parts.SLOW_ANSWER)
        with self._lock:
            self.refusals -= 1
            if self.refusals >= 0 and start:
                raise TransientError("come back later")
            self.open_now += 1
        return CountedReader(self, super().open(file, start, end))


class CountedReader:
    def __init__(self, source, reader):
        self._source = source
        self._reader = reader

    def readinto(self, buffer):
        return self._reader.readinto(buffer)

    def close(self):
        self._reader.close()
        with self._source._lock:
            self._source.open_now -= 1


def test_where_answers_take_time_the_next_run_is_asked_for_before_one_ends(make_sink, monkeypatch):
    """One connection: the second request is made while the first is read; no byte comes twice."""
    monkeypatch.setattr(engine_parts, "LONG_RUN", 2 * PART)
    source, sink = FarSource({"w": noise(20 * PART)}), make_sink()
    early = []

    class Patient(CountedReader):
        def readinto(self, buffer):
            if source.fetched > PART and not early:
                early.append(source.second_was_asked.wait(10))
            return super().readinto(buffer)

    monkeypatch.setitem(globals(), "CountedReader", Patient)
    run(source, sink, connections=1)
    assert early == [True]
    assert stands(sink, source)
    assert source.fetched == 20 * PART
    assert source.open_now == 0


@pytest.mark.parametrize("readable", [True, False])
def test_what_was_asked_ahead_and_refused_is_asked_again(make_sink, readable):
    """Refusals of requests made ahead cost tries as others do; every reader is closed at the end."""
    source = FarSource({"w": noise(20 * PART)}, refusals=3)
    sink = make_sink(readable=readable)
    run(source, sink, connections=2, memory=8 * PART)
    assert stands(sink, source)
    assert source.open_now == 0


def test_a_failure_closes_what_was_asked_ahead(make_sink):
    """Wrong bytes end it, and no request that was made ahead stays open."""
    source, sink = FarSource({"w": noise(20 * PART)}), make_sink()
    source.turns = {"w": [(None, None), (10, StorageError("broken"))]}
    with pytest.raises(StorageError):
        run(source, sink, connections=2, memory=4 * PART)
    deadline = time.monotonic() + 10
    while source.open_now and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.open_now == 0


def test_no_more_is_read_than_the_writers_can_follow(make_sink):
    """With memory in plenty and a store that stands still: a part for each reader and each writer.

    There are half as many writers again as connections, and all of them are at work.
    """
    gate, writing = threading.Event(), set()

    def stand_still(number):
        writing.add(number)
        return not gate.wait(30)

    sink = make_sink(faults=stand_still)
    source = RangeSource({"w": noise(64 * PART)})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, source, sink, connections=2, memory=64 * PART)
        before = -1
        while source.fetched != before:
            before = source.fetched
            time.sleep(0.3)
        at_work = len(writing)
        gate.set()
        running.result(30)
    assert at_work == 3
    assert before <= 5 * PART
    assert stands(sink, source)
