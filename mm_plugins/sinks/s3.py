"""The S3 sink, through s3fs: streamed multipart uploads and conditional creates."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from mm_core import (
    AlreadyExistsError,
    AuthError,
    Buffer,
    ConfigError,
    IntegrityError,
    MMError,
    NotFoundError,
    PluginConfig,
    Sink,
    SourceChangedError,
    StorageError,
    StoredObject,
    TransientError,
    hookimpl,
    redact,
)
from mm_plugins.sinks._keys import check_key, check_prefix, check_size
from mm_plugins.sinks._parts import Parts, part_size
from mm_plugins.sinks._patience import persist, read_on
from mm_plugins.sinks._s3_api import RangeError, S3Api, make_file_system

_READ = 4 << 20
_COPY_LIMIT = 5 << 30
_COPY_PART = 1 << 30
_PAGE = 1000
_DELETE_LIMIT = 1000
_MARK = "mm-created-by"
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')

_Part = dict[str, Any]


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer the S3 sink."""
    return [S3Sink]


class S3Options(PluginConfig):
    """How S3 is reached. Without any, the AWS SDK's own chain and AWS_ENDPOINT_URL hold."""

    endpoint_url: str | None = Field(default=None, description="For stores other than AWS")
    profile: str | None = Field(default=None, description="A profile of the AWS configuration")
    region: str | None = Field(default=None, description="The bucket's region")
    anon: bool = Field(default=False, description="Ask without credentials")
    key: SecretStr | None = Field(default=None, description="An access key id")
    secret: SecretStr | None = Field(default=None, description="Its secret")
    token: SecretStr | None = Field(default=None, description="A session token")
    client_kwargs: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for the botocore client"
    )
    config_kwargs: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for botocore.config.Config"
    )
    s3_additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for each write, such as encryption"
    )


