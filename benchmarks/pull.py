"""A pull from a loopback hub to local disk, against the Hub's own client on the same input.

    python benchmarks/pull.py [MIB_PER_FILE] [ROUNDS]

Four files; each round runs both, in turns, into fresh folders, and the bytes of
each result are checked outside the timed part. What limits both here is the CPU:
hub and client share it, and there is no wide-area network between them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mm_core import ModelManager
from mm_core.config import load_settings
from mm_core.testing.hub import HubServer


def digest(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.bin")
        if not path.is_symlink()
    }


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    os.environ.pop("HF_HUB_OFFLINE", None)
    from huggingface_hub import snapshot_download

    files = {f"w{i}.bin": os.urandom(1 << 20) * mib for i in range(4)}
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    times: dict[str, list[float]] = {"hub client, no hash checked": [], "mm pull, verified": []}
    with HubServer() as hub, tempfile.TemporaryDirectory() as scratch:
        hub.add_repo("bench/model", files=files)
        settings = load_settings(
            overrides={"sources": {"hf": {"type": "huggingface", "endpoint": hub.endpoint}}}
        )
        for turn in range(rounds):
            theirs, ours = Path(scratch, f"theirs{turn}"), Path(scratch, f"ours{turn}")
            start = time.perf_counter()
            snapshot_download("bench/model", local_dir=theirs, endpoint=hub.endpoint, token=False)
            times["hub client, no hash checked"].append(time.perf_counter() - start)
            with ModelManager(settings, backend=str(ours)) as manager:
                start = time.perf_counter()
                manager.pull("hf://bench/model")
                times["mm pull, verified"].append(time.perf_counter() - start)
            assert digest(theirs) == digest(ours) == expected
            shutil.rmtree(theirs)
            shutil.rmtree(ours)
    base = statistics.median(times["hub client, no hash checked"])
    print(f"4 files of {mib} MiB, {rounds} rounds: median s (min to max), ratio of medians")
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"{name:32} {middle:6.2f} ({min(values):.2f} to {max(values):.2f}) {middle / base:5.2f}"
        )


if __name__ == "__main__":
    main()
