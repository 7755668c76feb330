"""Reading over HTTP: ranges, redirects by hand, and errors that say whether to try again.

It knows no retries: those are the engine's.
"""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from mm_core import (
    AuthError,
    Buffer,
    IntegrityError,
    MMError,
    NotFoundError,
    RangeReader,
    SourceChangedError,
    StorageError,
    TransientError,
    redact_url,
)
from mm_plugins._guard import Permit
from mm_plugins._wire import TRY_AGAIN, Response, Wire

BUFFER_SIZE = 1 << 20
MAX_REDIRECTS = 10

LINK_SECONDS = 300.0
"""How long it is remembered where a redirect led. One that ends before is asked for anew."""

_OWN_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "model-manager"}

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_Origin = tuple[str, str, int | None]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_HINT = "try again later: the server is busy, or down for a while"
_RANGE_HINT = "its server does not handle ranges as HTTP demands"
_CHANGED_HINT = "pull again: the new state of the file is another version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to read: a URL, the caller's headers, and what is known of the entity.

    `headers` go to the URL's own scheme, host and port only. `size` and `etag`
    are what the entity had when it was described; `modified` is its Last-Modified,
    for servers without ETags. `immutable` says that the URL names bytes that never
    change, or whose hash is known, so that neither is needed to go on in the middle.
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
    """Connections that are kept, shared by threads. Timeouts are in seconds.

    `permit` is asked about each address before it is connected to, see `Guard`.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        permit: Permit | None = None,
    ) -> None:
        self._wire = Wire(connect_timeout=connect_timeout, read_timeout=read_timeout, permit=permit)
        self._links: dict[str, tuple[str, float]] = {}
        self._without_ranges: set[_Origin] = set()
        self._whole: set[str] = set()

    def head(self, target: Target, *, method: str = "HEAD", range: str | None = None) -> Head:
        """Ask for the headers alone. Refusals come back as a `Head`; faults are raised."""
        headers = {} if range is None else {"Range": range}
        with self._follow(method, target, headers) as response:
            if range is not None and response.status == 200 and response.length != 1:
                self._remember_no_ranges(response, target)
            if response.status == 206:
                _skip_body(response)
            return _head(response)

    def get(self, target: Target, *, limit: int) -> tuple[Head, bytes]:
        """A small document, whole, and its headers. Refusals are raised.

        Raises `StorageError` for one of more than `limit` bytes.
        """
        with self._follow("GET", target, {}) as response:
            if response.status != 200:
                raise _refusal(response, target)
            return _head(response), response.read(limit)

    def open(self, target: Target, start: int = 0, end: int | None = None) -> RangeReader:
        """The bytes ``[start, end)`` of the entity, to be read into the caller's memory.

        Nothing is asked for where `target` says that there are none. The checks of
        the answer are made here; raises as `read`.
        """
        stop = end if target.size is None else min(target.size if end is None else end, target.size)
        if stop is not None and start >= stop:
            return _Range(None, target)
        last = "" if stop is None else stop - 1
        headers = {} if (start, stop) == (0, None) else {"Range": f"bytes={start}-{last}"}
        if start and (validator := _validator(target)):
            headers["If-Range"] = validator
        response = self._by_link(target, headers) or self._follow("GET", target, headers)
        try:
            _check_answer(response, target, start)
            self._remember_link(response, target)
            if response.status == 206:
                stop = _check_content_range(response, target, start, stop)
            elif headers and not _is_whole(response, target, start, stop):
                self._remember_no_ranges(response, target)
            if response.status == 200 and target.size is None and response.length is not None:
                stop = response.length if stop is None else min(stop, response.length)
            stated = _stated(response)
        except BaseException:
            response.close()
            raise
        count = None if stop is None else max(0, stop - start)
        skip = 0 if response.status == 206 else start
        return _Range(response, target, skip=skip, count=count, stated=stated)

    def read(self, target: Target, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of the entity, in buffers of at most `BUFFER_SIZE`.

        A buffer is valid until the next is asked for. Raises `TransientError` where
        trying again may help, `SourceChangedError` where the entity is not the
        described one any more, `IntegrityError` for an answer that is not what was
        asked for.
        """
        with contextlib.closing(self.open(target, start, end)) as reader:
            known = target.size if end is None else end
            size = BUFFER_SIZE if known is None else min(BUFFER_SIZE, max(1, known - start))
            buffer = memoryview(bytearray(size))
            while count := reader.readinto(buffer):
                yield buffer[:count]

    def honours_ranges(self, url: str) -> bool:
        """False once a range of `url` was answered by all of it.

        Or by any other file's of the origin where `url` leads, as far as that is known.
        """
        link, _ = self._links.get(url, (url, 0.0))
        return url not in self._whole and _origin(link) not in self._without_ranges

    def close(self) -> None:
        """Close all connections; who still reads one gets a `TransientError`."""
        self._wire.close()

    def _by_link(self, target: Target, headers: Mapping[str, str]) -> Response | None:
        """The answer from where the target's URL led a moment ago; None where that is over.

        A hub counts how often it is asked, and every range of a large file would ask.
        """
        link, until = self._links.get(target.url, ("", 0.0))
        if time.monotonic() > until:
            self._links.pop(target.url, None)
            return None
        if target.allow is not None:
            target.allow(link)
        try:
            response = self._wire.request("GET", link, {**_OWN_HEADERS, **headers})
        except MMError:
            self._links.pop(target.url, None)
            raise
        if response.status in (200, 206):
            return response
        self._links.pop(target.url, None)
        response.close()
        return None

    def _remember_link(self, response: Response, target: Target) -> None:
        """Note where another origin has the bytes of a URL that never changes its meaning."""
        known = self._links.get(target.url)
        if target.immutable and known is None and not same_origin(response.url, target.url):
            self._links[target.url] = (response.url, time.monotonic() + LINK_SECONDS)

    def _remember_no_ranges(self, response: Response, target: Target) -> None:
        self._whole.add(target.url)
        self._without_ranges.add(_origin(response.url))

    def _follow(self, method: str, target: Target, headers: Mapping[str, str]) -> Response:
        """Redirects by hand: once they leave the origin, the caller's headers are gone for good.

        They do not come back with a redirect back, whose path another host chose.
        """
        url, theirs = target.url, target.headers
        own = {**_OWN_HEADERS, **headers}
        for _ in range(MAX_REDIRECTS + 1):
            if target.allow is not None:
                target.allow(url)
            response = self._wire.request(method, url, {**theirs, **own})
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or location is None:
                return response
            _skip_body(response)
            came_from, url = url, _next(url, location)
            theirs = theirs if same_origin(came_from, url) else {}
        raise StorageError(f"{redact_url(target.url)} redirects more than {MAX_REDIRECTS} times")


