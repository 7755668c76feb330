"""Names from outside, checked once at the border.

Model ids, versions, aliases and the paths of files in a repository become keys
in a bucket and paths on a disk. What passes here is safe as both, on every
system: it cannot leave its folder, it cannot hide, and it cannot collide.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from mm_core.exceptions import InvalidNameError

_DEVICE_NAMES = re.compile(
    r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?"
)
_ID_SEGMENT = re.compile(r"[^\W_][\w.+-]*")
_LABEL = re.compile(r"[^\W_][\w.+-]*")
_JOINERS = "\u200c\u200d"  # invisible, but part of how Persian, Hindi and others are spelt
_PLAIN = re.compile(r"[A-Za-z0-9_.+ -]*")  # most names: nothing in them need be looked at
_COMMIT = re.compile(r"[0-9a-f]{40}")

MAX_PATH_BYTES = 900
"""S3 and GCS keys end at 1,024 bytes; the rest is for the root, the id and the version."""


def check_model_id(model_id: str) -> str:
    """Return `model_id` in NFC, or raise `InvalidNameError`.

    One or more segments joined by ``/``; each starts with a letter or a digit
    and goes on with letters, digits, ``_``, ``.``, ``+`` and ``-``.
    """
    name = unicodedata.normalize("NFC", model_id)
    for segment in name.split("/"):
        if not _ID_SEGMENT.fullmatch(segment):
            raise InvalidNameError(
                f"model id {name!r} is not allowed: the part {segment!r} must start with a letter "
                "or digit and hold only letters, digits, '_', '.', '+' and '-'",
                hint="choose another id with --as, such as --as my-org/my-model",
            )
        _check_segment(segment, f"model id {name!r}")
    if len(name.encode()) > 200:
        raise InvalidNameError(f"model id {name!r} is longer than 200 bytes")
    return name


def check_version(version: str) -> str:
    """Return `version` in NFC, or raise `InvalidNameError`: one segment, as in a model id."""
    return _check_label(version, "version")


def check_alias(alias: str) -> str:
    """Return `alias` in NFC, or raise `InvalidNameError`.

    An alias looks like a version but is never 40 hex digits, so that an alias
    can never hide a commit.
    """
    name = _check_label(alias, "alias")
    if _COMMIT.fullmatch(name):
        raise InvalidNameError(f"alias {name!r} looks like a commit; choose a word")
    return name


def check_path(path: str) -> str:
    """Return the relative, ``/``-separated `path` of a file in a model, or raise.

    Raises `InvalidNameError` for what is absolute, leaves its folder, holds a
    control character or a backslash, or cannot stand on some disk.
    """
    what = f"file path {path!r}"
    if not path:
        raise InvalidNameError("a file path is empty")
    if path.startswith("/"):
        raise InvalidNameError(f"{what} is absolute")
    if re.match(r"[A-Za-z]:", path):
        raise InvalidNameError(f"{what} starts with a drive letter")
    if "\\" in path:
        raise InvalidNameError(f"{what} holds a backslash")
    if "?versionId=" in path:
        raise InvalidNameError(f"{what} would be read as an S3 object version")
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise InvalidNameError(f"{what} is not valid Unicode") from None
    if len(encoded) > MAX_PATH_BYTES:
        raise InvalidNameError(f"{what} is longer than {MAX_PATH_BYTES} bytes")
    for segment in path.split("/"):
        _check_segment(segment, what)
    return path


def check_paths(paths: Iterable[str], *, case_blind: bool = False) -> None:
    """Raise `InvalidNameError` unless all `paths` are allowed and can stand side by side.

    A path given twice, or one that is also the folder of another, is refused.
    With `case_blind`, paths that differ only by case or Unicode form count as
    one, as they do on such a disk.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_path(path)
        key = fold(path) if case_blind else path
        if files.get(key) == path:
            raise InvalidNameError(f"file path {path!r} is listed twice")
        if key in files:
            raise InvalidNameError(
                f"file paths {files[key]!r} and {path!r} are the same name to this backend, "
                "which ignores case and Unicode form",
                hint="leave one out with --exclude, or use a backend that tells them apart",
            )
        files[key] = path
        parts = key.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), path)
    for key in files.keys() & folders.keys():
        raise InvalidNameError(f"file path {files[key]!r} is also the folder of {folders[key]!r}")


def fold(name: str) -> str:
    """The form in which two names are compared: NFC and case-folded."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def version_prefix(model_id: str, version: str) -> str:
    """The key prefix of a version's files, with the slash at its end."""
    return f"models/{model_id}/{version}/"


def _check_label(label: str, what: str) -> str:
    name = unicodedata.normalize("NFC", label)
    if not _LABEL.fullmatch(name):
        raise InvalidNameError(
            f"{what} {name!r} is not allowed: it must start with a letter or digit and hold "
            "only letters, digits, '_', '.', '+' and '-'"
        )
    _check_segment(name, f"{what} {name!r}")
    return name


def _check_segment(segment: str, what: str) -> None:
    if segment in ("", ".", ".."):
        raise InvalidNameError(f"{what} has the part {segment!r}, which is not allowed")
    for char in "" if _PLAIN.fullmatch(segment) else segment:
        if char not in _JOINERS and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise InvalidNameError(f"{what} holds the control or invisible character {char!a}")
        if char in '<>:"|?*':
            raise InvalidNameError(f"{what} holds {char!r}, which Windows does not allow")
    if segment[-1] in ". ":
        raise InvalidNameError(f"{what} has a part that ends in {segment[-1]!r}")
    if _DEVICE_NAMES.fullmatch(segment):
        raise InvalidNameError(f"{what} has the part {segment!r}, a Windows device name")
    if len(segment.encode()) > 255:
        raise InvalidNameError(f"{what} has a part longer than 255 bytes")
