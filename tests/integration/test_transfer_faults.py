"""Each way in which a server can go wrong, met by a whole pull of a file that goes in parts.

Whatever it does, the outcome is the right file or a clear error; no wrong byte is ever offered,
what is left can be taken up again or is gone, and the next pull succeeds.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial

import pytest

from mm_core import (
    AuthError,
    IntegrityError,
    MMError,
    ModelManager,
    ModelStatus,
    ResumableSink,
    TransientError,
    load_settings,
)
from mm_core.sink import read_bytes
from mm_core.testing.hub import Fault
from mm_core.testing.material import noise
from mm_core.transfer.retry import RetryPolicy

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
WEIGHTS = noise(40 * MIB + 12_345)
OTHER_WEIGHTS = WEIGHTS[::-1]
CONFIG = b'{"architectures": ["Any"]}'
ALWAYS = 10_000


def fault(kind, **options) -> Fault:
    return Fault("*w.bin", kind, **options)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """As many tries as ever, without the waiting between them."""
    monkeypatch.setattr("mm_core.manager.RetryPolicy", partial(RetryPolicy, base=0.01))


@pytest.fixture(params=["hf", "url", "url-sha256"])
def address(request, hub) -> str:
    """The model by the Hub's protocol, as one URL whose server states an ETag, and with a hash."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": CONFIG})
    plain = f"{hub.endpoint}/org/m/resolve/main/w.bin"
    return {
        "hf": "hf://org/m",
        "url": plain,
        "url-sha256": f"{plain}#sha256={hub.sha256(WEIGHTS)}",
    }[request.param]


@pytest.fixture
def hf(hub) -> str:
    hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": CONFIG})
    return "hf://org/m"


def manager_for(backend, **defaults) -> ModelManager:
    """One that waits one second for a byte."""
    sources = {
        "hf": {"type": "huggingface", "read_timeout": 1},
        "http": {
            "type": "url",
            "allow_hosts": ["127.0.0.1"],
            "allow_private": True,
            "read_timeout": 1,
        },
    }
    return ModelManager(
        load_settings(overrides={"sources": sources, "defaults": {"retries": 3, **defaults}}),
        backend=backend,
    )


def attempt(hub, backend, address, *faults, **defaults) -> MMError | None:
    """Pull while `hub` has `faults`; check what is offered and what is left; return the error."""
    hub.faults[:] = faults
    error = None
    with manager_for(backend, **defaults) as manager:
        try:
            manager.pull(address, model_id="org/m")
        except MMError as caught:
            error = caught
        hub.faults.clear()
        entries = manager.list_models()
        if error is None:
            check_right(manager)
        else:
            assert ModelStatus.AVAILABLE not in {entry.status for entry in entries}
            for stored in manager.sink().list("models/"):
                right = {"w.bin": WEIGHTS, "config.json": CONFIG}[stored.key.rpartition("/")[2]]
                assert read_bytes(manager.sink(), stored.key) == right
    return error


def check_right(manager) -> None:
    assert manager.verify(deep=True).ok
    (entry,) = [e for e in manager.list_models() if e.status is ModelStatus.AVAILABLE]
    key = f"models/org/m/{entry.version}/w.bin"
    assert read_bytes(manager.sink(), key) == WEIGHTS
    assert left_over(manager) == 0


def left_over(manager) -> int:
    """Bytes of unfinished uploads, or their number where the store does not tell their size."""
    sink = manager.sink()
    if not isinstance(sink, ResumableSink):
        return 0
    return sum(left.size or 1 for left in sink.unfinished(""))


def check_next_pull(hub, backend, address) -> int:
    """The pull after the fault succeeds; how many bytes it fetched."""
    before = hub.sent_bytes
    with manager_for(backend) as manager:
        manager.pull(address, model_id="org/m")
        check_right(manager)
    return hub.sent_bytes - before


def says(error: MMError, words: str) -> bool:
    """It names the file, and what was wrong with it."""
    return "w.bin" in str(error) and re.search(words, str(error)) is not None


def is_without_hash(address: str) -> bool:
    return address.startswith("http") and "#" not in address


# -- faults that are outlived --------------------------------------------------------------

OUTLIVED = {
    "knows no ranges": (fault("ignore-range", times=ALWAYS),),
    "another X-Linked-Size": (fault("linked-size", times=ALWAYS),),
    "less than was asked for": (fault("short-range"),),
    "always less than was asked for": (fault("short-range", times=ALWAYS),),
    "a resumed request gets all": (
        fault("cut", after_bytes=9 * MIB),
        fault("ignore-range", times=ALWAYS),
    ),
    "cut again and again": (fault("cut", after_bytes=3 * MIB, times=20),),
    "truncated ranges": (fault("truncate", after_bytes=3 * MIB, times=20),),
    "nothing comes": (fault("stall", after_bytes=5 * MIB),),
    "nothing comes, not even a byte": (fault("stall"),),
    "unavailable": (fault("503", times=2),),
    "too many requests": (fault("429", retry_after=0.2, times=2),),
}


