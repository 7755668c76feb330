"""The S3 sink, through s3fs: streamed multipart uploads and conditional creates."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from mm_core import (
    AlreadyExistsError,
    AuthError,
    Buffer,
    ConfigError,
    IntegrityError,
    MissingExtraError,
    MMError,
    NotFoundError,
    PluginConfig,
    Sink,
    StorageError,
    StoredObject,
    TransientError,
    hookimpl,
    redact,
)
from mm_plugins.sinks._keys import check_key, check_prefix, check_size
from mm_plugins.sinks._parts import Parts, part_size

_READ = 4 << 20
_COPY_LIMIT = 5 << 30
_COPY_PART = 1 << 30
_DELETE_LIMIT = 1000
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_NO_CREDENTIALS = frozenset(
    {
        "CredentialRetrievalError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOTokenLoadError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
_HOW_TO_SIGN_IN = "give credentials by AWS_PROFILE or AWS_ACCESS_KEY_ID, or `profile` in options"


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
    one part: 16 MiB, more for files above 150 GB, since an upload has 10,000 parts.
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
        if parts.scheme not in self.schemes or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"root {redact(config.root)!r} is no S3 prefix", hint="write s3://bucket/prefix"
            )
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._base = f"{check_key(prefix)}/" if prefix else ""
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def root(self) -> str:
        """``s3://bucket/prefix``, without a slash at its end."""
        return f"s3://{self._bucket}/{self._base}".rstrip("/")

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """One PUT for what fits a part, else a multipart upload that is aborted on any error."""
        parts = Parts(chunks, part_size(size))
        first = next(parts)
        if parts.ended:
            check_size(key, len(first), size)
            self._call("put_object", key, Body=bytes(first), **self._extra)
            return
        upload = self._call("create_multipart_upload", key, **self._extra)["UploadId"]
        try:
            done = self._send(key, upload, first, parts)
            check_size(key, parts.count, size)
            self._call(
                "complete_multipart_upload",
                key,
                UploadId=upload,
                MultipartUpload={"Parts": [*done]},
            )
        except BaseException:
            self._abort(key, upload)
            raise
        self._check_stored(key, parts.count)

    def create(self, key: str, data: bytes) -> None:
        """One PUT with ``If-None-Match: *``."""
        self._call("put_object", key, Body=data, IfNoneMatch="*", **self._extra)

    def put(self, key: str, data: bytes) -> None:
        """One PUT."""
        self._call("put_object", key, Body=data, **self._extra)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """One GET, read in blocks of 4 MiB."""
        if end is not None and start >= end:
            return
        ranged = (
            {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end else {}
        )
        try:
            body = self._call("get_object", key, **ranged)["Body"]
        except _RangeError:
            return
        with _translated(self._name(key)):
            try:
                while data := self._run(body.read, _READ):
                    yield data
            finally:
                body.close()

    def stat(self, key: str) -> StoredObject | None:
        """One HEAD."""
        try:
            head = self._call("head_object", key)
        except NotFoundError:
            return None
        return StoredObject(
            key=key, size=head["ContentLength"], modified=_utc(head["LastModified"])
        )

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Pages of 1,000, always asked anew."""
        start = self._base + check_prefix(prefix)
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", self.root, Prefix=start, **more)
            for found in page.get("Contents", ()):
                key = found["Key"][len(self._base) :]
                yield StoredObject(
                    key=key, size=found["Size"], modified=_utc(found["LastModified"])
                )
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def copy(self, source_key: str, key: str) -> None:
        """On the server's side, in parts above 5 GB."""
        stored = self.stat(source_key)
        if stored is None:
            raise NotFoundError(f"{self._name(source_key)} is not there")
        if source_key == key:
            return
        source = {"Bucket": self._bucket, "Key": self._base + check_key(source_key)}
        if stored.size <= _COPY_LIMIT:
            self._call("copy_object", key, CopySource=source, **self._extra)
            return
        upload = self._call("create_multipart_upload", key, **self._extra)["UploadId"]
        try:
            done = tuple(self._copy_parts(key, upload, source, stored.size))
            self._call(
                "complete_multipart_upload",
                key,
                UploadId=upload,
                MultipartUpload={"Parts": [*done]},
            )
        except BaseException:
            self._abort(key, upload)
            raise
        self._check_stored(key, stored.size)

    def delete(self, keys: Iterable[str]) -> None:
        """In bulk, 1,000 at a time."""
        names = [{"Key": self._base + check_key(key)} for key in keys]
        for start in range(0, len(names), _DELETE_LIMIT):
            batch = {"Objects": names[start : start + _DELETE_LIMIT], "Quiet": True}
            answer = self._ask("delete_objects", self.root, Delete=batch)
            for error in answer.get("Errors", ()):
                if error.get("Code") != "NoSuchKey":
                    raise StorageError(
                        f"s3://{self._bucket}/{error.get('Key')} was not deleted: "
                        f"{error.get('Code')} {error.get('Message')}"
                    )

    def url(self, key: str) -> str:
        """``s3://bucket/prefix/key``."""
        return self._name(key)

    def _send(
        self, key: str, upload: str, first: bytearray, parts: Parts
    ) -> Sequence[dict[str, Any]]:
        done = deque[dict[str, Any]]()
        part: bytearray | None = first
        while part is not None:
            number = len(done) + 1
            answer = self._call(
                "upload_part", key, UploadId=upload, PartNumber=number, Body=bytes(part)
            )
            done.append({"PartNumber": number, "ETag": answer["ETag"]})
            part = next(parts, None)
        return done

    def _copy_parts(
        self, key: str, upload: str, source: Mapping[str, str], size: int
    ) -> Iterator[dict[str, Any]]:
        for number, start in enumerate(range(0, size, _COPY_PART), start=1):
            last = min(start + _COPY_PART, size) - 1
            answer = self._call(
                "upload_part_copy",
                key,
                UploadId=upload,
                PartNumber=number,
                CopySource=source,
                CopySourceRange=f"bytes={start}-{last}",
            )
            yield {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._call("abort_multipart_upload", key, UploadId=upload)
        except MMError:
            return  # the first error is the one to tell; the store's own lifecycle ends the upload

    def _check_stored(self, key: str, size: int) -> None:
        stored = self.stat(key)
        if stored is None or stored.size != size:
            self.delete([key])
            raise IntegrityError(
                f"{self._name(key)} was stored with "
                f"{'no' if stored is None else stored.size} bytes, not {size}",
                hint="it was deleted again; the store does not keep what it is given",
            )

    # -- s3fs ------------------------------------------------------------------------

    @property
    def _extra(self) -> dict[str, Any]:
        extra: dict[str, Any] = self.config.options.s3_additional_kwargs
        return extra

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._base}{check_key(key)}"

    def _call(self, method: str, key: str, **arguments: Any) -> Any:
        return self._ask(method, self._name(key), Key=self._base + key, **arguments)

    def _ask(self, method: str, name: str, **arguments: Any) -> Any:
        with _translated(name):
            return self._run(self._fs._call_s3, method, Bucket=self._bucket, **arguments)  # noqa: SLF001  # call_s3 is this behind a wrapper

    def _run(self, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._fs.loop, action, *arguments, **named)

    @property
    def _fs(self) -> Any:
        with self._lock:
            if self._made is None:
                with _translated(self.root):
                    self._made = _file_system(self.config.options)
            return self._made


class _RangeError(StorageError):
    """The range starts beyond the end of the object."""


def _file_system(options: S3Options) -> Any:
    try:
        import s3fs
    except ImportError as error:
        raise MissingExtraError(
            "S3 needs s3fs, which is not installed", hint="pip install 'model-manager[s3]'"
        ) from error
    client = dict(options.client_kwargs)
    if options.region is not None:
        client["region_name"] = options.region
    config = {
        "retries": {"max_attempts": 1, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        **options.config_kwargs,
    }
    system = s3fs.S3FileSystem(
        anon=options.anon,
        key=_plain(options.key),
        secret=_plain(options.secret),
        token=_plain(options.token),
        profile=options.profile,
        endpoint_url=options.endpoint_url,
        client_kwargs=client,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    system.retries = 1
    return system


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn the errors of s3fs, botocore and aiohttp into ours."""
    try:
        yield
    except (MMError, GeneratorExit):
        raise
    except Exception as error:
        raise _translate(error, name) from error


def _translate(error: Exception, name: str) -> MMError:
    response = _response(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = response.get("Error", {}).get("Code", "")
    what = f"{name}: {redact(str(error)) or type(error).__name__}"
    if type(error).__name__ in _NO_CREDENTIALS or isinstance(error, PermissionError):
        return AuthError(what, hint=_HOW_TO_SIGN_IN)
    if status is None:
        return _without_status(error, what)
    if code == "NoSuchBucket":
        return NotFoundError(f"{name}: there is no such bucket", hint="make the bucket first")
    by_status: dict[int, Callable[[], MMError]] = {
        401: lambda: AuthError(what, hint=_HOW_TO_SIGN_IN),
        403: lambda: AuthError(what, hint=_HOW_TO_SIGN_IN),
        404: lambda: NotFoundError(f"{name} is not there"),
        412: lambda: AlreadyExistsError(f"{name} exists"),
        416: lambda: _RangeError(what),
    }
    if status in by_status:
        return by_status[status]()
    return TransientError(what) if status in _PASSING or status >= 500 else StorageError(what)


def _without_status(error: Exception, what: str) -> MMError:
    """No answer came: what is left is the connection, or a call that makes no sense."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(what)
    if type(error).__name__ in ("ParamValidationError", "ValueError", "TypeError"):
        return StorageError(what)
    return TransientError(what, hint="look at the connection, and at the endpoint if it is set")


def _response(error: BaseException | None) -> Mapping[str, Any]:
    """Botocore's answer, wherever in the chain of causes it is; errors themselves may lie."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}
