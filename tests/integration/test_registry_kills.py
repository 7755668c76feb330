"""A writer is killed at each step of a commit that anybody outside could tell from the next.

On a disk these are its system calls (strace kills at one of them), on S3 its requests (a proxy holds one,
before or after the server acted, until the writer is dead). Whoever comes next sees what was before
or what was asked for, and can ask for it again. MM_STORM=1 (``nox -s storm``) tries all of the steps, and
more of what a writer does.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from collections import Counter

import pytest

from mm_core.plugins import Plugins
from mm_core.registry import Claim, ModelRegistry
from mm_core.schemas import ModelStatus
from mm_core.sink import read_bytes
from mm_core.testing.plain import PlainRegistry, rows_of
from mm_core.testing.proxy import FaultProxy
from mm_core.testing.registry import fill, manifest_for, registered

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WHOLE = os.environ.get("MM_STORM") == "1"
CALLS = (
    "openat,mkdir,write,pwrite64,fsync,fdatasync,close,link,linkat,rename,renameat2,unlink,rmdir"
)
"""The system calls that change a disk, or tell whether it was changed."""

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["mm_core.testing.storm", "s3fs"])


def open_store(root):
    sink_type = Plugins.discover().sink_for(root)
    return sink_type(sink_type.Config(root=root))


def register(registry):
    registry.add_model(registered("org/model", "2", aliases=("prod",)))


def pull(registry):
    begun = registry.begin("org/model", "2", wait=False)
    if isinstance(begun, Claim):
        registry.add(begun, manifest_for(begun), aliases=["prod"])


ACTIONS = {"register": register, "pull": pull}


def prepared(root, *, commits=31):
    """A store with one version and so many commits: with the 32nd, a checkpoint is due."""
    registry = ModelRegistry(open_store(root))
    fill(registry, "org/model", "1", aliases=("prod",))
    for _ in range(commits - 2):
        registry.set_alias("org/model", "prod", "1")


def act(root, action, environment, ready, go):
    """In a process of its own: everything is loaded before it is told to go."""
    os.environ.update(environment)
    registry = ModelRegistry(open_store(root), claim_timeout=3600)
    registry.list_models()
    ready.set()
    go.wait()
    ACTIONS[action](registry)


class Writer:
    """A process that waits until it may act."""

    def __init__(self, root, action, environment):
        self.ready, self.go = FORKSERVER.Event(), FORKSERVER.Event()
        arguments = (root, action, environment, self.ready, self.go)
        self.process = FORKSERVER.Process(target=act, args=arguments, daemon=True)
        self.process.start()
        assert self.ready.wait(60)

    def end(self):
        self.process.join(60)
        return self.process.exitcode


def check_next(root, action):
    """The next client sees all or nothing of the commits, does it again, and has it once."""
    sink = open_store(root)
    before = [("org/model", "1", "AVAILABLE", ("prod",))]
    after = [("org/model", "1", "AVAILABLE", ()), ("org/model", "2", "AVAILABLE", ("prod",))]
    begun = [*before, ("org/model", "2", "DOWNLOADING", ())]
    fresh = ModelRegistry(sink)
    assert rows_of(fresh) in ([before, after] if action == "register" else [before, begun, after])
    assert fresh.resolve("org/model:prod").status is ModelStatus.AVAILABLE
    ACTIONS[action](ModelRegistry(sink, claim_timeout=3600))
    assert rows_of(ModelRegistry(sink)) == after
    plain = PlainRegistry()
    keys = [found.key for found in sink.list(".mm/log/")]
    operations = [o for key in keys for o in plain.commit(read_bytes(sink, key))]
    assert plain.rows() == after
    word = "register" if action == "register" else "add"
    assert [o["version"] for o in operations if o["op"] == word][-1] == "2"
    assert Counter(o["op"] for o in operations if o.get("version") == "2")[word] == 1
    allowed = re.compile(
        r"\.mm/(format|hint)\.json|\.mm/(log|snap|tail|manifests|claims|probe)/[^/]+"
    )
    assert all(allowed.fullmatch(found.key) for found in sink.list(""))


# -- on a disk


def strace(writer, *options):
    """Attach to a process that waits; None where that is not allowed."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(writer.process.pid), "-e", f"trace={CALLS}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = tracer.stderr.readline()
    if "attached" in line:
        return tracer
    tracer.kill()
    tracer.communicate()
    pytest.skip(f"strace may not attach to a process here: {line.strip()}")


def calls_of(root, action, tmp_path):
    """The system calls of an action that nothing happens to, in order, of its main thread."""
    prepared(root)
    writer = Writer(root, action, {})
    told = tmp_path / "calls"
    tracer = strace(writer, "-o", str(told))
    writer.go.set()
    assert writer.end() == 0
    tracer.wait(60)
    lines = re.findall(rf"^{writer.process.pid} +(\w+)\((.*)$", told.read_text(), re.MULTILINE)
    last = max(n for n, (_, rest) in enumerate(lines) if str(root) in rest)
    return [name for name, _ in lines[: last + 1]]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.timeout(1800 if WHOLE else 240)
@pytest.mark.parametrize("action", list(ACTIONS))
def test_killed_at_a_system_call(tmp_path, action):
    """Killed as it enters any of its system calls, a writer leaves all or nothing of each commit."""
    calls = calls_of(str(tmp_path / "whole"), action, tmp_path)
    assert "link" in calls
    assert "fsync" in calls
    step = 1 if WHOLE else max(2, len(calls) // 6)
    template = tmp_path / "template"
    prepared(str(template))
    seen = Counter()
    killed = 0
    for number, name in enumerate(calls):
        seen[name] += 1
        if number % step and name not in ("link",):
            continue
        root = tmp_path / f"{number}"
        shutil.copytree(template, root)
        writer = Writer(str(root), action, {})
        inject = f"inject={name}:signal=SIGKILL:when={seen[name]}"
        tracer = strace(writer, "-e", inject, "-o", os.devnull)
        writer.go.set()
        killed += writer.end() == -signal.SIGKILL
        tracer.wait(60)
        check_next(str(root), action)
    print(f"\n{action}: {killed} kills at {len(calls)} system calls: {dict(seen)}")
    assert killed >= len(calls) // step


# -- at S3


@pytest.mark.timeout(1800 if WHOLE else 240)
@pytest.mark.parametrize("action", list(ACTIONS) if WHOLE else ["pull"])
@pytest.mark.parametrize("fault", ["hang_before", "hang"] if WHOLE else ["hang"])
def test_killed_at_a_request(s3_server, s3, action, fault):
    """Killed while any (or each third) of its requests is on its way to S3, or its answer on the way
    back, a writer leaves all or nothing of each commit."""
    number, step = 0, 1 if WHOLE else 3
    while True:
        root = f"{s3}/{number}"
        prepared(root, commits=31 if WHOLE else 2)
        with FaultProxy(s3_server.endpoint_url) as proxy:
            environment = {**s3_server.environment, "AWS_ENDPOINT_URL": proxy.endpoint_url}
            writer = Writer(root, action, environment)
            proxy.inject(fault, skip=number)
            writer.go.set()
            while writer.process.exitcode is None and not proxy.hanging.wait(0.01):
                pass
            if writer.process.exitcode is None:
                writer.process.kill()
            ended = writer.end()
        check_next(root, action)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        number += step
    print(f"\n{action}: killed at every request of {number}, or every third")
    assert number >= (6 if action == "pull" else 2)
