"""The GCS sink: resumable uploads in a stream, and creates by generation match."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timezone
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr

from mm_core import (
    Buffer,
    ConfigError,
    IntegrityError,
    PluginConfig,
    Sink,
    SourceChangedError,
    StorageError,
    StoredObject,
    TransientError,
    hookimpl,
    parse_rfc3339,
    redact,
)
from mm_plugins.sinks._copying import copied_unless_refused
from mm_plugins.sinks._gcs_api import GcsApi, Transfer, make_file_system
from mm_plugins.sinks._gcs_checksums import Checksum, checksum_of, tells_other_bytes
from mm_plugins.sinks._gcs_upload import ResumableUpload
from mm_plugins.sinks._keys import check_key, check_prefix, check_size
from mm_plugins.sinks._parts import MIN_PART, Parts
from mm_plugins.sinks._patience import ATTEMPTS, read_on

_WEEK = 7 * 24 * 3600  # the most that GCS grants
_NOT_THERE = frozenset({404})
_PAGE = 1000
_DELETERS = 16


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
    write is two parts of 8 MiB: one that is sent, and one that is made meanwhile.
    The crc32c (md5 without the package for it) goes with each upload, in a stream's
    last request, so that GCS itself refuses other bytes and they never become
    visible. Servers that ignore it (emulators do) tell the checksum of what they
    stored; where it is another, the object is deleted again, having been visible
    for a moment.
    """

    type = "gcs"
    schemes = ("gs", "gcs")

    class Config(PluginConfig):
        """The settings of a GCS backend."""

        root: str = Field(description="gs://bucket/prefix")
        options: GcsOptions = Field(default_factory=GcsOptions, description="How GCS is reached")
        transfer: Transfer = Field(
            default="auto", description="Who sends the bytes: auto, direct or fsspec (gcsfs)"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        parts = urlsplit(config.root)
        if "@" in parts.netloc:
            raise ConfigError(
                "gs://… takes no user or password in its URL",
                hint="give credentials by the environment, a profile, or `options`",
            )
        if parts.scheme not in self.schemes or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"root {redact(config.root)!r} is no GCS prefix", hint="write gs://bucket/prefix"
            )
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._base = f"{check_key(prefix)}/" if prefix else ""
        self._api = GcsApi(
            self._file_system,
            requester_pays=config.options.requester_pays,
            transfer=config.transfer,
        )

    @property
    def root(self) -> str:
        """``gs://bucket/prefix``, without a slash at its end."""
        return f"gs://{self._bucket}/{self._base}".rstrip("/")

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """One request for what fits a chunk, else a resumable upload, cancelled on any error."""
        check_key(key)
        parts = Parts(chunks, MIN_PART)
        first = next(parts)
        if parts.ended:
            check_size(key, parts.count, size)
            self.put(key, first)
            return
        every = chain((first,), parts)
        del first
        upload = self._begin(key)
        stored: dict[str, Any] = {}
        try:
            for part in every:
                if not parts.ended:
                    upload.append(part)
                    continue
                check_size(key, parts.count, size)
                stored = upload.finish(part)
        except BaseException:
            upload.cancel()
            raise
        self._check_stored(key, stored, parts.count, upload.checksum)

    def create(self, key: str, data: bytes) -> None:
        """One upload with ``ifGenerationMatch=0``, sent once: a repetition could meet itself."""
        self._upload(key, data, attempts=1, ifGenerationMatch="0")

    def put(self, key: str, data: Buffer) -> None:
        """One upload."""
        self._upload(key, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """One GET; after a cut, another for the rest of the same bytes."""
        name, path, generations = self._name(key), self._path(key), set[str]()

        def open_at(position: int) -> Iterator[Any]:
            if end is not None and position >= end:
                return
            body = self._api.open(path, name=name, start=position, end=end)
            if body is None:
                return
            with closing(body):
                generations.add(body.headers.get("x-goog-generation", ""))
                if len(generations) > 1:
                    raise SourceChangedError(f"{name} was replaced while it was read")
                yield from body.blocks()

        return read_on(open_at, start)

    def stat(self, key: str) -> StoredObject | None:
        """One request for the object's metadata."""
        name, path = self._name(key), self._path(key)
        answer = self._api.ask("GET", path, name=name, accept=_NOT_THERE)
        return None if answer.status == 404 else _stored(key, answer.json())

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Pages of 1,000, always asked anew. Folder markers, which end in a slash, are left out."""
        params = {"prefix": self._base + check_prefix(prefix), "maxResults": str(_PAGE)}
        while True:
            page = self._api.ask(
                "GET", f"/storage/v1/b/{self._bucket}/o", name=self.root, params=params
            ).json()
            for found in page.get("items", ()):
                stored = _stored(found.get("name", "")[len(self._base) :], found)
                if stored.key and not stored.key.endswith("/"):
                    yield stored
            if "nextPageToken" not in page:
                return
            params["pageToken"] = page["nextPageToken"]

    def copy(self, source_key: str, key: str) -> None:
        """On the server's side, asked again until it is done."""
        self._copy(self, source_key, key)

    def copies_from(self, other: Sink) -> bool:
        """Whether both are reached in the same way, by the same credentials."""
        return isinstance(other, GcsSink) and bool(self.config.options == other.config.options)

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """On the server's side, also from another bucket; False where GCS refuses that."""
        if not isinstance(other, GcsSink) or not self.copies_from(other):
            return False
        copy = partial(self._copy, other, source_key, key)
        return copied_unless_refused(copy, source=other, target=self)

    def delete(self, keys: Iterable[str]) -> None:
        """One request for each, several at a time."""
        paths = {self._name(key): self._path(key) for key in keys}
        with ThreadPoolExecutor(min(len(paths), _DELETERS) or 1) as pool:
            list(pool.map(self._delete, paths.items()))

    def signed_url(self, key: str, *, seconds: int) -> str | None:
        """A presigned GET, by the key of a service account; None with other credentials."""
        full = self._base + check_key(key)
        return self._api.signed_url(
            self._bucket, full, name=self.url(key), seconds=min(seconds, _WEEK)
        )

    def url(self, key: str) -> str:
        """``gs://bucket/prefix/key``."""
        return self._name(key)

    def _copy(self, other: GcsSink, source_key: str, key: str) -> None:
        name, path = other._name(source_key), other._path(source_key)
        target = quote(self._base + check_key(key), safe="")
        params: dict[str, str] = {}
        while True:
            rewrite = f"{path}/rewriteTo/b/{self._bucket}/o/{target}"
            answer = self._api.ask("POST", rewrite, name=name, params=params).json()
            if answer.get("done", True):
                return
            params["rewriteToken"] = answer["rewriteToken"]

    def _upload(self, key: str, data: Buffer, attempts: int = ATTEMPTS, **condition: str) -> None:
        """One multipart request, which names the checksum so that GCS refuses other bytes."""
        checksum = checksum_of(data)
        facts = {"name": self._base + key, checksum.field: checksum.encoded()}
        boundary = secrets.token_hex(16)
        answer = self._api.send(
            "POST",
            f"/upload/storage/v1/b/{self._bucket}/o",
            name=self._name(key),
            params={"uploadType": "multipart", **condition},
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            body=_related(boundary, json.dumps(facts).encode(), data),
            attempts=attempts,
        )
        stored, created = answer.json(), bool(condition)
        self._check_stored(key, stored, len(data), checksum, data, created=created)

    def _begin(self, key: str) -> ResumableUpload:
        answer = self._api.ask(
            "POST",
            f"/upload/storage/v1/b/{self._bucket}/o",
            name=self._name(key),
            params={"uploadType": "resumable", "name": self._base + key},
            headers={"X-Upload-Content-Type": "application/octet-stream"},
        )
        url = answer.headers.get("Location")
        if url is None:
            raise StorageError(f"{self._name(key)}: GCS named no place to upload to")
        return ResumableUpload(self._api, url, name=self._name(key), asks=self._api.is_googles)

    def _check_stored(
        self,
        key: str,
        stored: dict[str, Any],
        size: int,
        checksum: Checksum,
        data: Buffer | None = None,
        *,
        created: bool = False,
    ) -> None:
        """Compare; wrong bytes are deleted, unless others may have seen them under a new name."""
        whole = str(stored.get("size")) == str(size)
        if whole and not tells_other_bytes(stored, checksum, data):
            return
        if not created:
            self.delete([key])
        raise IntegrityError(
            f"{self._name(key)}: GCS stored other bytes than were sent", hint="try once more"
        )

    def _delete(self, item: tuple[str, str]) -> None:
        self._api.ask("DELETE", item[1], name=item[0], accept=_NOT_THERE)

    def close(self) -> None:
        """Let the connections go."""
        self._api.close()

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


def _related(boundary: str, facts: bytes, data: Buffer) -> bytes:
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
    try:
        moment, size, _ = parse_rfc3339(found["updated"]), int(found["size"]), found["name"]
    except (KeyError, ValueError, TypeError) as error:
        raise TransientError(f"{key}: GCS sent an answer that cannot be read") from error
    return StoredObject(key=key, size=size, modified=moment.astimezone(timezone.utc))
