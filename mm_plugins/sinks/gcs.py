"""The GCS sink: resumable uploads in a stream, and creates by generation match."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr

from mm_core import (
    Buffer,
    ConfigError,
    IntegrityError,
    MMError,
    PluginConfig,
    Sink,
    StoredObject,
    TransientError,
    hookimpl,
    redact,
)
from mm_plugins.sinks._gcs_api import GcsApi, make_file_system
from mm_plugins.sinks._keys import check_key, check_prefix, check_size
from mm_plugins.sinks._parts import MIN_PART, Parts

_READ = 4 << 20
_NOT_THERE = frozenset({404})
_GO_ON = frozenset({308})
_CLOSED = frozenset({404, 410, 499})


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer the GCS sink."""
    return [GcsSink]


class GcsOptions(PluginConfig):
    """How GCS is reached. Without any, Google's own chain and STORAGE_EMULATOR_HOST hold."""

    project: str | None = Field(default=None, description="The project of the credentials")
    token: SecretStr | None = Field(
        default=None, description="As gcsfs takes it: a key file, 'anon', 'google_default', 'cloud'"
    )
    endpoint_url: str | None = Field(default=None, description="For servers other than Google's")
    requester_pays: str | None = Field(
        default=None, description="The project that pays for what is asked"
    )


