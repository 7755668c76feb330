"""mm gc, killed at any of its calls to the store: the next one goes on, and nothing offered is harmed.

With MM_STORM=1 there are ten stores for each backend, others for another MM_STORM_SEED.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from mm_core import ModelManager, ModelStatus
from mm_core.registry import ModelRegistry
from mm_core.testing.registry import claimed

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KILLS = 6
STORES = 10 if os.environ.get("MM_STORM") == "1" else 1
SEED = int(os.environ.get("MM_STORM_SEED", "2026"))

CHILD = """
import json, os, signal, sys

import rich, s3fs  # once, and not in each of the processes that are killed

from mm_core import collecting, manager
from mm_core.cli import collect, main
from mm_core.config import load_settings
from mm_core.plugins import Plugins
from mm_plugins.sinks.local import LocalSink
from mm_plugins.sinks.s3 import S3Sink

CALLS = ("create", "put", "delete")


def dying(method, moment):
    def call(self, *arguments):
        moment["left"] -= 1
        if moment["left"]:
            return method(self, *arguments)
        if moment["how"] == "after":
            method(self, *arguments)
        elif moment["how"] == "within" and method.__name__ == "delete":
            keys = [*arguments[0]]
            method(self, keys[: len(keys) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    return call


def run(words, moment=None):
    pid = os.fork()
    if not pid:
        for kind in (LocalSink, S3Sink) if moment else ():
            for name in CALLS:
                setattr(kind, name, dying(getattr(kind, name), moment))
        os.dup2(2, 1)
        os._exit(main(words))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


Plugins.discover()
load_settings()
backend, moments = sys.argv[1], json.loads(sys.argv[2])
seen = []
for moment in moments:
    ended = run(["gc", "--grace", "0", "--backend", backend], moment)
    seen.append([ended, run(["verify", "--backend", backend])])
    if ended == 0:
        break
else:
    seen.append([run(["gc", "--grace", "0", "--backend", backend]),
                 run(["verify", "--backend", backend])])
print(json.dumps(seen))
"""


def fill_store(manager: ModelManager, tmp_path) -> None:
    """Versions that stay and such that go: removed, failed, never finished, and nobody's files."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_bytes(b"{}")
    for version in "123456":
        (mine / "model.bin").write_bytes(version.encode() * 1000)
        manager.push(mine, "org/m", version=version, aliases=["prod"])
    for version in "1234":
        manager.remove(f"org/m@{version}")
    registry, sink = manager.registry(), manager.sink()
    claim = claimed(registry, "org/m", "7")
    sink.put("models/org/m/7/model.bin", b"half")
    registry.abandon(claim, "no room")
    for key in ("models/org/old/1/a", "models/org/old/1/b/c", "models/x", ".mm/claims/gone"):
        sink.put(key, b"litter")


def moments(dice: random.Random) -> list[dict]:
    """Which call is the last, and whether it is done, half done or not done."""
    hows = ("before", "within", "within", "after")
    return [{"left": dice.randint(1, 8), "how": dice.choice(hows)} for _ in range(KILLS)]


@pytest.mark.parametrize("number", range(STORES))
@pytest.mark.parametrize("backend", ["local", "s3"])
def test_a_killed_collection_is_gone_on_with(request, backend, number, tmp_path):
    """After each kill what is offered is whole; the last run, which nobody kills, ends it all."""
    target = request.getfixturevalue(backend)
    with ModelManager(backend=target) as manager:
        fill_store(manager, tmp_path)
    asked = json.dumps(moments(random.Random(f"{SEED} {number}")))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, target, asked],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout.splitlines()[-1])
    ends, checks = zip(*seen, strict=True)
    assert set(checks) == {0}, child.stderr
    assert ends[-1] == 0, child.stderr
    assert all(end == -9 for end in ends[:-1]), child.stderr
    assert len(ends) > KILLS // 2, "most kills were meant for after the end of the collection"
    with ModelManager(backend=target) as manager:
        check_clean(manager)


def check_clean(manager: ModelManager) -> None:
    """What is offered is all that is there."""
    entries = manager.list_models(include_deleted=True)
    assert [(e.version, e.status) for e in entries] == [
        ("5", ModelStatus.AVAILABLE),
        ("6", ModelStatus.AVAILABLE),
    ]
    assert manager.verify().ok
    sink = manager.sink()
    assert len(list(sink.list("models/"))) == 4
    assert len(list(sink.list(".mm/manifests/"))) == 2
    assert [*sink.list(".mm/claims/"), *sink.list(".mm/probe/")] == []
    history = ModelRegistry(sink).history()
    assert [record.seq for record in history] == list(range(1, len(history) + 1))
