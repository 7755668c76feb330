"""What the settings of a backend came to in an earlier run, for commands that only look.

To read, merge and validate settings costs several times what such a command does.
So what came of it is kept in the user's cache folder, under a hash of all that it
was decided by: the files with settings, the variables, the flags, the installed
packages, this release. Any other value of any of these is another hash.

Kept are only plain values that are no secrets: nothing that came from ``${VAR}``,
nothing that looks like a secret, and nothing at all while the settings hold one
in plain text, since that is warned about each time. Whatever is wrong with what
is kept, the settings are read as if it were not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mm_core
from mm_core.config import locations
from mm_core.exceptions import MMError
from mm_core.folders import cache_root
from mm_core.place import Place, make_place, registry_options
from mm_core.sink import Sink

if TYPE_CHECKING:
    from mm_core.config import Settings

_FORMAT = 2
_VARIABLES = re.compile(r"(?s:MM_.+)|XDG_\w+|HOME|USERPROFILE|APPDATA|LOCALAPPDATA|PYTHONPATH")
_REFERENCE = re.compile(rb"\$\{([A-Za-z_]\w*)")
_ABOUT = (".dist-info", ".egg-info", ".egg")
_KEPT = 64
"""So many places are kept; a run in another folder, or for another backend, is another."""


class Memory:
    """What is remembered of one backend, as this run's flags and surroundings name it.

    `backend` is the name that was asked for, None for the default one. Takes all
    that matters as it is now: files that change while the settings are read do
    not lead to a false memory.
    """

    def __init__(
        self,
        *,
        file: Path | None,
        backend: str | None,
        overrides: Mapping[str, Any],
        environ: Mapping[str, str],
        cwd: Path,
    ) -> None:
        self._file, self._cwd = file, cwd
        self._flags = repr((str(file), backend, sorted(overrides.items()), str(cwd), sys.prefix))
        self._environ = dict(environ)
        self._root = cache_root(environ)
        self._key = None if self._root is None else self._hash()

    def recall(self) -> Place | None:
        """The backend, opened as it was before; None where nothing fitting is remembered."""
        if self._key is None:
            return None
        try:
            kept = _read_own(self._path)
            if kept["key"] != self._key:
                return None
            kind = _class_at(kept["sink"])
            sink = kind(_unpacked(kept["config"])) if kind.plain_config else None
            options = {name: _unpacked(value) for name, value in kept["options"].items()}
            return None if sink is None else make_place(kept["name"], sink, options)
        except Exception:  # noqa: BLE001  # a wrong memory is as good as none
            return None

    def note(self, settings: Settings, place: Place) -> None:
        """Remember how `place` was opened, if that may be kept."""
        if self._key is None:
            return
        try:
            kept = _what_to_keep(settings, place)
            if kept is not None and self._key == self._hash() and not self._was_told(place):
                _write(self._path, {"key": self._key, **kept})
        except (OSError, ValueError, TypeError, RecursionError):  # no memory is no harm
            return

    def _was_told(self, place: Place) -> bool:
        """Whether ``.env`` told the library of a store something that it must be told again."""
        return "://" in place.sink.root and bool(os.environ.keys() - self._environ.keys())

    @property
    def _path(self) -> Path:
        name = hashlib.sha256(self._flags.encode()).hexdigest()[:32]
        assert self._root is not None
        return self._root / "settings" / f"{name}.json"

    def _hash(self) -> str | None:
        """The hash of all that decides, or None where that cannot be told."""
        digest = hashlib.sha256()
        try:
            for part in self._parts():
                digest.update(b"%d:" % len(part) + part)
        except (OSError, MMError, ValueError):
            return None
        return digest.hexdigest()

    def _parts(self) -> Iterator[bytes]:
        file, cwd = self._file, self._cwd
        release = (_FORMAT, mm_core.__version__, sys.version, self._flags)
        yield repr(release).encode()
        names = set(filter(_VARIABLES.fullmatch, self._environ))
        project = locations.project_file(file, self._environ, cwd)
        paths = locations.files_to_read(project, self._environ)
        for path in [*paths, locations.dotenv_file(project, cwd)]:
            content = _content(path)
            if content is not None and b"${file:" in content:
                raise ValueError("another file decides")
            names.update(name.decode() for name in _REFERENCE.findall(content or b""))
            yield str(path).encode()
            yield b"absent" if content is None else b"present:" + content
        for name in sorted(names):
            yield repr((name, self._environ.get(name))).encode()
        yield from _installed()


def _what_to_keep(settings: Settings, place: Place) -> dict[str, Any] | None:
    """`place` as plain data, or None where something of it may not, or cannot, be kept."""
    kind, config = type(place.sink), place.sink.config
    if not kind.plain_config or _is_decided_elsewhere(settings, place) or _warns(settings):
        return None
    return {
        "name": _packed("", place.name),
        "sink": f"{kind.__module__}:{kind.__qualname__}",
        "config": _packed("", config),
        "options": {name: _packed(name, v) for name, v in registry_options(settings).items()},
    }


def _is_decided_elsewhere(settings: Settings, place: Place) -> bool:
    """Whether what is to be kept came, in part, from a variable or a file that is named."""
    others = ("backends", "sources", "policies", "models", "signing")
    return any(
        path[:2] == ("backends", place.name) or path[0] not in others
        for path in settings.interpolated
    )


def _warns(settings: Settings) -> bool:
    """Whether a secret stands in the settings in plain text: the user is told so each time."""
    from mm_core.redaction import redact

    tree = {
        "backends": {name: entry.values for name, entry in settings.backends.items()},
        "sources": {name: entry.values for name, entry in settings.sources.items()},
        "policies": settings.policies,
        "models": settings.models,
        "signing": settings.signing,
    }
    texts = (
        value
        for path, value in _leaves(tree, ())
        if isinstance(value, str) and path not in settings.interpolated
    )
    return any(redact(text) != text for text in texts)


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _packed(name: str, value: Any) -> Any:
    """`value` of the setting `name` as JSON data. `ValueError` for what is not plain, or secret."""
    from mm_core.redaction import is_secret_name, redact

    if value is None or isinstance(value, bool | int | float):
        return value
    if is_secret_name(name):
        raise ValueError("this may be a secret")
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, str):
        if redact(value) != value:
            raise ValueError("this looks like a secret")
        return str(value)
    if value == {}:
        return {"dict": {}}  # whatever stands in one that is free to hold anything may be secret
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(name, inner) for inner in value]}
    fields = getattr(type(value), "model_fields", None)
    if fields is None:
        raise ValueError("this is no plain value")
    return {"fields": {field: _packed(field, getattr(value, field)) for field in fields}}


def plain_settings(config: Any) -> Any:
    """An object that is to a sink with `plain_config` what `config` is: as it is remembered.

    `ValueError` for settings that are never remembered.
    """
    return _unpacked(_packed("", config))


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "fields" in value:
        return SimpleNamespace(**{n: _unpacked(item) for n, item in value["fields"].items()})
    ((kind, inner),) = value.items()
    if kind == "path":
        return Path(inner)
    items = [_unpacked(item) for item in inner]
    return {"dict": dict, "list": list, "tuple": tuple}[kind](items)


def _class_at(home: str) -> type[Any]:
    import importlib

    module, _, name = home.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise TypeError(f"{home} is no sink")
    return found


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _installed() -> Iterator[bytes]:
    """What changes when a package is installed or removed: what `importlib.metadata` looks for."""
    for entry in sys.path:
        yield entry.encode()
        try:
            with os.scandir(entry or ".") as found:
                about = [(f.name, f.stat().st_mtime_ns) for f in found if f.name.endswith(_ABOUT)]
        except NotADirectoryError:
            about = [("", Path(entry).stat().st_mtime_ns)]  # a zip file
        except OSError:
            continue
        yield repr(sorted(about)).encode()


def _read_own(path: Path) -> dict[str, Any]:
    """The JSON in a file that nobody but this user can have written."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise ValueError("this file is not ours alone")
        found = json.loads(file.read())
    if not isinstance(found, dict):
        raise TypeError("this is no memory")
    return found


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            json.dump(document, file)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    _forget_oldest(path.parent)


def _forget_oldest(folder: Path) -> None:
    kept: Iterable[Path] = folder.glob("*.json")
    with contextlib.suppress(OSError):  # another process forgets, too
        for path in sorted(kept, key=lambda found: found.stat().st_mtime_ns)[:-_KEPT]:
            path.unlink(missing_ok=True)
