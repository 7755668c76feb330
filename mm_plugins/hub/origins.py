"""Where a pull may come from that somebody asks for over the network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import unquote

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<place>[^/?#]*)(?P<rest>.*)")
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]+):(?P<rest>.*)")
_ODD = re.compile(r"[\x00-\x20\x7f\\]")


def check_glob(glob: str) -> str:
    """`glob`, if it says enough of what it lets in. Raises `ValueError`."""
    if not (_URL.fullmatch(glob) or _NAMED.fullmatch(glob) or glob.startswith("/")):
        raise ValueError(
            f"{glob!r} should begin with a scheme (hf://*), the name of a source (vendor:*) or a /"
        )
    return glob


def may_come_from(source: str, globs: Iterable[str]) -> bool:
    """Whether one of `globs` lets `source` in.

    Scheme, host and what follows are compared each by itself, so that no ``*`` for a
    host reaches into a path. What would leave a folder is never let in, nor a user's
    name in a URL.
    """
    if _ODD.search(source) or ".." in re.split(r"[/?#]", _decoded(source)):
        return False
    return any(_fits(source, glob) for glob in globs)


def _fits(source: str, glob: str) -> bool:
    wanted, given = _URL.fullmatch(glob), _URL.fullmatch(source)
    if wanted is None or given is None:
        return wanted is None and given is None and fnmatchcase(source, glob)
    if "@" in given["place"] and given["scheme"].lower() != "hf":  # hf://name@revision
        return False
    return (
        wanted["scheme"].lower() == given["scheme"].lower()
        and fnmatchcase(given["place"].lower(), wanted["place"].lower())
        and (fnmatchcase(given["rest"], wanted["rest"]) or not wanted["rest"])
    )


def _decoded(text: str) -> str:
    """`text` as whoever decodes it again and again would read it."""
    for _ in range(4):
        text = unquote(text)
    return text.replace("\\", "/")
