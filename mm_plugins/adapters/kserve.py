"""KServe's storage initializer for ``mm://``: the command ``mm-storage-initializer URI DIR``.

KServe runs the container of a ``ClusterStorageContainer`` with the storage URI and the folder
where the model server will look for it; several pairs where several are asked for. Source:
https://kserve.github.io/website/docs/model-serving/storage/storage-containers
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from mm_core import (
    MMError,
    ModelManager,
    NotFoundError,
    StorageError,
    UsageError,
    setup_logging,
    verify_file_integrity,
)
from mm_plugins.adapters._local import bring_file, in_words, open_manager
from mm_plugins.filesystem import MMFileSystem

_SCHEME = "mm://"
_USAGE = "mm-storage-initializer mm://ID[@VERSION|@ALIAS][/PATH] DIR [URI DIR]..."


def main(argv: Sequence[str] | None = None) -> int:
    """Bring what each URI names into the folder after it; the exit code, as of ``mm``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["-h"], ["--help"]):
        print(f"Usage: {_USAGE}\n\n{_HELP}")  # noqa: T201  # it is a command
        return 0
    setup_logging()
    try:
        for uri, folder in _pairs(words):
            with open_manager() as manager:
                bring(manager, uri, Path(folder))
            _say(f"{uri} is in {folder}, verified")
    except MMError as error:
        _say(f"Error: {in_words(error)}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def bring(manager: ModelManager, uri: str, folder: Path) -> None:
    """Let the files that `uri` names stand in `folder`, each verified, under their own paths.

    A whole version, or the part of it below a path; a single file stands in `folder` by
    its last name. What is there already, from an attempt that was killed, is verified and
    not fetched again. Raises `NotFoundError`, `UsageError` for other URIs, `IntegrityError`.
    """
    system = MMFileSystem(refresh=float("inf"), skip_instance_cache=True)
    place = _place(uri)
    try:
        version = system.version_at(place)
        system.info(place)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no {uri}", hint="`mm list` and `mm files ID` show what there is"
        ) from error
    if version is not None:
        manager.get(version, output=folder)
        return
    files = system.find(place)
    above = place if system.isdir(place) else place.rpartition("/")[0]
    for file in files:
        _bring_file(system, file, folder / file.removeprefix(above).lstrip("/"))


def _bring_file(system: MMFileSystem, place: str, target: Path) -> None:
    if target.is_file() and verify_file_integrity(target, system.checksum(place)):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        bring_file(system, place, target)
    except MMError:
        raise
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {os.strerror(error.errno or 0)}"
        ) from error


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    if not words or len(words) % 2:
        raise UsageError("URIs and folders are wanted in pairs", hint=_USAGE)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    for uri, _ in pairs:
        _place(uri)
    folders = [Path(folder).expanduser().resolve() for _, folder in pairs]
    for first, second in permutations(folders, 2):
        if first == second or first in second.parents:
            raise UsageError(
                f"{second} is within {first}", hint="name folders of which none holds another"
            )
    return pairs


def _place(uri: str) -> str:
    if not uri.startswith(_SCHEME) or not uri[len(_SCHEME) :].strip("/"):
        raise UsageError(
            f"{uri!r} is no mm:// URI",
            hint=f"other schemes have initializers of KServe's: {_USAGE}",
        )
    return uri[len(_SCHEME) :].strip("/")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # it is a command


_HELP = """Brings stored models into folders, verified: KServe's storage initializer for mm://.

The backend is the default one of the settings: name it by MM_DEFAULTS__BACKEND=s3://bucket/prefix,
or by an mm.yaml that MM_CONFIG names. Exit codes are those of mm.

Examples:
  mm-storage-initializer mm://embed/minilm@prod /mnt/models
  mm-storage-initializer mm://org/one@1 /mnt/models/one mm://org/two@prod /mnt/models/two"""
