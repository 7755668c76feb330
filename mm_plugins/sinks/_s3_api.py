"""S3's calls through s3fs, one request at a time, with errors that say what S3 said.

s3fs finds credentials (profiles, SSO, roles) and keeps the connections. Its file
operations guess, cache and repeat; its errors lose the status. So only its bare
calls are used, and the status in botocore's answer is the judge.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from mm_core import (
    AlreadyExistsError,
    AuthError,
    MissingExtraError,
    MMError,
    NotFoundError,
    StorageError,
    TransientError,
    redact,
)
from mm_plugins.sinks._patience import ATTEMPTS, persist

_PASSING_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_SIGN_IN = "give credentials by AWS_PROFILE or AWS_ACCESS_KEY_ID, or `profile` in options"
_SIGN_IN_AGAIN = "the session is over: sign in again, such as by `aws sso login`"
_REGION = "give the bucket's own region: AWS_DEFAULT_REGION, or `region` in options"
_CLOCK = "set this machine's clock"
_CODES: dict[str, tuple[type[MMError], str | None]] = {
    "NoSuchBucket": (NotFoundError, "make the bucket first, or correct the root"),
    "ExpiredToken": (AuthError, _SIGN_IN_AGAIN),
    "InvalidToken": (AuthError, _SIGN_IN_AGAIN),
    "TokenRefreshRequired": (AuthError, _SIGN_IN_AGAIN),
    "RequestTimeTooSkewed": (AuthError, _CLOCK),
    "AuthorizationHeaderMalformed": (StorageError, _REGION),
    "PermanentRedirect": (StorageError, _REGION),
    "BadDigest": (TransientError, "bytes were damaged on their way"),
    "IncompleteBody": (TransientError, None),
    "InvalidDigest": (TransientError, None),
    "NoSuchUpload": (TransientError, "the store gave the upload up"),
    "RequestTimeout": (TransientError, None),
    "SlowDown": (TransientError, None),
    "XAmzContentChecksumMismatch": (TransientError, "bytes were damaged on their way"),
}
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


class S3Api:
    """One bucket. `make` builds the s3fs file system when it is first needed."""

    def __init__(self, make: Callable[[], Any], bucket: str) -> None:
        self._make = make
        self._bucket = bucket
        self._lock = threading.Lock()
        self._made: Any = None

    def ask(self, method: str, name: str, *, attempts: int = ATTEMPTS, **arguments: Any) -> Any:
        """Call a method of the botocore client on the bucket, about `name`.

        Asked again after a fault that may pass, unless `attempts` is 1, for what
        must not be done twice.
        """
        return persist(partial(self._once, method, name, arguments), attempts=attempts)

    def blocks(self, answer: Mapping[str, Any], size: int, name: str) -> Iterator[bytes]:
        """The body of an answer in blocks of up to `size` bytes; `TransientError` for a cut."""
        body = answer["Body"]
        try:
            while True:
                with _translated(name):
                    block: bytes = self._run(body.read, size)
                if not block:
                    return
                yield block
        finally:
            self._run(_close, body)

    def close(self) -> None:
        """Let the connections go; the next call opens new ones."""
        with self._lock:
            self._made = None

    def _once(self, method: str, name: str, arguments: Mapping[str, Any]) -> Any:
        with _translated(name):
            call = self._fs._call_s3  # noqa: SLF001  # call_s3 is this, hidden by a wrapper
            return self._run(call, method, Bucket=self._bucket, **arguments)

    def _run(self, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._fs.loop, action, *arguments, **named)

    @property
    def _fs(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def make_file_system(
    *, client_kwargs: Mapping[str, Any], config_kwargs: Mapping[str, Any], **options: Any
) -> Any:
    """An s3fs file system of its own, which caches nothing and repeats nothing."""
    try:
        import s3fs
    except ImportError as error:
        raise MissingExtraError(
            "S3 needs s3fs, which is not installed", hint="pip install 'model-manager[s3]'"
        ) from error
    config = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        **config_kwargs,
    }
    system = s3fs.S3FileSystem(
        client_kwargs=dict(client_kwargs),
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
        **options,
    )
    system.retries = 1
    return system


async def _close(body: Any) -> None:
    body.close()


@contextmanager
def _translated(name: str) -> Iterator[None]:
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
    what = f"{name}: {redact(str(error)) or type(error).__name__}"
    if code in _CODES:
        known, advice = _CODES[code]
        return known(what, hint=advice)
    if status is None:
        return _without_answer(error, what)
    if status in _PASSING_STATUS:
        return TransientError(what, retry_after=_seconds(meta))
    kind, message, hint = {
        401: (AuthError, what, _SIGN_IN),
        403: (AuthError, what, _SIGN_IN),
        404: (NotFoundError, f"{name} is not there", None),
        412: (AlreadyExistsError, f"{name} exists", None),
        416: (RangeError, what, None),
    }.get(status, (StorageError, what, None))
    return kind(message, hint=hint)


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


def _answer(error: BaseException | None) -> Mapping[str, Any]:
    """Botocore's answer, wherever in the chain of causes it is; errors themselves may lie."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}


def _seconds(meta: Mapping[str, Any]) -> float | None:
    value = meta.get("HTTPHeaders", {}).get("retry-after", "")
    return float(value) if value.isdecimal() else None