@pytest.mark.parametrize("name", OUTLIVED)
def test_outlived(hub, local, address, name):
    """These end with the right file, and nothing is left over."""
    error = attempt(hub, local, address, *map(replace, OUTLIVED[name]))
    assert error is None, repr(error)


@pytest.mark.parametrize(
    "name",
    [
        "knows no ranges",
        "a resumed request gets all",
        "cut again and again",
        "nothing comes",
        "always less than was asked for",
    ],
)
def test_outlived_on_the_way_to_s3(hub, s3, hf, name):
    """The same into an object store."""
    error = attempt(hub, s3, hf, *map(replace, OUTLIVED[name]))
    assert error is None, repr(error)


def test_retry_after_is_obeyed(hub, local, hf):
    """A server that asks for a second of rest gets it."""
    hub.faults.append(fault("429", retry_after=1))
    started = time.monotonic()
    with manager_for(local) as manager:
        manager.pull(hf)
    gets = [r for r in hub.requests if r.method == "GET" and r.path.endswith("w.bin")]
    assert gets[0].status == 429
    assert time.monotonic() - started >= 1


def test_retry_after_beyond_all_patience_is_an_error_at_once(hub, local, address):
    """An hour's ban is told, not slept through."""
    started = time.monotonic()
    error = attempt(hub, local, address, fault("429", retry_after=3600, times=ALWAYS))
    assert isinstance(error, TransientError)
    assert error.retry_after == 3600
    assert "429" in str(error)
    assert time.monotonic() - started < 30
    check_next_pull(hub, local, address)


def test_a_file_comes_once_over_several_connections(hub, local, address):
    """Without faults, several ranges come at once, and no byte comes twice."""
    assert attempt(hub, local, address) is None
    ranges = {r.range for r in hub.requests if r.method == "GET" and r.path.endswith("w.bin")}
    assert len(ranges) > 1
    assert hub.sent_bytes <= len(WEIGHTS) + len(CONFIG)


def test_a_server_without_ranges_sends_little_twice(hub, local, address):
    """Once it has shown that it knows none, the file is read in one go."""
    assert attempt(hub, local, address, fault("ignore-range", times=ALWAYS)) is None
    gets = [r for r in hub.requests if r.method == "GET" and r.path.endswith("w.bin")]
    assert len(gets) <= 2
    assert hub.sent_bytes < 2 * len(WEIGHTS)


# -- faults that are outlived or told ------------------------------------------------------

CONFUSED = {
    "states more than it sends": fault("overstate", after_bytes=1000),
    "always states more than it sends": fault("overstate", after_bytes=1000, times=ALWAYS),
    "sends more than the file": fault("pad", after_bytes=1000),
    "more than was asked for": fault("long-range", after_bytes=70_000, times=ALWAYS),
}


@pytest.mark.parametrize("name", CONFUSED)
def test_confused(hub, local, address, name):
    """An answer that contradicts itself, though its bytes are right: the file, or an error."""
    error = attempt(hub, local, address, replace(CONFUSED[name]))
    if error is not None:
        assert isinstance(error, (IntegrityError, TransientError)), repr(error)
        assert says(error, "range|bytes"), repr(error)
        check_next_pull(hub, local, address)


# -- faults that end a pull ----------------------------------------------------------------

FINAL = {
    "another start": (fault("wrong-range", times=ALWAYS), MMError, "another range"),
    "another total": (fault("wrong-total", times=ALWAYS), MMError, "bytes now, not"),
    "other bytes of the same size": (fault("corrupt"), IntegrityError, "sha256"),
    "never a byte": (fault("stall", times=ALWAYS), TransientError, "nothing came|timed out"),
    "never a whole answer": (fault("cut", times=ALWAYS), TransientError, "early|broken"),
    "always cut short": (fault("truncate", times=ALWAYS), TransientError, "early|ended"),
    "down": (fault("503", times=ALWAYS), TransientError, "answered 503"),
}


@pytest.mark.parametrize("name", FINAL)
def test_final(hub, local, address, name):
    """These end with an error that names the file and the fault; the next pull succeeds."""
    each, kind, words = FINAL[name]
    if name == "other bytes of the same size" and is_without_hash(address):
        pytest.skip("nobody can see it: the server states no hash")
    error = attempt(hub, local, address, replace(each), retries=2)
    assert isinstance(error, kind), repr(error)
    assert says(error, words), repr(error)
    check_next_pull(hub, local, address)


