"""What the fsspec source and the fsspec sink share: making file systems, and their errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from mm_core import (
    AuthError,
    MissingExtraError,
    MMError,
    NotFoundError,
    StorageError,
    TransientError,
    UsageError,
    redact,
    redact_url,
)

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_NOT_OURS = frozenset({"http", "https", "hf", "mm"})
_FINAL = (
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def protocol_of(url: str) -> str:
    """The protocol of ``protocol://…``, in lower case; empty where there is none."""
    return urlsplit(url).scheme.lower() if "://" in url else ""


def speaks(url: str) -> bool:
    """Whether fsspec knows the protocol of `url`, apart from those that others answer."""
    protocol = protocol_of(url)
    if not protocol or protocol in _NOT_OURS:
        return False
    import fsspec

    return protocol in fsspec.available_protocols()


def make_file_system(url: str, options: Mapping[str, Any]) -> Any:
    """A file system of its own for `url`, which caches no listing.

    `MissingExtraError` where its library is not installed, `UsageError` for a
    protocol that fsspec does not know.
    """
    protocol = protocol_of(url)
    given = dict(options)
    if protocol in ("gs", "gcs"):
        # Without this an emulator is asked for the bucket's type by gRPC, for a minute.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            given.setdefault("token", "anon")
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'model-manager[{extra}]'" if extra else redact(str(error))
        raise MissingExtraError(
            f"{protocol}:// needs a library that is not installed", hint=hint
        ) from error
    except ValueError as error:
        raise UsageError(f"fsspec knows no protocol {protocol!r}") from error
    with translated(url):
        found = kind._get_kwargs_from_urls(url)  # noqa: SLF001  # fsspec's way to host and user
        return kind(**{**found, **given, "use_listings_cache": False, "skip_instance_cache": True})


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what any file system of fsspec raises into our errors."""
    try:
        yield
    except MMError:
        raise
    except Exception as error:
        raise _translate(error, redact_url(url)) from error


def _translate(error: Exception, name: str) -> MMError:
    what = f"{name}: {redact(str(error)) or type(error).__name__}"
    if isinstance(error, FileNotFoundError):
        return NotFoundError(what)
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return AuthError(what, hint="check the credentials of this store")
    if isinstance(error, _FINAL) or "ParamValidation" in type(error).__name__:
        return StorageError(what)
    return TransientError(what, hint="look at the connection and try again")
