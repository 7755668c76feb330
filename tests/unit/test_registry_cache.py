"""The read cache: one request when warm, right when brought forward, never an error of its own."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from mm_core import Plugins
from mm_core.exceptions import IntegrityError, NotFoundError, OfflineError, TransientError
from mm_core.folders import memory_of, name_of_store, registry_cache
from mm_core.registry import ModelRegistry, cache
from mm_core.registry.queries import Query
from mm_core.testing.registry import FaultySink, fill
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.unit

ALL = Query()


class CountingSink(FaultySink):
    """Counts what is asked of the store, by method."""

    def __init__(self, inner) -> None:
        super().__init__(inner, rate=0, seed=0)
        self.calls: list[str] = []

    def read(self, key, start=0, end=None):
        self.calls.append(f"read {key}")
        return super().read(key, start, end)

    def stat(self, key):
        self.calls.append(f"stat {key}")
        return super().stat(key)

    def list(self, prefix):
        self.calls.append(f"list {prefix}")
        return super().list(prefix)

    def put(self, key, data):
        self.calls.append(f"put {key}")
        super().put(key, data)


class DownSink(CountingSink):
    """A store that is out of reach."""

    def read(self, key, start=0, end=None):
        raise TransientError("connection refused")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path):
    """The same store for each call, as another client sees it."""
    return lambda: MemorySink(MemorySink.Config(root=f"memory:/{tmp_path}"))


@pytest.fixture
def writer(store):
    """A client without a cache, with three versions in the store."""
    registry = ModelRegistry(store())
    for number in (1, 2, 3):
        fill(registry, "org/model", str(number), aliases=("prod",))
    return registry


@pytest.fixture
def reader(store, folder):
    """A new client with a cache, for each call."""
    return lambda sink=None: ModelRegistry(sink or store(), cache=folder)


def names(registry, query=ALL):
    return [f"{entry.model_id}@{entry.version}" for entry in registry.query(query)]


def files(folder):
    return sorted(path.name for path in folder.glob("*.sqlite3"))


def loaded(registry):
    """Whether the state was loaded."""
    return registry._log.known is not None


# -- warm


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry: registry.query(Query.parse("size>1", limit=20)),
        lambda registry: registry.query(Query.parse(text="org model")),
        lambda registry: registry.resolve("org/model:prod"),
        lambda registry: registry.aliases(),
        lambda registry: registry.reading().usage(ALL),
    ],
)
def test_a_warm_answer_asks_for_one_object(writer, reader, store, ask):
    """The next number of the log, and nothing else; the state is not loaded."""
    reader().query(ALL)
    sink = CountingSink(store())
    registry = reader(sink)
    first, second = ask(registry), ask(registry)
    head = writer._log.known.seq
    assert sink.calls == [f"read .mm/log/{head + 1:012d}.json"] * 2
    assert first == second == ask(ModelRegistry(store()))
    assert not loaded(registry)


def test_what_others_committed_is_seen(writer, reader, store):
    """Each answer is of the newest commit: only the new commits are read."""
    registry = reader()
    assert names(registry) == ["org/model@1", "org/model@2", "org/model@3"]
    fill(writer, "org/new", "1", aliases=("prod",))
    writer.remove("org/model", "2")
    head = writer._log.known.seq
    sink = CountingSink(store())
    later = reader(sink)
    assert names(later) == ["org/model@1", "org/model@3", "org/new@1"]
    assert later.resolve("org/new:prod") == writer.resolve("org/new:prod")
    assert not loaded(later)
    assert sink.calls[-1] == f"read .mm/log/{head + 1:012d}.json"
    assert all(call.startswith("read .mm/log/") for call in sink.calls)


def test_an_alias_that_moved_is_seen_in_the_entries(writer, reader):
    """A commit that changes no version changes what the entries say of themselves."""
    names(reader())
    writer.set_alias("org/model", "prod", "1")
    writer.set_alias("org/model", "old", "2")
    writer.remove_alias("org/model", "old")
    later = reader()
    assert later.query(ALL) == writer.list_models()
    assert [entry.version for entry in later.query(Query.parse("alias=prod"))] == ["1"]
    assert not loaded(later)


def test_it_is_never_brought_back(writer, reader, monkeypatch):
    """Who is slower than another process starts from where that one has brought it."""
    names(reader())
    slow, after = reader(), cache.Cached._after

    def overtaken(self, at):
        commits = after(self, at)
        if self is slow._readings.cached and commits:
            monkeypatch.setattr(cache.Cached, "_after", after)
            fill(writer, "b", "1")
            assert len(names(reader())) == 5
        return commits

    fill(writer, "a", "1")
    monkeypatch.setattr(cache.Cached, "_after", overtaken)
    assert len(names(slow)) == 5
    assert reader().reading(offline=True).freshness.commit == writer.state().seq


def test_far_behind_it_is_made_anew(writer, reader, folder, monkeypatch):
    """Beyond some commits the checkpoint is the shorter way."""
    names(reader())
    monkeypatch.setattr(cache, "_AT_MOST", 2)
    before = files(folder)
    fill(writer, "org/new", "1", aliases=("prod",))
    writer.remove("org/model", "2")
    assert names(reader()) == ["org/model@1", "org/model@3", "org/new@1"]
    assert len(files(folder)) == 1
    assert files(folder) != before


def test_references_mean_the_same_with_and_without_a_cache(writer, reader, store):
    """Ids, versions, aliases, `latest`, near names and removed versions."""
    writer.set_alias("org/model", "latest", "2")
    names(reader())
    plain, cached = ModelRegistry(store()), reader()
    for reference in ("org/model", "org/model@1", "org/model:prod", "org/model@prod"):
        assert cached.resolve(reference) == plain.resolve(reference)
    for reference in ("org/none", "Org/Model", "org/model@9", "org/model:none"):
        with pytest.raises(NotFoundError) as here:
            cached.resolve(reference)
        with pytest.raises(NotFoundError) as there:
            plain.resolve(reference)
        assert (str(here.value), here.value.hint) == (str(there.value), there.value.hint)
    assert not loaded(cached)


def test_a_large_registry_is_not_copied_for_one_name(writer, reader, folder, monkeypatch):
    """A cold lookup makes a cache only where that costs little."""
    monkeypatch.setattr(cache, "_MANY", 0)
    assert reader().resolve("org/model:prod").version == "3"
    assert files(folder) == []
    names(reader())
    assert len(files(folder)) == 1


def test_an_empty_registry_leaves_no_cache(reader, folder):
    """Nobody has written: nothing is listed and nothing is kept."""
    assert names(reader()) == []
    assert files(folder) == []


def test_without_a_cache_rows_in_memory_follow_the_log(writer, store, tmp_path):
    """Embedded use: no file, the same answers, also after more commits."""
    registry = ModelRegistry(store())
    assert len(names(registry)) == 3
    writer.remove("org/model", "1")
    fill(registry, "a", "1")
    assert names(registry) == ["a@1", "org/model@2", "org/model@3"]
    assert [path.name for path in tmp_path.rglob("*.sqlite3")] == []


# -- another registry under the same root


def wipe(tmp_path):
    shutil.rmtree(tmp_path / "store")


@pytest.fixture
def local(tmp_path):
    return lambda: LocalSink(LocalSink.Config(root=str(tmp_path / "store")))


def test_a_local_store_made_anew_is_seen_at_once(tmp_path, local, folder):
    """Fewer commits, same folder: the listing is the new one's, whatever the cache holds."""
    old = ModelRegistry(local())
    for number in range(4):
        fill(old, "old", str(number))
    assert len(names(ModelRegistry(local(), cache=folder))) == 4
    wipe(tmp_path)
    assert names(ModelRegistry(local(), cache=folder)) == []
    fill(ModelRegistry(local()), "new", "1")
    assert names(ModelRegistry(local(), cache=folder)) == ["new@1"]