@pytest.mark.parametrize("name", ["another start", "other bytes of the same size", "down"])
def test_final_on_the_way_to_s3(hub, s3, hf, name):
    """The same into an object store: wrong bytes leave no upload behind."""
    each, kind, words = FINAL[name]
    error = attempt(hub, s3, hf, replace(each), retries=2)
    assert isinstance(error, kind), repr(error)
    assert says(error, words), repr(error)
    with manager_for(s3) as manager:
        if name == "other bytes of the same size":
            assert left_over(manager) == 0
    check_next_pull(hub, s3, hf)


@pytest.mark.parametrize(
    ("backend", "kind", "expected"),
    [
        ("local", "503", TransientError),
        ("local", "401", AuthError),
        ("local", "stall", TransientError),
        ("s3", "503", TransientError),
        ("s3", "401", AuthError),
    ],
)
def test_what_came_before_the_fault_is_not_fetched_again(hub, request, backend, kind, expected):
    """A server that goes down, or a token that expires, costs the rest of a file, not the file."""
    target = request.getfixturevalue(backend)
    hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": CONFIG})
    faults = fault("cut", after_bytes=25 * MIB), fault(kind, times=ALWAYS)
    error = attempt(hub, target, "hf://org/m", *faults, retries=1, connections=1)
    assert isinstance(error, expected), repr(error)
    with manager_for(target) as manager:
        assert left_over(manager) > 0
    assert check_next_pull(hub, target, "hf://org/m") < len(WEIGHTS) - 16 * MIB


@pytest.mark.parametrize("backend", ["local", "s3"])
def test_a_link_that_expired_is_asked_for_anew(hub, request, backend, monkeypatch):
    """A 403 of the second origin, in mid-file, leads back to the first for a fresh link."""
    target = request.getfixturevalue(backend)
    hub.redirect_lfs = True
    hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": CONFIG})
    faults = fault("cut", after_bytes=9 * MIB), fault("403", times=2)
    assert attempt(hub, target, "hf://org/m", *faults) is None
    refused = [r for r in hub.requests if r.status == 403]
    assert [r.origin for r in refused] == ["other", "other"]


def test_a_link_that_is_always_expired_is_an_error(hub, local):
    """A second origin that never answers is told; the next pull succeeds."""
    hub.redirect_lfs = True
    hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": CONFIG})
    error = attempt(hub, local, "hf://org/m", fault("403", times=ALWAYS), retries=2)
    assert isinstance(error, TransientError)
    assert says(error, "expired"), repr(error)
    check_next_pull(hub, local, "hf://org/m")


@pytest.mark.parametrize("backend", ["local", "s3"])
def test_a_file_that_changes_in_mid_pull(hub, request, backend, address):
    """New bytes of the same size, half-way: an error, or all of the new; never a mixture."""
    target = request.getfixturevalue(backend)

    def change() -> None:
        hub.replace_file("org/m", "w.bin", OTHER_WEIGHTS)

    hub.faults.append(fault("cut", after_bytes=25 * MIB, then=change))
    with manager_for(target) as manager:
        with pytest.raises(IntegrityError) as caught:
            manager.pull(address, model_id="org/m")
        assert says(caught.value, "sha256|changed|has .* now"), repr(caught.value)
        assert caught.value.hint
        assert [s.key for s in manager.sink().list("models/") if s.key.endswith("w.bin")] == []
        assert left_over(manager) == 0
        if "#" in address:
            return
        pulled = manager.pull(address, model_id="org/m")
        key = f"models/org/m/{pulled.entry.version}/w.bin"
        assert read_bytes(manager.sink(), key) == OTHER_WEIGHTS
        assert manager.verify(deep=True).ok


def test_a_file_that_changes_between_two_pulls_is_no_mixture(hub, local):
    """Parts of the old bytes are not taken up for the new ones under the same name and size."""
    hub.add_repo("org/m", files={"w.bin": WEIGHTS, "config.json": CONFIG})
    faults = fault("cut", after_bytes=25 * MIB), fault("503", times=ALWAYS)
    assert isinstance(attempt(hub, local, "hf://org/m", *faults, retries=1), TransientError)
    hub.replace_file("org/m", "w.bin", OTHER_WEIGHTS)
    before = hub.sent_bytes
    with manager_for(local) as manager:
        pulled = manager.pull("hf://org/m")
        key = f"models/org/m/{pulled.entry.version}/w.bin"
        assert read_bytes(manager.sink(), key) == OTHER_WEIGHTS
        assert left_over(manager) == 0
    assert hub.sent_bytes - before >= len(OTHER_WEIGHTS)
