"""The JSON API of GCS by gcsfs's credentials, one request at a time.

gcsfs's own calls hide the HTTP status, repeat a failed request for a minute, and
build uploads with a fixed MIME boundary that cuts a body which contains it
short. What is left of it here is what it does best: finding the credentials,
refreshing them, and keeping a session. What carries the bytes of files goes over
connections of our own where that can be.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from mm_core import (
    AlreadyExistsError,
    AuthError,
    Buffer,
    ConfigError,
    MissingExtraError,
    MMError,
    NoStoreError,
    NotFoundError,
    StorageError,
    TransientError,
    redact,
)
from mm_plugins.sinks._gcs_direct import Direct, DirectBody
from mm_plugins.sinks._patience import ATTEMPTS, persist

_READ = 4 << 20
_NO_BUCKET = b"bucket does not exist"
_OF_THE_BUCKET = re.compile(r"/b/[^/]+/o$")
"""Where objects are listed and made: only the bucket can be missing there."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_HOW_TO_SIGN_IN = (
    "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
)

Transfer = Literal["auto", "direct", "fsspec"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON data; `TransientError` where it was damaged on its way."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise TransientError("GCS sent an answer that cannot be read") from error


class _GcsfsBody:
    """An answer over gcsfs's session whose body is still to be read."""

    def __init__(self, run: Callable[..., Any], response: Any, name: str) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self._run = run
        self._response = response
        self._name = name

    def blocks(self) -> Iterator[bytes]:
        """The body in blocks of up to 4 MiB; `TransientError` for a cut."""
        while True:
            with _translated(self._name):
                block: bytes = self._run(_read_block, self._response, _READ)
            if not block:
                return
            yield block

    def read(self) -> bytes:
        """The whole small body."""
        with _translated(self._name):
            body: bytes = self._run(self._response.read)
            return body

    def close(self) -> None:
        """Give up what was not read."""
        self._run(_close, self._response)


Body = DirectBody | _GcsfsBody


class GcsApi:
    """One bucket. `make` builds the gcsfs file system when it is first needed."""

    def __init__(
        self, make: Callable[[], Any], *, requester_pays: str | None, transfer: Transfer
    ) -> None:
        self._make = make
        self._user_project = {} if requester_pays is None else {"userProject": requester_pays}
        self._transfer = transfer
        self._direct = Direct()
        self._lock = threading.Lock()
        self._made: Any = None

    def ask(
        self,
        method: str,
        path: str,
        *,
        name: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
        accept: frozenset[int] = frozenset(),
        attempts: int = ATTEMPTS,
    ) -> Answer:
        """Send one request; `path` is below the host, or a whole URL of an upload session.

        An answer of 2xx, or with a status in `accept`, is returned; others are
        raised as our errors, about `name`. Asked again after a fault that may
        pass, unless `attempts` is 1, for what must not be done twice.
        """

        def once() -> Answer:
            with _translated(name):
                answer: Answer = self._run(self._whole, method, path, params, headers, body)
            return _accepted(answer, accept, name, path)

        return persist(once, attempts=attempts)

    def send(
        self,
        method: str,
        path: str,
        *,
        name: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str],
        body: Buffer,
        accept: frozenset[int] = frozenset(),
        attempts: int = ATTEMPTS,
    ) -> Answer:
        """As `ask`, for the bytes of files: over connections of our own where that can be."""
        if not self._goes_directly():
            return self.ask(
                method,
                path,
                name=name,
                params=params,
                headers=headers,
                body=body,
                accept=accept,
                attempts=attempts,
            )

        def once() -> Answer:
            url, signed = self._signed(path, params, headers, name)
            answer = Answer(
                *self._direct.ask(method, url, signed, body, name=name, repeatable=attempts > 1)
            )
            return _accepted(answer, accept, name, path)

        return persist(once, attempts=attempts)

    def open(self, path: str, *, name: str, start: int, end: int | None) -> Body | None:
        """Open a GET of the bytes ``[start, end)`` of an object, once; None beyond its end."""
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        headers = wanted if start or end is not None else {}
        body = self._opened(path, headers, name)
        try:
            if body.status in (200, 206):
                if headers and not _is_from(start, body):
                    raise StorageError(f"{name}: GCS does not send the range it was asked for")
                return body
            told = body.read()
        except BaseException:
            body.close()
            raise
        body.close()
        if body.status == 416:
            return None
        raise _error_for(body.status, body.headers, told, name)

    @property
    def is_googles(self) -> bool:
        """Whether the server is Google's own, and no emulator."""
        host = urlsplit(self._fs._location).hostname or ""  # noqa: SLF001  # as below
        return host == "googleapis.com" or host.endswith(".googleapis.com")

    def signed_url(self, bucket: str, key: str, *, name: str, seconds: int) -> str | None:
        """A URL of an object for whoever has it; None where the credentials sign nothing."""
        with _translated(name):
            from google.auth.credentials import Signing

            fs = self._fs
            if self._user_project or not isinstance(fs.credentials.credentials, Signing):
                return None
            url: str = fs.sign(f"{bucket}/{key}", expiration=seconds, version="v4")
            return url

    def close(self) -> None:
        """Let the connections go; the next call opens new ones."""
        self._direct.close()
        with self._lock:
            self._made = None

    def _goes_directly(self) -> bool:
        """Whether bytes go over our own connections, which present no certificate of a client."""
        if self._transfer == "fsspec":
            return False
        if not getattr(self._fs, "_use_client_cert", False):
            return True
        if self._transfer == "direct":
            raise ConfigError(
                "GCS cannot be reached directly with a client certificate",
                hint="leave `transfer` out; gcsfs sends the bytes then",
            )
        return False

    def _signed(
        self,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        name: str,
    ) -> tuple[str, dict[str, str]]:
        """The URL and headers of a request, with credentials that are refreshed in time."""
        fs = self._fs
        url = path if path.startswith("http") else f"{fs._location}{path}"  # noqa: SLF001  # as below
        query = urlencode({**self._user_project, **(params or {})}, quote_via=quote)
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        with _translated(name):
            return url, fs._get_headers(dict(headers))  # noqa: SLF001  # as below

    def _opened(self, path: str, headers: Mapping[str, str], name: str) -> Body:
        params = {"alt": "media"}
        if self._goes_directly():
            return self._direct.open(*self._signed(path, params, headers, name), name=name)
        with _translated(name):
            return _GcsfsBody(
                self._run, self._run(self._open, "GET", path, params, headers, b""), name
            )

    async def _whole(self, *request: Any) -> Answer:
        response = await self._open(*request)
        try:
            return Answer(response.status, response.headers, await response.read())
        finally:
            response.release()

    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        body: Buffer,
    ) -> Any:
        import aiohttp

        fs = self._fs
        session = await fs._set_session()  # noqa: SLF001  # gcsfs has no public way to a raw answer
        if hasattr(session, "_retry_connection"):
            # aiohttp sends a cut PUT again by itself: a part would be appended twice.
            session._retry_connection = False  # noqa: SLF001  # aiohttp has no public switch
        return await session.request(
            method,
            path if path.startswith("http") else f"{fs._location}{path}",  # noqa: SLF001  # as above
            params={**self._user_project, **(params or {})},
            headers=fs._get_headers(dict(headers or {})),  # noqa: SLF001  # as above
            data=body,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
        )

    def _run(self, action: Callable[..., Any], *arguments: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._fs.loop, action, *arguments)

    @property
    def _fs(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def make_file_system(*, project: str | None, token: str | None, endpoint_url: str | None) -> Any:
    """A gcsfs file system of its own, for an emulator without credentials.

    `MissingExtraError` without gcsfs, `AuthError` where no credentials are found.
    """
    # Without this an emulator is asked for the bucket's type by gRPC, for a minute.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import gcsfs
    except ImportError as error:
        raise MissingExtraError(
            "GCS needs gcsfs, which is not installed", hint="pip install 'model-manager[gcs]'"
        ) from error
    if token is None and (os.environ.get("STORAGE_EMULATOR_HOST") or endpoint_url):
        token = "anon"  # noqa: S105  # gcsfs's word for none
    options = {"project": project} if project else {}
    try:
        return gcsfs.GCSFileSystem(
            token=token,
            endpoint_url=endpoint_url,
            session_kwargs={"trust_env": True},  # the proxies of the environment
            use_listings_cache=False,
            skip_instance_cache=True,
            **options,
        )
    except Exception as error:
        # Only credentials are looked for here, and they fail in any way they like.
        raise AuthError(
            f"Google's credentials cannot be used: {redact(f'{type(error).__name__}: {error}')}",
            hint=_HOW_TO_SIGN_IN,
        ) from error


def _accepted(answer: Answer, accept: frozenset[int], name: str, path: str) -> Answer:
    if 200 <= answer.status < 300 or answer.status in accept:
        return answer
    error = _error_for(answer.status, answer.headers, answer.body, name)
    if _OF_THE_BUCKET.search(path) and isinstance(error, NotFoundError):
        raise _no_bucket(f"{name}: GCS answered 404{_reason(answer.body)}")
    raise error


def _no_bucket(what: str) -> NoStoreError:
    return NoStoreError(what, hint="make the bucket first, or correct the root")


def _is_from(start: int, body: Body) -> bool:
    span = body.headers.get("content-range", "")
    return body.status == 206 and span.startswith(f"bytes {start}-")


def _error_for(status: int, headers: Mapping[str, str], body: bytes, name: str) -> MMError:
    what = f"{name}: GCS answered {status}{_reason(body)}"
    if status == 404 and _NO_BUCKET in body:
        return _no_bucket(what)
    if status == 404:
        return NotFoundError(f"{name} is not there, or its bucket is not")
    if status in (401, 403):
        return AuthError(what, hint=_HOW_TO_SIGN_IN)
    if status == 412:
        return AlreadyExistsError(f"{name} exists")
    if status in _PASSING:
        after = headers.get("retry-after", "")
        return TransientError(what, retry_after=float(after) if after.isdecimal() else None)
    return StorageError(what)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what gcsfs, aiohttp and google-auth raise into ours."""
    try:
        yield
    except MMError:
        raise
    except Exception as error:
        what = f"{name}: {redact(str(error)) or type(error).__name__}"
        refused = getattr(error, "code", None) == 401  # as gcsfs tells a refresh that failed
        if refused or type(error).__module__.startswith("google.auth"):
            raise AuthError(what, hint=_HOW_TO_SIGN_IN) from error
        if type(error).__name__ in ("ValueError", "TypeError", "InvalidURL"):
            raise StorageError(what) from error
        raise TransientError(what, hint="look at the connection and try again") from error


async def _close(response: Any) -> None:
    response.close()


async def _read_block(response: Any, size: int) -> bytes:
    block = bytearray()
    while len(block) < size:
        data = await response.content.read(size - len(block))
        if not data:
            break
        block += data
    return bytes(block)


def _reason(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return ""
    return f": {redact(str(message))}"
