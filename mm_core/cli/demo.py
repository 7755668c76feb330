"""``mm demo``: the whole street, from a hub to a verified folder, on this machine alone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state
from mm_core.cli.tiny_model import tiny_model
from mm_core.exceptions import ConflictError, IntegrityError

if TYPE_CHECKING:
    from mm_core.manager import ModelManager
    from mm_core.schemas import Pulled

_REPO = "demo/tiny-model"
_SOURCE = f"hf://{_REPO}"
_S3_NEEDS = "pip install 'model-manager[s3]' 'moto[server]'"
_EXTRAS = {"s3": ("s3fs", "moto"), "gcs": ("gcsfs",), "cli": ("rich",)}
_REACHES_IN = re.compile(
    r"(?i)HF_|HUGGING_?FACE|TRANSFORMERS_OFFLINE|AWS_|MM_(?!DISABLE_PLUGINS|DEBUG)|.*_PROXY$"
)


@dataclass
class Story:
    """What was done so far; told while it happens where a human reads."""

    state: State
    steps: list[dict[str, str]] = field(default_factory=list)

    def tell(self, step: str, detail: str) -> None:
        """Record one step, and print it."""
        self.steps.append({"step": step, "detail": detail})
        if self.state.format == "human" and not self.state.quiet:
            number = click.style(f"{len(self.steps):>2}.", bold=True)
            click.echo(f"{number} {step}\n    {output.clean(detail)}")


@command(
    "demo",
    examples="""
    mm demo
    mm demo --dir ./mm-demo
    mm demo --json
    """,
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="Work in this folder, which must be new or empty; by default a fresh temporary one.",
)
@pass_state
def demo(state: State, /, folder: Path | None) -> None:
    """See it all work, with no network and no account.

    Starts a small hub on this machine, pulls a model from it into a local
    backend (and into an S3 server, where the libraries are there), checks it,
    gives it an alias and gets it back. What was made stays, and is named at the
    end.
    """
    root = _fresh(folder)
    story = Story(state)
    files = tiny_model()
    with ExitStack() as stack:
        stack.enter_context(_clean_environment(root))
        hub = stack.enter_context(_hub(files))
        story.tell("A small hub runs on this machine", f"{hub.endpoint}, with {_SOURCE}")
        places: dict[str, Any] = {"local": {"type": "local", "root": str(root / "store")}}
        if _present("s3fs", "moto"):
            places["s3"] = stack.enter_context(_s3())
        settings = root / "demo.yaml"
        stack.callback(settings.unlink, missing_ok=True)
        _write_settings(settings, places, hub.endpoint)
        for backend in places:
            _walk(story, settings, backend, files, root / f"copy-from-{backend}")
    _write_settings(root / "mm.yaml", {"local": places["local"]}, None)
    _finish(story, root, list(places))


def _walk(
    story: Story, settings_file: Path, backend: str, files: Mapping[str, bytes], copy: Path
) -> None:
    """The street for one backend."""
    from mm_core.config import load_settings
    from mm_core.manager import ModelManager

    settings = load_settings(settings_file, environ=dict(os.environ), cwd=copy.parent)
    with ModelManager(settings, backend=backend) as manager:
        pulled = manager.pull(_SOURCE)
        story.tell(f"Pulled it into the backend {backend!r}", _moved(pulled))
        again = manager.pull(_SOURCE)
        story.tell("Pulled it again", f"{_moved(again)}: what is there is not moved again")
        report = manager.verify()
        _expect(report.ok, f"verify found {len(report.bad)} bad files")
        story.tell("Read every byte back", f"{report.checked} files are as registered")
        manager.registry().set_alias(_REPO, "prod", pulled.entry.version)
        story.tell("Set the alias prod", f"{_REPO}:prod -> {pulled.entry.version}")
        _list(story, manager)
        got = manager.get(f"{_REPO}:prod", output=copy)
        _expect(_content(got.path) == files, "what came back is not what the hub has")
        story.tell("Got it back by its alias", f"{got.path}: every byte as on the hub")
        story.tell("A loader opens it as", manager.url(f"{_REPO}:prod"))


def _list(story: Story, manager: ModelManager) -> None:
    for entry in manager.list_models():
        size, names = output.size(entry.size_bytes), ", ".join(entry.aliases)
        facts = f"{entry.model_type.value}, {size}, {entry.status.value}, {names}"
        name = f"{entry.model_id}@{output.short_version(entry.version)}"
        story.tell("The registry lists it", f"{name}, {facts}")


def _finish(story: Story, root: Path, places: list[str]) -> None:
    missing = [extra for extra, modules in _EXTRAS.items() if not _present(*modules)]
    config = root / "mm.yaml"
    lines = [
        "",
        f"All of it is in {output.clean(root)}; delete that folder when you have seen it.",
        "Try next:",
        f"  mm --config '{config}' list",
        f"  mm --config '{config}' show {_REPO}:prod",
        "  mm pull hf://sentence-transformers/all-MiniLM-L6-v2 --dry-run",
        "  mm config init",
    ]
    if "s3" not in places:
        lines.insert(1, f"The S3 part was left out; it needs {_S3_NEEDS}")
    if missing:
        lines.insert(1, f"Extras that are not installed: {', '.join(missing)}")
    story.state.emit(
        {
            "ok": True,
            "folder": str(root),
            "config": str(config),
            "backends": places,
            "missing_extras": missing,
            "steps": story.steps,
        },
        human=lines,
        quiet=[str(root)],
    )


def _moved(pulled: Pulled) -> str:
    moved = {
        "fetched": pulled.fetched_bytes,
        "copied": pulled.copied_bytes,
        "present": pulled.present_bytes,
    }
    words = [f"{output.size(count)} {word}" for word, count in moved.items() if count]
    return f"{', '.join(words)}, in {pulled.entry.path}"


@contextmanager
def _hub(files: Mapping[str, bytes]) -> Iterator[Any]:
    from mm_core.testing.hub import HubServer

    with HubServer() as hub:
        hub.add_repo(
            _REPO, files=dict(files), pipeline_tag="feature-extraction", license="apache-2.0"
        )
        yield hub


@contextmanager
def _s3() -> Iterator[dict[str, Any]]:
    """An S3 server on this machine, and the settings of a backend on it."""
    from mm_core.testing.s3 import S3Server

    with S3Server() as server:
        os.environ.update(server.environment)
        server.make_bucket("mm-demo")
        yield {
            "type": "s3",
            "root": "s3://mm-demo/models",
            "options": {"endpoint_url": server.endpoint_url},
        }


@contextmanager
def _clean_environment(root: Path) -> Iterator[None]:
    """No token, cache, proxy or switch of the user reaches into the demo."""
    before = dict(os.environ)
    loopback = "127.0.0.1,localhost"
    for name in list(os.environ):
        if _REACHES_IN.match(name):
            del os.environ[name]
    os.environ |= {"NO_PROXY": loopback, "no_proxy": loopback, "HF_HOME": str(root / ".hf")}
    names = ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    os.environ |= {name: str(root / ".no-settings") for name in names}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _write_settings(path: Path, backends: Mapping[str, Any], endpoint: str | None) -> None:
    """JSON is YAML, and needs no library to be written."""
    document: dict[str, Any] = {
        "version": 1,
        "defaults": {"backend": "local"},
        "backends": dict(backends),
    }
    if endpoint is not None:
        document["sources"] = {"hf": {"type": "huggingface", "endpoint": endpoint}}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _fresh(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="mm-demo-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConflictError(f"{str(folder)!r} is not empty", hint="choose a new folder with --dir")
    return folder.resolve()


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _expect(fine: bool, complaint: str) -> None:
    if not fine:
        raise IntegrityError(complaint)


def _present(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
