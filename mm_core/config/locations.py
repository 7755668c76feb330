"""Where the files with settings lie. Imports no library, so that looking there is cheap."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mm_core.exceptions import ConfigError

APP = "model-manager"
FILE = "mm.yaml"


def project_file(file: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The file that was named, else ``mm.yaml`` in `cwd` or the nearest folder above; or None."""
    named = file or (Path(environ["MM_CONFIG"]) if environ.get("MM_CONFIG") else None)
    if named is not None:
        path = named.expanduser()
        if not (cwd / path).is_file():
            raise ConfigError(
                f"there is no configuration file {str(named)!r}",
                hint="name an existing file with --config or MM_CONFIG, or make one with "
                "`mm config init`",
            )
        return cwd / path
    candidates = (folder / FILE for folder in (cwd, *cwd.parents))
    return next((path for path in candidates if path.is_file()), None)


def shared_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """The files of the system and of the user, the weaker first; they need not exist."""
    dirs = environ.get("XDG_CONFIG_DIRS", "")
    system = [Path(d) / APP for d in reversed(dirs.split(os.pathsep)) if d]
    yield from (d / FILE for d in system or [_folder("site_config_path", Path("/etc/xdg"))])
    home = environ.get("XDG_CONFIG_HOME")
    user = Path(home) / APP if home else _folder("user_config_path", Path("~/.config"))
    yield user / FILE


def data_folder(environ: Mapping[str, str]) -> Path:
    """The user's data folder: where models go without any configuration."""
    home = environ.get("XDG_DATA_HOME")
    return Path(home) / APP if home else _folder("user_data_path", Path("~/.local/share"))


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The user's cache folder: what is there may be deleted at any time."""
    home = environ.get("XDG_CACHE_HOME")
    return Path(home) / APP if home else _folder("user_cache_path", Path("~/.cache"))


def state_folder(environ: Mapping[str, str]) -> Path:
    """The user's folder for what a program has seen, and should not forget."""
    home = environ.get("XDG_STATE_HOME")
    return Path(home) / APP if home else _folder("user_state_path", Path("~/.local/state"))


def local_file(project: Path) -> Path:
    """The file beside `project` that is not shared with others: ``mm.local.yaml``."""
    return project.with_name(f"{project.stem}.local{project.suffix}")


def files_to_read(project: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """All files that hold settings if they are there, the weakest first; `project` is."""
    paths = [*shared_files(environ)]
    paths += [project, local_file(project)] if project else []
    return list(dict.fromkeys(paths))


def dotenv_file(project: Path | None, cwd: Path) -> Path:
    """The ``.env`` beside `project`, else in `cwd`; it need not exist."""
    return (project.parent if project else cwd) / ".env"


def _folder(name: str, on_linux: Path) -> Path:
    """What platformdirs calls `name`; where that is known it need not be imported."""
    if sys.platform == "linux" and "ANDROID_ROOT" not in os.environ:
        return on_linux.expanduser() / APP
    import platformdirs

    found: Path = getattr(platformdirs, name)(APP, appauthor=False)
    return found
