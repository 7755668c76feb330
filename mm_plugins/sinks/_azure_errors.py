"""What Azure's refusals mean: one seam from azure-core's errors to ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mm_core import (
    AlreadyExistsError,
    AuthError,
    MMError,
    NoStoreError,
    NotFoundError,
    StorageError,
    TransientError,
    redact,
)

_HOW_TO_SIGN_IN = (
    "sign in with `az login`, or set AZURE_STORAGE_CONNECTION_STRING, or another credential; "
    "the role Storage Blob Data Contributor is needed to write"
)
_TAKEN = frozenset({"BlobAlreadyExists", "UnauthorizedBlobOverwrite"})
_LOST = frozenset({"InvalidBlockList", "InvalidBlockId"})
_PASSING = frozenset({408, 409, 425, 429})
_MIXED = "InvalidBlobOrBlock"
_NO_CONTAINER = "ContainerNotFound"
_ABOUT_BLOCKS = "another program left blocks under this name: let it finish, or wait for a week"


class RangeError(StorageError):
    """The range lies beyond the end."""


class ChangedError(StorageError):
    """The blob is not the one that was meant any more."""


class BlocksLostError(StorageError):
    """Azure does not have the blocks that a blob was to be made of."""


_MEANINGS: dict[int, type[MMError]] = {
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    412: ChangedError,
    416: RangeError,
}


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn what Azure's libraries raise about `name` into ours."""
    try:
        yield
    except MMError:
        raise
    except Exception as error:
        raise _translate(error, name) from error


def _translate(error: Exception, name: str) -> MMError:
    status = getattr(error, "status_code", None)
    if status is None:
        return _without_status(error, name)
    code = _code(error)
    what = f"{name}: Azure answered {status}" + (f" ({code})" if code else "")
    if code in _TAKEN:
        return AlreadyExistsError(f"{name} exists")
    if code == _NO_CONTAINER:
        return NoStoreError(what, hint="make the container first, or correct the root")
    if code in _LOST:
        return BlocksLostError(what)
    if status in _PASSING or status >= 500:
        return TransientError(what, retry_after=_retry_after(error))
    hint = _HOW_TO_SIGN_IN if status in (401, 403) else None
    return _MEANINGS.get(status, StorageError)(what, hint=_ABOUT_BLOCKS if code == _MIXED else hint)


def _without_status(error: Exception, name: str) -> MMError:
    """By the kind: credentials that were not found, a value that makes no sense, a cut."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    words = redact(str(error)).partition("\n")[0] or type(error).__name__
    what = f"{name}: {words}"
    if "ClientAuthenticationError" in kinds:
        return AuthError(what, hint=_HOW_TO_SIGN_IN)
    if isinstance(error, ValueError | TypeError | AttributeError):
        return StorageError(what)
    return TransientError(what, hint="look at the connection and try again")


def _code(error: Exception) -> str:
    code = getattr(error, "error_code", None)
    return redact(str(getattr(code, "value", code) or ""))


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or {}
    after = str(headers.get("Retry-After", ""))
    return float(after) if after.isdecimal() else None
