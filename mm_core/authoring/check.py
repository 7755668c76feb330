"""What is wrong with a plugin: one that is installed, or the project of one."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_core.authoring.imports import strangers
from mm_core.exceptions import ConfigError, MissingExtraError, NotFoundError
from mm_core.hookspecs import PROJECT

_SUITES = {
    "sources": "SourceTests",
    "sinks": "SinkTests",
    "policies": "PolicyTests",
    "executors": "ExecutorTests",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: ``ok``, ``failed``, or ``skipped``."""

    plugin: str
    check: str
    state: str
    detail: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin as its entry point names it; `folder` is its project, where that is at hand."""

    name: str
    value: str
    folder: Path | None = None

    @property
    def module(self) -> str:
        """The module of the entry point."""
        return self.value.partition(":")[0].strip()


def find(name_or_folder: str) -> tuple[Plugin, ...]:
    """The installed plugin of that name, or those that the project in that folder has.

    Raises `NotFoundError` for neither, and `ConfigError` for a folder that is no project.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return _of_project(folder.resolve())
    for found in importlib.metadata.entry_points(group=PROJECT):
        if found.name == name_or_folder:
            return (Plugin(name=found.name, value=found.value),)
    raise NotFoundError(
        f"there is no plugin {name_or_folder!r}, and no such folder",
        hint="see `mm plugins list`, or give the folder of a project",
    )


def examine(plugin: Plugin, *, tests: bool = True) -> Iterator[Check]:
    """Look at `plugin`, in interpreters of their own. With `tests`, also run its project's."""
    told, printed = _probed(plugin)
    if "error" in told:
        yield _check(plugin, "entry point", [told["error"]], "", f"import {plugin.module} yourself")
        return
    yield _check(plugin, "entry point", [], f"{plugin.name} = {plugin.value}", None)
    yield _light(plugin, printed)
    yield _check(
        plugin,
        "hooks",
        [told["broken"]] if told["broken"] else [] if told["hooks"] else ["it has no hook"],
        ", ".join(told["hooks"]),
        "docs/hooks.md has the hooks and what each returns",
    )
    yield _unique(plugin, told)
    yield _settings(plugin, told)
    yield _tested(plugin, told) if tests else _skipped(plugin, "tests", "left out by --no-tests")


def _light(plugin: Plugin, printed: str) -> Check:
    whole, found = strangers(printed, plugin.module)
    heavy = [f"{name} ({_ms(took)})" for name, took in sorted(found.items())]
    return _check(
        plugin,
        "import",
        [f"it imports {', '.join(heavy)}"] if heavy else [],
        f"{_ms(whole)}, and no library beside Model Manager's own",
        "import it inside the methods that need it: every `mm` that looks up a type pays for it",
    )


def _unique(plugin: Plugin, told: Mapping[str, Any]) -> Check:
    wrong, types = [], []
    for kind, offers in told["offers"].items():
        taken = told["others"].get(kind, {})
        for offer in offers:
            types.append(f"{kind}: {offer['type']}")
            for word in (offer["type"], *(f"{scheme}://" for scheme in offer["schemes"])):
                wrong += [f"{word} is also offered by {owner}" for owner in taken.get(word, ())]
    hint = "nobody could say which is meant: take another word"
    return _check(plugin, "types", wrong, "; ".join(types) or "none are offered", hint)


def _settings(plugin: Plugin, told: Mapping[str, Any]) -> Check:
    wrong, count = [], 0
    for offers in told["offers"].values():
        for offer in offers:
            wrong += [f"{offer['type']}: {offer['schema']}"] if offer["schema"] else []
            for setting in offer["settings"]:
                count += 1
                name = f"{offer['type']}.{setting['name']}"
                wrong += [] if setting["described"] else [f"{name} has no description"]
                if setting["bare_secret"]:
                    wrong.append(f"{name} sounds secret and is no SecretStr")
    detail = "1 setting, described" if count == 1 else f"{count} settings, described"
    hint = 'write Field(description="…"), and pydantic.SecretStr for what is secret'
    return _check(plugin, "settings", wrong, detail, hint)


