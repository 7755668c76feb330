"""Whatever happens to the registry's objects: check names it, repair mends it, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import re
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_core.collecting import GcPlan
from mm_core.exceptions import (
    ConflictError,
    IntegrityError,
    MMError,
    StorageError,
    TransientError,
)
from mm_core.registry import ModelRegistry
from mm_core.registry.layout import log_key
from mm_core.schemas import ModelStatus
from mm_core.testing.registry import FaultySink, claimed, fill, manifest_for, registered
from mm_core.upkeep import repair as repairing
from mm_core.upkeep.check import check
from mm_core.upkeep.repair import repair
from mm_core.upkeep.store import QUARANTINE_PREFIX, original_key
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

MODELS = 36
"""Two commits each, and some more: two checkpoints, and a tail that none covers."""

NAMES = {f"org/m{number}" for number in range(MODELS)}


def store(name: str, objects: dict[str, bytes] | None = None) -> MemorySink:
    sink = MemorySink(MemorySink.Config(root=f"memory://{name}"))
    sink.delete([found.key for found in list(sink.list(""))])
    for key, data in (objects or {}).items():
        sink.put(key, data)
    return sink


class Objects(dict):
    """All bytes of a store by their keys."""

    def __repr__(self) -> str:
        return f"<{len(self)} objects>"


def objects_of(sink, prefix: str = "") -> Objects:
    return Objects((found.key, b"".join(sink.read(found.key))) for found in sink.list(prefix))


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The objects of a registry of some versions, with aliases and a removed one."""
    sink = store("whole")
    registry = ModelRegistry(sink)
    for number in range(MODELS):
        claim = claimed(registry, f"org/m{number}", "1")
        sink.write(f"{claim.prefix}model.bin", [b"hello"], size=5)
        facts = {"source": f"hf://org/m{number}", "facts": {"n": number}}
        registry.add(claim, manifest_for(claim, **facts), aliases=["prod"] if number % 3 else [])
    sink.write("models/org/gone/1/model.bin", [b"hello"], size=5)
    fill(registry, "org/gone", "1")
    registry.remove("org/gone", "1")
    registry.set_alias("org/m1", "stable", "1")
    return objects_of(sink)


@pytest.fixture
def sink(whole, request):
    return store(re.sub(r"\W", "-", request.node.name), whole)


def available(sink) -> set[str]:
    entries = ModelRegistry(sink).list_models(status=ModelStatus.AVAILABLE)
    return {entry.model_id for entry in entries}


def codes(sink, **options) -> set[str]:
    return {finding.code for finding in check(sink, **options).problems}


def top_of(sink) -> int:
    return max(int(found.key[-17:-5]) for found in sink.list(".mm/log/"))


