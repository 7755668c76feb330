"""The memory of registries: a log never goes back behind what was seen of it."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from mm_core import ModelManager
from mm_core.exceptions import IntegrityError
from mm_core.folders import memory_of
from mm_core.registry import ModelRegistry, log
from mm_core.registry.memory import Memory, Seen
from mm_core.schemas import canonical_json
from mm_core.sink import read_bytes
from mm_core.testing.registry import registered
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit


@pytest.fixture
def sink(tmp_path):
    return MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def log_key(seq):
    return f".mm/log/{seq:012d}.json"


def write(registry, count, start=0):
    for number in range(start, start + count):
        registry.add_model(registered("org/model", str(number)))


def take_back(sink, to):
    """Put an older backup back: nothing above commit `to`, and the hint of that time."""
    gone = [stored.key for stored in sink.list(".mm/log/") if stored.key > log_key(to)]
    sink.delete([*gone, ".mm/hint.json"])
    sink.delete([stored.key for stored in sink.list(".mm/snap/")])
    sink.delete([stored.key for stored in sink.list(".mm/tail/")])


@pytest.mark.parametrize(("there", "left"), [(42, 17), (42, 41), (100, 50), (2, 1), (1, 0)])
def test_a_registry_that_went_back_is_refused(sink, folder, there, left):
    """Neither read nor written, until somebody accepts it; the error says from where to where."""
    write(ModelRegistry(sink, memory=folder), there)
    take_back(sink, left)
    for _ in range(2):
        registry = ModelRegistry(sink, memory=folder)
        with pytest.raises(IntegrityError, match=f"from commit {there} to {left}:") as caught:
            registry.list_models()
        assert "mm registry accept" in caught.value.hint
        with pytest.raises(IntegrityError):
            write(registry, 1, start=500)
    assert sink.stat(log_key(left + 1)) is None
    assert len(ModelRegistry(sink).list_models()) == left
    assert ModelRegistry(sink, memory=folder).accept() == left
    heir = ModelRegistry(sink, memory=folder)
    write(heir, 1, start=500)
    assert len(ModelRegistry(sink, memory=folder).list_models()) == left + 1


@pytest.mark.parametrize("seq", [10, 40, 70])
@pytest.mark.parametrize("then", [0, 5, 60])
def test_another_commit_under_a_number_that_was_seen_is_refused(sink, folder, seq, then):
    """A log that was taken back and grew again is another one, however long it is."""
    write(ModelRegistry(sink, memory=folder), seq)
    take_back(sink, seq - 1)
    write(ModelRegistry(sink), 1 + then, start=500)
    with pytest.raises(IntegrityError, match=f"another commit {seq} "):
        ModelRegistry(sink, memory=folder).list_models()


def test_what_others_committed_is_remembered_too(sink, folder):
    """A reader remembers the newest commit that it saw, cold or warm."""
    reader, writer = ModelRegistry(sink, memory=folder), ModelRegistry(sink)
    write(writer, 3)
    reader.list_models()
    write(writer, 3, start=3)
    reader.refresh()
    take_back(sink, 5)
    with pytest.raises(IntegrityError, match="from commit 6 to 5:"):
        ModelRegistry(sink, memory=folder).list_models()


@pytest.mark.parametrize("again", [0, 1, 2])
def test_who_is_at_work_when_a_registry_goes_back_learns_it(sink, monkeypatch, again):
    """Before he goes on from a commit that is gone, and leaves a gap behind; also without a memory."""
    at_work = ModelRegistry(sink)
    write(at_work, 40)
    at_work.list_models()
    take_back(sink, 38)
    write(ModelRegistry(sink), again, start=500)
    monkeypatch.setattr(log, "SURE_FOR", 0.0)
    with pytest.raises(IntegrityError, match="went back|another commit"):
        write(at_work, 1, start=600)
    with pytest.raises(IntegrityError, match="went back|another commit"):
        at_work.list_models()
    assert sink.stat(log_key(39 + again)) is None
    at_work.load()
    write(at_work, 1, start=600)
    assert len(ModelRegistry(sink).list_models()) == 39 + again


def test_that_the_newest_commit_is_there_is_looked_at_seldom(sink, monkeypatch):
    """One read more in two minutes, and none where others commit."""
    registry = ModelRegistry(sink)
    write(registry, 3)
    reads = []
    monkeypatch.setattr(log, "read_commit", lambda _, seq, __: reads.append(seq))
    registry.refresh()
    assert reads == []


def test_the_check_costs_one_read_and_no_round_trip(sink, folder):
    """The commit that was seen is read along with checkpoint and pack."""
    write(ModelRegistry(sink, memory=folder), 70)
    keys = []
    real = MemorySink.read

    class Spy(MemorySink):
        def read(self, key, start=0, end=None):
            keys.append(key)
            return real(self, key, start, end)

    spy = Spy(sink.config)
    write(ModelRegistry(sink), 20, start=70)
    ModelRegistry(spy, memory=folder).list_models()
    assert keys.count(log_key(70)) == 2  # once as what was seen, once among those after the pack
    assert log_key(70) in keys[2:5]


def test_a_lost_commit_that_was_seen_is_damage(sink, folder):
    """With later commits there it did not go back: the log has lost one."""
    write(ModelRegistry(sink, memory=folder), 20)
    write(ModelRegistry(sink), 60, start=20)
    sink.delete([log_key(20)])
    with pytest.raises(IntegrityError, match="commit 20 is missing"):
        ModelRegistry(sink, memory=folder).list_models()


def test_a_copy_elsewhere_is_another_registry(sink, folder, tmp_path):
    """A replica that lags behind has the same id, and is not refused."""
    write(ModelRegistry(sink, memory=folder), 20)
    replica = MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}-replica"))
    for stored in sink.list(""):
        if stored.key <= log_key(10):
            replica.put(stored.key, read_bytes(sink, stored.key))
    assert len(ModelRegistry(replica, memory=folder).list_models()) == 10


def test_a_replica_at_another_endpoint_may_lag_behind(tmp_path):
    """One name of a bucket may mean both; settings that only tune decide nothing."""

    def at(environ, root="s3://bucket/p", **options):
        sink = SimpleNamespace(
            root=root, config=SimpleNamespace(options=SimpleNamespace(endpoint_url=None, **options))
        )
        return memory_of(sink, tmp_path, environ)

    assert at({}) == at({"AWS_PROFILE": "dev"}) == at({}, profile="dev") == tmp_path
    assert at({}, root="/models") == at({"AWS_ENDPOINT_URL": "http://a"}, root="/models")
    other = SimpleNamespace(
        root="s3://bucket/p",
        config=SimpleNamespace(options=SimpleNamespace(endpoint_url="http://a")),
    )
    folders = [
        at({}),
        at({"AWS_ENDPOINT_URL": "http://a"}),
        at({"AWS_ENDPOINT_URL_S3": "http://b"}),
        memory_of(other, tmp_path, {}),
    ]
    assert len({*folders}) == 4
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


def test_a_store_made_anew_is_another_registry(sink, folder):
    """Emptied and begun again it has another id; nothing was taken back."""
    write(ModelRegistry(sink, memory=folder), 20)
    sink.delete([stored.key for stored in sink.list("")])
    assert ModelRegistry(sink, memory=folder).list_models() == []
    write(ModelRegistry(sink, memory=folder), 2)
    assert len(ModelRegistry(sink, memory=folder).list_models()) == 2


@pytest.mark.parametrize("damage", ["rubbish", "empty", "a folder", "no right to write", "lost"])
def test_the_memory_is_never_an_error_of_its_own(sink, folder, damage):
    """What cannot be read or written is as if nothing had been seen."""
    write(ModelRegistry(sink, memory=folder), 3)
    [path] = folder.glob("*.json")
    if damage == "no right to write":
        blocked = folder.with_name("a-file")
        blocked.write_text("")
        folder = blocked / "below"
    else:
        path.unlink()
    if damage in ("rubbish", "empty"):
        path.write_bytes(b"\xff{" if damage == "rubbish" else b"")
    elif damage == "a folder":
        path.mkdir()
    registry = ModelRegistry(sink, memory=folder)
    write(registry, 2, start=3)
    assert len(ModelRegistry(sink, memory=folder).list_models()) == 5


def test_memory_goes_forward_only(folder):
    """A note that comes late changes nothing; accept does."""
    memory = Memory(folder)
    memory.note("id", "root", Seen(5, "five"))
    memory.note("id", "root", Seen(4, "four"))
    assert memory.recall("id", "root") == Seen(5, "five")
    assert memory.recall("id", "elsewhere") is None
    memory.accept("id", "root", Seen(2, "two"))
    assert memory.recall("id", "root") == Seen(2, "two")


NOTE = """
import sys
from pathlib import Path
from mm_core.registry.memory import Memory, Seen
memory = Memory(Path(sys.argv[1]))
for seq in range(int(sys.argv[2]), 120, 3):
    memory.note("id", "root", Seen(seq, str(seq)))
