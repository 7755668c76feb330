"""RegistryTests: what a store must do for the registry to be safe on it.

Subclass it and give a fixture `sink` that returns a new, empty store::

    class TestMyStore(RegistryTests):
        @pytest.fixture
        def sink(self, tmp_path):
            return MySink(MySink.Config(root=str(tmp_path)))
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from mm_core.exceptions import ConflictError, NotFoundError, TransientError
from mm_core.registry import Claim, ModelRegistry, probe_exclusive_create
from mm_core.registry.processes import this_process
from mm_core.schemas import Manifest, ModelEntry, ModelStatus, ModelType, StoredFile, StoredObject
from mm_core.sink import Buffer, Sink

T = TypeVar("T")

SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


class FaultySink(Sink):
    """A sink whose calls fail at the given rate (0 to 1), half of them after they took effect.

    The seed settles which. Reads and listings fail, too.
    """

    type = "faulty"

    def __init__(self, inner: Sink, *, rate: float, seed: int) -> None:
        super().__init__(None)
        self.inner = inner
        self.faults = 0
        self._rate = rate
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        return self.inner.root

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        self._try(lambda: self.inner.write(key, chunks, size=size))

    def create(self, key: str, data: bytes) -> None:
        self._try(lambda: self.inner.create(key, data))

    def put(self, key: str, data: bytes) -> None:
        self._try(lambda: self.inner.put(key, data))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        return iter(self._try(lambda: list(self.inner.read(key, start, end))))

    def stat(self, key: str) -> StoredObject | None:
        return self._try(lambda: self.inner.stat(key))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter(self._try(lambda: tuple(self.inner.list(prefix))))

    def copy(self, source_key: str, key: str) -> None:
        self._try(lambda: self.inner.copy(source_key, key))

    def delete(self, keys: Iterable[str]) -> None:
        self._try(lambda: self.inner.delete(keys))

    def url(self, key: str) -> str:
        return self.inner.url(key)

    def _try(self, action: Callable[[], T]) -> T:
        with self._lock:
            fails, after = self._random.random() < self._rate, self._random.random() < 0.5
            self.faults += fails
        if fails and not after:
            raise TransientError("the request was cut")
        result = action()
        if fails:
            raise TransientError("the answer was lost")
        return result


class Killed(BaseException):
    """The process ends here."""


class MortalSink(FaultySink):
    """Dies at the nth writing call, before or after it took effect; dead, it answers no more."""

    def __init__(self, inner: Sink, step: int, *, after: bool) -> None:
        super().__init__(inner, rate=0, seed=0)
        self.left, self.after = step, after

    def _try(self, action: Callable[[], T]) -> T:
        if self.left <= 0:
            raise Killed
        return action()

    def _count(self, action: Callable[[], None]) -> None:
        self.left -= 1
        if self.left == 0 and self.after:
            action()
        self._try(action)

    def create(self, key: str, data: bytes) -> None:
        self._count(lambda: self.inner.create(key, data))

    def put(self, key: str, data: bytes) -> None:
        self._count(lambda: self.inner.put(key, data))

    def delete(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        self._count(lambda: self.inner.delete(listed))


def manifest_for(claim: Claim, **fields: Any) -> Manifest:
    """A manifest of one file that ends `claim`."""
    file = StoredFile(path="model.bin", key=f"{claim.prefix}model.bin", size=5, sha256=SHA256)
    return Manifest(
        model_id=claim.model_id,
        version=claim.version,
        model_type=ModelType.OTHER,
        files=(file,),
        **fields,
    )


def fill(
    registry: ModelRegistry, model_id: str, version: str, *, aliases: tuple[str, ...] = ()
) -> ModelEntry:
    """Begin and add a version of one file."""
    claim = claimed(registry, model_id, version)
    return registry.add(claim, manifest_for(claim), aliases=aliases)


def claimed(registry: ModelRegistry, model_id: str, version: str, **options: Any) -> Claim:
    """A claim, which nobody else may have."""
    claim = registry.begin(model_id, version, wait=False, **options)
    assert isinstance(claim, Claim)
    return claim


class RegistryTests:
    """The registry on one store. Needs a fixture `sink`."""

    @pytest.fixture
    def sink(self) -> Sink:
        raise NotImplementedError("give a fixture `sink` that returns a new, empty store")

    @pytest.fixture
    def registry(self, sink: Sink) -> ModelRegistry:
        return ModelRegistry(sink, claim_timeout=5)

    @pytest.fixture
    def other(self, sink: Sink) -> ModelRegistry:
        """A second client of the same store."""
        return ModelRegistry(sink, claim_timeout=5)

    def test_the_store_has_an_exclusive_create(self, sink: Sink) -> None:
        """The probe passes, and leaves nothing behind."""
        probe_exclusive_create(sink)
        assert list(sink.list("")) == []

    def test_reading_an_empty_store_writes_nothing(
        self, sink: Sink, registry: ModelRegistry
    ) -> None:
        """A reader needs no right to write."""
        assert registry.list_models() == []
        assert registry.get_model("org/model") is None
        assert registry.id is None
        assert list(sink.list("")) == []

    def test_a_version_is_offered_only_when_it_is_complete(
        self, registry: ModelRegistry, other: ModelRegistry
    ) -> None:
        """Between begin and add nobody is offered the version; after add everybody is."""
        claim = claimed(registry, "org/model", "1", source="hf://org/model")
        with pytest.raises(NotFoundError):
            other.resolve("org/model")
        found = other.get_model("org/model")
        assert found is not None
        assert found.status is ModelStatus.DOWNLOADING
        entry = registry.add(claim, manifest_for(claim, license="mit"), aliases=["prod"])
        assert other.resolve("org/model") == entry
        assert entry.status is ModelStatus.AVAILABLE
        assert (entry.size_bytes, entry.source, entry.aliases) == (5, "hf://org/model", ("prod",))
        assert str(entry.path).endswith("models/org/model/1")
        assert other.manifest(entry) == manifest_for(claim, license="mit")

    def test_of_many_beginners_one_has_the_claim(self, sink: Sink) -> None:
        """However many begin one version at once, one gets a claim."""
        barrier = threading.Barrier(6)

        def begin(_: int) -> Claim | None:
            registry = ModelRegistry(sink)
            barrier.wait(60)
            try:
                return claimed(registry, "org/model", "1")
            except ConflictError:
                return None

        with ThreadPoolExecutor(6) as pool:
            claims = [claim for claim in pool.map(begin, range(6)) if claim is not None]
        assert len(claims) == 1
        claims[0].close()

    def test_who_waits_gets_what_the_other_fetched(
        self, registry: ModelRegistry, other: ModelRegistry
    ) -> None:
        """A second caller is told whom it waits for, waits, and is given the entry."""
        claim = claimed(registry, "org/model", "1")
        waiting = threading.Event()
        seen: list[ModelEntry] = []

        def on_wait(entry: ModelEntry) -> None:
            seen.append(entry)
            waiting.set()

        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(other.begin, "org/model", "1", on_wait=on_wait)
            assert waiting.wait(60)
            entry = registry.add(claim, manifest_for(claim))
            assert second.result(60) == entry
        assert [(e.model_id, e.version, e.status) for e in seen] == [
            ("org/model", "1", ModelStatus.DOWNLOADING)
        ]

    def test_an_abandoned_version_can_be_begun_again(
        self, registry: ModelRegistry, other: ModelRegistry
    ) -> None:
        """After abandon the version is FAILED, and the next claim is another one."""
        first = claimed(registry, "org/model", "1")
        registry.abandon(first, "no more disk")
        found = other.get_model("org/model", "1")
        assert found is not None
        assert found.status is ModelStatus.FAILED
        second = claimed(other, "org/model", "1")
        assert second.id != first.id
        with pytest.raises(ConflictError):
            registry.add(first, manifest_for(first))
        assert other.add(second, manifest_for(second)).status is ModelStatus.AVAILABLE

    def test_a_dead_heartbeat_is_taken_over(self, sink: Sink) -> None:
        """A claim without a heartbeat goes to who waits; the old holder cannot add any more."""
        dead, heir = (ModelRegistry(sink, claim_timeout=0.5) for _ in range(2))
        old = claimed(dead, "org/model", "1")
        old.close()
        new = heir.begin("org/model", "1")
        assert isinstance(new, Claim)
        with pytest.raises(ConflictError):
            dead.add(old, manifest_for(old))
        assert heir.add(new, manifest_for(new)).status is ModelStatus.AVAILABLE
        operations = [[o["op"] for o in record.operations] for record in heir.history()]
        assert operations == [["begin"], ["abandon", "begin"], ["add"]]

    def test_closed_claims_leave_nothing_behind(self, sink: Sink, registry: ModelRegistry) -> None:
        """After add and abandon no heartbeat and no probe is left in the store."""
        fill(registry, "org/model", "1")
        registry.abandon(claimed(registry, "org/model", "2"), "enough")
        assert list(sink.list(".mm/claims/")) == []
        assert list(sink.list(".mm/probe/")) == []

    def test_aliases_move_only_as_expected(
        self, registry: ModelRegistry, other: ModelRegistry
    ) -> None:
        """With `expect` an alias moves only if it names that version (or None: nothing) now."""
        for version in ("1", "2"):
            fill(registry, "org/model", version)
        registry.set_alias("org/model", "prod", "1", expect=None)
        with pytest.raises(ConflictError):
            other.set_alias("org/model", "prod", "2", expect=None)
        with pytest.raises(ConflictError):
            other.set_alias("org/model", "prod", "1", expect="2")
        assert other.set_alias("org/model", "prod", "2", expect="1").aliases == ("prod",)
        assert registry.resolve("org/model:prod").version == "2"
        registry.remove_alias("org/model", "prod")
        assert other.aliases() == {}

    def test_a_removed_version_is_out_of_use(
        self, registry: ModelRegistry, other: ModelRegistry
    ) -> None:
        """After remove nobody is offered the version, and its aliases are gone."""
        fill(registry, "org/model", "1", aliases=("prod",))
        assert registry.remove("org/model", "1").status is ModelStatus.DELETED
        for reference in ("org/model", "org/model@1", "org/model:prod"):
            with pytest.raises(NotFoundError):
                other.resolve(reference)
        assert other.list_models() == []
        assert [e.version for e in other.list_models(include_deleted=True)] == ["1"]

    def test_nobody_begins_what_is_being_swept(
        self, registry: ModelRegistry, other: ModelRegistry
    ) -> None:
        """Between sweep and swept a begin has to wait; after it the version is as new."""
        fill(registry, "org/model", "1")
        with pytest.raises(ConflictError):
            registry.sweep("org/model", "1")
        registry.remove("org/model", "1")
        registry.sweep("org/model", "1")
        with pytest.raises(ConflictError):
            other.begin("org/model", "1", wait=False)
        registry.swept("org/model", "1")
        assert other.get_model("org/model") is None
        assert fill(other, "org/model", "1").status is ModelStatus.AVAILABLE

    def test_many_writers_lose_nothing(self, sink: Sink) -> None:
        """What 6 clients commit at once is all there, in one unbroken chain."""

        def write(number: int) -> None:
            registry = ModelRegistry(sink)
            for version in range(6):
                assert registry.add_model(registered(f"org/model-{number}", str(version)))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(6)))
        registry = ModelRegistry(sink)
        assert len(registry.list_models()) == 36
        assert [record.seq for record in registry.history()] == list(range(1, 37))

    def test_a_new_reader_sees_what_a_long_log_says(
        self, registry: ModelRegistry, sink: Sink
    ) -> None:
        """Beyond the first checkpoint a new reader has the same state as the writer."""
        for number in range(35):
            registry.add_model(registered("org/model", str(number)))
        assert list(sink.list(".mm/snap/"))
        assert ModelRegistry(sink).list_models() == registry.list_models()

    def test_lost_answers_double_nothing(self, sink: Sink) -> None:
        """With every fifth answer lost or request cut, each commit is made exactly once."""
        faulty = FaultySink(sink, rate=0.2, seed=7)
        registry = ModelRegistry(faulty, claim_timeout=300)
        for number in range(10):
            fill(registry, "org/model", str(number))
        assert faulty.faults > 0
        operations = [
            o["op"] for record in ModelRegistry(sink).history() for o in record.operations
        ]
        assert operations == ["begin", "add"] * 10
        assert len(ModelRegistry(sink).list_models(status=ModelStatus.AVAILABLE)) == 10

    @pytest.mark.parametrize("after", [False, True])
    def test_a_writer_may_die_at_any_step(
        self, sink: Sink, monkeypatch: pytest.MonkeyPatch, after: bool
    ) -> None:
        """Killed before or right after any of its writes, it leaves what the next goes on from."""
        place = this_process()
        if place is None:
            pytest.skip("this system does not tell which processes are alive")
        dead, step, killed = {**place, "pid": 2**22 + 1}, 0, True
        while killed:
            step += 1
            with monkeypatch.context() as patched:
                patched.setattr("mm_core.registry.begin.this_process", lambda: dead)
                killed = _dies(MortalSink(sink, step, after=after), f"org/model-{step}")
            heir = ModelRegistry(sink, claim_timeout=3600)
            begun = heir.begin(f"org/model-{step}", "1", wait=False)
            if isinstance(begun, Claim):
                heir.add(begun, manifest_for(begun), aliases=["prod"])
            assert heir.resolve(f"org/model-{step}:prod").status is ModelStatus.AVAILABLE
        assert step > 1
        history = ModelRegistry(sink).history()
        assert [record.seq for record in history] == list(range(1, len(history) + 1))
        operations = [o["op"] for record in history for o in record.operations]
        assert operations.count("add") == step


def _dies(mortal: MortalSink, model_id: str) -> bool:
    """Fill a version; whether the writer was killed before its end."""
    try:
        fill(ModelRegistry(mortal), model_id, "1", aliases=("prod",))
    except Killed:
        return True
    return mortal.left <= 0


def registered(model_id: str, version: str, **fields: Any) -> ModelEntry:
    """An entry whose files somebody else looks after."""
    return ModelEntry(
        model_id=model_id, version=version, path=f"s3://elsewhere/{version}", **fields
    )
