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
from mm_plugins._connections import CA_VARIABLES
from mm_plugins._wire import Response, Wire
from mm_plugins.sinks._s3_api import S3Api
from mm_plugins.sinks._s3_checksums import crc32_of
from mm_plugins.sinks._s3_errors import error_of, is_expired
from mm_plugins.sinks._s3_route import NotUnderstoodError, Route, learn
from mm_plugins.sinks._s3_session import Identity
from mm_plugins.sinks._s3_sign import encoded

_log = logging.getLogger(__name__)
_FRESH = 5.0
_BLOCK = 1 << 20
_ERROR_LIMIT = 1 << 16
_CRC32 = "x-amz-checksum-crc32"
_NO_CHECKSUMS = frozenset(
    {(400, "InvalidArgument"), (400, "InvalidRequest"), (501, "NotImplemented")}
)
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


class ChecksumRefusedError(StorageError):
    """The store does not know the header in which a checksum was sent."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The ways of a bucket's bytes, as botocore told them at one time."""

    part: Route
    put: Route
    get: Route
    wire: Wire
    checksums: bool


class Direct:
    """PUT and GET of the objects of one bucket, where `transfer` and botocore allow it.

    `routes` first: it says whether requests can be made as botocore would.
    """

    def __init__(
        self, api: S3Api, bucket: str, extra: Mapping[str, Any], transfer: Transfer
    ) -> None:
        self._api = api
        self._name = f"s3://{bucket}"
        self._extra = extra
        self._transfer = transfer
        self._looking = threading.Lock()  # held over requests of botocore's
        self._lock = threading.Lock()
        self._routes: Routes | None = None
        self._refused = transfer == "fsspec"
        self._moves = 0
        self._identity: tuple[float, Identity] | None = None

    def routes(self) -> Routes | None:
        """The ways that bytes go; None for s3fs's. `ConfigError` where they must but cannot."""
        found = self._routes
        if found is None:
            with self._looking:
                found = self._routes
                if found is None and not self._is_refused():
                    found = self._routes = self._look()
        return found

    def available(self) -> bool:
        """Whether bytes go this way. `ConfigError` where they must but cannot."""
        return self.routes() is not None

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

    def signed_url(self, key: str, seconds: int) -> str | None:
        """A URL of an object for whoever has it; None where there is no such URL."""
        routes = self.routes()
        if routes is None:
            return None
        return routes.get.signed_url(self._who().credentials, key, seconds)

    def move(self, used: Routes) -> None:
        """After an `ElsewhereError`: ask botocore again, which learns from its own requests.

        Once, however many threads met it on the ways that they `used`; then it is
        left to botocore for good, or a `ConfigError` where it must not be.
        """
        if self._forget(used):
            self._moves += 1
            self._refused = self._moves > 1
        self._is_refused()

    def close(self) -> None:
        """Let the connections go; the next call opens new ones. Waits for nobody."""
        self._forget(self._routes)
        self._identity = None

    @property
    def _known(self) -> Routes:
        routes = self.routes()
        if routes is None:  # moved at this moment
            raise ElsewhereError
        return routes

    def _is_refused(self) -> bool:
        if self._refused and self._transfer == "direct":
            raise ConfigError(
                f"{self._name} cannot be reached directly: it is in another region than configured",
                hint="give the bucket's own region: AWS_DEFAULT_REGION, or `region` in options",
            )
        return self._refused

    def _forget(self, used: Routes | None) -> bool:
        """Whether `used` were the present ways; they are not any more."""
        with self._lock:
            if used is None or used is not self._routes:
                return False
            self._routes = None
        used.wire.close()
        return True

    def _put(
        self, route: Route, name: str, key: str, query: str, data: Buffer, *, checksum: bool
    ) -> dict[str, str]:
        headers = {}
        if checksum:
            headers[_CRC32] = crc32_of(data)
        with closing(self._send(route, name, key, query, headers=headers, body=data)) as answer:
            answer.read(_ERROR_LIMIT)
            said = {
                "ETag": "etag",
                "ChecksumCRC32": _CRC32,
                "ServerSideEncryption": "x-amz-server-side-encryption",
                "SSECustomerAlgorithm": "x-amz-server-side-encryption-customer-algorithm",
            }
            found = {n: answer.headers[h] for n, h in said.items() if h in answer.headers}
        if headers:
            found["SentCRC32"] = headers[_CRC32]
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
    ) -> Response:
        """One request, and another one only for credentials whose time is over."""
        wire, who = self._known.wire, self._who()
        for last in (False, True):
            url, signed = route.request(who.credentials, key, query, headers)
            answer = wire.request(route.method, url, signed, body)
            if answer.status in (200, 206):
                return answer
            code, error = _refusal(name, answer)
            if _CRC32 in headers and (answer.status, code) in _NO_CHECKSUMS:
                raise ChecksumRefusedError(str(error), hint=getattr(error, "hint", None))
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

    def _look(self) -> Routes | None:
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

    def _learn(self) -> Routes:
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
        return Routes(
            part=route("upload_part", UploadId="id", PartNumber=1, Body=b"", **of_parts),
            put=route("put_object", Body=b"", **self._extra),
            get=route("get_object"),
            wire=Wire(connect_timeout=facts.connect_timeout, read_timeout=facts.read_timeout),
            checksums=facts.checksums,
        )


def or_by_s3fs(direct: Direct, action: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """What `action` does over `direct`, or `otherwise` where that cannot be."""
    used = direct.routes()
    if used is not None:
        try:
            return action()
        except ElsewhereError:
            direct.move(used)
    return otherwise()


def trusted_file() -> str | None:
    """The certificates that the environment names for our own connections, if any."""
    return next((os.environ[name] for name in CA_VARIABLES if os.environ.get(name)), None)


def _refusal(name: str, answer: Response) -> tuple[str, Exception]:
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


def _is_from(start: int, answer: Response) -> bool:
    span = answer.headers.get("content-range", "")
    return bool(answer.status == 206 and span.startswith(f"bytes {start}-"))