"""


def test_processes_share_a_memory(folder):
    """However they interleave, the file is whole, and in the end the highest is remembered."""
    with ThreadPoolExecutor(3) as pool:
        done = pool.map(
            lambda n: subprocess.run([sys.executable, "-c", NOTE, folder, str(n)], check=True),
            (1, 2, 3),
        )
        assert [process.returncode for process in done] == [0, 0, 0]
    assert Memory(folder).recall("id", "root").seq >= 117
    assert {path.suffix for path in folder.iterdir()} == {".json", ".lock"}


def test_opened_backends_remember_and_the_setting_stops_it(tmp_path, monkeypatch):
    """A manager's backends refuse to go back by default; registry.remember switches that off."""
    root = tmp_path / "store"
    with ModelManager(backend=str(root)) as manager:
        write(manager.registry(), 3)
    (root / ".mm/log/000000000003.json").unlink()
    with ModelManager(backend=str(root)) as manager, pytest.raises(IntegrityError, match="back"):
        manager.list_models()
    monkeypatch.setenv("MM_REGISTRY__REMEMBER", "false")
    with ModelManager(backend=str(root)) as manager:
        assert len(manager.list_models()) == 2


def test_the_file_says_what_it_is_about(sink, folder):
    """It holds no secret: the id, the root, the commit's number and its hash."""
    registry = ModelRegistry(sink, memory=folder)
    write(registry, 2)
    [path] = folder.glob("*.json")
    head = registry.history()[-1]
    seen = {"id": registry.id, "root": sink.root, "seq": 2, "sha256": head.sha256}
    assert canonical_json(json.loads(path.read_text())) == canonical_json(seen)
