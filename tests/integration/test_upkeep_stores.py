"""Check and repair on real stores: a disk and an S3 server, with damage of every kind, and kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_core import Plugins, load_settings
from mm_core.backends import open_sink
from mm_core.registry import ModelRegistry
from mm_core.registry.layout import log_key
from mm_core.schemas import ModelStatus
from mm_core.testing.registry import claimed, manifest_for
from mm_core.upkeep.backup import backup, restore
from mm_core.upkeep.check import check
from mm_core.upkeep.repair import repair
from mm_plugins.sinks.memory import MemorySink

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("MM_KILLS", "1"))

NAMES = {f"org/m{number}" for number in range(17)}


def opened(root: str):
    return open_sink(load_settings(), Plugins.discover(), root)


@pytest.fixture(params=["local", "s3"])
def root(request) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """The objects of a registry of 34 commits, with a checkpoint at 32."""
    sink = MemorySink(MemorySink.Config(root=f"memory://upkeep-stores-{uuid.uuid4()}"))
    registry = ModelRegistry(sink)
    for name in sorted(NAMES):
        claim = claimed(registry, name, "1")
        sink.write(f"{claim.prefix}model.bin", [b"hello"], size=5)
        registry.add(claim, manifest_for(claim), aliases=["prod"])
    return {found.key: b"".join(sink.read(found.key)) for found in sink.list("")}


@pytest.fixture
def sink(root, whole):
    sink = opened(root)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: sink.put(*item), whole.items()))
    yield sink
    sink.close()


def hurt(sink, key: str, how: str) -> None:
    data = b"".join(bytes(buffer) for buffer in sink.read(key))
    if how == "delete":
        sink.delete([key])
    else:
        place = random.Random(key).randrange(len(data))
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        sink.put(key, flipped if how == "flip" else data[: len(data) // 2])


def keys(sink, prefix: str) -> list[str]:
    return [found.key for found in sink.list(prefix)]


def assert_mended(sink) -> None:
    assert check(sink, deep=True).problems == ()
    entries = ModelRegistry(sink).list_models(status=ModelStatus.AVAILABLE)
    assert {entry.model_id for entry in entries} == NAMES
    ModelRegistry(sink).set_alias("org/m1", "after", "1")
    assert repair(sink).steps == ()


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damage_of_every_kind_is_named_and_mended(sink, how):
    """A commit, the last one, a checkpoint, the hint, a manifest and the format, all at once."""
    last = max(keys(sink, ".mm/log/"))
    hurt_keys = [log_key(7), log_key(33), keys(sink, ".mm/snap/")[0], ".mm/hint.json"]
    hurt_keys += [keys(sink, ".mm/manifests/")[3]]
    hurt_keys += [last] if how == "cut" else []
    for key in hurt_keys:
        hurt(sink, key, how)
    found = check(sink)
    assert {log_key(7), log_key(33)} <= {finding.key for finding in found.problems}
    repair(sink)
    assert_mended(sink)
    if how != "delete":
        aside = keys(sink, ".mm/quarantine/")
        assert any(log_key(7) in key for key in aside)


def test_a_backup_makes_the_registry_anew_in_the_same_store(sink, root, tmp_path):
    """All of .mm is lost, and comes back from one file."""
    backup(sink, tmp_path / "b")
    sink.delete(keys(sink, ".mm/"))
    restore(sink, tmp_path / "b")
    assert_mended(sink)


REPAIR = """
import sys
import uuid
from mm_core import Plugins, load_settings
from mm_core.backends import open_sink
from mm_core.upkeep.repair import repair
sink = open_sink(load_settings(), Plugins.discover(), sys.argv[1])
print("ready", flush=True)
repair(sink)
"""


def test_a_repair_is_killed_and_done_again(sink, root):
    """A process that repairs is killed at seeded moments; the next one finishes its work."""
    for key in (log_key(7), log_key(33), log_key(34), keys(sink, ".mm/snap/")[0]):
        hurt(sink, key, "cut")
    moments = random.Random(7)
    for _ in range(KILLS):
        worker = subprocess.Popen(
            [sys.executable, "-c", REPAIR, root],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert worker.stdout.readline() == b"ready\n"
        time.sleep(moments.random() * 0.25)
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    repair(sink)
    assert_mended(sink)
