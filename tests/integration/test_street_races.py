"""Many processes at once, processes that die, and a disk that must not be written to."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm_core import ModelManager, ModelStatus
from mm_core.config import load_settings

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FILES = {f"part-{i}.bin": bytes([i]) * 1_500_000 for i in range(4)} | {"config.json": b"{}"}


def start(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mm_core", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_eight_processes_fetch_once(hub, s3):
    """Eight pull the same model into the same prefix: one fetches, all return its entry."""
    commit = hub.add_repo("org/name", files=FILES)
    processes = [start("pull", "hf://org/name", "--to", s3, "--json") for _ in range(8)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out)["entry"]["version"] == commit
    for path in FILES:
        fetches = [r for r in hub.requests if r.method == "GET" and r.path.endswith("/" + path)]
        assert len(fetches) == 1, path


MOMENTS = 30 if os.environ.get("MM_SOAK") == "1" else 12

REQUESTS_OF_A_PULL = 3 + len(FILES)


def _of_its_own(files: dict[str, bytes], turn: int) -> dict[str, bytes]:
    """Other bytes of the same sizes, so that no model's files are copied from another's."""
    mark = b"%02d" % turn
    return {path: mark + data[2:] if len(data) > 2 else data for path, data in files.items()}


@pytest.mark.parametrize("backend", ["local", "s3"])
def test_sigkill_at_seeded_moments(hub, request, backend):
    """Killed at seeded moments: the registry opens, nothing wrong is offered, the next pull ends."""
    target = request.getfixturevalue(backend)
    dice = random.Random(20260101)
    killed = 0
    settings = load_settings(overrides={"defaults": {"claim_timeout": 20}})
    with ModelManager(settings, backend=target) as manager:
        for turn in range(MOMENTS):
            model = f"org/m{turn}"
            files = {"turn.txt": model.encode(), **_of_its_own(FILES, turn)}
            hub.add_repo(model, files=files)
            hub.requests.clear()
            process = start("pull", f"hf://{model}", "--to", target)
            hub.wait_for_requests(dice.randint(2, REQUESTS_OF_A_PULL), timeout=30)
            try:
                process.communicate(timeout=dice.uniform(0, 0.1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += process.returncode == -signal.SIGKILL
            offered = manager.registry().get_model(model)
            if offered is not None and offered.status is ModelStatus.AVAILABLE:
                assert manager.verify(model).ok
            pulled = manager.pull(f"hf://{model}")
            assert pulled.entry.size_bytes == sum(map(len, FILES.values())) + len(model)
        report = manager.verify()
        assert report.ok, report.bad
        assert report.checked == MOMENTS * (len(FILES) + 1)
        assert len(manager.list_models()) == MOMENTS
    assert killed >= MOMENTS // 2


def forbid_files() -> None:
    """In the child: whoever writes a byte to a regular file dies."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("backend", ["s3", "gcs"])
def test_nothing_is_staged_on_disk(hub, request, backend):
    """A process that may not write one byte to any file pulls 30 MB into S3 and GCS."""
    target = request.getfixturevalue(backend)
    hub.add_repo("org/name", files={"model.bin": os.urandom(1_000_000) * 30})
    process = start(
        "pull",
        "hf://org/name",
        "--to",
        target,
        "--json",
        preexec_fn=forbid_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": "/nonexistent"},
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["fetched_bytes"] == 30_000_000


def test_a_file_may_not_be_written_in_that_way(hub, local):
    """The proof above can fail: the same pull into a folder does not survive it."""
    hub.add_repo("org/name", files={"model.bin": b"x" * 1000})
    process = start(
        "pull",
        "hf://org/name",
        "--to",
        local,
        preexec_fn=forbid_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    process.communicate(timeout=60)
    assert process.returncode != 0


def test_interrupt_ends_with_130_and_can_go_on(hub, local):
    """Ctrl-C in mid-transfer: exit 130, one line how to go on, and the next pull completes."""
    from mm_core.testing.hub import Fault

    hub.add_repo("org/name", files=FILES)
    hub.faults.append(Fault("*part-3.bin", kind="503", times=99))
    process = start("pull", "hf://org/name", "--to", local, "--no-progress")
    for line in process.stderr:
        if "etrying" in line:
            break
    deadline = time.monotonic() + 30
    others = {name for name in FILES if name != "part-3.bin"}
    while others.isdisjoint(path.name for path in Path(local).glob("models/**/*")):
        assert time.monotonic() < deadline, "no other file was stored"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    hub.faults.clear()
    done = start("pull", "hf://org/name", "--to", local, "--json")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    result = json.loads(out)
    assert result["present_bytes"] > 0
    assert result["fetched_bytes"] < sum(map(len, FILES.values()))
