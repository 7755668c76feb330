"""Reading over HTTP: ranges, redirects by hand, and errors that say whether to try again.

Built on urllib3, which botocore and half of PyPI stand on. It knows no retries:
those are the engine's.
"""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from mm_core import (
    AuthError,
    Buffer,
    IntegrityError,
    MMError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransientError,
    redact,
    redact_url,
)
from mm_plugins._connections import new_pool, proxy_for

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

BUFFER_SIZE = 1 << 20
MAX_REDIRECTS = 10

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to read: a URL, the caller's headers, and what is known of the entity.

    `headers` go to the URL's own scheme, host and port only. `size` and `etag`
    are what the entity had when it was described; `modified` is its Last-Modified,
    for servers without ETags. `immutable` says that the URL names bytes that never
    change, so that neither is needed to go on in the middle.
    `allow` is asked before each request, also for the targets of redirects; it
    raises to refuse. `explain` may turn a refusal into a better error.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    etag: str | None = None
    modified: str | None = None
    immutable: bool = False
    allow: Callable[[str], None] | None = None
    explain: Callable[[int, Mapping[str, str]], MMError | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a server says of an entity without sending it. `url` is where redirects led."""

    url: str
    status: int
    headers: Mapping[str, str]


class HttpClient:
    """Pools of connections, shared by threads. Timeouts are in seconds."""

    def __init__(self, *, connect_timeout: float = 10.0, read_timeout: float = 60.0) -> None:
        self._timeouts = (connect_timeout, read_timeout)
        self._pools: dict[str | None, PoolManager] = {}
        self._lock = threading.Lock()

    def head(self, target: Target, *, method: str = "HEAD", range: str | None = None) -> Head:
        """Ask for the headers alone. Refusals come back as a `Head`; faults are raised."""
        headers = {} if range is None else {"Range": range}
        with self._open(method, target, headers) as (response, url):
            return Head(url=url, status=response.status, headers=_lower(response))

    def get(self, target: Target, *, limit: int) -> tuple[Head, bytes]:
        """A small document, whole, and its headers. Refusals are raised.

        Raises `StorageError` for one of more than `limit` bytes.
        """
        with self._open("GET", target, {}) as (response, url):
            if response.status != 200:
                raise self._refusal(response, target, url)
            body = bytearray()
            for data in response.stream(BUFFER_SIZE, decode_content=False):
                body += data
                if len(body) > limit:
                    raise StorageError(f"{redact_url(url)} answered more than {limit} bytes")
            return Head(url=url, status=response.status, headers=_lower(response)), bytes(body)

    def read(self, target: Target, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of the entity, in buffers of at most `BUFFER_SIZE`.

        Raises `TransientError` where trying again may help, `SourceChangedError`
        where the entity is not the described one any more, `IntegrityError` for
        an answer that is not what was asked for.
        """
        stop = end if target.size is None else min(target.size if end is None else end, target.size)
        if stop is not None and start >= stop:
            return
        last = "" if stop is None else stop - 1
        headers = {} if (start, stop) == (0, None) else {"Range": f"bytes={start}-{last}"}
        if start and (validator := _validator(target)):
            headers["If-Range"] = validator
        with self._open("GET", target, headers) as (response, url):
            skip = self._check_answer(response, target, url, start)
            if skip is None:
                return
            yield from _body(
                response, target, skip=skip, count=None if stop is None else stop - start
            )

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()

    def _check_answer(
        self, response: BaseHTTPResponse, target: Target, url: str, start: int
    ) -> int | None:
        """How many bytes of the body to leave out; None where there is nothing to read."""
        if response.status == 416:
            if target.size is None or start < target.size:
                raise SourceChangedError(f"{redact_url(target.url)} is shorter than it was")
            return None
        if response.status not in (200, 206):
            raise self._refusal(response, target, url)
        _check_entity(response, target)
        if response.status == 206:
            _check_content_range(response, target, start)
        else:
            _check_length(response, target)
        if start and not target.immutable and not _is_tied(response, target):
            raise SourceChangedError(
                f"{redact_url(target.url)} cannot be read from the middle: its server states "
                "nothing by which its file could be known again",
                hint="pull again: it will be read from its start",
            )
        return 0 if response.status == 206 else start

    def _refusal(self, response: BaseHTTPResponse, target: Target, url: str) -> MMError:
        headers = _lower(response)
        if not same_origin(url, target.url):
            return error_for(response.status, headers, url, moved=True)
        explained = target.explain(response.status, headers) if target.explain else None
        return explained or error_for(response.status, headers, url)

    @contextmanager
    def _open(
        self, method: str, target: Target, headers: Mapping[str, str]
    ) -> Iterator[tuple[BaseHTTPResponse, str]]:
        """The answer, and the URL that gave it. Errors of urllib3 become ours here."""
        import urllib3

        response: BaseHTTPResponse | None = None
        try:
            response, url = self._follow(method, target, headers)
            yield response, url
        except MMError:
            raise
        except urllib3.exceptions.HTTPError as error:
            raise _fault(error, target.url) from error
        except ValueError:  # its text may quote a header, which may be a secret
            raise StorageError(
                f"{redact_url(target.url)}: a header or a redirect is malformed",
                hint="check the headers and the token of this source for line breaks",
            ) from None
        finally:
            if response is not None:
                _give_back(response)

    def _follow(
        self, method: str, target: Target, headers: Mapping[str, str]
    ) -> tuple[BaseHTTPResponse, str]:
        """Redirects by hand: once they leave the origin, the caller's headers are gone for good.

        They do not come back with a redirect back, whose path another host chose.
        """
        url, theirs = target.url, target.headers
        own = {"Accept-Encoding": "identity", "User-Agent": "model-manager", **headers}
        for _ in range(MAX_REDIRECTS + 1):
            if target.allow is not None:
                target.allow(url)
            response = self._pool(url).request(
                method,
                url,
                headers={**theirs, **own},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response, url
            _skip_body(response)
            came_from, url = url, _next(url, location)
            theirs = theirs if same_origin(came_from, url) else {}
        raise StorageError(f"{redact_url(target.url)} redirects more than {MAX_REDIRECTS} times")

    def _pool(self, url: str) -> PoolManager:
        proxy = proxy_for(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = new_pool(proxy, self._timeouts)
            return self._pools[proxy]


def error_for(status: int, headers: Mapping[str, str], url: str, *, moved: bool = False) -> MMError:
    """The error that an HTTP status means. `moved`: the answer came from another origin.

    A 403 from there is a link that has expired, so that asking anew may help.
    """
    what = f"{redact_url(url)} answered {status}"
    if status in (404, 410):
        return NotFoundError(f"{what}: there is no such file")
    if status in (401, 403) and moved:
        return TransientError(f"{what}: the link has expired")
    if status in (401, 403):
        return AuthError(f"{what}: access is denied", hint="check the credentials of this source")
    if status in _PASSING or status >= 500:
        return TransientError(what, retry_after=retry_after(headers))
    return StorageError(what)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: from Retry-After or ratelimit; `headers` in lower case.

    https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    if value:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, moment.timestamp() - time.time())
    match = re.search(r"\br=0\b.*?\bt=(\d+)", headers.get("ratelimit", ""))
    return float(match[1]) if match else None


def _body(
    response: BaseHTTPResponse, target: Target, *, skip: int, count: int | None
) -> Iterator[Buffer]:
    left = count
    for data in response.stream(BUFFER_SIZE, decode_content=False):
        if skip >= len(data):
            skip -= len(data)
            continue
        chunk = data[skip:] if left is None else data[skip : skip + left]
        skip = 0
        if left is not None:
            left -= len(chunk)
        yield chunk
        if left == 0:
            return
    if left:
        raise TransientError(f"{redact_url(target.url)} ended {left} bytes too early")


def _check_entity(response: BaseHTTPResponse, target: Target) -> None:
    if target.immutable:
        return
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    other_tag = target.etag and etag and etag != target.etag
    other_time = not target.etag and target.modified and modified and modified != target.modified
    if other_tag or other_time:
        raise SourceChangedError(
            f"{redact_url(target.url)} changed while it was read",
            hint="pull again: the new state of the file is another version",
        )


def _check_length(response: BaseHTTPResponse, target: Target) -> None:
    length = response.headers.get("Content-Length")
    if target.size is not None and length is not None and int(length) != target.size:
        raise SourceChangedError(
            f"{redact_url(target.url)} has {length} bytes now, not {target.size}"
        )


def _is_tied(response: BaseHTTPResponse, target: Target) -> bool:
    """Whether this is known to be the described entity: a range of it, or all of it again.

    A 206 was asked for by If-Range where the validator is strong, and need not
    repeat it; a 200 must state the same ETag or time.
    """
    if target.etag is not None:
        told = response.headers.get("ETag") == target.etag
    else:
        told = target.modified is not None and (
            response.headers.get("Last-Modified") == target.modified
        )
    return told or (response.status == 206 and _validator(target) is not None)


def _check_content_range(response: BaseHTTPResponse, target: Target, start: int) -> None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise IntegrityError(
            f"{redact_url(target.url)} answered another range than the one from byte {start}",
            hint="its server does not handle ranges as HTTP demands",
        )
    if target.size is not None and match[3] not in ("*", str(target.size)):
        raise SourceChangedError(
            f"{redact_url(target.url)} has {match[3]} bytes now, not {target.size}"
        )


def _skip_body(response: BaseHTTPResponse) -> None:
    """Read over a short body, so that the connection can be kept; never an endless one."""
    left = getattr(response, "length_remaining", None)
    if left is not None and left <= BUFFER_SIZE:
        response.drain_conn()
    _give_back(response)


def _give_back(response: BaseHTTPResponse) -> None:
    """Keep the connection if the body was read to its end; else close it."""
    if getattr(response, "length_remaining", None) == 0:
        response.release_conn()
    else:
        response.close()


def _fault(error: Exception, url: str) -> MMError:
    import urllib3

    reason = redact(str(getattr(error, "reason", None) or error))
    what = f"{redact_url(url)}: {reason}"
    if isinstance(error, urllib3.exceptions.SSLError):
        return StorageError(what, hint="for a certificate of your own set SSL_CERT_FILE")
    if isinstance(
        error, (urllib3.exceptions.LocationValueError, urllib3.exceptions.URLSchemeUnknown)
    ):
        return StorageError(f"{redact_url(url)} is no URL that can be read")
    return TransientError(what, hint="look at the connection and try again")


def _next(url: str, location: str) -> str:
    target = urljoin(url, location)
    old, new = urlsplit(url).scheme, urlsplit(target).scheme
    if new not in ("http", "https") or (old == "https" and new == "http"):
        raise StorageError(
            f"{redact_url(url)} redirects to {new}, which would not be safe",
            hint="ask the owner of the server to serve it by https",
        )
    return target


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


def _validator(target: Target) -> str | None:
    """What If-Range may hold: a strong ETag, or a time where there is no ETag at all."""
    if target.etag is None:
        return target.modified
    return None if target.etag.startswith("W/") else target.etag


def _lower(response: BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