def flip(data: bytes, seed: int) -> bytes:
    """One bit of some byte is another."""
    if not data:
        return b"\0"
    place = random.Random(seed).randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def hurt(sink, key: str, how: str, seed: int = 0) -> bytes | None:
    """Damage one object; the bytes that stand there then."""
    data = b"".join(sink.read(key))
    if how == "delete":
        sink.delete([key])
        return None
    damaged = {"flip": flip(data, seed), "cut": data[: len(data) // 2], "empty": b""}[how]
    sink.put(key, damaged)
    return damaged


def quarantined(sink) -> dict[str, bytes]:
    return {
        original_key(found.key): b"".join(sink.read(found.key))
        for found in sink.list(QUARANTINE_PREFIX)
    }


def assert_mended(sink, *, names: set[str] = NAMES) -> None:
    """All versions are there for a new client, the log takes commits, and check is content."""
    assert check(sink).problems == ()
    assert available(sink) >= names
    before = top_of(sink)
    model_id = min(available(sink), default=None)
    if (
        model_id is None
    ):  # where log, checkpoint and manifest are damaged, nobody knows of a version
        ModelRegistry(sink).add_model(registered(model_id := "org/new", "1"))
        before += 1
    ModelRegistry(sink).set_alias(model_id, "after", "1")
    assert top_of(sink) == before + 1
    assert ModelRegistry(sink).resolve(f"{model_id}:after").version == "1"
    assert repair(sink).steps == ()


def checkpoints(sink) -> list[str]:
    return [found.key for found in sink.list(".mm/snap/")]


def test_a_whole_registry_has_no_findings(sink):
    """Nothing is wrong, and repair does nothing."""
    report = check(sink, deep=True)
    assert report.ok
    assert report.versions == MODELS
    assert report.files == MODELS
    before = objects_of(sink)
    assert repair(sink).steps == ()
    assert objects_of(sink) == before


def test_an_empty_store_has_no_findings():
    """Where nobody has written there is nothing to find, and nothing is written."""
    sink = store("empty")
    assert check(sink).findings == ()
    assert repair(sink).steps == ()
    assert objects_of(sink) == {}


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
@pytest.mark.parametrize("which", ["first", "covered", "uncovered", "near the end", "last"])
def test_any_commit_may_be_damaged(sink, which, how):
    """A damaged or missing commit is named; afterwards no version is missing, and its number taken."""
    top = top_of(sink)
    seq = {"first": 1, "covered": 40, "uncovered": 68, "near the end": top - 1, "last": top}[which]
    if (which, how) == ("last", "delete"):
        pytest.skip("nothing tells of a last commit that has gone")
    damaged = hurt(sink, log_key(seq), how, seed=1)
    assert codes(sink) & {"log_damaged", "log_gap"} or (which, how) == ("last", "flip")
    done = repair(sink)
    if damaged is not None and done.steps:
        assert damaged in quarantined(sink).values()
    assert sink.stat(log_key(seq)) is not None
    assert_mended(sink)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
@pytest.mark.parametrize("which", ["hint", "old checkpoint", "new checkpoint"])
def test_any_convenience_may_be_damaged(sink, which, how):
    """A hint or a checkpoint is made anew; what was damaged is kept."""
    keys = checkpoints(sink)
    key = {"hint": ".mm/hint.json", "old checkpoint": keys[0], "new checkpoint": keys[-1]}[which]
    damaged = hurt(sink, key, how, seed=2)
    if (which, how) != ("old checkpoint", "delete"):  # nothing names that one any more
        assert codes(sink) & {"hint_missing", "hint_damaged", "checkpoint_damaged"}
    repair(sink)
    if damaged is not None and which != "hint":
        assert quarantined(sink)[key] == damaged
    assert_mended(sink)


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_manifest_may_be_damaged(sink, how):
    """It is made anew from the files that stand, and the version keeps its aliases."""
    registry = ModelRegistry(sink)
    key = f".mm/manifests/{registry.resolve('org/m1').manifest}.json"
    damaged = hurt(sink, key, how, seed=3)
    assert codes(sink) == {"manifest_missing" if how == "delete" else "manifest_damaged"}
    repair(sink)
    if damaged is not None:
        assert quarantined(sink)[key] == damaged
    entry = ModelRegistry(sink).resolve("org/m1:prod")
    assert entry.aliases == ("prod", "stable")
    assert [f.path for f in ModelRegistry(sink).manifest(entry).files] == ["model.bin"]
    assert_mended(sink)


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_models_file_may_be_damaged(sink, how):
    """Check names the file and its version; repair leaves files alone."""
    hurt(sink, "models/org/m1/1/model.bin", how, seed=4)
    found = check(sink, deep=True).problems
    assert [(f.code, f.model_id, f.version) for f in found] == [
        (
            {"flip": "object_hash", "cut": "object_size", "delete": "object_missing"}[how],
            "org/m1",
            "1",
        )
    ]
    assert (codes(sink) == set()) == (how == "flip"), "only --deep sees wrong bytes of right size"
    assert repair(sink).steps == ()


def test_what_nobody_names_is_a_note(tmp_path):
    """Files of no version are told; those of an entry that was registered in this root are not."""
    from mm_core.schemas import ModelEntry
    from mm_plugins.sinks.local import LocalSink

    sink = LocalSink(LocalSink.Config(root=str(tmp_path)))
    fill(ModelRegistry(sink), "org/m", "1")
    for key in ("models/org/m/1/model.bin", "models/lost/1/x", "models/mine/v/x"):
        sink.write(key, [b"hello"], size=5)
    mine = ModelEntry(model_id="mine", version="v", path=tmp_path / "models" / "mine" / "v")
    ModelRegistry(sink).add_model(mine)
    report = check(sink)
    assert report.ok
    assert [(f.code, f.key) for f in report.findings] == [("orphan", "models/lost/1/x")]


@pytest.mark.parametrize("how", ["cut", "delete"])
def test_the_format_may_be_damaged(sink, how):
    """It is made anew, with a new id since nothing tells the old one."""
    damaged = hurt(sink, ".mm/format.json", how)
    assert codes(sink) == {"format_missing" if how == "delete" else "format_damaged"}
    repair(sink)
    if damaged is not None:
        assert quarantined(sink)[".mm/format.json"] == damaged
    assert ModelRegistry(sink).id
    assert_mended(sink)


@pytest.mark.parametrize("left", ["checkpoints", "hint", "manifests"])
def test_the_whole_log_may_be_lost(sink, left):
    """What a checkpoint knows is kept; without one, what is complete is added again."""
    gone = [".mm/log/", *([] if left == "checkpoints" else [".mm/snap/"])]
    gone += [".mm/hint.json"] if left == "manifests" else []
    top = top_of(sink)
    sink.delete([f.key for prefix in gone for f in list(sink.list(prefix))])
    assert "log_gap" in codes(sink)
    repair(sink)
    assert_mended(sink)
    if left == "checkpoints":
        assert ModelRegistry(sink).resolve("org/m1:prod").version == "1"
    if left != "manifests":
        assert top_of(sink) > top - 32, "numbers that were seen are not used again"


def test_a_lost_log_without_a_checkpoint_does_not_offer_what_is_incomplete(sink):
    """A version of which a file is missing, and one that has none, stay away."""
    sink.delete(["models/org/m3/1/model.bin"])
    for prefix in (".mm/log/", ".mm/snap/", ".mm/hint.json"):
        sink.delete([f.key for f in list(sink.list(prefix))])
    repair(sink)
    assert available(sink) == NAMES - {"org/m3"} | {"org/gone"}, "its removal is lost, too"
    assert repair(sink).steps == ()


def test_a_number_is_never_free(sink):
    """A writer that had read what is lost is stopped; it takes no number of the repaired log."""
    stalled = ModelRegistry(sink)
    stalled.refresh()
    hurt(sink, log_key(top_of(sink)), "cut")
    repair(sink)
    before = objects_of(sink)
    with pytest.raises(IntegrityError):
        stalled.set_alias("org/m5", "stale", "1")
    assert objects_of(sink) == before
    assert_mended(sink)


def test_no_commit_is_ever_deleted(sink):
    """Not even for a moment is a number free that was taken."""

    class Watched(FaultySink):
        def delete(self, keys):
            keys = list(keys)
            assert not any(key.startswith(".mm/log/") for key in keys)
            super().delete(keys)

    for seq, how in ((20, "cut"), (68, "empty"), (top_of(sink), "cut")):
        hurt(sink, log_key(seq), how)
    repair(Watched(sink, rate=0, seed=0))
    assert_mended(sink)


def test_a_writer_that_was_first_is_kept(sink):
    """Who commits on top of what is lost, before a repair does, has committed."""
    stalled = ModelRegistry(sink)
    stalled.refresh()
    hurt(sink, log_key(top_of(sink)), "cut")
    stalled.set_alias("org/m5", "early", "1")
    repair(sink)
    assert ModelRegistry(sink).resolve("org/m5:early").version == "1"
    assert_mended(sink)


@pytest.mark.parametrize("seqs", [(20,), (20, 21), (68,), (40, 70)])
def test_history_goes_on_over_a_gap(sink, seqs):
    """What is lost shows as what stands in for it; a commit that was changed is still named."""
    sink.delete([f.key for f in sink.list(".mm/tail/")])
    for seq in seqs:
        hurt(sink, log_key(seq), "cut")
    with pytest.raises(IntegrityError):
        ModelRegistry(sink).history()
    repair(sink)
    records = ModelRegistry(sink).history()
    assert [record.seq for record in records] == list(range(1, top_of(sink) + 1))
    assert [
        r.seq for r in records if "stands_in" in r.extra and not r.extra["stands_in"]["fence"]
    ] == list(seqs)
    assert ModelRegistry(sink).history(limit=1000) == records
    sink.put(log_key(10), b"".join(sink.read(log_key(11))))
    with pytest.raises(IntegrityError, match="commit 10"):
        ModelRegistry(sink).history()
    with pytest.raises(IntegrityError, match="commit 10"):
        ModelRegistry(sink).history(limit=1000)


def test_what_was_before_a_gap_is_not_guessed(sink):
    """A roll-back and a past state that hang on a lost commit say that it was lost, and no more."""
    sink.delete([f.key for f in sink.list(".mm/tail/")])
    hurt(sink, log_key(20), "cut")
    repair(sink)
    registry = ModelRegistry(sink)
    with pytest.raises(IntegrityError, match="commit 20 .* was lost"):
        registry.rollback("org/m5", "nobody-ever-set-it")
    with pytest.raises(IntegrityError, match="commit 20 .* was lost"):
        registry.reading(as_of=21)
    assert registry.reading(as_of=19).as_of.commit == 19
    assert registry.reading(as_of=top_of(sink)).as_of.commit == top_of(sink)


def test_an_operation_of_a_later_release_is_not_judged(sink):
    """What a newer release wrote is neither set aside nor skipped."""
    from mm_core.registry.log import Log
    from mm_core.schemas import canonical_json

    state = Log(sink, timeout=5, writer="").refresh()
    commit = {"seq": state.seq + 1, "prev": state.head, "id": "x", "writer": "w", "time": "t"}
    newer = canonical_json({**commit, "operations": [{"op": "dance", "id": "y", "model_id": "m"}]})
    sink.create(log_key(state.seq + 1), newer)
    before = objects_of(sink)
    for look in (check, repair):
        with pytest.raises(StorageError, match="dance"):
            look(sink)
    assert objects_of(sink) == before


def test_files_of_another_attempt_are_not_taken_for_those_of_a_lost_version(sink):
    """A pull stored its list and was given up; the next brought other bytes of the same sizes."""
    registry = ModelRegistry(sink)
    claim = claimed(registry, "org/late", "1")
    sink.write(f"{claim.prefix}model.bin", [b"hello"], size=5)
    registry._store_manifest(manifest_for(claim))
    registry.abandon(claim, "it was killed")
    claim = claimed(registry, "org/late", "1")
    sink.write(f"{claim.prefix}model.bin", [b"other"], size=5)
    registry.abandon(claim, "it was killed, too")
    hurt(sink, log_key(66), "cut")
    repair(sink)
    assert "org/late" not in available(sink)


@pytest.mark.parametrize("what", ["an alias moved", "a new alias", "replaced"])
def test_a_version_that_changes_meanwhile_is_not_replaced_by_a_repair(sink, monkeypatch, what):
    """Its manifest is made anew from what stood, for what was named so: not for what came since."""
    registry = ModelRegistry(sink)
    sink.write("models/org/m1/2/model.bin", [b"hello"], size=5)
    fill(registry, "org/m1", "2")
    hurt(sink, f".mm/manifests/{registry.resolve('org/m1@1').manifest}.json", "delete")

    def meanwhile(*arguments):
        monkeypatch.undo()
        if what == "an alias moved":
            registry.set_alias("org/m1", "prod", "2")
        elif what == "a new alias":
            registry.set_alias("org/m1", "new", "1")
        else:
            registry.remove("org/m1", "1")
            sink.write("models/org/m1/1/model.bin", [b"hello"], size=5)
            claim = claimed(registry, "org/m1", "1")
            registry.add(claim, manifest_for(claim, license="mit"), aliases=["prod", "stable"])
        return repairing.add_again(*arguments)

    monkeypatch.setattr(repairing, "add_again", meanwhile)
    assert repair(sink).left == ()
    aliases = ModelRegistry(sink).aliases("org/m1")["org/m1"]
    assert (
        aliases
        == {
            "an alias moved": {"prod": "2", "stable": "1"},
            "a new alias": {"new": "1", "prod": "1", "stable": "1"},
            "replaced": {"prod": "1", "stable": "1"},
        }[what]
    )
    entry = ModelRegistry(sink).resolve("org/m1@1")
    assert ModelRegistry(sink).manifest(entry).license == ("mit" if what == "replaced" else None)
    assert_mended(sink)


def test_a_pull_that_is_under_way_is_left_alone(sink):
    """What a claim holds is not added over the head of its holder, who then adds it."""
    registry = ModelRegistry(sink)
    claim = claimed(registry, "org/late", "1")
    sink.write(f"{claim.prefix}model.bin", [b"hello"], size=5)
    manifest = manifest_for(claim)
    registry._store_manifest(manifest)
    hurt(sink, log_key(66), "cut")
    repair(sink)
    assert "org/late" not in available(sink)
    fresh = ModelRegistry(sink)
    fresh.add(claim, manifest)
    assert "org/late" in available(sink)


def test_a_dry_run_does_nothing(sink):
    """It tells the steps of the repair and writes nothing."""
    hurt(sink, log_key(70), "cut")
    hurt(sink, ".mm/hint.json", "cut")
    before = objects_of(sink)
    planned = repair(sink, dry_run=True)
    assert objects_of(sink) == before
    assert [s.key for s in planned.steps] == [s.key for s in repair(sink).steps]


class Killed(BaseException):
    """The process ends here."""


class Mortal(FaultySink):
    """Dies at the nth writing call, before or after it took effect."""

    def __init__(self, inner, step, *, after):
        super().__init__(inner, rate=0, seed=0)
        self.left, self.after = step, after
        self.lock = threading.Lock()

    def _count(self, action):
        with self.lock:
            if self.left <= 0:
                raise Killed
            self.left -= 1
            if self.left == 0:
                if self.after:
                    action()
                raise Killed
            action()

    def create(self, key, data):
        self._count(lambda: self.inner.create(key, data))

    def put(self, key, data):
        self._count(lambda: self.inner.put(key, data))

    def copy(self, source_key, key):
        self._count(lambda: self.inner.copy(source_key, key))

    def delete(self, keys):
        keys = list(keys)
        self._count(lambda: self.inner.delete(keys))


@pytest.mark.parametrize("after", [False, True])
def test_a_repair_may_die_at_any_step(whole, after):
    """The next one goes on, and all is there in the end."""

    def damaged():
        sink = store(f"dying-{after}", whole)
        hurt(sink, log_key(40), "cut")
        hurt(sink, log_key(67), "delete")
        hurt(sink, log_key(top_of(sink)), "flip", seed=9)
        hurt(sink, log_key(top_of(sink) - 1), "empty")
        hurt(sink, checkpoints(sink)[-1], "flip")
        return sink

    steps = 0
    while True:
        steps += 1
        sink = damaged()
        before = objects_of(sink)
        try:
            repair(Mortal(sink, steps, after=after))
        except Killed:
            pass
        else:
            break
        repair(sink)
        assert_mended(sink)
        kept = set(objects_of(sink).values())
        lost = {k for k, data in before.items() if data not in kept and k != ".mm/hint.json"}
        assert lost == set()
    assert steps > 10


def test_nothing_is_collected_until_an_interrupted_repair_is_done(sink):
    """Between a stand-in and the version that it lost, that version's files look like nobody's."""
    from mm_core.collecting import collect, make_gc_plan

    hurt(sink, log_key(top_of(sink) - 5), "cut")
    hurt(sink, ".mm/hint.json", "delete")
    sink.delete([*checkpoints(sink), *[f.key for f in sink.list(".mm/tail/")]])
    with pytest.raises(Killed):
        repair(Mortal(sink, 5, after=True))
    assert "repair_unfinished" in codes(sink)
    for look in (
        lambda: make_gc_plan(ModelRegistry(sink), grace=0),
        lambda: collect(ModelRegistry(sink), GcPlan(grace=0)),
    ):
        with pytest.raises(ConflictError, match="repair"):
            look()
    repair(sink)
    assert available(sink) == NAMES
    collect(ModelRegistry(sink), make_gc_plan(ModelRegistry(sink), grace=0))
    assert available(sink) == NAMES
    assert check(sink, deep=True).ok


def test_a_stand_in_condemns_nothing(sink):
    """What another repair put back before a stand-in was written after it stays where it is."""
    from mm_core.upkeep.commits import stand_in

    top = top_of(sink)
    fence = stand_in(top + 1, "e" * 64, time="1970-01-01T00:00:00Z", aside=None, fence=True)
    before = objects_of(sink, f"{log_key(top)[:8]}")
    sink.create(log_key(top + 1), fence)
    repair(sink)
    assert objects_of(sink, f"{log_key(top)[:8]}").items() >= before.items()
    assert_mended(sink)


def test_repair_at_faults_in_the_store(whole):
    """Cut requests and lost answers do no harm."""
    for seed in range(3):
        sink = store(f"faults-{seed}", whole)
        hurt(sink, log_key(66), "cut")
        hurt(sink, log_key(top_of(sink)), "empty")
        hurt(sink, checkpoints(sink)[0], "flip")
        faulty = FaultySink(sink, rate=0.1, seed=seed)
        for _ in range(20):
            try:
                repair(faulty)
                break
            except MMError:
                pass
        repair(sink)
        assert_mended(sink)


def test_repair_while_others_commit(sink):
    """What others commit during a repair is there afterwards, and their commits go on."""
    clients = {f"w{number}": ModelRegistry(sink) for number in range(3)}
    for registry in clients.values():
        registry.refresh()
    hurt(sink, log_key(40), "cut")
    hurt(sink, checkpoints(sink)[0], "flip")
    stop, made, failures = threading.Event(), [], []

    def work(name, registry):
        while not stop.is_set() and len(made) < 200:
            alias = f"{name}-{len(made)}"
            try:
                registry.set_alias("org/m4", alias, "1")
                made.append(alias)
            except MMError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=item) for item in clients.items()]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            repair(sink)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert made
    assert set(made) <= set(ModelRegistry(sink).get_model("org/m4").aliases)
    repair(sink)
    assert_mended(sink)