def replace_store(store):
    """Delete all objects, and make a registry with one version in their place."""
    sink = store()
    sink.delete([found.key for found in sink.list("")])
    registry = ModelRegistry(store())
    fill(registry, "new", "1")
    return registry


def test_elsewhere_it_is_seen_after_some_minutes(writer, reader, store, folder, monkeypatch):
    """The format and the newest commit that is known are looked at again."""
    names(reader())
    replace_store(store)
    monkeypatch.setattr(cache, "CHECK_AFTER", 0.0)
    sink = CountingSink(store())
    assert names(reader(sink)) == ["new@1"]
    assert "read .mm/format.json" in sink.calls


def test_it_is_seen_at_once_where_it_has_grown_beyond(writer, reader, store):
    """The next commit does not follow: the chain tells."""
    names(reader())
    registry = replace_store(store)
    for number in range(5):
        fill(registry, "more", str(number))
    assert len(names(reader())) == 6


def test_it_is_seen_at_once_by_who_has_written_there(writer, reader, store):
    """A commit of this machine below the cache's own number says that it is another's."""
    names(reader())
    sink = store()
    sink.delete([found.key for found in sink.list("")])
    fill(reader(), "new", "1")
    assert names(reader()) == ["new@1"]


def test_a_clock_that_went_back_is_looked_at_again(writer, reader, store, folder):
    """A last check in the future counts as none."""
    names(reader())
    [path] = folder.glob("*.sqlite3")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET checked = ?", (time.time() + 1e6,))
    db.close()
    sink = CountingSink(store())
    assert len(names(reader(sink))) == 3
    assert "read .mm/format.json" in sink.calls


