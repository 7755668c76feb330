"""Where on this machine copies are kept that can be made anew at any time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_core.config.locations import cache_folder
from mm_core.sink import Sink

_OFF = frozenset({"0", "off", "no", "false", "none"})
_TELLING = re.compile(r"ENDPOINT|EMULATOR|PROFILE|CONFIG_FILE|ACCOUNT")
_ENDPOINT = re.compile(r"ENDPOINT|EMULATOR")


def cache_root(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of caches: ``MM_CACHE``, else the user's; None where that is ``off``."""
    named = environ.get("MM_CACHE", "").strip()
    if named.lower() in _OFF:
        return None
    if named:
        return Path(named).expanduser().absolute()
    return cache_folder(environ)


def registry_cache(sink: Sink, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder for the read cache of the registry in `sink`; None where there should be none.

    Two stores never share one, as far as their settings and the environment tell
    them apart: one bucket name may mean different stores at different endpoints.
    """
    root = cache_root(environ)
    if root is None or sink.root.startswith("memory:"):  # the next process has another memory
        return None
    return root / "registries" / name_of_store(sink, environ=environ)


def models_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for versions that were brought here; ``MM_CACHE=off`` is no reason for none."""
    return (cache_root(environ) or cache_folder(environ)) / "models"


def name_of_store(sink: Sink, *own: str, environ: Mapping[str, str] = os.environ) -> str:
    """A word of 32 characters that tells the store of `sink` from all others.

    All of its settings count, those that are never shown and secrets too: whatever leads a
    client elsewhere, by an endpoint or by whose key it is, makes another store.
    """
    telling = [sink.root, *filter(None, own)]
    if "://" in sink.root:
        telling += [f"{path}={value}" for path, value in sorted(_leaves(sink.config))]
        telling += _variables(_TELLING, environ)
    return _hash(telling)


def memory_of(sink: Sink, folder: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where in `folder` is kept what was seen of registries at the endpoint of `sink`.

    At another endpoint the same bucket may be a replica that lags behind: it has a
    memory of its own.
    """
    if "://" not in sink.root:
        return folder
    leaves = sorted(_leaves(sink.config))
    telling = [value for path, value in leaves if _ENDPOINT.search(path.upper()) and value]
    telling += _variables(_ENDPOINT, environ)
    return folder / _hash(telling) if telling else folder


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each setting in `value` by its path, revealed; the same of settings that are remembered."""
    reveal = getattr(value, "get_secret_value", None)
    if reveal is not None:
        yield path, str(reveal())
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        yield path, str(len(value))
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _leaves(vars(value), path)
    else:
        yield path, "" if value is None else str(value)


def _variables(names: re.Pattern[str], environ: Mapping[str, str]) -> list[str]:
    found = sorted(name for name in environ if names.search(name.upper()))
    return [f"{name}={environ[name]}" for name in found]


def _hash(telling: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(telling).encode("utf-8", "replace")).hexdigest()[:32]