def _tested(plugin: Plugin, told: Mapping[str, Any]) -> Check:
    if plugin.folder is None:
        return _skipped(plugin, "tests", "give the folder of its project to run them")
    if importlib.util.find_spec("pytest") is None:
        return _check(plugin, "tests", ["pytest is not installed"], "", "pip install -e '.[test]'")
    report, last = _run_tests(plugin.folder, plugin)
    if not report:
        return _check(plugin, "tests", [f"pytest did not get to run them: {last}"], "", None)
    missing = {_SUITES[kind] for kind in told["offers"]} - set(report["suites"])
    wrong = [f"{name} failed" for name in report["failed"]]
    wrong += [f"no test is one of {suite}" for suite in sorted(missing)]
    wrong += [] if report["passed"] or wrong else ["there are none"]
    skipped = "".join(f"; skipped: {why}" for why in sorted(set(report["skipped"].values())))
    hint = f"run pytest in {plugin.folder}; the suites are in mm_core.testing"
    return _check(plugin, "tests", wrong, f"{report['passed']} passed{skipped}", hint)


def _run_tests(folder: Path, plugin: Plugin) -> tuple[dict[str, Any], str]:
    """The report of `mm_core.testing.report`, and the last line that pytest printed."""
    with tempfile.TemporaryDirectory(prefix="mm-check-") as scratch:
        file = Path(scratch, "report.json")
        options = ("-q", "-p", "mm_core.testing.report", "-p", "no:cacheprovider")
        run = subprocess.run(  # noqa: S603  # this interpreter
            [sys.executable, "-m", "pytest", *options],
            cwd=folder,
            env={**_environ(plugin), "MM_TEST_REPORT": str(file)},
            capture_output=True,
            text=True,
            check=False,
        )
        last = (run.stdout + run.stderr).strip().rpartition("\n")[2]
        return (json.loads(file.read_text()) if file.is_file() else {}), last


def _probed(plugin: Plugin) -> tuple[dict[str, Any], str]:
    """What `mm_core.authoring.probe` finds out, and the times of what it imported."""
    with tempfile.TemporaryDirectory(prefix="mm-check-") as scratch:
        file = Path(scratch, "found.json")
        run = subprocess.run(  # noqa: S603  # this interpreter
            [
                *(sys.executable, "-X", "importtime"),
                *("-m", "mm_core.authoring.probe", plugin.value, str(file)),
            ],
            env=_environ(plugin),
            capture_output=True,
            text=True,
            check=False,
        )
        if not file.is_file():
            return {"error": f"it ended the interpreter (exit code {run.returncode})"}, ""
        return json.loads(file.read_text(encoding="utf-8")), run.stderr


def _environ(plugin: Plugin) -> dict[str, str]:
    """The environment, in which the project's own code comes first."""
    if plugin.folder is None:
        return dict(os.environ)
    folders = [str(plugin.folder / "src"), str(plugin.folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def _of_project(folder: Path) -> tuple[Plugin, ...]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise ConfigError(
            f"{folder} has no pyproject.toml", hint="give the folder of a project, or a plugin"
        )
    project = _parsed(file).get("project", {})
    named = project.get("entry-points", {}).get(PROJECT, {})
    if not named:
        raise ConfigError(
            f"{file} names no plugin",
            hint=f"write [project.entry-points.{PROJECT}] with NAME = MODULE",
        )
    return tuple(Plugin(name=name, value=value, folder=folder) for name, value in named.items())


def _parsed(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _toml().loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return found


def _toml() -> Any:
    for name in ("tomllib", "tomli"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise MissingExtraError(
        "Python 3.10 cannot read pyproject.toml by itself", hint="pip install tomli"
    )


def _check(plugin: Plugin, name: str, wrong: list[str], fine: str, hint: str | None) -> Check:
    state, detail = ("failed", "; ".join(wrong)) if wrong else ("ok", fine)
    hint = hint if wrong else None
    return Check(plugin=plugin.name, check=name, state=state, detail=detail, hint=hint)


def _skipped(plugin: Plugin, name: str, why: str) -> Check:
    return Check(plugin=plugin.name, check=name, state="skipped", detail=why)


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:.0f} ms"