class GcsSink(Sink):
    """A prefix in a bucket. Objects appear whole, when their upload ends.

    Exclusive create is ``ifGenerationMatch=0`` on one request. Memory for each
    write is one chunk of 16 MiB. GCS answers each upload with the size and md5 of
    what it stored; where these are not those of what was sent, the object is
    deleted again. Between the two it was visible, which no condition of GCS can
    prevent for a stream whose hash is known only at its end.
    """

    type = "gcs"
    schemes = ("gs", "gcs")

    class Config(PluginConfig):
        """The settings of a GCS backend."""

        root: str = Field(description="gs://bucket/prefix")
        options: GcsOptions = Field(default_factory=GcsOptions, description="How GCS is reached")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        parts = urlsplit(config.root)
        if parts.scheme not in self.schemes or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"root {redact(config.root)!r} is no GCS prefix", hint="write gs://bucket/prefix"
            )
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._base = f"{check_key(prefix)}/" if prefix else ""
        self._api = GcsApi(self._file_system, requester_pays=config.options.requester_pays)

    @property
    def root(self) -> str:
        """``gs://bucket/prefix``, without a slash at its end."""
        return f"gs://{self._bucket}/{self._base}".rstrip("/")

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """One request for what fits a chunk, else a resumable upload, cancelled on any error."""
        parts = Parts(chunks, MIN_PART)
        first = next(parts)
        if parts.ended:
            check_size(key, len(first), size)
            self._upload(key, bytes(first))
            return
        session = self._begin(key)
        try:
            stored = self._send(key, session, first, parts, size)
        except BaseException:
            self._cancel(key, session)
            raise
        self._check_stored(key, stored, stored["sent_size"], stored["sent_md5"])

    def create(self, key: str, data: bytes) -> None:
        """One upload with ``ifGenerationMatch=0``."""
        self._upload(key, data, ifGenerationMatch="0")

    def put(self, key: str, data: bytes) -> None:
        """One upload."""
        self._upload(key, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """One GET, read in blocks of 4 MiB."""
        if end is not None and start >= end:
            return
        wanted = f"bytes={start}-{'' if end is None else end - 1}" if start or end else None
        name = self._name(key)
        response = self._api.stream(
            self._path(key), name=name, params={"alt": "media"}, range=wanted
        )
        if response is None:
            return
        try:
            while block := self._api.next_block(response, _READ, name=name):
                yield block
        finally:
            response.close()

    def stat(self, key: str) -> StoredObject | None:
        """One request for the object's metadata."""
        name, path = self._name(key), self._path(key)
        answer = self._api.ask("GET", path, name=name, accept=_NOT_THERE)
        return None if answer.status == 404 else _stored(key, answer.json())

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Pages of 1,000, always asked anew."""
        params = {"prefix": self._base + check_prefix(prefix), "maxResults": "1000"}
        while True:
            page = self._api.ask(
                "GET", f"/storage/v1/b/{self._bucket}/o", name=self.root, params=params
            ).json()
            for found in page.get("items", ()):
                yield _stored(found["name"][len(self._base) :], found)
            if "nextPageToken" not in page:
                return
            params["pageToken"] = page["nextPageToken"]

    def copy(self, source_key: str, key: str) -> None:
        """On the server's side, asked again until it is done."""
        target = quote(self._base + check_key(key), safe="")
        path = f"{self._path(source_key)}/rewriteTo/b/{self._bucket}/o/{target}"
        params: dict[str, str] = {}
        while True:
            answer = self._api.ask("POST", path, name=self._name(source_key), params=params).json()
            if answer.get("done", True):
                return
            params["rewriteToken"] = answer["rewriteToken"]

    def delete(self, keys: Iterable[str]) -> None:
        """One request for each."""
        for key in keys:
            self._api.ask("DELETE", self._path(key), name=self._name(key), accept=_NOT_THERE)

    def url(self, key: str) -> str:
        """``gs://bucket/prefix/key``."""
        return self._name(key)

    def _upload(self, key: str, data: bytes, **condition: str) -> None:
        """One multipart request, which names the md5 so that GCS refuses other bytes."""
        md5 = _md5(data).digest()
        facts = {"name": self._base + key, "md5Hash": base64.b64encode(md5).decode()}
        boundary = secrets.token_hex(16)
        answer = self._api.ask(
            "POST",
            f"/upload/storage/v1/b/{self._bucket}/o",
            name=self._name(key),
            params={"uploadType": "multipart", **condition},
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            body=_related(boundary, json.dumps(facts).encode(), data),
        )
        self._check_stored(key, answer.json(), len(data), md5)

    def _begin(self, key: str) -> str:
        answer = self._api.ask(
            "POST",
            f"/upload/storage/v1/b/{self._bucket}/o",
            name=self._name(key),
            params={"uploadType": "resumable", "name": self._base + key},
            headers={"X-Upload-Content-Type": "application/octet-stream"},
        )
        return str(answer.headers["Location"])

    def _send(
        self, key: str, session: str, first: bytearray, parts: Parts, size: int | None
    ) -> dict[str, Any]:
        """Send all parts; what the store says of the object, and what was sent."""
        md5, sent = _md5(b""), 0
        part: bytearray | None = first
        while part is not None:
            md5.update(part)
            end = sent + len(part)
            following = next(parts, None)
            if following is None:
                check_size(key, parts.count, size)
            total = "*" if following is not None else str(end)
            span = f"{sent}-{end - 1}" if part else "*"
            answer = self._api.ask(
                "PUT",
                session,
                name=self._name(key),
                headers={"Content-Range": f"bytes {span}/{total}"},
                body=bytes(part),
                accept=_GO_ON,
            )
            if following is not None:
                self._check_progress(key, answer.headers.get("Range"), end)
            sent, part = end, following
        stored: dict[str, Any] = answer.json()
        return {**stored, "sent_size": sent, "sent_md5": md5.digest()}

    def _check_progress(self, key: str, kept: str | None, end: int) -> None:
        """A store that kept another number of bytes than were sent would mix them up."""
        if kept is not None and kept.rpartition("-")[2] != str(end - 1):
            raise TransientError(f"{self._name(key)}: GCS kept {kept} of {end} bytes")

    def _cancel(self, key: str, session: str) -> None:
        try:
            self._api.ask("DELETE", session, name=self._name(key), accept=_CLOSED)
        except MMError:
            return  # the first error is the one to tell; GCS forgets the session by itself

    def _check_stored(self, key: str, stored: dict[str, Any], size: int, md5: bytes) -> None:
        said = stored.get("md5Hash")
        if int(stored.get("size", -1)) == size and said in (None, base64.b64encode(md5).decode()):
            return
        self.delete([key])
        raise IntegrityError(
            f"{self._name(key)}: GCS stored other bytes than were sent",
            hint="the object was deleted again; try once more",
        )

    def _name(self, key: str) -> str:
        return f"gs://{self._bucket}/{self._base}{check_key(key)}"

    def _path(self, key: str) -> str:
        return f"/storage/v1/b/{self._bucket}/o/{quote(self._base + check_key(key), safe='')}"

    def _file_system(self) -> Any:
        options = self.config.options
        return make_file_system(
            project=options.project,
            token=None if options.token is None else options.token.get_secret_value(),
            endpoint_url=options.endpoint_url,
        )


def _md5(data: bytes) -> Any:
    """GCS's own checksum of an object; against accidents, not against forgery."""
    return hashlib.md5(data, usedforsecurity=False)


def _related(boundary: str, facts: bytes, data: bytes) -> bytes:
    """The two parts of a simple upload (RFC 2387); a random boundary is in no data."""
    line = f"--{boundary}".encode()
    return b"\r\n".join(
        (
            line,
            b"Content-Type: application/json; charset=UTF-8",
            b"",
            facts,
            line,
            b"Content-Type: application/octet-stream",
            b"",
            data,
            line + b"--",
            b"",
        )
    )


def _stored(key: str, found: dict[str, Any]) -> StoredObject:
    moment = datetime.fromisoformat(found["updated"].replace("Z", "+00:00"))
    return StoredObject(key=key, size=int(found["size"]), modified=moment.astimezone(timezone.utc))
