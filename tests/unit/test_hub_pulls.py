"""Pulls that go on in the hub, and from where they may come."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mm_core import CancelledError, ModelEntry, NotFoundError, TransferEvent, TransientError
from mm_plugins.hub import pulls as module
from mm_plugins.hub.origins import check_glob, may_come_from
from mm_plugins.hub.pulls import Pulls

pytestmark = pytest.mark.unit

ENTRY = ModelEntry(model_id="org/a", version="v1", path="mem://x")


class Gate:
    """Work that goes on until it is let go, or cancelled."""

    def __init__(self):
        self.started, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, flight):
        self.started.release()
        while not self.go.wait(0.01):
            if flight.cancelled.is_set():
                raise CancelledError("it was cancelled")
        return ENTRY


def settled(pulls, id_):
    for _ in range(500):
        if pulls.get(id_).is_over:
            return pulls.get(id_)
        threading.Event().wait(0.01)
    raise AssertionError(pulls.get(id_))


def test_a_pull_goes_on_to_its_end():
    """What it did is told as its events come."""

    def work(flight):
        for event in (
            TransferEvent(kind="planned", model_id="org/a", total=10),
            TransferEvent(kind="progress", model_id="org/a", path="x", done=4),
            TransferEvent(kind="retry", model_id="org/a", path="x", message="again"),
            TransferEvent(kind="stored", model_id="org/a", path="x", done=6),
            TransferEvent(kind="stored", model_id="org/a", path="y", done=4),
        ):
            flight.hear(event)
        return ENTRY

    pulls = Pulls()
    pull = settled(pulls, pulls.begin("hf://org/a", work, by="ci").id)
    assert (pull.status, pull.done, pull.total, pull.stored) == ("done", 10, 10, 2)
    assert (pull.model_id, pull.version, pull.by, pull.message) == ("org/a", "v1", "ci", None)


def test_so_many_run_and_the_rest_wait():
    """In the order in which they came."""
    pulls, gate = Pulls(at_once=2), Gate()
    ids = [pulls.begin(f"hf://org/{n}", gate).id for n in range(4)]
    for _ in range(2):
        assert gate.started.acquire(timeout=5)
    assert [pulls.get(id_).status for id_ in ids] == ["running", "running", "waiting", "waiting"]
    assert [pull.id for pull in pulls.all()] == ids[::-1]
    gate.go.set()
    assert {settled(pulls, id_).status for id_ in ids} == {"done"}


def test_cancelled_while_it_runs_and_while_it_waits():
    """Both end, and make room."""
    pulls, gate = Pulls(at_once=1), Gate()
    first, second, third = (pulls.begin(f"hf://org/{n}", gate).id for n in range(3))
    assert gate.started.acquire(timeout=5)
    assert pulls.cancel(second).status == "cancelled"
    pulls.cancel(first)
    assert settled(pulls, first).status == "cancelled"
    assert gate.started.acquire(timeout=5)
    gate.go.set()
    assert settled(pulls, third).status == "done"
    assert pulls.cancel(third).status == "done"
    with pytest.raises(NotFoundError):
        pulls.cancel("none")


def test_what_fails_is_told_without_secrets():
    """And a fault of ours ends the pull, too."""
    pulls = Pulls()

    def refuse(flight):
        raise TransientError("no answer from https://user:secret@host/x", hint="wait")

    def slip(flight):
        raise ZeroDivisionError

    failed = settled(pulls, pulls.begin("https://user:secret@host/x", refuse).id)
    assert (failed.status, failed.hint) == ("failed", "wait")
    assert "secret" not in str(failed)
    assert (
        settled(pulls, pulls.begin("hf://org/a", slip).id).message == "Internal error of this hub"
    )


def test_only_the_last_that_ended_are_kept(monkeypatch):
    """Those under way always are."""
    monkeypatch.setattr(module, "MOST_ENDED", 3)
    pulls, gate = Pulls(), Gate()
    under_way = pulls.begin("hf://org/a", gate).id
    for _ in range(6):
        settled(pulls, (last := pulls.begin("hf://org/b", lambda flight: ENTRY).id))
    assert len(pulls.all()) == 4
    assert {under_way, last} <= {pull.id for pull in pulls.all()}
    gate.go.set()


def test_too_many_may_not_wait(monkeypatch):
    """Whoever asks then is told to come again."""
    monkeypatch.setattr(module, "MOST_WAITING", 1)
    pulls, gate = Pulls(at_once=1), Gate()
    pulls.begin("hf://org/a", gate)
    assert gate.started.acquire(timeout=5)
    pulls.begin("hf://org/b", gate)
    with pytest.raises(TransientError) as raised:
        pulls.begin("hf://org/c", gate)
    assert raised.value.retry_after
    pulls.close()


def test_others_put_in_a_pull_of_their_own():
    """It is no thread here, and takes no room."""
    pulls = Pulls(at_once=1)
    flight = pulls.enter("hf://org/a", kind="through", model_id="org/a")
    assert (pulls.get(flight.id).kind, pulls.get(flight.id).status) == ("through", "running")
    settled(pulls, pulls.begin("hf://org/b", lambda flight: ENTRY).id)
    flight.note(version="v9")
    pulls.cancel(flight.id)
    assert flight.cancelled.is_set()
    flight.end(CancelledError("stopped"))
    flight.end(entry=ENTRY)
    assert (pulls.get(flight.id).status, pulls.get(flight.id).version) == ("cancelled", "v9")


def test_who_looks_on_sees_the_last_of_many_changes():
    """And all at first; and is let go at the end."""

    async def look():
        pulls = Pulls()
        flight = pulls.enter("hf://org/a", kind="through")
        with pulls.watch() as watch:
            assert [p.id for p in await watch.changes(1)] == [flight.id]
            assert await watch.changes(0.01) == []

            def many():
                for done in range(1000):
                    event = TransferEvent(kind="progress", model_id="org/a", path="x", done=done)
                    flight.hear(event)

            await asyncio.to_thread(many)
            seen = await watch.changes(1)
            assert [p.done for p in seen] == [999]
            pulls.close()
            await watch.changes(1)
            assert watch.is_over
        with pulls.watch() as watch:
            await watch.changes(1)
            assert watch.is_over

    asyncio.run(look())


def test_an_owner_is_kept_until_its_pulls_are_over():
    """So that settings can be read again while something is pulled by the former ones."""
    pulls, gate, closed = Pulls(), Gate(), threading.Event()
    owner = object()
    pulls.begin("hf://org/a", gate, owner=owner)
    assert gate.started.acquire(timeout=5)
    pulls.when_free(owner, closed.set)
    assert not closed.is_set()
    gate.go.set()
    assert closed.wait(5)
    again = threading.Event()
    pulls.when_free(owner, again.set)
    assert again.is_set()


def test_closing_cancels_all():
    """That was begun here; and no more is."""
    pulls, gate = Pulls(at_once=1), Gate()
    theirs = pulls.enter("hf://org/a", kind="through")
    ids = [pulls.begin("hf://org/a", gate).id for _ in range(2)]
    pulls.close()
    assert {settled(pulls, id_).status for id_ in ids} == {"cancelled"}
    assert not theirs.cancelled.is_set()
    with pytest.raises(TransientError):
        pulls.begin("hf://org/a", gate)


@pytest.mark.parametrize(
    ("source", "globs", "may"),
    [
        ("hf://org/a", ["hf://*"], True),
        ("hf://org/a@main", ["hf://*"], True),
        ("HF://org/a", ["hf://*"], True),
        ("hf://org/a", ["hf://org/*"], True),
        ("hf://other/a", ["hf://org/*"], False),
        ("hf://orgs/a", ["hf://org/*"], False),
        ("hf://org/../other/a", ["hf://org/*"], False),
        ("hf://org/%2e%2e/other", ["hf://*"], False),
        ("hf://org/%252e%252e/other", ["hf://*"], False),
        ("hf://org\\a", ["hf://*"], False),
        ("hf://org/a b", ["hf://*"], False),
        ("hf://org/a\n", ["hf://*"], False),
        ("/etc", ["hf://*"], False),
        ("./models", ["hf://*"], False),
        ("~/x", ["hf://*"], False),
        ("file:///etc", ["hf://*"], False),
        ("org/a", ["hf://*"], False),
        ("", ["hf://*"], False),
        ("https://hf.example/a", ["hf://*"], False),
        ("https://a.example/x", ["https://*.example/*"], True),
        ("https://A.EXAMPLE/x", ["https://*.example/*"], True),
        ("https://evil.test/.example/x", ["https://*.example/*"], False),
        ("https://evil.test#a.example/x", ["https://*.example/*"], False),
        ("https://evil.test?a.example/x", ["https://*.example/*"], False),
        ("https://a.example@evil.test/x", ["https://*/*"], False),
        ("https://a.example/x", ["https://a.example"], True),
        ("http://a.example/x", ["https://a.example"], False),
        ("https://a.example/ok/x", ["https://a.example/ok/*"], True),
        ("https://a.example/ok/../no", ["https://a.example/ok/*"], False),
        ("vendor:lid.ftz", ["vendor:*"], True),
        ("other:lid.ftz", ["vendor:*"], False),
        ("vendor://x", ["vendor:*"], False),
        ("/srv/models/a", ["/srv/models/*"], True),
        ("/srv/models/../x", ["/srv/models/*"], False),
        ("file:///srv/models/a", ["/srv/models/*"], False),
    ],
)  # fmt: skip
def test_where_a_pull_may_come_from(source, globs, may):
    """Scheme, host and path each by itself; nothing leaves its folder."""
    assert may_come_from(source, globs) is may


@pytest.mark.parametrize("glob", ["*", "**", "", "?f://x", "./models/*", "*://x", "h*://x"])
def test_globs_that_say_too_little_are_refused(glob):
    """A star alone would let the disk of the server in."""
    with pytest.raises(ValueError, match="begin with"):
        check_glob(glob)
