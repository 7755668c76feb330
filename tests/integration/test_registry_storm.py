"""Many processes write to one registry; they are cut off, damaged on the way, and killed.

Nothing may be lost, and nothing done twice: see `mm_core.testing.storm`. Here the storms are small.
``nox -s storm`` (MM_STORM=1) raises those that a release must stand, of the sizes and the seed that
MM_STORM_PROCESSES, MM_STORM_COMMITS (on a disk), MM_STORM_BUCKET_COMMITS, MM_STORM_RATE, MM_STORM_KILLS
and MM_STORM_SEED say.
"""

from __future__ import annotations

import contextlib
import os
import uuid

import pytest

from mm_core.exceptions import MissingExtraError
from mm_core.plugins import Plugins
from mm_core.testing.gcs import GcsServer
from mm_core.testing.proxy import ALL_FAULTS, FaultProxy
from mm_core.testing.s3 import MinistackServer, SeaweedServer
from mm_core.testing.storm import Storm, check_store, raise_storm

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WHOLE = os.environ.get("MM_STORM") == "1"
SECONDS = 3_600 if WHOLE else 240


def sized(name: str, small: int, whole: int) -> int:
    return int(os.environ.get(f"MM_STORM_{name}", whole if WHOLE else small))


PROCESSES = sized("PROCESSES", 4, 16)
COMMITS = sized("COMMITS", 20, 200)
BUCKET_COMMITS = sized("BUCKET_COMMITS", 10, 50)
KILLS = sized("KILLS", 8, 200)
SEED = sized("SEED", 1, 2026)
RATE = float(os.environ.get("MM_STORM_RATE", "0.2"))
HANG = 0.5
"""Seconds that a request hangs before its connection is cut."""

STORES = ("ministack", "seaweed", "gcs") if WHOLE else ("ministack", "gcs")
SERVERS = {"ministack": MinistackServer, "seaweed": SeaweedServer, "gcs": GcsServer}

UNSEEN = {GcsServer: ("flip_request",)}
"""The emulator stores what it gets, whatever checksum it is told; Google and the S3 servers refuse."""


@pytest.fixture(scope="module")
def servers():
    """Each server, started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        running = {}

        def get(name):
            if name not in running:
                try:
                    running[name] = stack.enter_context(SERVERS[name]())
                except MissingExtraError as error:
                    pytest.skip(f"{error}; {error.hint}")
            return running[name]

        yield get


@pytest.fixture
def bucket(servers, request, monkeypatch):
    """A server, and a root in a new bucket of it."""
    server = servers(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"storm-{uuid.uuid4().hex[:12]}"
    server.make_bucket(name)
    return server, f"{'gs' if request.param == 'gcs' else 's3'}://{name}/some/prefix"


def weather(tmp_path, root, **options):
    """Raise a storm, count afterwards, and say what was counted."""
    storm = Storm(
        root=root, journals=tmp_path, processes=PROCESSES, seed=SEED, timeout=SECONDS, **options
    )
    report = raise_storm(storm)
    sink_type = Plugins.discover().sink_for(root)
    check_store(sink_type(sink_type.Config(root=root)), report)
    print(f"\n{root}: {report}")
    assert len(report.done) == PROCESSES * storm.commits
    return report


@pytest.mark.timeout(SECONDS)
def test_a_disk_loses_nothing(tmp_path, local):
    """Every commit that was acknowledged is there, once; every number, checkpoint and pack is right."""
    weather(tmp_path, local, commits=COMMITS)


@pytest.mark.timeout(SECONDS)
def test_a_disk_loses_nothing_when_calls_fail(tmp_path, local):
    """The same with every fifth call to the disk failing, half of these after they took effect."""
    weather(tmp_path, local, commits=COMMITS, rate=RATE)


@pytest.mark.timeout(SECONDS)
def test_a_disk_loses_nothing_when_processes_are_killed(tmp_path, local):
    """The same with processes that are killed at any moment and started again, and whose clocks are
    ten years apart."""
    report = weather(tmp_path, local, commits=COMMITS, kills=KILLS, clocks=(0, 10, -10))
    assert report.kills >= KILLS * 3 // 4


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("bucket", STORES if WHOLE else (), indirect=True)
def test_a_bucket_loses_nothing(tmp_path, bucket):
    """The same on servers for S3 and GCS."""
    server, root = bucket
    weather(tmp_path, root, commits=BUCKET_COMMITS, environment=server.environment)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("bucket", STORES, indirect=True)
def test_a_bucket_loses_nothing_behind_a_bad_network(tmp_path, bucket):
    """The same with every fifth request cut, refused, cut short, damaged or hanging, before or after
    the server acted."""
    server, root = bucket
    faults = [fault for fault in ALL_FAULTS if fault not in UNSEEN.get(type(server), ())]
    proxy = FaultProxy(
        server.endpoint_url, rate=RATE, faults=faults, seed=SEED, patience=HANG, keep_host=True
    )
    with proxy:
        told = {
            name: value.replace(server.endpoint_url, proxy.endpoint_url)
            for name, value in server.environment.items()
        }
        weather(tmp_path, root, commits=BUCKET_COMMITS, environment=told)
    print(f"{len(proxy.faults)} faults in {len(proxy.requests)} requests")
    assert len({exchange.fault for exchange in proxy.faults}) > len(faults) // 2


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("bucket", STORES if WHOLE else (), indirect=True)
def test_a_bucket_loses_nothing_when_processes_are_killed(tmp_path, bucket):
    """The same with processes that are killed at any moment and started again."""
    server, root = bucket
    report = weather(
        tmp_path, root, commits=BUCKET_COMMITS, kills=KILLS, environment=server.environment
    )
    assert report.kills >= KILLS * 3 // 4
