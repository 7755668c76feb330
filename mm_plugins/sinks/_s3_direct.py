"""The bytes of objects over connections of our own, to where botocore would send them.

Botocore and aiohttp copy a part several times and sign it slowly; here it goes
from the caller's memory into the socket, with its CRC32 in a signed header. All
else about S3 stays with s3fs: see docs/adr/0006.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from html import unescape
from typing import Any, Literal, TypeVar

from mm_core import Buffer, ConfigError, MMError, SourceChangedError, StorageError
from mm_plugins._connections import _CA_VARIABLES
from mm_plugins.sinks._s3_api import S3Api
from mm_plugins.sinks._s3_checksums import crc32_of
from mm_plugins.sinks._s3_errors import error_of, is_expired
from mm_plugins.sinks._s3_route import NotUnderstoodError, Route, learn
from mm_plugins.sinks._s3_session import ClientFacts, Identity
from mm_plugins.sinks._s3_sign import encoded

_log = logging.getLogger(__name__)
_FRESH = 5.0
_BLOCK = 1 << 20
_ERROR_LIMIT = 1 << 16
_ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect"})
_FOR_PARTS = frozenset(
    {
        "ExpectedBucketOwner",
        "RequestPayer",
        "SSECustomerAlgorithm",
        "SSECustomerKey",
        "SSECustomerKeyMD5",
    }
)

Transfer = Literal["auto", "direct", "fsspec"]
T = TypeVar("T")


class ElsewhereError(Exception):
    """The bucket lives in another region than botocore thought when it was asked."""


@dataclass(frozen=True, slots=True)
class _Routes:
    part: Route
    put: Route
    get: Route
    wire: Any
    checksums: bool


class Direct:
    """PUT and GET of the objects of one bucket, where `transfer` and botocore allow it.

    `available` first: it says whether requests can be made as botocore would.
    """

    def __init__(
        self, api: S3Api, bucket: str, extra: Mapping[str, Any], transfer: Transfer
    ) -> None:
        self._api = api
        self._name = f"s3://{bucket}"
        self._extra = extra
        self._transfer = transfer
        self._lock = threading.Lock()
        self._routes: _Routes | None = None
        self._refused = transfer == "fsspec"
        self._moves = 0
        self._identity: tuple[float, Identity] | None = None

    def available(self) -> bool:
        """Whether bytes go this way. `ConfigError` where they must but cannot."""
        if self._routes is not None:
            return True
        with self._lock:
            if self._routes is None and not self._refused:
                self._routes = self._look()
        return self._routes is not None

    @property
    def secure(self) -> bool:
        """Whether TLS keeps the bytes whole on their way."""
        return self._known.part.secure

    @property
    def checksums(self) -> bool:
        """Whether checksums may be sent: the AWS configuration may say that no store wants them."""
        return self._known.checksums

    def put_part(
        self, name: str, key: str, upload: str, number: int, data: Buffer, *, checksum: bool
    ) -> dict[str, str]:
        """Store one part of an upload; what S3 says of it, in botocore's words."""
        query = f"partNumber={number}&uploadId={encoded(upload, safe='')}"
        return self._put(self._known.part, name, key, query, data, checksum=checksum)

    def put(self, name: str, key: str, data: Buffer, *, checksum: bool) -> dict[str, str]:
        """Store an object; likewise."""
        return self._put(self._known.put, name, key, "", data, checksum=checksum)

    def get(
        self, name: str, key: str, start: int, end: int | None, etags: set[str]
    ) -> Iterator[memoryview]:
        """The bytes ``[start, end)`` in one buffer, filled anew each time.

        The object's ETag is added to `etags`; `SourceChangedError` if it holds another.
        """
        wanted = {"range": f"bytes={start}-{'' if end is None else end - 1}"}
        headers = wanted if start or end is not None else {}
        answer = self._send(self._known.get, name, key, "", headers=headers)
        with closing(answer):
            etags.add(answer.headers.get("etag", ""))
            if len(etags) > 1:
                raise SourceChangedError(f"{name} was replaced while it was read")
            if headers and not _is_from(start, answer):
                raise StorageError(f"{name}: the store does not send the range it was asked for")
            buffer = memoryview(bytearray(_BLOCK))
            while count := answer.readinto(buffer):
                yield buffer[:count]

    def move(self) -> None:
        """After an `ElsewhereError`: ask botocore again, which learns from its own requests.

        Once; then it is left to botocore for good.
        """
        with self._lock:
            self._moves += 1
            self._close_wire()
            self._refused = self._moves > 1

    def close(self) -> None:
        """Let the connections go; the next call opens new ones."""
        with self._lock:
            self._close_wire()
            self._identity = None

    @property
    def _known(self) -> _Routes:
        if not self.available():
            raise ElsewhereError
        routes = self._routes
        if routes is None:  # closed, or moved, at this moment
            raise ElsewhereError
        return routes

    def _put(
        self, route: Route, name: str, key: str, query: str, data: Buffer, *, checksum: bool
    ) -> dict[str, str]:
        headers = {}
        if checksum:
            headers["x-amz-checksum-crc32"] = crc32_of(data)
        with closing(self._send(route, name, key, query, headers=headers, body=data)) as answer:
            answer.read(_ERROR_LIMIT)
            said = {
                "ETag": "etag",
                "ChecksumCRC32": "x-amz-checksum-crc32",
                "ServerSideEncryption": "x-amz-server-side-encryption",
                "SSECustomerAlgorithm": "x-amz-server-side-encryption-customer-algorithm",
            }
            found = {n: answer.headers[h] for n, h in said.items() if h in answer.headers}
        if headers:
            found["SentCRC32"] = headers["x-amz-checksum-crc32"]
        return found

    def _send(
        self,
        route: Route,
        name: str,
        key: str,
        query: str,
        *,
        headers: Mapping[str, str],
        body: Buffer | None = None,
    ) -> Any:
        """One request, and another one only for credentials whose time is over."""
        wire, who = self._known.wire, self._who()
        for last in (False, True):
            url, signed = route.request(who.credentials, key, query, headers)
            answer = wire.request(route.method, url, signed, body)
            if answer.status in (200, 206):
                return answer
            code, error = _refusal(name, answer)
            if last or not is_expired(code) or not self._api.renew(who.system, name):
                raise error
            self._identity = None
            who = self._who()
        raise AssertionError

    def _who(self) -> Identity:
        """Asked for a few seconds' requests at once: the session renews credentials in time."""
        known, now = self._identity, time.monotonic()
        if known is None or now > known[0]:
            known = self._identity = (now + _FRESH, self._api.identity(self._name))
        return known[1]

    def _look(self) -> _Routes | None:
        try:
            return self._learn()
        except NotUnderstoodError as error:
            if self._transfer == "direct":
                raise ConfigError(
                    f"{self._name} cannot be reached directly: {error}",
                    hint="leave `transfer` out; s3fs sends the bytes then",
                ) from error
            _log.debug("s3fs sends the bytes", extra={"reason": str(error)})
            self._refused = True
        except MMError:
            if self._transfer == "direct":
                raise
        return None  # s3fs's own call will say why

    def _learn(self) -> _Routes:
        if any(name.startswith("Checksum") for name in self._extra):
            raise NotUnderstoodError("checksums of your own choice")
        facts = self._api.facts(self._name)
        if facts.certificates == trusted_file():
            facts = facts._replace(certificates=None)
        who = self._api.identity(self._name).credentials

        def route(method: str, **arguments: Any) -> Route:
            made = self._api.prepared(method, self._name, Key="key", **arguments)
            return learn(made, who, facts)

        of_parts = {name: value for name, value in self._extra.items() if name in _FOR_PARTS}
        return _Routes(
            part=route("upload_part", UploadId="id", PartNumber=1, Body=b"", **of_parts),
            put=route("put_object", Body=b"", **self._extra),
            get=route("get_object"),
            wire=_wire(facts),
            checksums=facts.checksums,
        )

    def _close_wire(self) -> None:
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.wire.close()


