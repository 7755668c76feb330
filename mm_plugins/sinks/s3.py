"""The S3 sink: resumable multipart uploads, and conditional creates through s3fs."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mm_core import (
    AlreadyExistsError,
    Buffer,
    ConfigError,
    EnvironmentContext,
    IntegrityError,
    LazyConfig,
    NotFoundError,
    ResumableSink,
    Sink,
    StoredObject,
    TransientError,
    UnfinishedUpload,
    Upload,
    UploadLostError,
    hookimpl,
    redact,
)
from mm_plugins.sinks import _s3_config, _s3_upload
from mm_plugins.sinks._copying import copied_unless_refused
from mm_plugins.sinks._keys import check_key, check_prefix, check_size
from mm_plugins.sinks._parts import Parts, part_size
from mm_plugins.sinks._patience import persist, read_on
from mm_plugins.sinks._s3_api import S3Api, make_file_system
from mm_plugins.sinks._s3_checksums import holds_other_bytes, md5_of
from mm_plugins.sinks._s3_direct import Direct
from mm_plugins.sinks._s3_objects import S3Objects, bears
from mm_plugins.sinks._s3_upload import S3Upload

if TYPE_CHECKING:
    from pydantic import SecretStr

    from mm_plugins.sinks._s3_config import S3Options

_COPY_LIMIT = 5 << 30
_COPY_PART = 1 << 30
_WEEK = 7 * 24 * 3600  # the most that S3 grants
_PAGE = 1000
_DELETE_LIMIT = 1000
_ACCESS = (
    "endpoint_url", "profile", "anon", "key", "secret", "token", "client_kwargs", "config_kwargs",
)  # fmt: skip
_SECRET_KEYS = frozenset({"SSECustomerKey", "SSECustomerAlgorithm"})


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer the S3 sink."""
    return [S3Sink]


@hookimpl
def mm_environment(context: EnvironmentContext) -> Mapping[str, str]:
    """Say how the AWS SDKs, and by them vLLM and the Run:ai streamer, reach this store."""
    sink = context.sink
    return _s3_config.environment(sink.config) if isinstance(sink, S3Sink) else {}


