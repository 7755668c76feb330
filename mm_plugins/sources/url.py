"""One file behind an http or https URL."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import random
import re
import socket
import time
from collections.abc import Iterator
from datetime import timezone
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from pydantic import Field, SecretStr

from mm_core import (
    Buffer,
    InvalidNameError,
    NotFoundError,
    PluginConfig,
    PolicyError,
    RangeReader,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    TransientError,
    UsageError,
    check_path,
    check_version,
    hookimpl,
    redact_url,
    remember_secret,
    rfc3339,
)
from mm_plugins._connections import proxy_for
from mm_plugins._guard import Guard
from mm_plugins.http import Head, HttpClient, Target, error_for, strong

_NUMBER = re.compile(r"[0-9]{1,18}")
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_TRY_GET = frozenset({400, 403, 405, 501})
_TRIES = 3
_PATIENCE = 5.0
_LABEL_LENGTH = 64


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer URLs."""
    return [UrlSource]


class UrlSource(Source):
    """``https://host/file`` or ``https://host/file#sha256=…``: one file.

    The revision is the sha256 if the URL names it, else a strong ETag; without
    either there is none, and the caller must name a version. Works with servers
    that know ranges and with those that do not. The configured headers, and a
    user and password in the URL, go to the URL's own origin only, whatever it
    redirects to. Addresses inside this network (private ones, this machine, link-local) are
    refused when they are to be connected to, after a redirect as well, unless
    `allow_private` says that they may be asked.
    """

    type = "url"
    schemes = ("http", "https")

    class Config(PluginConfig):
        """The settings of a place for downloads."""

        base_url: str | None = Field(default=None, description="Where NAME:PATH begins")
        allow_hosts: tuple[str, ...] = Field(
            default=(), description="Globs of host names, also for redirects; empty for all"
        )
        headers: dict[str, SecretStr] = Field(
            default_factory=dict, description="Sent to the URL's own host, such as Authorization"
        )
        allow_private: bool = Field(
            default=False, description="Whether hosts inside this network may be asked"
        )
        connect_timeout: float = Field(default=10.0, gt=0, description="Seconds")
        read_timeout: float = Field(default=60.0, gt=0, description="Seconds without a byte")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._headers = {name: v.get_secret_value() for name, v in self.config.headers.items()}
        for value in self._headers.values():
            remember_secret(value)
            remember_secret(value.rpartition(" ")[2])
        self._http = HttpClient(
            connect_timeout=self.config.connect_timeout,
            read_timeout=self.config.read_timeout,
            permit=Guard(allow_private=self.config.allow_private),
        )

    def snapshot(self, request: Request) -> Snapshot:
        """Ask for size and ETag; nothing of the content is read.

        Raises `PolicyError` for a host that is not allowed, also after a redirect.
        """
        url, sha256 = _split(request.url, self.config.base_url)
        path = _file_name(url)
        head = self._described(self._target(url))
        etag, modified = head.headers.get("etag"), head.headers.get("last-modified")
        revision = sha256[:40] if sha256 else _label(etag)
        shown = _shown(url)
        if request.revision not in (None, revision):
            raise NotFoundError(
                f"{shown} has no revision {request.revision!r}: it is at {revision} now",
                hint="name the version with --version, or the content with #sha256=…",
            )
        extra = {"url": url} | ({"modified": modified} if modified else {})
        file = RemoteFile(path=path, size=_size(head), sha256=sha256, etag=etag, extra=extra)
        return Snapshot(
            source=f"{shown}#sha256={sha256}" if sha256 else shown,
            revision=revision,
            files=(file,) if request.selects(path) else (),
            model_id=_model_id(url, path),
            facts=_facts(etag, modified),
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)``; from its start again where the server has no ranges.

        Without ranges, the bytes before `start` are read and left out. Either way a
        strong ETag, or Last-Modified where there is no ETag, must say that the file is
        still the same, unless its sha256 is known: else `SourceChangedError`.
        """
        yield from self._http.read(self._target_of(file), start, end)

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """The same, into the caller's memory."""
        return self._http.open(self._target_of(file), start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Where ranges can be tied to one state of the file, and the server knows them."""
        tied = strong(file.etag) is not None or file.sha256 is not None
        return tied and self._http.honours_ranges(_without_credentials(file.extra["url"])[0])

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _target_of(self, file: RemoteFile) -> Target:
        return self._target(
            file.extra["url"],
            size=file.size,
            etag=file.etag,
            modified=file.extra.get("modified"),
            immutable=file.sha256 is not None,
        )

    def _target(self, url: str, **facts: Any) -> Target:
        bare, credentials = _without_credentials(url)

        def allow(hop: str) -> None:
            _refuse_host(hop, self.config.allow_hosts)
            if not self.config.allow_private and proxy_for(hop) is not None:
                _refuse_inward(hop)

        return Target(url=bare, headers={**self._headers, **credentials}, allow=allow, **facts)

    def _described(self, target: Target) -> Head:
        """Ask, and again where that may help soon: nobody else repeats this question."""
        for attempt in range(_TRIES):
            try:
                return self._describe(target)
            except TransientError as error:
                wait = error.retry_after or 0.0
                if attempt + 1 == _TRIES or wait > _PATIENCE:
                    raise
                time.sleep(max(wait, random.uniform(0, 0.3 * 2**attempt)))  # noqa: S311  # jitter
        raise AssertionError

    def _describe(self, target: Target) -> Head:
        head = self._http.head(target)
        if head.status in _TRY_GET or (head.status == 200 and _size(head) is None):
            head = self._http.head(target, method="GET", range="bytes=0-0")
        is_empty = head.status == 416 and _size(head) == 0
        if head.status >= 300 and not is_empty:
            raise error_for(head.status, head.headers, head.url)
        return head


def _facts(etag: str | None, modified: str | None) -> dict[str, str]:
    """What the server says of the file. A time that is none is left out."""
    facts = {"etag": etag} if etag else {}
    with contextlib.suppress(TypeError, ValueError):
        moment = email.utils.parsedate_to_datetime(modified or "")
        facts["last_modified"] = rfc3339(moment.replace(tzinfo=moment.tzinfo or timezone.utc))
    return facts


def _split(url: str, base: str | None) -> tuple[str, str | None]:
    """The URL without its fragment, and the sha256 that the fragment names."""
    if "://" not in url and base:
        url = urljoin(base.rstrip("/") + "/", url.lstrip("/"))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{redact_url(url)!r} is no http or https URL")
    match = _SHA256.fullmatch(parts.fragment)
    if parts.fragment and match is None:
        raise UsageError(
            f"the fragment of {redact_url(url)} is not understood",
            hint="it may be #sha256= and 64 hex digits",
        )
    return urlunsplit(parts._replace(fragment="")), match[1].lower() if match else None


def _without_credentials(url: str) -> tuple[str, dict[str, str]]:
    """The URL without user and password, and these as the header that carries them."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, {}
    user, _, place = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    remember_secret(unquote(password))
    token = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    remember_secret(token)
    return urlunsplit(parts._replace(netloc=place)), {"Authorization": f"Basic {token}"}


def _shown(url: str) -> str:
    """The URL as it may be written down."""
    return redact_url(_without_credentials(url)[0])


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not name:
        raise UsageError(f"{_shown(url)} names no file", hint="give the URL of one file")
    return check_path(name)


def _model_id(url: str, path: str) -> str:
    """An id from the file's name; what an id cannot hold becomes a dash."""
    stem = path.rpartition(".")[0] or path
    return re.sub(r"[^\w.+-]+", "-", stem).strip("-._+") or (urlsplit(url).hostname or "model")


def _label(etag: str | None) -> str | None:
    """A strong ETag as a version; one that is no allowed version by its digest."""
    label = (strong(etag) or "").strip('"')
    if not label:
        return None
    try:
        if label.isascii() and len(label) <= _LABEL_LENGTH:
            return check_version(label)
    except InvalidNameError:
        pass
    return hashlib.sha256(label.encode()).hexdigest()[:40]


def _size(head: Head) -> int | None:
    """From Content-Range of a ranged answer, else Content-Length; None if neither is there."""
    total = head.headers.get("content-range", "").rpartition("/")[2]
    if _NUMBER.fullmatch(total):
        return int(total)
    length = head.headers.get("content-length", "")
    return int(length) if _NUMBER.fullmatch(length) and head.status == 200 else None


def _refuse_host(url: str, allowed: tuple[str, ...]) -> None:
    host = (urlsplit(url).hostname or "").lower()
    if allowed and not any(fnmatchcase(host, pattern.lower()) for pattern in allowed):
        raise PolicyError(
            f"{redact_url(url)}: the host {host} is not allowed",
            hint="add it to allow_hosts of this source in mm.yaml",
        )


def _refuse_inward(url: str) -> None:
    """Where a proxy connects, and nobody here sees to what: as far as this machine's look tells."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    guard = Guard()
    with contextlib.suppress(OSError, UnicodeError):
        for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            guard(host, str(found[4][0]))
