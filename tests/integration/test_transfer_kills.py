"""Pulls that are killed, interrupted or run out of disk, again and again: the next one goes on.

What all attempts fetch together is bounded: little more than the model, and for each kill what was
on its way. With MM_SOAK=1 (``nox -s soak``) the model has 2 GB and is killed at 50 moments, others for
another MM_SOAK_SEED.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from mm_core import ModelManager, ModelStatus, ResumableSink
from mm_core.testing.hub import HubServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
SOAK = os.environ.get("MM_SOAK") == "1"
SEED = int(os.environ.get("MM_SOAK_SEED", "2026"))
KILLS = 50 if SOAK else 8
LARGE_FILES, LARGE_SIZE = (8, 250_000_000) if SOAK else (4, 40 * MIB + 12_345)
SMALL_FILES = 200 if SOAK else 20
CONNECTIONS = 8 if SOAK else 4
PART = 8 * MIB
BUFFERS = 32 * MIB
ON_THE_LINE = 16 * MIB
"""What the hub has sent and the kernel holds when a process ends: of two connections."""
SLOW = ("--limit-rate", "48MiB", "--memory", f"{BUFFERS}")
SECONDS = 3_600 if SOAK else 300


@dataclass
class Attempts:
    """What the attempts at one model did. `finished` are the files seen stored after each."""

    killed: int = 0
    completed: int = 0
    finished: dict[str, int] = field(default_factory=dict)


def files_of(seed: int) -> dict[str, bytes]:
    dice = random.Random(seed)
    large = {f"model-{n}.safetensors": dice.randbytes(LARGE_SIZE) for n in range(LARGE_FILES)}
    small = {f"extra/small-{n}.json": dice.randbytes(20_000) for n in range(SMALL_FILES)}
    return {**large, **small}


def start_pull(target: str, *arguments: str, **options) -> subprocess.Popen:
    command = ["pull", "hf://org/m", "--to", target, "--no-progress", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "mm_core", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def pull_to_the_end(target: str, *arguments: str) -> None:
    process = start_pull(target, *arguments)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err


def check_right(manager: ModelManager, size: int) -> None:
    """AVAILABLE, whole, and nothing left over."""
    (entry,) = manager.list_models()
    assert entry.status is ModelStatus.AVAILABLE
    assert entry.size_bytes == size
    report = manager.verify(deep=True)
    assert report.ok, report.bad
    sink = manager.sink()
    assert isinstance(sink, ResumableSink)
    assert list(sink.unfinished("")) == []


@pytest.fixture
def busy_s3(request, monkeypatch) -> str:
    """A bucket of the session's server, or for the soak of one that keeps its objects on disk."""
    if not SOAK:
        yield request.getfixturevalue("s3")
        return
    from mm_core.testing.s3 import SeaweedServer

    with SeaweedServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("soak")
        yield "s3://soak/some/prefix"


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("backend", ["local", "busy_s3"])
def test_sigkill_at_many_moments(hub, request, backend, record_property):
    """Killed by bytes and by time, it ends whole, with little fetched twice and no file twice."""
    target = request.getfixturevalue(backend)
    files = files_of(8)
    size = sum(map(len, files.values()))
    hub.add_repo("org/m", files=files)
    started = time.monotonic()
    with ModelManager(backend=target) as manager:
        attempts = kill_again_and_again(hub, target, manager, random.Random(SEED), size)
        if not attempts.completed:
            pull_to_the_end(target, "--connections", str(CONNECTIONS))
        wall, sent = time.monotonic() - started, hub.sent_bytes
        check_right(manager, size)
    told = {"fetched / size": round(sent / size, 3), "kills": attempts.killed, "wall": round(wall)}
    record_property("figures", told)
    print(backend, told)
    assert attempts.killed >= KILLS * 3 // 4
    assert sent < 1.15 * size + attempts.killed * CONNECTIONS * PART
    for path, seen in attempts.finished.items():
        again = [r for r in hub.requests[seen:] if r.method == "GET" and r.path.endswith(path)]
        assert not again, f"{path} was finished, and fetched again"


