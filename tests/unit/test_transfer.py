"""The engine, with sources and sinks that fail as they are told to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest

from mm_core import (
    Action,
    CancelledError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    PlannedFile,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    TransferEvent,
    TransientError,
)
from mm_core.planning import make_plan
from mm_core.sink import read_bytes
from mm_core.transfer import ProgressBook, TransferOptions, transfer
from mm_core.transfer.retry import RetryPolicy
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

NO_WAIT = RetryPolicy(retries=3, base=0.0)


class ScriptedSource(Source):
    """Serves `files`; `script` maps a path to what each read in turn does after so many bytes."""

    type = "scripted"

    def __init__(self, files: dict[str, bytes], script: dict[str, list] | None = None) -> None:
        super().__init__()
        self.files = files
        self.script = script or {}
        self.reads: list[tuple[str, int]] = []

    def snapshot(self, request: Request) -> Snapshot:
        return Snapshot(
            source="scripted://m",
            revision="r",
            model_id="m",
            files=tuple(
                RemoteFile(path=p, size=len(d), sha256=hashlib.sha256(d).hexdigest())
                for p, d in self.files.items()
            ),
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        self.reads.append((file.path, start))
        data = self.files[file.path][start:end]
        turns = self.script.get(file.path)
        if not turns:
            yield from (data[i : i + 3] for i in range(0, len(data), 3))
            return
        after, error = turns.pop(0)
        yield data[:after]
        if error is not None:
            raise error


@pytest.fixture
def sink(request):
    return MemorySink(MemorySink.Config(root=f"memory://{request.node.name}"))


def run(source, sink, *, plan=None, retry=NO_WAIT, jobs=4, cancelled=None, on_event=None):
    request = Request(url="scripted://m")
    plan = plan or make_plan(request, source.snapshot(request), present={}, known={})
    return transfer(
        plan,
        source,
        sink,
        options=TransferOptions(jobs=jobs, retry=retry),
        on_event=on_event or (lambda event: None),
        cancelled=cancelled,
    )


def test_every_file_is_stored_and_recorded(sink):
    """The records are those of the plan, in its order, with the true hashes."""
    files = {f"f{i}": bytes([i]) * i * 10 for i in range(20)}
    stored = run(ScriptedSource(files), sink)
    assert [f.path for f in stored] == list(files)
    for file in stored:
        assert read_bytes(sink, file.key) == files[file.path]
        assert file.sha256 == hashlib.sha256(files[file.path]).hexdigest()


def test_a_cut_goes_on_where_it_stopped(sink):
    """After a passing fault the next read starts at the byte that is missing."""
    cut = TransientError("cut")
    source = ScriptedSource({"f": b"0123456789"}, {"f": [(4, cut), (3, cut)]})
    events: list[TransferEvent] = []
    run(source, sink, on_event=events.append)
    assert source.reads == [("f", 0), ("f", 4), ("f", 7)]
    assert read_bytes(sink, "models/m/r/f") == b"0123456789"
    retries = [e.message for e in events if e.kind == "retry"]
    assert len(retries) == 2
    assert "at byte 4" in retries[0]
    assert "cut" in retries[0]


def test_tries_are_counted_anew_after_progress(sink):
    """Ten cuts, each after one more byte, are no reason to give up with three retries."""
    turns = [(1, TransientError("cut")) for _ in range(9)]
    run(ScriptedSource({"f": b"0123456789"}, {"f": turns}), sink)
    assert read_bytes(sink, "models/m/r/f") == b"0123456789"


def test_without_progress_it_gives_up(sink):
    """The last error comes through, and nothing is left in the sink."""
    turns = [(0, TransientError(f"no {i}")) for i in range(10)]
    source = ScriptedSource({"f": b"0123456789"}, {"f": turns})
    with pytest.raises(TransientError, match="no 3"):
        run(source, sink)
    assert len(source.reads) == 4
    assert list(sink.list("")) == []


def test_offline_is_never_retried(sink):
    """A switched-off network does not come back by waiting."""
    source = ScriptedSource({"f": b"0123"}, {"f": [(0, OfflineError("off"))] * 2})
    with pytest.raises(OfflineError):
        run(source, sink)
    assert len(source.reads) == 1


def test_a_short_read_is_read_on(sink):
    """A source that ends early without an error is asked for the rest."""
    source = ScriptedSource({"f": b"0123456789"}, {"f": [(6, None)]})
    run(source, sink)
    assert source.reads == [("f", 0), ("f", 6)]


def test_retry_after_is_obeyed_and_bounded():
    """The other side's wish lengthens the wait; one beyond our patience ends the trying."""
    policy = RetryPolicy(retries=3, base=1.0, cap=4.0, patience=60.0, draw=lambda: 1.0)
    assert [policy.delay(TransientError("x"), n) for n in range(3)] == [1.0, 2.0, 4.0]
    assert policy.delay(TransientError("x", retry_after=17), 0) == 17
    with pytest.raises(TransientError):
        policy.delay(TransientError("x", retry_after=61), 0)
    with pytest.raises(TransientError):
        policy.delay(TransientError("x"), 3)


