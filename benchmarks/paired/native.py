"""The helpers in C, built by gcc into a folder that goes away with the run."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "native"
NAMES = ("limit", "nullstore", "shape")


@dataclass(frozen=True)
class Native:
    """Where the built helpers are."""

    limit: Path
    nullstore: Path
    shape: Path


def build(folder: Path) -> Native:
    """Compile all helpers into `folder`."""
    if shutil.which("gcc") is None:
        raise SystemExit("gcc is needed: apt-get install gcc libssl-dev")
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        command = ["gcc", "-O2", "-o", str(folder / name), str(SOURCES / f"{name}.c")]
        built = subprocess.run(
            [*command, "-lssl", "-lcrypto", "-lpthread"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise SystemExit(f"{name}.c: {built.stderr}\nlibssl-dev is needed, too")
    return Native(*(folder / name for name in NAMES))
