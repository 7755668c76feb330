"""Where on this machine copies are kept that can be made anew at any time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mm_core.config.locations import cache_folder
from mm_core.sink import Sink

_OFF = frozenset({"0", "off", "no", "false", "none"})
_TELLING = re.compile(r"ENDPOINT|EMULATOR|PROFILE|CONFIG_FILE|ACCOUNT")


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
    telling = [sink.root]
    if "://" in sink.root:
        names = sorted(name for name in environ if _TELLING.search(name.upper()))
        telling += [repr(sink.config), *(f"{name}={environ[name]}" for name in names)]
    name = hashlib.sha256("\n".join(telling).encode("utf-8", "replace")).hexdigest()
    return root / "registries" / name[:32]