def test_two_repairs_at_once(whole):
    """They write the same, and neither harms what the other has mended."""
    for seed in range(4):
        sink = store(f"two-{seed}", whole)
        for key in (log_key(20), log_key(67), log_key(top_of(sink)), checkpoints(sink)[0]):
            hurt(sink, key, ["flip", "cut", "empty"][seed % 3], seed=seed)
        sink.delete([f.key for f in sink.list(".mm/tail/")])
        problems = []

        def work(sink=sink, problems=problems):
            try:
                repair(sink)
            except MMError as error:
                problems.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(isinstance(problem, TransientError) for problem in problems)
        repair(sink)
        assert_mended(sink)


damages = st.lists(
    st.tuples(
        st.sampled_from(["log", "log", "log", "snap", "tail", "hint", "manifests"]),
        st.integers(0, 10**6),
        st.sampled_from(["flip", "cut", "empty", "delete"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=int(os.environ.get("MM_DAMAGES", "12")),
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(damage=damages)
def test_any_damage_is_mended(whole, damage):
    """Whatever is damaged together: no version is lost whose files stand, and nothing is thrown away."""
    sink = store("any-damage", whole)
    before, hit = objects_of(sink), set()
    for kind, place, how in damage:
        prefix = ".mm/hint.json" if kind == "hint" else f".mm/{kind}/"
        keys = [found.key for found in sink.list(prefix)]
        if keys:
            hurt(sink, keys[place % len(keys)], how, seed=place)
            hit.add(keys[place % len(keys)])
    damaged = objects_of(sink)
    try:
        done = repair(sink)
    except StorageError:  # a flip made an operation that nobody knows
        assert objects_of(sink) == damaged
        return
    names = NAMES
    if any(key.startswith(".mm/log/") for key in hit):  # a commit and its manifest, both lost
        names = NAMES - {json.loads(before[key])["model_id"] for key in hit if "manifests" in key}
    assert {left.key for left in done.left} <= hit
    kept = set(objects_of(sink).values())
    lost = {k for k, d in damaged.items() if d not in kept and k != ".mm/hint.json"}
    assert lost == set()
    assert {k: d for k, d in before.items() if k.startswith("models/")}.items() <= objects_of(
        sink
    ).items()
    assert_mended(sink, names=names)
