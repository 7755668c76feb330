"""The read cache among processes, and what a warm command asks of an S3 server."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
import uuid

import pytest

from mm_core.cli import main
from mm_core.plugins import Plugins
from mm_core.registry import ModelRegistry
from mm_core.registry.queries import Query
from mm_core.testing.registry import fill
from mm_core.testing.s3 import S3Server

pytestmark = pytest.mark.integration

SPAWN = multiprocessing.get_context("spawn")
READERS, VICTIMS, COMMITS = 2, 3, 40


def open_store(root):
    sink_type = Plugins.discover().sink_for(root)
    return sink_type(sink_type.Config(root=root))


def names(registry):
    return [entry.version for entry in registry.query(Query(removed=True))]


# -- many processes, one file


def write(store):
    """Add versions in order, and move an alias along."""
    registry = ModelRegistry(open_store(store))
    for number in range(COMMITS):
        fill(registry, "m", f"{number:03d}", aliases=("newest",))


def read(store, folder, busy, done):
    """Ask until the writer is done; each answer is the state after some commit, never older."""
    seen = 0
    while True:
        last = done.is_set()
        registry = ModelRegistry(open_store(store), cache=folder)
        found = names(registry)
        assert found == [f"{number:03d}" for number in range(len(found))], found
        assert len(found) >= seen
        seen = len(found)
        busy.set()
        if last:
            assert seen == COMMITS
            return


def test_processes_share_a_cache(local, tmp_path):
    """A writer, 2 readers, and 3 that are killed at work: no wrong answer, and no damage."""
    folder, done, choice = tmp_path / "cache", SPAWN.Event(), random.Random(5)
    busy = [SPAWN.Event() for _ in range(READERS + VICTIMS)]
    writer = SPAWN.Process(target=write, args=(local,))
    readers = [SPAWN.Process(target=read, args=(local, folder, each, done)) for each in busy]
    for process in (writer, *readers):
        process.start()
    for victim, at_work in zip(readers[:VICTIMS], busy, strict=False):
        assert at_work.wait(60)
        time.sleep(choice.random() / 5)
        os.kill(victim.pid, signal.SIGKILL)
    writer.join(120)
    done.set()
    for process in readers:
        process.join(120)
    exits = [process.exitcode for process in (writer, *readers)]
    assert exits == [0] + [-signal.SIGKILL] * VICTIMS + [0] * READERS
    plain, cached = ModelRegistry(open_store(local)), ModelRegistry(open_store(local), cache=folder)
    assert cached.query(Query()) == plain.query(Query()) == plain.list_models()
    [path] = folder.glob("*.sqlite3")
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# -- on S3


@pytest.fixture
def served(monkeypatch):
    """A server of this test's own, with two versions in a bucket, and what stops it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(S3Server())
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = f"models-{uuid.uuid4().hex[:12]}"  # moto's objects outlive its server
        server.make_bucket(bucket)
        monkeypatch.setenv("MM_DEFAULTS__BACKEND", f"s3://{bucket}/prod")
        registry = ModelRegistry(open_store(f"s3://{bucket}/prod"))
        fill(registry, "org/model", "1", aliases=("prod",))
        fill(registry, "org/model", "2")
        yield server, bucket, stack.close


@pytest.fixture
def mm(capfd):
    """Run mm on the default backend, and read its document."""

    def run(*arguments):
        code = main([*arguments, "--json"])
        out, err = capfd.readouterr()
        assert code == 0, out + err
        return json.loads(out)

    return run


@pytest.mark.parametrize(
    "words",
    [["list"], ["search", "org"], ["du"], ["url", "org/model:prod"], ["alias", "list"]],
    ids=" ".join,
)
def test_a_warm_command_asks_a_bucket_for_one_object(served, mm, words):
    """One GET, of the next commit."""
    server, bucket, _ = served
    first = mm(*words)
    server.requests.clear()
    assert mm(*words) == first
    assert server.requests == [("GET", f"/{bucket}/prod/.mm/log/000000000005.json")]


def test_a_warm_show_reads_the_list_of_files_once(served, mm):
    """Then it asks for the next commit, too, and for what may have been signed meanwhile."""
    server, bucket, _ = served
    first = mm("show", "org/model:prod")
    server.requests.clear()
    assert mm("show", "org/model:prod") == first
    assert sorted(server.requests) == [
        ("GET", f"/{bucket}"),  # a listing below .mm/signatures/
        ("GET", f"/{bucket}/prod/.mm/log/000000000005.json"),
    ]


def test_offline_needs_no_server(served, mm):
    """The server is gone: the cache answers, and says how old it is."""
    _, bucket, stop = served
    first = mm("list")["models"]
    stop()
    offline = mm("list", "--offline")
    assert offline["models"] == first
    assert offline["cache"]["commit"] == 4
    found = mm("url", "org/model:prod", "--offline")
    assert found["url"] == f"s3://{bucket}/prod/models/org/model/1"