def kill_again_and_again(
    hub: HubServer, target: str, manager: ModelManager, dice: random.Random, size: int
) -> Attempts:
    """Each third kill is after a time, wherever that is; the others are after so many bytes."""
    attempts = Attempts()
    for turn in range(KILLS):
        aim = hub.sent_bytes + int(dice.uniform(0.1, 1.7) * size / KILLS)
        patience = dice.uniform(0.3, 3) if turn % 3 == 0 else SECONDS
        process = start_pull(target, "--connections", str(CONNECTIONS))
        deadline = time.monotonic() + patience
        while process.poll() is None and time.monotonic() < deadline:
            if hub.wait_for_sent(aim, timeout=min(0.2, deadline - time.monotonic())):
                break
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        if process.returncode == -signal.SIGKILL:
            attempts.killed += 1
        else:
            assert process.returncode == 0, err
            attempts.completed += 1
            return attempts
        note_finished(hub, manager, attempts)
    return attempts


def note_finished(hub: HubServer, manager: ModelManager, attempts: Attempts) -> None:
    """Which files stand there now; requests that come from here on must be for others."""
    for stored in manager.sink().list("models/org/m/"):
        path = stored.key.split("/", 4)[4]
        attempts.finished.setdefault(path, len(hub.requests))


@pytest.mark.parametrize("backend", ["local", "s3"])
def test_interrupted_and_taken_up(hub, request, backend):
    """Ctrl-C in mid-file: exit 130 soon, one line how to go on; the next pull goes on from there."""
    target = request.getfixturevalue(backend)
    files = {"model.safetensors": random.Random(1).randbytes(96 * MIB), "config.json": b"{}"}
    hub.add_repo("org/m", files=files)
    process = start_pull(target, "--connections", "2", *SLOW)
    assert hub.wait_for_sent(60 * MIB, timeout=120)
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    _, err = process.communicate(timeout=60)
    took = time.monotonic() - interrupted
    assert process.returncode == 130, err
    assert took < 4, f"{took:.1f} s"  # two on a machine that has nothing else to do
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "again" in line]) == 1, err
    pull_to_the_end(target)
    lost = hub.sent_bytes - sum(map(len, files.values()))
    assert lost < BUFFERS + ON_THE_LINE
    with ModelManager(backend=target) as manager:
        check_right(manager, 96 * MIB + 2)


def forbid_large_files() -> None:
    """In the child: no file may grow beyond 40 MiB, which is as a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40 * MIB, 40 * MIB))


def test_a_disk_that_refuses_is_an_error_and_the_next_pull_goes_on(hub, local):
    """No room for the second half of a file: a clear error; with room, only that half is fetched."""
    files = {"model.safetensors": random.Random(2).randbytes(80 * MIB), "config.json": b"{}"}
    hub.add_repo("org/m", files=files)
    process = start_pull(local, "--connections", "1", preexec_fn=forbid_large_files)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    before = hub.sent_bytes
    pull_to_the_end(local)
    assert hub.sent_bytes - before < 80 * MIB - 24 * MIB
    with ModelManager(backend=local) as manager:
        check_right(manager, 80 * MIB + 2)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own with room for 120 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_mid_pull(hub, small_disk):
    """Somebody else takes the room: a clear error; when there is room again, it goes on."""
    target = str(small_disk / "store")
    files = {"model.safetensors": random.Random(3).randbytes(96 * MIB), "config.json": b"{}"}
    hub.add_repo("org/m", files=files)
    process = start_pull(target, "--connections", "2", *SLOW)
    assert hub.wait_for_sent(64 * MIB, timeout=120)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(MIB))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "space" in err
    again = start_pull(target)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 1, err
    filler.unlink()
    before = hub.sent_bytes
    pull_to_the_end(target)
    assert hub.sent_bytes - before < 96 * MIB - (64 * MIB - BUFFERS - ON_THE_LINE)
    with ModelManager(backend=target) as manager:
        check_right(manager, 96 * MIB + 2)