def test_a_damaged_log_is_an_error_whatever_is_cached(writer, reader, store):
    """A new commit that does not follow is IntegrityError, as without a cache."""
    names(reader())
    head = writer._log.known.seq
    store().create(f".mm/log/{head + 1:012d}.json", b'{"seq": 0}')
    with pytest.raises(IntegrityError, match=f"commit {head + 1} "):
        names(reader())


def test_a_store_that_does_not_answer_is_an_error(writer, reader, store, folder):
    """Nothing stale is passed off as the newest state."""
    names(reader())
    registry = ModelRegistry(DownSink(store()), cache=folder, commit_timeout=0.05)
    with pytest.raises(TransientError):
        names(registry)


# -- damaged, locked, foreign, out of reach


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def drop_tables(path):
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE bodies")
    db.close()


def flip_bodies(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE bodies SET body = replace(body, 'org/model', 'org/evil!')")
    db.close()


def lose_bodies(path):
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM bodies")
    db.close()


def another_release(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET schema = 99")
    db.close()


def another_root(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET root = 's3://other'")
    db.close()


def another_head(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET head = ?", ("f" * 64,))
    db.close()


def no_meta(path):
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM meta")
    db.close()


@pytest.mark.parametrize(
    "harm",
    [
        cut,
        drop_tables,
        flip_bodies,
        lose_bodies,
        another_release,
        another_root,
        no_meta,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no database at all" * 500),
        lambda path: path.write_bytes(b"\0" * 8192),
    ],
)
def test_a_damaged_or_foreign_cache_is_made_anew(writer, reader, folder, store, harm):
    """The answer is right, nobody is told, and the next answer is warm again."""
    names(reader())
    [path] = folder.glob("*.sqlite3")
    harm(path)
    assert names(reader()) == ["org/model@1", "org/model@2", "org/model@3"]
    sink = CountingSink(store())
    assert reader(sink).resolve("org/model:prod").version == "3"
    assert len(sink.calls) == 1
    assert len(files(folder)) == 1
    assert not path.exists()


def test_a_flipped_bit_makes_no_entry_up(writer, reader, folder):
    """Anywhere in the file: no error, and every entry that is told is one that there is."""
    registry = reader()
    want = registry.query(ALL)
    [path] = folder.glob("*.sqlite3")
    good, choice = path.read_bytes(), random.Random(11)
    for _ in range(60):
        for old in folder.glob("*.sqlite3"):
            old.unlink()
        bad = bytearray(good)
        bad[choice.randrange(len(bad))] ^= 1 << choice.randrange(8)
        path.write_bytes(bad)
        assert all(entry in want for entry in reader().query(ALL))
        assert reader().aliases() in ({"org/model": {"prod": "3"}}, {})


def test_another_head_is_found_out_by_the_next_commit(writer, reader, folder):
    """The chain does not fit: made anew."""
    names(reader())
    [path] = folder.glob("*.sqlite3")
    another_head(path)
    fill(writer, "a", "1")
    assert len(names(reader())) == 4


@pytest.mark.parametrize("kind", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_locked_cache_is_done_without(writer, reader, folder, monkeypatch, kind):
    """Somebody holds it for good: answered from the store, after a moment."""
    names(reader())
    monkeypatch.setattr(cache, "_BUSY", 0.05)
    [path] = folder.glob("*.sqlite3")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute(f"BEGIN {kind}")
    fill(writer, "a", "1")
    assert len(names(reader())) == 4
    assert reader().resolve("a").version == "1"
    holder.rollback()
    holder.close()
    later = reader()
    assert len(names(later)) == 4
    assert not loaded(later)


def test_a_folder_that_cannot_be_made_is_done_without(writer, store, tmp_path):
    """A file stands in its place."""
    (tmp_path / "file").write_text("")
    registry = ModelRegistry(store(), cache=tmp_path / "file" / "cache")
    assert len(names(registry)) == 3
    assert registry.resolve("org/model:prod").version == "3"


def test_a_full_disk_is_done_without(writer, reader, folder, monkeypatch):
    """No room for the file: the answer comes from memory, and nothing is left behind."""

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    assert len(names(reader())) == 3
    assert list(folder.iterdir()) == []


def test_no_room_to_bring_it_forward(writer, reader, folder, monkeypatch):
    """A cache that cannot be written is read, and done without once there is news."""
    names(reader())

    def full(self, old, new, keys):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(cache.Rows, "change", full)
    assert len(names(reader())) == 3
    fill(writer, "a", "1")
    assert len(names(reader())) == 4


def test_a_read_only_cache_is_read_and_then_done_without(
    writer, reader, folder, store, monkeypatch
):
    """As long as there is no news it answers; then the store does."""
    names(reader())
    connect = sqlite3.connect
    monkeypatch.setattr(
        cache.sqlite3,
        "connect",
        lambda name, **more: connect(str(name).replace("mode=rw", "mode=ro"), **more),
    )
    monkeypatch.setattr(cache, "CHECK_AFTER", 0.0)
    warm = reader()
    assert len(names(warm)) == 3
    assert not loaded(warm)
    fill(writer, "a", "1")
    assert len(names(reader())) == 4


def test_what_a_killed_process_left_is_swept(writer, reader, folder):
    """A file that was being made when its maker died goes, once it is old."""
    folder.mkdir()
    (folder / ".young.new").write_text("")
    (folder / ".old.new").write_text("")
    os.utime(folder / ".old.new", (0, 0))
    names(reader())
    assert [path.name for path in folder.glob(".*.new")] == [".young.new"]


def test_others_cannot_read_it(writer, reader, folder):
    """Model names may be private: the folder and the file are the user's own."""
    names(reader())
    [path] = folder.glob("*.sqlite3")
    assert path.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_many_threads_share_it(writer, reader):
    """Readers and a writer at once: every answer is of some commit, and the last of the newest."""
    registry, problems = reader(), []

    def read():
        try:
            for _ in range(10):
                found = names(registry)
                assert found[:3] == ["org/model@1", "org/model@2", "org/model@3"]
                assert found[3:] == [f"x@{n:02d}" for n in range(len(found) - 3)]
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(10):
        fill(writer, "x", f"{number:02d}")
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(names(registry)) == 13


# -- offline


def test_offline_the_cache_alone_answers_and_says_how_old_it_is(writer, reader, store, folder):
    """Not one request, and the age since the store was asked last."""
    names(reader())
    fill(writer, "later", "1")
    [path] = folder.glob("*.sqlite3")
    os.utime(path, (time.time() - 7200,) * 2)
    sink = CountingSink(store())
    reading = reader(sink).reading(offline=True)
    assert [entry.version for entry in reading.query(ALL)] == ["1", "2", "3"]
    assert reading.resolve("org/model:prod").version == "3"
    assert reading.aliases() == {"org/model": {"prod": "3"}}
    assert [usage.versions for usage in reading.usage(ALL)] == [3]
    assert 7190 < reading.freshness.age < 7300
    assert reading.alone
    assert sink.calls == []


def test_offline_without_a_cache_is_an_error(writer, reader, store):
    """It says so, and what to do."""
    for registry in (reader(), ModelRegistry(store())):
        with pytest.raises(OfflineError) as caught:
            registry.reading(offline=True)
        assert "mm list" in caught.value.hint


def test_offline_there_is_no_past(writer, reader):
    """The cache holds the newest commit only."""
    names(reader())
    with pytest.raises(OfflineError, match="newest commit only"):
        reader().reading(as_of=1, offline=True)


def test_offline_a_damaged_cache_is_an_error(writer, reader, folder):
    """There is nothing else to answer from."""
    names(reader())
    [path] = folder.glob("*.sqlite3")
    path.write_bytes(b"no database at all" * 500)
    with pytest.raises(OfflineError, match="cannot be asked"):
        reader().reading(offline=True)


def test_a_store_on_this_disk_is_asked_offline_too(local, folder):
    """Reading a folder is no network: what was just pushed is there."""
    fill(ModelRegistry(local()), "m", "1")
    reading = ModelRegistry(local(), cache=folder).reading(offline=True)
    assert [entry.version for entry in reading.query(ALL)] == ["1"]
    fill(ModelRegistry(local()), "m", "2")
    reading = ModelRegistry(local(), cache=folder).reading(offline=True)
    assert [entry.version for entry in reading.query(ALL)] == ["1", "2"]
    assert (reading.freshness.age, reading.alone) == (0.0, False)


def test_file_lists_are_kept_under_their_hash(writer, reader, store, folder):
    """Read once; then from this disk, also offline; a damaged one is read again."""
    reading = reader().reading()
    entry = reading.resolve("org/model:prod")
    manifest = reading.manifest(entry)
    sink = CountingSink(store())
    alone = reader(sink).reading(offline=True)
    assert alone.manifest(entry) == manifest
    assert sink.calls == []
    kept = folder / "manifests" / f"{entry.manifest}.json"
    kept.write_bytes(b"{}")
    with pytest.raises(OfflineError, match="file list"):
        alone.manifest(entry)
    assert reader().reading().manifest(entry) == manifest
    assert alone.manifest(entry) == manifest


# -- where it lies


def test_each_store_has_a_cache_of_its_own(tmp_path, monkeypatch):
    """Another root, other settings or another endpoint is another file; memory has none."""

    class Sink:
        def __init__(self, root, config=""):
            self.root, self.config = root, config

    monkeypatch.delenv("MM_CACHE", raising=False)
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    one = registry_cache(Sink("s3://b/x"), environ)
    assert one.parent == tmp_path / "model-manager" / "registries"
    assert registry_cache(Sink("s3://b/x"), environ) == one
    others = [
        registry_cache(Sink("s3://b/y"), environ),
        registry_cache(Sink("s3://b/x", "endpoint_url=http://127.0.0.1"), environ),
        registry_cache(Sink("s3://b/x"), environ | {"AWS_ENDPOINT_URL": "http://127.0.0.1"}),
        registry_cache(Sink("s3://b/x"), environ | {"AWS_PROFILE": "dev"}),
    ]
    assert len({one, *others}) == 5
    assert registry_cache(Sink("memory://x"), environ) is None
    assert registry_cache(Sink("s3://b/x"), {"MM_CACHE": "off"}) is None
    elsewhere = registry_cache(Sink("s3://b/x"), {"MM_CACHE": str(tmp_path / "else")})
    assert elsewhere.parent == Path(tmp_path / "else" / "registries")


def test_settings_that_are_never_shown_tell_stores_apart():
    """Options for a client, and whose key it is: the same bucket may be another store for them."""
    s3, other = Plugins.discover().sink_type("s3"), Plugins.discover().sink_type("fsspec")
    at = [{"endpoint_url": f"http://127.0.0.1:{port}"} for port in (1, 2)]
    made = [
        s3(s3.Config.model_validate({"root": "s3://b/x", "options": options}))
        for options in (
            {},
            *({"client_kwargs": one} for one in at),
            *at,
            {"config_kwargs": {"s3": {"addressing_style": "path"}}},
            {"key": "mine", "secret": "one"},
            {"key": "yours", "secret": "one"},
        )
    ]
    made += [
        other(other.Config(root="sftp:///models", options={"host": host})) for host in ("a", "b")
    ]
    assert len({name_of_store(sink, environ={}) for sink in made}) == len(made)
    assert len({memory_of(sink, Path("m"), {}) for sink in made[:5]}) == 3
    again = s3(s3.Config.model_validate({"root": "s3://b/x", "options": at[0]}))
    assert name_of_store(again, environ={}) == name_of_store(made[3], environ={})


@pytest.fixture
def remembering(store, folder, tmp_path):
    """A new client that has a cache and remembers what it has seen, for each call."""
    return lambda: ModelRegistry(store(), cache=folder, memory=tmp_path / "memory")


def go_back(store, writer, commits):
    """Take away the last commits."""
    head = writer.state().seq
    store().delete([f".mm/log/{seq:012d}.json" for seq in range(head - commits + 1, head + 1)])


def test_a_registry_that_went_back_is_refused_by_a_warm_look_too(writer, store, remembering):
    """What another process of this machine has seen is remembered: not only the cache's own."""
    names(remembering())
    fill(remembering(), "later", "1")
    go_back(store, writer, 2)
    with pytest.raises(IntegrityError, match="went back"):
        names(remembering())


@pytest.mark.parametrize("discarded", [True, False])
def test_what_was_accepted_stays_accepted(writer, store, folder, remembering, discarded, tmp_path):
    """A cache that is ahead of it does not bring back the memory of what is gone."""
    names(remembering())
    before = names(ModelRegistry(store()))
    fill(writer, "later", "1")
    names(remembering())
    go_back(store, writer, 2)
    accepting = remembering() if discarded else ModelRegistry(store(), memory=tmp_path / "memory")
    accepting.accept()
    for _ in range(2):
        assert names(remembering()) == before
    assert len(remembering().list_models()) == len(before)
