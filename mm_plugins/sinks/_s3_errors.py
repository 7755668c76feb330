"""What S3 says, as our errors: the status and the code are the judge, never a type of error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mm_core import (
    AlreadyExistsError,
    AuthError,
    MMError,
    NoStoreError,
    NotFoundError,
    StorageError,
    TransientError,
    UploadLostError,
    redact,
)

_PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SIGN_IN = "give credentials by AWS_PROFILE or AWS_ACCESS_KEY_ID, or `profile` in options"
_SIGN_IN_AGAIN = "the session is over: sign in again, such as by `aws sso login`"
_REGION = "give the bucket's own region: AWS_DEFAULT_REGION, or `region` in options"
_CLOCK = "set this machine's clock"
_CODES: dict[str, tuple[type[MMError], str | None]] = {
    "NoSuchBucket": (NoStoreError, "make the bucket first, or correct the root"),
    "ExpiredToken": (AuthError, _SIGN_IN_AGAIN),
    "InvalidToken": (AuthError, _SIGN_IN_AGAIN),
    "TokenRefreshRequired": (AuthError, _SIGN_IN_AGAIN),
    "RequestTimeTooSkewed": (AuthError, _CLOCK),
    "AuthorizationHeaderMalformed": (StorageError, _REGION),
    "PermanentRedirect": (StorageError, _REGION),
    "BadDigest": (TransientError, "bytes were damaged on their way"),
    "MalformedXML": (TransientError, "bytes were damaged on their way"),  # ours is well formed
    "IncompleteBody": (TransientError, None),
    "InvalidDigest": (TransientError, None),
    "NoSuchUpload": (UploadLostError, "the store gave the upload up"),
    "RequestTimeout": (TransientError, None),
    "SlowDown": (TransientError, None),
    "XAmzContentChecksumMismatch": (TransientError, "bytes were damaged on their way"),
}
_EXPIRED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_NO_CREDENTIALS = frozenset(
    {
        "CredentialRetrievalError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOTokenLoadError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
_SENSELESS = frozenset({"ParamValidationError", "TypeError", "ValueError", "InvalidURL"})


class RangeError(StorageError):
    """The range starts beyond the end of the object."""


def error_of(
    name: str, status: int, code: str, message: str, retry_after: str | None = None
) -> MMError:
    """Our error for S3's answer about `name`. `message` may hold secrets; they are masked."""
    what = f"{name}: {redact(message) or code or f'answered {status}'}"
    wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
    if code in _CODES:
        known, advice = _CODES[code]
        if issubclass(known, TransientError):
            return known(what, hint=advice, retry_after=wait)
        return known(what, hint=advice)
    if status in _PASSING_STATUS:
        return TransientError(what, retry_after=wait)
    kind, told, hint = {
        401: (AuthError, what, _SIGN_IN),
        403: (AuthError, what, _SIGN_IN),
        404: (NotFoundError, f"{name} is not there", None),
        412: (AlreadyExistsError, f"{name} exists", None),
        416: (RangeError, what, None),
    }.get(status, (StorageError, what, None))
    return kind(told, hint=hint)


def is_expired(code: str) -> bool:
    """Whether S3 said by `code` that the credentials' time is over."""
    return code in _EXPIRED


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the errors of s3fs, botocore and aiohttp into ours."""
    try:
        yield
    except MMError:
        raise
    except Exception as error:
        raise _translate(error, name) from error


def _translate(error: Exception, name: str) -> MMError:
    answer = _answer(error)
    code = answer.get("Error", {}).get("Code", "")
    meta = answer.get("ResponseMetadata", {})
    status = meta.get("HTTPStatusCode")
    if status is None and code not in _CODES:
        return _without_answer(error, f"{name}: {redact(str(error)) or type(error).__name__}")
    after = meta.get("HTTPHeaders", {}).get("retry-after")
    return error_of(name, status or 0, code, str(error), after)


def _without_answer(error: Exception, what: str) -> MMError:
    """No answer came: credentials, the connection, or a call that makes no sense."""
    kind = type(error).__name__
    if kind in _NO_CREDENTIALS or isinstance(error, PermissionError):
        return AuthError(what, hint=_SIGN_IN)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(what)
    if kind in _SENSELESS:
        return StorageError(what)
    return TransientError(what, hint="look at the connection, and at the endpoint if it is set")


def code_of(error: BaseException) -> str:
    """S3's word for what was wrong, empty where it said none."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _answer(error: BaseException | None) -> Mapping[str, Any]:
    """Botocore's answer, wherever in the chain of causes it is; errors themselves may lie."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}
