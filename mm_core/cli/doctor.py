"""``mm doctor``: find out what is wrong with a setup, and say it in one place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import MMError

if TYPE_CHECKING:
    from mm_core.config import Settings

LIBRARIES = (
    "model-manager",
    "click",
    "fsspec",
    "huggingface-hub",
    "platformdirs",
    "pluggy",
    "pydantic",
    "PyYAML",
    "structlog",
)
EXTRAS = {
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "cli": ("rich",),
    "dask": ("distributed",),
    "scan": ("picklescan",),
    "serve": ("fastapi", "uvicorn"),
    "sign": ("cryptography",),
}
_COLORS = {"ok": "green", "failed": "red", "info": "cyan"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``ok``, ``failed``, or ``info`` that is neither."""

    check: str
    state: str
    detail: str
    hint: str | None = None


@command(
    "doctor",
    examples="""
    mm doctor
    mm doctor --json
    mm doctor --backend lake
    """,
)
@pass_state
def doctor(state: State, /) -> None:
    """Find out what is wrong with this setup.

    Looks at Python, libraries, extras, plugins, settings and credentials (never
    at their values), and tries the default backend. Exit code 1 if anything is
    wrong.
    """
    findings = list(_examine(state))
    ok = all(finding.state != "failed" for finding in findings)
    state.emit(
        {"ok": ok, "checks": [asdict(finding) for finding in findings]},
        human=_lines(findings),
        quiet=[f"{f.check}: {f.detail}" for f in findings if f.state == "failed"],
        rows=("check", [asdict(finding) for finding in findings]),
    )
    if not ok:
        click.get_current_context().exit(1)


def _examine(state: State) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()}")
    yield from (_library(name) for name in LIBRARIES)
    yield from (_extra(name, modules) for name, modules in EXTRAS.items())
    yield _copies()
    yield from _plugins()
    yield from (_credentials(name, find()) for name, find in _CREDENTIALS.items())
    yield from _network()
    try:
        settings = state.settings()
        files = ", ".join(str(path) for path in settings.files) or "no mm.yaml: defaults"
        yield Finding("config", "ok", files)
    except MMError as error:
        yield Finding("config", "failed", error.message, error.hint)
        return
    yield from _settings(settings)
    yield from _backend(state, settings)


def _library(name: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "failed", "not installed", "pip install --upgrade model-manager")


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    if all(importlib.util.find_spec(module) for module in modules):
        versions = ", ".join(f"{m} {importlib.metadata.version(m)}" for m in modules)
        return Finding(f"extra {name}", "ok", versions)
    hint = f"pip install 'model-manager[{name}]' if you need it"
    return Finding(f"extra {name}", "info", "not installed", hint)


def _plugins() -> Iterator[Finding]:
    from mm_core.plugins import Plugins

    plugins = Plugins.discover()
    broken = plugins.broken
    yield Finding("plugins", "ok", f"{len(plugins.infos()) - len(broken)} work")
    for name, error in broken.items():
        yield Finding(
            f"plugin {name}", "failed", error, f"upgrade it, or MM_DISABLE_PLUGINS={name}"
        )


def _credentials(name: str, present: bool) -> Finding:
    return Finding(f"credentials {name}", "info", "present" if present else "none")


def _hub_token() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return bool(os.environ.get("HF_TOKEN")) or file.expanduser().is_file()


def _aws() -> bool:
    named = any(os.environ.get(n) for n in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN"))
    return named or any(
        (Path.home() / ".aws" / name).is_file() for name in ("credentials", "config")
    )


def _google() -> bool:
    file = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    return bool(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")) or file.is_file()


_CREDENTIALS: dict[str, Callable[[], bool]] = {
    "huggingface": _hub_token,
    "aws": _aws,
    "google": _google,
}


def _copies() -> Finding:
    from mm_core.local_copies import room_taken

    folder, size = room_taken()
    hint = "all of it may be deleted at any time" if size else None
    return Finding("copies here", "info", f"{output.size(size)} in {folder}", hint)


def _network() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("network", "info", "HF_HUB_OFFLINE is set: no hub is contacted")
    names = [n for n in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") if _set(n)]
    if names:
        yield Finding("network", "info", f"set: {', '.join(names)}")


def _set(name: str) -> bool:
    return bool(os.environ.get(name) or os.environ.get(name.lower()))


def _settings(settings: Settings) -> Iterator[Finding]:
    from mm_core.config import validate
    from mm_core.plugins import Plugins

    problems = validate(settings, Plugins.discover())
    for problem in problems:
        yield Finding("settings", "failed", problem, "see docs/configuration.md")
    if not problems:
        names = ", ".join([*settings.backends, *settings.sources])
        yield Finding("settings", "ok", f"valid: {names}")


def _backend(state: State, settings: Settings) -> Iterator[Finding]:
    from mm_core.cli.backends import probe

    name = f"backend {state.backend or settings.defaults.backend}"
    try:
        with state.manager() as manager:
            sink = manager.sink()
            errors = [step.error for step in probe(sink) if step.error is not None]
            yield _of_errors(name, sink.root, errors)
    except MMError as error:
        yield _of_errors(name, "", [error])


def _of_errors(name: str, root: str, errors: list[MMError]) -> Finding:
    if errors:
        return Finding(name, "failed", errors[0].message, errors[0].hint)
    return Finding(name, "ok", root)


def _lines(findings: list[Finding]) -> Iterator[str]:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark = click.style(finding.state.ljust(6), fg=_COLORS[finding.state])
        yield f"{mark}  {finding.check.ljust(width)}  {output.clean(finding.detail)}"
        if finding.hint:
            yield f"{'':8}{'':{width}}  -> {output.clean(finding.hint)}"


__all__: list[Any] = ["Finding", "doctor"]
