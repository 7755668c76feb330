"""A virtual environment as a plugin's author has it: Model Manager from its wheel, and no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELLO = ROOT / "examples" / "plugin-hello"


class Environment:
    """Model Manager and `examples/plugin-hello`, built and installed as wheels.

    Their dependencies come from the environment that runs the tests, by a path file:
    downloading them again would prove nothing about plugins and take minutes.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        own = self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        (Path(own.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        for tool, module in (("pytest", "pytest"), ("mypy", "mypy.__main__")):
            self._write_script(tool, module)  # as an install of the extra `test` would have
        self.install(str(ROOT), str(HELLO))

    def _write_script(self, tool: str, module: str) -> None:
        script = self.bin / tool
        lines = (
            f"#!{self.bin / 'python'}",
            f"from {module} import console_{'main' if tool == 'pytest' else 'entry'} as main",
            "if __name__ == '__main__':",
            "    raise SystemExit(main())",
        )
        script.write_text("\n".join(lines) + "\n")
        script.chmod(0o755)

    def install(self, *what: str) -> None:
        """Build and install, without dependencies, and with the build tools that are there."""
        options = ("-q", "--no-deps", "--no-build-isolation", "--force-reinstall")
        self.run("python", "-m", "pip", "install", *options, *what)

    def run(self, command: str, *arguments: str, cwd: Path | None = None, **environ: str) -> str:
        """What the command prints; it must succeed."""
        run = subprocess.run(
            [self.bin / command, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=cwd,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ},
        )
        assert run.returncode == 0, f"{command} {arguments}: {run.stdout}\n{run.stderr}"
        return run.stdout

    def shell(self, script: str, *, cwd: Path) -> str:
        """What a script prints that a user of this environment runs; each line must succeed."""
        path = f"{self.bin}{os.pathsep}{Path(sysconfig.get_path('scripts'))}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=cwd,
            check=True,
            env={
                **os.environ,
                "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_NO_BUILD_ISOLATION": "false",  # pip's way to say that it is off
            },
        ).stdout

    def plugins(self, **environ: str) -> dict[str, dict]:
        """What ``mm plugins list`` says, by name."""
        listed = json.loads(self.run("mm", "plugins", "list", "--json", **environ))
        return {plugin["name"]: plugin for plugin in listed["plugins"]}