@pytest.mark.parametrize("stated", ["sha256", "git_sha1"])
def test_wrong_bytes_never_become_visible(sink, stated):
    """The right size and other bytes: IntegrityError that names the file, and nothing stored."""
    wrong = {"sha256": {"sha256": "0" * 64}, "git_sha1": {"git_sha1": "0" * 40}}[stated]
    source = ScriptedSource({"f": b"0123456789"})
    shot = Snapshot(
        source="s", revision="r", model_id="m", files=(RemoteFile(path="f", size=10, **wrong),)
    )
    plan = make_plan(Request(url="x"), shot, present={}, known={})
    with pytest.raises(IntegrityError, match="f: the source states"):
        run(source, sink, plan=plan)
    assert list(sink.list("")) == []


def test_git_sha1_is_that_of_git(sink):
    """The blob hash of git is checked where no sha256 is stated."""
    data = b"hello\n"
    shot = Snapshot(
        source="s",
        revision="r",
        model_id="m",
        files=(RemoteFile(path="f", size=6, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a"),),
    )
    plan = make_plan(Request(url="x"), shot, present={}, known={})
    (stored,) = run(ScriptedSource({"f": data}), sink, plan=plan)
    assert stored.sha256 == hashlib.sha256(data).hexdigest()


def test_more_bytes_than_stated_are_refused(sink):
    """A source that sends more than it stated is stopped at once."""
    source = ScriptedSource({"f": b"0123456789"})
    shot = Snapshot(source="s", revision="r", model_id="m", files=(RemoteFile(path="f", size=9),))
    plan = make_plan(Request(url="x"), shot, present={}, known={})
    with pytest.raises(IntegrityError):
        run(source, sink, plan=plan)
    assert list(sink.list("")) == []


def present_plan(source, sink, data_in_sink):
    sink.put("models/m/r/f", data_in_sink)
    request = Request(url="scripted://m")
    return make_plan(
        request, source.snapshot(request), present={"models/m/r/f": len(data_in_sink)}, known={}
    )


def test_a_present_file_is_verified_and_not_fetched(sink):
    """What an earlier attempt left is read back from the sink, not from the source."""
    source = ScriptedSource({"f": b"0123456789"})
    plan = present_plan(source, sink, b"0123456789")
    (stored,) = run(source, sink, plan=plan)
    assert stored.action is Action.PRESENT
    assert source.reads == []


def test_a_present_file_that_is_wrong_is_fetched(sink):
    """A file of the right size and wrong bytes from an earlier attempt is replaced."""
    source = ScriptedSource({"f": b"0123456789"})
    plan = present_plan(source, sink, b"0123456780")
    (stored,) = run(source, sink, plan=plan)
    assert stored.action is Action.FETCH
    assert read_bytes(sink, "models/m/r/f") == b"0123456789"


@pytest.mark.parametrize("there", [b"0123456789", b"rotten bit", None])
def test_a_copy_is_verified_or_else_fetched(sink, there):
    """Equal bytes elsewhere are copied; where they are gone or rotten, the source is asked."""
    source = ScriptedSource({"f": b"0123456789"})
    if there is not None:
        sink.put("models/m/old/f", there)
    (file,) = source.snapshot(Request(url="x")).files
    request = Request(url="scripted://m")
    plan = make_plan(
        request,
        source.snapshot(request),
        present={},
        known={file.sha256: "models/m/old/f"},
    )
    (stored,) = run(source, sink, plan=plan)
    assert stored.action is (Action.COPY if there == b"0123456789" else Action.FETCH)
    assert read_bytes(sink, "models/m/r/f") == b"0123456789"


def test_a_passing_fault_of_the_sink_starts_the_file_again(sink):
    """The sink fails once in the middle: the file is read and written again from its start."""
    failures = [TransientError("503 from the store")]

    class Flaky(MemorySink):
        def write(self, key, chunks, *, size):
            if failures:
                next(iter(chunks))
                raise failures.pop()
            super().write(key, chunks, size=size)

    flaky = Flaky(sink.config)
    source = ScriptedSource({"f": b"0123456789"})
    run(source, flaky)
    assert source.reads == [("f", 0), ("f", 0)]
    assert read_bytes(sink, "models/m/r/f") == b"0123456789"


def test_the_first_final_error_stops_all(sink):
    """One missing file ends the transfer with its error; the others are not fetched to the end."""
    files = {f"f{i}": b"x" * 10 for i in range(50)}
    source = ScriptedSource(files, {"f0": [(0, NotFoundError("f0 is gone"))]})
    with pytest.raises(NotFoundError, match="f0 is gone"):
        run(source, sink, jobs=1)
    assert len(source.reads) < 50


def test_cancel_stops_with_an_error_of_its_own(sink):
    """A set event ends the transfer; files stored before stay whole."""
    cancelled = threading.Event()
    files = {f"f{i}": b"x" * 10 for i in range(9)}

    def on_event(event):
        if event.kind == "stored":
            cancelled.set()

    with pytest.raises(CancelledError):
        run(ScriptedSource(files), sink, jobs=1, cancelled=cancelled, on_event=on_event)
    assert [o.size for o in sink.list("")] == [10]


def test_cancel_ends_a_wait_between_tries(sink):
    """A long Retry-After does not outlast a cancel."""
    cancelled = threading.Event()
    source = ScriptedSource({"f": b"x"}, {"f": [(0, TransientError("429", retry_after=500))]})

    def on_event(event):
        if event.kind == "retry":
            cancelled.set()

    with pytest.raises(CancelledError):
        run(source, sink, cancelled=cancelled, on_event=on_event)


def test_who_was_stopped_hears_of_no_retry(sink):
    """A connection that ends because of the stop is no fault that is tried again."""
    cancelled = threading.Event()

    class Closed(ScriptedSource):
        def read(self, file, start=0, end=None):
            cancelled.set()
            raise TransientError("the connection was closed")
            yield

    events: list[TransferEvent] = []
    with pytest.raises(CancelledError):
        run(Closed({"f": b"x"}), sink, cancelled=cancelled, on_event=events.append)
    assert "retry" not in {event.kind for event in events}


def test_events_add_up(sink):
    """The events of a transfer tell the total, every file, and sum up in the progress book."""
    book = ProgressBook()
    events: list[TransferEvent] = []

    def on_event(event):
        events.append(event)
        book.note(event)

    run(ScriptedSource({"a": b"12", "b": b"345"}), sink, on_event=on_event)
    assert events[0].kind == "planned"
    assert events[0].total == 5
    assert sorted(e.path for e in events if e.kind == "stored") == ["a", "b"]
    progress = book.get("m")
    assert (progress.done, progress.total, progress.fraction) == (5, 5, 1.0)
    assert book.get("other") is None


def test_planned_files_are_values():
    """A plan cannot be changed after it was made."""
    planned = PlannedFile(file=RemoteFile(path="a"), key="k", action=Action.FETCH)
    with pytest.raises(AttributeError):
        planned.key = "other"