class _Range:
    """A `RangeReader` over the body of an answer; over nothing where there is no answer.

    The first `skip` bytes of the body are read over; then `count` are promised, or
    all that come where it is None. `stated` is how long the body must be where only
    its end tells that.
    """

    def __init__(
        self,
        response: Response | None,
        target: Target,
        *,
        skip: int = 0,
        count: int | None = None,
        stated: int | None = None,
    ) -> None:
        self._response = response
        self._url = target.url
        self._skip = skip
        self._stated = stated
        self._left = 0 if response is None else count

    def readinto(self, buffer: memoryview, /) -> int:
        if self._response is None or self._left == 0:
            return 0
        if self._skip:
            self._read_over(self._response)
        wanted = len(buffer) if self._left is None else min(self._left, len(buffer))
        count = self._response.readinto(buffer[:wanted])
        if self._left is None:
            return count
        self._left -= count
        if self._stated is not None:
            self._stated -= count
            self._refuse_more(self._response, self._stated)
        if count == 0 < wanted:
            self.close()
            raise TransientError(
                f"{redact_url(self._url)} ended {self._left} bytes too early", hint=TRY_AGAIN
            )
        if self._left == 0:
            self.close()
        return count

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

    def _refuse_more(self, response: Response, stated: int) -> None:
        """No byte that Content-Range does not tell of; `stated` is what it tells of still."""
        more = max(0, -stated)
        if stated == 0 == self._left:
            with contextlib.suppress(TransientError):  # all that was stated has come
                more = response.readinto(memoryview(bytearray(1)))
        if more:
            self.close()
            raise _more_than_stated(self._url)

    def _read_over(self, response: Response) -> None:
        waste = memoryview(bytearray(min(self._skip, BUFFER_SIZE)))
        while self._skip:
            passed = response.readinto(waste[: min(self._skip, len(waste))])
            self._skip = self._skip - passed if passed else 0


def error_for(status: int, headers: Mapping[str, str], url: str, *, moved: bool = False) -> MMError:
    """The error that an HTTP status means. `moved`: the answer came from another origin.

    A 403 from there is a link that has expired, so that asking anew may help.
    """
    what = f"{redact_url(url)} answered {status}"
    if status in (404, 410):
        return NotFoundError(f"{what}: there is no such file")
    if status in (401, 403) and moved:
        return TransientError(
            f"{what}: the link has expired", hint="pull again: a new link is asked for"
        )
    if status in (401, 403):
        return AuthError(f"{what}: access is denied", hint="check the credentials of this source")
    if status in _PASSING or status >= 500:
        return TransientError(what, retry_after=retry_after(headers), hint=_PASSING_HINT)
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


def _check_answer(response: Response, target: Target, start: int) -> None:
    """Whether what was asked for can be read from the answer."""
    if response.status == 416:
        raise SourceChangedError(
            f"{redact_url(target.url)} is shorter than it was", hint=_CHANGED_HINT
        )
    if response.status not in (200, 206):
        raise _refusal(response, target)
    _check_entity(response, target)
    if response.status == 200:
        _check_length(response, target)
    in_ranges = response.status == 206 and _validator(target) is not None
    if (start or in_ranges) and not target.immutable and not _is_tied(response, target):
        raise SourceChangedError(
            f"{redact_url(target.url)} cannot be read from the middle: its server states "
            "nothing by which its file could be known again",
            hint="pull again, to read it from its start, or name its sha256",
        )


