"""A new plugin project, from the templates beside `mm_core`: it works, and its tests pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from mm_core.exceptions import ConflictError, InvalidNameError

if TYPE_CHECKING:
    from importlib.abc import Traversable

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
_PREFIX = "mm-"
_SUFFIX = ".tmpl"
_HIDDEN = "dot-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What a plugin is called, everywhere. `name` is its type, or its command."""

    name: str
    kind: str

    @property
    def distribution(self) -> str:
        """What is installed: ``mm-my-store``."""
        return _PREFIX + self.name

    @property
    def package(self) -> str:
        """What is imported: ``mm_my_store``."""
        return self.distribution.replace("-", "_")

    def words(self) -> dict[str, str]:
        """What stands for what in the templates."""
        return {
            "@name@": self.name,
            "@word@": self.name.replace("-", "_"),
            "@kind@": self.kind,
            "@distribution@": self.distribution,
            "@package@": self.package,
            "@Class@": "".join(part.capitalize() for part in self.name.split("-")),
        }


def named(name: str, kind: str) -> Project:
    """The project for a plugin called `name`, with or without ``mm-`` before it.

    Raises `InvalidNameError` for a name that could not stand in URLs, packages and mm.yaml.
    """
    short = name.removeprefix(_PREFIX)
    if not _NAME.fullmatch(short) or len(short) > _LONGEST:
        raise InvalidNameError(
            f"{name!r} is no name for a plugin",
            hint=f"use lower-case letters, digits and single hyphens, {_LONGEST} at most",
        )
    return Project(name=short, kind=kind)


def write_project(project: Project, folder: Path) -> tuple[str, ...]:
    """Write `project` into `folder`; the paths of its files there.

    Raises `ConflictError` where the folder is there and holds anything, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConflictError(
            f"{folder} is there already, and it is not an empty folder",
            hint="name another with -o, or move it away",
        )
    written = dict(_files(project))
    for path, text in written.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    return tuple(sorted(written))


def _files(project: Project) -> Iterator[tuple[str, str]]:
    templates = resources.files("mm_core") / "templates" / "plugin"
    for part in ("common", project.kind):
        for path, text in _below(templates / part, ""):
            for word, stands_for in project.words().items():
                text = text.replace(word, stands_for)  # noqa: PLW2901  # word by word
            yield path.replace("package", project.package), text


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for found in folder.iterdir():
        name = found.name
        if name.startswith(_HIDDEN):
            name = "." + name.removeprefix(_HIDDEN)
        if found.is_dir():
            yield from _below(found, f"{prefix}{name}/")
        elif name.endswith(_SUFFIX):
            yield prefix + name.removesuffix(_SUFFIX), found.read_text(encoding="utf-8")