class S3Sink(Sink):
    """A prefix in a bucket. Objects appear whole: by one PUT, or when a multipart upload ends.

    Exclusive create is ``If-None-Match: *`` on one PUT. Memory for each write is
    two parts of 8 MiB; more for files above 70 GB, since an upload has 10,000 parts.
    """

    type = "s3"
    schemes = ("s3", "s3a")

    class Config(PluginConfig):
        """The settings of an S3 backend."""

        root: str = Field(description="s3://bucket/prefix")
        options: S3Options = Field(default_factory=S3Options, description="How S3 is reached")

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
        self._api = S3Api(partial(_file_system, config.options), self._bucket)
        self._extra: Mapping[str, Any] = config.options.s3_additional_kwargs

    @property
    def root(self) -> str:
        """``s3://bucket/prefix``, without a slash at its end."""
        return f"s3://{self._bucket}/{self._base}".rstrip("/")

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """One PUT for what fits a part, else a multipart upload that is aborted on any error."""
        check_key(key)
        parts = Parts(chunks, part_size(size))
        first = next(parts)
        if parts.ended:
            check_size(key, parts.count, size)
            self.put(key, first)
            return

        every = chain((first,), parts)
        del first

        def send(upload: str) -> Sequence[_Part]:
            done = [self._send(key, upload, n, part) for n, part in enumerate(every, start=1)]
            check_size(key, parts.count, size)
            return done

        self._upload(key, send)
        self._check_stored(key, parts.count)

    def create(self, key: str, data: bytes) -> None:
        """One PUT with ``If-None-Match: *``, and a mark of its own in the object's metadata.

        HTTP libraries repeat a PUT whose answer was lost, and then meet their own
        object. The mark tells whose it is.
        """
        mark = secrets.token_hex(16)
        metadata = {**self._extra.get("Metadata", {}), _MARK: mark}
        try:
            self._put(key, data, attempts=1, IfNoneMatch="*", Metadata=metadata)
        except (AlreadyExistsError, TransientError) as error:
            head = self._head_after(error, key)
            if head is None or head.get("Metadata", {}).get(_MARK) != mark:
                raise

    def put(self, key: str, data: Buffer) -> None:
        """One PUT."""
        self._put(key, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """One GET, read in blocks of 4 MiB; after a cut, another for the rest of the same bytes."""
        name, etags = self._name(key), set[str]()

        def open_at(position: int) -> Iterator[bytes]:
            if end is not None and position >= end:
                return
            wanted = f"bytes={position}-{'' if end is None else end - 1}"
            ranged = {"Range": wanted} if position or end is not None else {}
            try:
                answer = self._call("get_object", key, attempts=1, **ranged)
            except RangeError:
                return
            etags.add(answer.get("ETag", ""))
            if len(etags) > 1:
                raise SourceChangedError(f"{name} was replaced while it was read")
            yield from self._api.blocks(answer, _READ, name)

        return read_on(open_at, start)

    def stat(self, key: str) -> StoredObject | None:
        """One HEAD."""
        head = self._head(key)
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
        stored = self.stat(source_key)
        if stored is None:
            raise NotFoundError(f"{self._name(source_key)} is not there")
        if source_key == check_key(key):
            return  # S3 refuses it
        source = {"Bucket": self._bucket, "Key": self._base + source_key}
        if stored.size <= _COPY_LIMIT:
            self._call("copy_object", key, CopySource=source, **self._extra)
            return
        self._upload(key, lambda upload: self._copy_parts(key, upload, source, stored.size))
        self._check_stored(key, stored.size)

    def delete(self, keys: Iterable[str]) -> None:
        """In bulk, 1,000 at a time."""
        names = [{"Key": self._base + check_key(key)} for key in keys]
        for start in range(0, len(names), _DELETE_LIMIT):
            persist(partial(self._delete, names[start : start + _DELETE_LIMIT]))

    def url(self, key: str) -> str:
        """``s3://bucket/prefix/key``."""
        return self._name(key)

    def close(self) -> None:
        """Let the connections go."""
        self._api.close()

    def _put(self, key: str, data: Buffer, **arguments: Any) -> None:
        md5 = _md5(data)
        answer = self._call(
            "put_object",
            key,
            Body=data,
            ContentMD5=base64.b64encode(md5.digest()).decode(),  # S3 refuses other bytes
            **{**self._extra, **arguments},
        )
        if _holds_other_bytes(answer, md5):
            if "IfNoneMatch" not in arguments:
                self.delete([key])
            raise IntegrityError(f"{self._name(key)}: S3 stored other bytes than were sent")

    def _upload(self, key: str, send: Callable[[str], Sequence[_Part]]) -> None:
        """A multipart upload of the parts that `send` makes, aborted on any error."""
        upload = self._call("create_multipart_upload", key, **self._extra)["UploadId"]
        try:
            done = send(upload)
            persist(partial(self._complete, key, upload, done))
        except BaseException:
            with contextlib.suppress(MMError):  # the first error is the one to tell
                self._call("abort_multipart_upload", key, UploadId=upload)
            raise

    def _complete(self, key: str, upload: str, parts: Sequence[_Part]) -> None:
        """End the upload. Where the answer is lost, what stands there tells whether it was done."""
        try:
            self._call(
                "complete_multipart_upload",
                key,
                attempts=1,
                UploadId=upload,
                MultipartUpload={
                    "Parts": [{k: p[k] for k in ("PartNumber", "ETag")} for p in parts]
                },
            )
        except TransientError as error:
            expected, head = _etag_of(parts), self._head_after(error, key)
            if expected is None or head is None or head["ETag"].strip('"') != expected:
                raise

    def _send(self, key: str, upload: str, number: int, part: Buffer) -> _Part:
        def send() -> _Part:
            answer = self._call(
                "upload_part", key, attempts=1, UploadId=upload, PartNumber=number, Body=part
            )
            if _holds_other_bytes(answer, _md5(part)):
                raise TransientError(f"{self._name(key)}: part {number} was damaged on its way")
            return {"PartNumber": number, "ETag": answer["ETag"]}

        return persist(send)

    def _copy_parts(
        self, key: str, upload: str, source: Mapping[str, str], size: int
    ) -> Sequence[_Part]:
        done = []
        for number, start in enumerate(range(0, size, _COPY_PART), start=1):
            answer = self._call(
                "upload_part_copy",
                key,
                UploadId=upload,
                PartNumber=number,
                CopySource=source,
                CopySourceRange=f"bytes={start}-{min(start + _COPY_PART, size) - 1}",
            )
            done.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
        return done

    def _delete(self, names: Sequence[Mapping[str, str]]) -> None:
        batch = {"Objects": names, "Quiet": True}
        answer = self._api.ask("delete_objects", self.root, attempts=1, Delete=batch)
        for error in answer.get("Errors", ()):
            code = error.get("Code", "")
            what = f"s3://{self._bucket}/{error.get('Key')} was not deleted: {code}"
            if code == "AccessDenied":
                raise AuthError(what, hint="the right s3:DeleteObject is needed")
            if code in ("InternalError", "SlowDown", "ServiceUnavailable"):
                raise TransientError(what)
            if code != "NoSuchKey":
                raise StorageError(f"{what} {error.get('Message', '')}".rstrip())

    def _head(self, key: str) -> Mapping[str, Any] | None:
        try:
            head: Mapping[str, Any] = self._call("head_object", key)
        except NotFoundError:
            return None
        return head

    def _head_after(self, error: MMError, key: str) -> Mapping[str, Any] | None:
        """What stands there after `error`, which stays the one to tell."""
        try:
            return self._head(key)
        except MMError:
            raise error from None

    def _check_stored(self, key: str, size: int) -> None:
        head = self._head(key)
        if head is not None and head["ContentLength"] == size:
            return
        self.delete([key])
        raise IntegrityError(
            f"{self._name(key)} was stored with "
            f"{'no' if head is None else head['ContentLength']} bytes, not {size}",
            hint="it was deleted again; the store does not keep what it is given",
        )

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._base}{check_key(key)}"

    def _call(self, method: str, key: str, **arguments: Any) -> Any:
        return self._api.ask(method, self._name(key), Key=self._base + key, **arguments)


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


def _md5(data: Buffer) -> Any:
    """S3's own checksum of a part; against accidents, not against forgery."""
    return hashlib.md5(data, usedforsecurity=False)


def _holds_other_bytes(answer: Mapping[str, Any], md5: Any) -> bool:
    """Whether the ETag is the md5 of other bytes; with keys of KMS or the customer it is none."""
    etag = _MD5.fullmatch(answer.get("ETag", ""))
    encrypted = answer.get("ServerSideEncryption") not in (None, "AES256")
    if etag is None or encrypted or "SSECustomerAlgorithm" in answer:
        return False
    return etag[1] != str(md5.hexdigest())


def _etag_of(parts: Sequence[_Part]) -> str | None:
    """The ETag of an upload of `parts`, where theirs are md5 sums."""
    found = [_MD5.fullmatch(part["ETag"]) for part in parts]
    sums = [bytes.fromhex(match[1]) for match in found if match]
    if len(sums) != len(parts):
        return None
    return f"{_md5(b''.join(sums)).hexdigest()}-{len(parts)}"


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