def or_by_s3fs(direct: Direct, action: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """What `action` does over `direct`, or `otherwise` where that cannot be."""
    if direct.available():
        try:
            return action()
        except ElsewhereError:
            direct.move()
    return otherwise()


def trusted_file() -> str | None:
    """The certificates that the environment names for our own connections, if any."""
    return next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)


def _wire(facts: ClientFacts) -> Any:
    from mm_plugins._wire import Wire

    return Wire(connect_timeout=facts.connect_timeout, read_timeout=facts.read_timeout)


def _refusal(name: str, answer: Any) -> tuple[str, Exception]:
    """What S3 refused by `answer`, whose connection is freed."""
    with closing(answer):
        text = answer.read(_ERROR_LIMIT).decode("utf-8", "replace")
    code, message = _field(text, "Code"), _field(text, "Message")
    if code in _ELSEWHERE or 300 <= answer.status < 400:
        return code, ElsewhereError()
    told = f"S3 answered {answer.status} {code} {message}".rstrip()
    return code, error_of(name, answer.status, code, told, answer.headers.get("retry-after"))


def _field(text: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return unescape(found[1]).strip() if found else ""


def _is_from(start: int, answer: Any) -> bool:
    span = answer.headers.get("content-range", "")
    return bool(answer.status == 206 and span.startswith(f"bytes {start}-"))