class S3Sink(ResumableSink):
    """A prefix in a bucket. Objects appear whole: by one PUT, or when a multipart upload ends.

    Exclusive create is ``If-None-Match: *`` on one PUT. `write` holds one part: the
    whole of a file of up to 8 MiB, else 8 MiB of it, 32 MiB where the size is unknown;
    more above 70 GB, since an upload has 10,000 parts.
    """

    shares_uploads = True
    type = "s3"
    schemes = ("s3", "s3a")

    plain_config = True

    if TYPE_CHECKING:
        from mm_plugins.sinks._s3_config import Config
    else:
        Config = LazyConfig("mm_plugins.sinks._s3_config:Config")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        parts = urlsplit(config.root)
        if "@" in parts.netloc:
            raise ConfigError(
                "s3://… takes no user or password in its URL",
                hint="give credentials by the environment, a profile, or `options`",
            )
        if parts.scheme not in self.schemes or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"root {redact(config.root)!r} is no S3 prefix", hint="write s3://bucket/prefix"
            )
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._base = f"{check_key(prefix)}/" if prefix else ""
        self._extra: Mapping[str, Any] = config.options.s3_additional_kwargs
        self._api = S3Api(partial(_file_system, config.options), self._bucket)
        self._direct = Direct(self._api, self._bucket, self._extra, config.transfer)
        self._objects = S3Objects(self._api, self._bucket, self._base, self._extra, self._direct)

    @property
    def root(self) -> str:
        """``s3://bucket/prefix``, without a slash at its end."""
        return f"s3://{self._bucket}/{self._base}".rstrip("/")

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """One PUT for what fits a part, else a multipart upload that is aborted on any error."""
        check_key(key)
        parts = Parts(chunks, part_size(size))
        part = next(parts)
        if parts.ended:
            check_size(key, parts.count, size)
            self._objects.put(key, part)
            return

        multipart = _s3_upload.begin(self._objects, key)
        with _s3_upload.aborted_on_error(multipart):
            for number in count(1):
                persist(partial(multipart.send, number, part))
                part = bytearray()  # let it go before the next is filled
                if parts.ended:
                    break
                part = next(parts)
            check_size(key, parts.count, size)
            etag = multipart.complete()
        self._objects.check_stored(key, parts.count, etag)

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        """A multipart upload; with an `identity`, the newest that was left under `key`, if any.

        S3 keeps no identity of an open upload: whoever takes one up compares the
        file's hash in the end. All others that were left there are aborted.
        """
        check_key(key)
        whole = part_size(size)
        if size <= whole:
            return None
        known = None if identity is None else partial(_size_of_part, whole, size)
        multipart = _s3_upload.take_up(self._objects, key, known)
        if multipart is None:
            multipart = _s3_upload.begin(self._objects, key)
        return S3Upload(self._objects, key, multipart, size, whole)

    def join_upload(self, key: str, *, size: int, id: str) -> Upload:
        """The multipart upload `id`: S3 takes its parts from anybody, in any order."""
        check_key(key)
        whole = part_size(size)
        multipart = _s3_upload.join(self._objects, key, id, partial(_size_of_part, whole, size))
        return S3Upload(self._objects, key, multipart, size, whole)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """The bucket's open multipart uploads, as it lists them: `modified` is their begin."""
        return _s3_upload.unfinished(self._objects, check_prefix(prefix))

    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        """Abort the multipart upload, also one that somebody is at: S3 does not tell."""
        with contextlib.suppress(NotFoundError, UploadLostError):
            self._objects.call("abort_multipart_upload", upload.key, UploadId=upload.id)
        return True

    def create(self, key: str, data: bytes) -> None:
        """One PUT with ``If-None-Match: *``, and a mark of its own in the object's metadata.

        HTTP libraries repeat a PUT whose answer was lost, and then meet their own
        object. The mark tells whose it is.
        """
        mark = secrets.token_hex(16)
        try:
            self._put(key, data, attempts=1, IfNoneMatch="*", **self._objects.marked(mark))
        except (AlreadyExistsError, TransientError) as error:
            head = self._objects.head_after(error, key)
            if head is None or not bears(head, mark):
                raise

    def put(self, key: str, data: Buffer) -> None:
        """One PUT."""
        self._put(key, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """One GET, read in blocks; after a cut, another for the rest of the same bytes."""
        check_key(key)
        etags = set[str]()
        return read_on(lambda position: self._objects.blocks(key, position, end, etags), start)

    def stat(self, key: str) -> StoredObject | None:
        """One HEAD."""
        head = self._objects.head(key)
        if head is None:
            return None
        return StoredObject(
            key=key, size=head["ContentLength"], modified=_utc(head["LastModified"])
        )

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Pages of 1,000, always asked anew. Folder markers, which end in a slash, are left out."""
        start = self._base + check_prefix(prefix)
        more: dict[str, Any] = {}
        while True:
            page = self._api.ask("list_objects_v2", self.root, Prefix=start, MaxKeys=_PAGE, **more)
            for found in page.get("Contents", ()):
                key = found["Key"][len(self._base) :]
                if key and not key.endswith("/"):
                    modified = _utc(found["LastModified"])
                    yield StoredObject(key=key, size=found["Size"], modified=modified)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def copy(self, source_key: str, key: str) -> None:
        """On the server's side, in parts above 5 GB."""
        self._copy(self, source_key, key)

    def copies_from(self, other: Sink) -> bool:
        """Whether both are reached in the same way, by the same credentials."""
        if not isinstance(other, S3Sink):
            return False
        theirs: S3Options = other.config.options
        encrypted = _SECRET_KEYS & {*theirs.s3_additional_kwargs}
        return not encrypted and _access(self.config.options) == _access(theirs)

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """On the server's side, also from another bucket; False where S3 refuses that."""
        if not isinstance(other, S3Sink) or not self.copies_from(other):
            return False
        copy = partial(self._copy, other, source_key, key)
        return copied_unless_refused(copy, source=other, target=self)

    def delete(self, keys: Iterable[str]) -> None:
        """In bulk, 1,000 at a time."""
        names = [{"Key": self._base + check_key(key)} for key in keys]
        for start in range(0, len(names), _DELETE_LIMIT):
            self._objects.delete(names[start : start + _DELETE_LIMIT])

    def signed_url(self, key: str, *, seconds: int) -> str | None:
        """A presigned GET; None for buckets without credentials, or with keys of one's own.

        It ends earlier where the credentials do, as temporary ones may.
        """
        if _SECRET_KEYS & {*self._extra}:
            return None
        return self._direct.signed_url(self._base + check_key(key), min(seconds, _WEEK))

    def url(self, key: str) -> str:
        """``s3://bucket/prefix/key``."""
        return self._objects.name(key)

    def close(self) -> None:
        """Let the connections go."""
        self._direct.close()
        self._api.close()

    def _copy(self, other: S3Sink, source_key: str, key: str) -> None:
        stored = other.stat(source_key)
        if stored is None:
            raise NotFoundError(f"{other.url(source_key)} is not there")
        if other.url(source_key) == self.url(key):
            return  # S3 refuses it
        source = {"Bucket": other._bucket, "Key": other._base + source_key}
        if stored.size <= _COPY_LIMIT:
            self._objects.call("copy_object", key, CopySource=source, **self._extra)
            return
        etag = _s3_upload.copy_in_parts(self._objects, source, key, stored.size, _COPY_PART)
        self._objects.check_stored(key, stored.size, etag)

    def _put(self, key: str, data: Buffer, **arguments: Any) -> None:
        md5 = md5_of(data)
        answer = self._objects.call(
            "put_object",
            key,
            Body=data,
            ContentMD5=base64.b64encode(md5.digest()).decode(),  # S3 refuses other bytes
            **{**self._extra, **arguments},
        )
        if holds_other_bytes(answer, data):
            if "IfNoneMatch" not in arguments:
                self._objects.delete_ours(key, answer.get("ETag"))
            raise IntegrityError(f"{self.url(key)}: S3 stored other bytes than were sent")


def _file_system(options: S3Options) -> Any:
    client = dict(options.client_kwargs)
    if options.region is not None:
        client["region_name"] = options.region
    return make_file_system(
        anon=options.anon,
        key=_plain(options.key),
        secret=_plain(options.secret),
        token=_plain(options.token),
        profile=options.profile,
        endpoint_url=options.endpoint_url,
        client_kwargs=client,
        config_kwargs=options.config_kwargs,
    )


def _access(options: S3Options) -> dict[str, Any]:
    """What decides which server is asked, and as whom."""
    return {name: getattr(options, name) for name in _ACCESS}


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _size_of_part(whole: int, size: int, number: int) -> int | None:
    """How many bytes the part `number`, from 1 on, of a file has; None where it has none such."""
    start = (number - 1) * whole
    return min(whole, size - start) if 0 <= start < size else None
