"""One hundred pulls over networks of which one request in five fails, on either side.

Each ends right or with an error of ours, offers no wrong byte, and ends right once the faults
are gone. The seeds are the turns' numbers: a pull that went wrong can be had again by its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial

import pytest

from mm_core import (
    Buffer,
    MMError,
    ModelManager,
    ModelStatus,
    Plugins,
    Sink,
    TransientError,
    Upload,
    hookimpl,
    load_settings,
)
from mm_core.testing.material import digest, noise
from mm_core.testing.proxy import FaultProxy
from mm_core.transfer.retry import RetryPolicy
from mm_plugins.sinks.local import LocalSink

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
RATE = 0.2
LARGE = {"local": 9 * MIB, "s3": 17 * MIB, "gcs": 17 * MIB}
"""Three parts each."""

TURNS = [
    *(("local", turn) for turn in range(34)),
    *(("s3", turn) for turn in range(33)),
    *(("gcs", turn) for turn in range(33)),
]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """As many tries as ever, with next to no waiting between them."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))
    monkeypatch.setattr("mm_core.manager.RetryPolicy", partial(RetryPolicy, base=0.002))


# -- a folder that fails ---------------------------------------------------------------------


class Weather:
    """When a write fails: at random, and never while the `rate` is 0."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.struck = 0
        self._random = random.Random()
        self._lock = threading.Lock()

    def begin(self, rate: float, seed: int) -> None:
        self.rate, self.struck, self._random = rate, 0, random.Random(seed)

    def strikes(self) -> bool:
        with self._lock:
            hit = self._random.random() < self.rate
            self.struck += hit
            return hit

    def strike(self, what: str) -> None:
        if self.strikes():
            raise TransientError(f"{what} was not written: a fault that was told to happen")

    @contextlib.contextmanager
    def strike_before_or_after(self, what: str) -> Iterator[None]:
        """As where the answer is lost: nobody can tell whether it was done."""
        hit = self.strikes()
        if hit and self.strikes():
            raise TransientError(f"{what} was not written: a fault that was told to happen")
        yield
        if hit:
            raise TransientError(f"no answer whether {what} was written")


weather = Weather()


class FlakyUpload(Upload):
    def __init__(self, inner: Upload, key: str) -> None:
        self._inner = inner
        self._key = key
        self.size, self.part_size = inner.size, inner.part_size
        self.kept, self.readable = inner.kept, inner.readable

    def write_part(self, number: int, data: memoryview) -> None:
        with weather.strike_before_or_after(f"part {number} of {self._key}"):
            self._inner.write_part(number, data)

    def read_part(self, number: int, buffer: memoryview) -> None:
        self._inner.read_part(number, buffer)

    def commit(self) -> None:
        weather.strike(self._key)
        self._inner.commit()

    def keep(self) -> None:
        self._inner.keep()

    def discard(self) -> None:
        self._inner.discard()


class FlakySink(LocalSink):
    """A folder of whose writes some fail: before they began, half-way, or with a lost answer."""

    type = "flaky"
    schemes = ()

    @classmethod
    def answers(cls, url: str) -> bool:
        return False

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        weather.strike(key)

        def broken() -> Iterator[Buffer]:
            yield from chunks
            weather.strike(key)

        super().write(key, broken(), size=size)

    def create(self, key: str, data: bytes) -> None:
        with weather.strike_before_or_after(key):
            super().create(key, data)

    def put(self, key: str, data: bytes) -> None:
        with weather.strike_before_or_after(key):
            LocalSink.write(self, key, (data,), size=len(data))

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        weather.strike(key)
        upload = super().begin_upload(key, size=size, identity=identity)
        return None if upload is None else FlakyUpload(upload, key)


class FlakyPlugin:
    @hookimpl
    def mm_sinks(self) -> list[type[Sink]]:
        return [FlakySink]


# -- the two sides ---------------------------------------------------------------------------


@contextlib.contextmanager
def bad_source(hub, turn, monkeypatch):
    """The hub itself misbehaves, or the way there, in turns; yields how many faults there were."""
    if turn % 2:
        with FaultProxy(hub.endpoint, rate=RATE, seed=turn) as proxy:
            monkeypatch.setenv("HF_ENDPOINT", proxy.endpoint_url)
            yield lambda: sum(request.fault is not None for request in proxy.requests)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    else:
        hub.fail_at_random(RATE, seed=turn)
        yield lambda: sum(request.fault is not None for request in hub.requests)
        hub.fail_at_random(0)


@contextlib.contextmanager
def bad_store(kind, request, turn, monkeypatch):
    """One write in five fails, or one request in five; yields how many did."""
    if kind == "local":
        weather.begin(RATE, turn)
        yield lambda: weather.struck
        weather.begin(0, turn)
        return
    server = request.getfixturevalue(f"{kind}_server")
    variable = {"s3": "AWS_ENDPOINT_URL", "gcs": "STORAGE_EMULATOR_HOST"}[kind]
    with FaultProxy(server.endpoint_url, rate=RATE, seed=1000 + turn) as proxy:
        monkeypatch.setenv(variable, proxy.endpoint_url)
        yield lambda: sum(request.fault is not None for request in proxy.requests)
    monkeypatch.setenv(variable, server.endpoint_url)


def manager_for(kind, root) -> ModelManager:
    backend = {"type": "flaky" if kind == "local" else kind, "root": root}
    settings = load_settings(overrides={"backends": {"store": backend}})
    return ModelManager(settings, plugins=Plugins.discover(extra=[FlakyPlugin()]), backend="store")


def model_of(kind, turn) -> dict[str, bytes]:
    small = {f"small-{n}.json": noise(5_000 + 37 * n + turn) for n in range(4)}
    return {"model.safetensors": noise(LARGE[kind] + 997 * turn), "empty.txt": b"", **small}


def check_right(manager, files) -> None:
    """What is AVAILABLE is whole, by the registry's own word and by ours."""
    assert manager.verify("org/m", deep=True).ok
    (entry,) = [e for e in manager.list_models() if e.status is ModelStatus.AVAILABLE]
    prefix = f"models/org/m/{entry.version}/"
    sink = manager.sink()
    found = {s.key.removeprefix(prefix): digest(sink.read(s.key)) for s in sink.list(prefix)}
    assert found == {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


@pytest.mark.parametrize(("kind", "turn"), TURNS)
def test_faults_on_both_sides(hub, request, monkeypatch, kind, turn):
    """A pull ends right or with a clear error; what is offered is right; the next one succeeds."""
    root = request.getfixturevalue(kind)
    files = model_of(kind, turn)
    hub.add_repo("org/m", files=files)
    error = None
    with (
        bad_source(hub, turn, monkeypatch) as source_faults,
        bad_store(kind, request, turn, monkeypatch) as store_faults,
        manager_for(kind, root) as manager,
    ):
        try:
            manager.pull("hf://org/m")
        except MMError as caught:
            error = caught
        assert source_faults() + store_faults() > 0
    with manager_for(kind, root) as manager:
        entry = manager.registry().get_model("org/m")
        available = entry is not None and entry.status is ModelStatus.AVAILABLE
        assert available or error is not None
        if available:
            check_right(manager, files)
        if error is not None:
            assert is_clear(error, [*files, "org/m", root]), repr(error)
            manager.pull("hf://org/m")
            check_right(manager, files)


def is_clear(error: MMError, nouns: list[str]) -> bool:
    """It says what it is about, in words that are ours."""
    told = str(error)
    return len(told.split()) > 3 and any(noun in told for noun in nouns)