def _refusal(response: Response, target: Target) -> MMError:
    status, headers, url = response.status, response.headers, response.url
    if not same_origin(url, target.url):
        return error_for(status, headers, url, moved=True)
    explained = target.explain(status, headers) if target.explain else None
    return explained or error_for(status, headers, url)


def _check_entity(response: Response, target: Target) -> None:
    etag, modified = response.headers.get("etag"), response.headers.get("last-modified")
    other_tag = target.etag and etag and etag != target.etag
    other_time = target.modified and modified and modified != target.modified
    if target.immutable and target.etag:  # one tag is enough where a hash follows
        other_time = False
    if other_tag or other_time:
        raise SourceChangedError(
            f"{redact_url(target.url)} changed while it was read", hint=_CHANGED_HINT
        )


def _check_length(response: Response, target: Target) -> None:
    length = response.length
    if target.size is not None and length is not None and length != target.size:
        raise _another_size(target, length)


def _is_tied(response: Response, target: Target) -> bool:
    """Whether this is known to be the described entity: a range of it, or all of it again.

    It must say so itself, by the same strong ETag, or the same time where there is
    no ETag: a server that does not know If-Range sends a range of whatever it has.

    https://www.rfc-editor.org/rfc/rfc9110#section-15.3.7
    """
    name = "last-modified" if target.etag is None else "etag"
    validator = _validator(target)
    return validator is not None and response.headers.get(name) == validator


def _check_content_range(
    response: Response, target: Target, start: int, stop: int | None
) -> int | None:
    """Where the range ends that the answer should bring, given what it says of itself.

    It may bring less than that, which is right as far as it goes; never more.
    """
    first, last, total = _content_range(response)
    if first != start or last < first or (stop is not None and last >= stop):
        raise _another_range(target, start)
    if target.size is not None and total not in (None, target.size):
        raise _another_size(target, total)
    if total is not None and last >= total:
        raise _another_range(target, start)
    if response.length is not None and response.length > last + 1 - first:
        raise _another_range(target, start)
    if total is None:
        return last + 1 if stop is None else stop
    return total if stop is None else min(stop, total)


def _content_range(response: Response) -> tuple[int, int, int | None]:
    """First byte, last byte and size of the whole; -1 for both bytes where it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None:
        return -1, -1, None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def _stated(response: Response) -> int | None:
    """How many bytes a range states that does not state its length."""
    if response.status != 206 or response.length is not None:
        return None
    first, last, _ = _content_range(response)
    return last + 1 - first


def _is_whole(response: Response, target: Target, start: int, stop: int | None) -> bool:
    """Whether the range that was asked for is the whole file, so that 200 is an answer to it."""
    size = response.length if target.size is None else target.size
    return start == 0 and stop is not None and size is not None and stop >= size


def _more_than_stated(url: str) -> IntegrityError:
    return IntegrityError(
        f"{redact_url(url)} sent more bytes than the range that it told", hint=_RANGE_HINT
    )


def _another_size(target: Target, size: int | None) -> SourceChangedError:
    return SourceChangedError(
        f"{redact_url(target.url)} has {size} bytes now, not {target.size}", hint=_CHANGED_HINT
    )


def _another_range(target: Target, start: int) -> IntegrityError:
    return IntegrityError(
        f"{redact_url(target.url)} answered another range than the one from byte {start}",
        hint=_RANGE_HINT,
    )


def _skip_body(response: Response) -> None:
    """Read over a short body, so that the connection can be kept; never an endless one."""
    if response.length is not None and response.length <= BUFFER_SIZE:
        with contextlib.suppress(TransientError):
            response.read(BUFFER_SIZE)
    response.close()


def _next(url: str, location: str) -> str:
    """Where a redirect leads. What is not ASCII in it is UTF-8, if it can be."""
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    try:
        target = urljoin(url, location)
        old, new = _origin(url)[0], _origin(target)[0]
    except ValueError:
        raise StorageError(f"{redact_url(url)}: a redirect is malformed") from None
    if new not in ("http", "https") or (old == "https" and new == "http"):
        raise StorageError(
            f"{redact_url(url)} redirects to {new}, which would not be safe",
            hint="ask the owner of the server to serve it by https",
        )
    return target


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    return _origin(one) == _origin(other)


def strong(etag: str | None) -> str | None:
    """The ETag if it stands for the very bytes; None for a weak one."""
    return None if etag is None or etag.startswith("W/") else etag


def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


def _validator(target: Target) -> str | None:
    """What If-Range may hold: a strong ETag, or a time where there is no ETag at all."""
    return target.modified if target.etag is None else strong(target.etag)


def _head(response: Response) -> Head:
    return Head(url=response.url, status=response.status, headers=response.headers)
