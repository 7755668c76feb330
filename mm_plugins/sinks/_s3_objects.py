"""The objects below one prefix of a bucket, by single calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from mm_core import (
    AuthError,
    Buffer,
    ConflictError,
    IntegrityError,
    MMError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransientError,
)
from mm_plugins.sinks._keys import check_key
from mm_plugins.sinks._patience import persist
from mm_plugins.sinks._s3_api import S3Api
from mm_plugins.sinks._s3_checksums import holds_other_bytes
from mm_plugins.sinks._s3_direct import (
    ChecksumRefusedError,
    Direct,
    ElsewhereError,
    or_by_s3fs,
)
from mm_plugins.sinks._s3_errors import RangeError

_log = logging.getLogger(__name__)
_READ = 4 << 20
_FOR_PARTS = ("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5")

MARK = "mm-created-by"
"""A name in an object's metadata: it tells a writer whose answer was lost its own object."""

T = TypeVar("T")


class S3Objects:
    """Keys, calls, and what S3 says of what it holds. `extra` goes along with each write."""

    def __init__(
        self, api: S3Api, bucket: str, base: str, extra: Mapping[str, Any], direct: Direct
    ) -> None:
        self.api = api
        self.bucket = bucket
        self.base = base
        self.extra = extra
        self.direct = direct
        self.lists_checksums: bool | None = None
        self._refuses_checksums = False

    def name(self, key: str) -> str:
        """``s3://bucket/prefix/key``."""
        return f"s3://{self.bucket}/{self.base}{check_key(key)}"

    def call(self, method: str, key: str, **arguments: Any) -> Any:
        """Call a method of the botocore client about one object."""
        return self.api.ask(method, self.name(key), Key=self.base + key, **arguments)

    def marked(self, mark: str) -> dict[str, Any]:
        """`extra` with `mark` in the metadata."""
        return {**self.extra, "Metadata": {**self.extra.get("Metadata", {}), MARK: mark}}

    def head(self, key: str) -> Mapping[str, Any] | None:
        """What S3 says of the object; None if there is none."""
        try:
            head: Mapping[str, Any] = self.call("head_object", key)
        except NotFoundError:
            return None
        return head

    def head_after(self, error: MMError, key: str) -> Mapping[str, Any] | None:
        """What stands there after `error`, which stays the one to tell."""
        try:
            return self.head(key)
        except MMError:
            raise error from None

    def check_stored(self, key: str, size: int, etag: str | None) -> None:
        """Raise unless `size` bytes stand under `key`, where S3 said that it stored `etag`.

        `IntegrityError` if it is our object, which is deleted; `ConflictError` if
        somebody else stored another meanwhile, which stays.
        """
        head = self.head(key)
        if head is not None and head["ContentLength"] == size:
            return
        name = self.name(key)
        if head is not None and _is(head, etag):
            self.delete([{"Key": self.base + key}])
        elif head is not None and etag is not None:
            raise ConflictError(
                f"{name} was replaced by somebody else as soon as it was stored",
                hint="what stands there was left alone",
            )
        raise IntegrityError(
            f"{name} was stored with "
            f"{'no' if head is None else head['ContentLength']} bytes, not {size}",
            hint="the store does not keep what it is given",
        )

    def delete_ours(self, key: str, etag: str | None) -> None:
        """Delete what S3 stored as `etag`, unless something else stands there by now."""
        head = self.head(key)
        if head is not None and _is(head, etag):
            self.delete([{"Key": self.base + key}])

    def put(self, key: str, data: Buffer) -> None:
        """Store an object by one PUT, tried again also where S3 holds other bytes.

        `IntegrityError` if it does in the end. Such an object is deleted.
        """
        name = self.name(key)
        wrong: list[str | None] = []

        def send(checksum: bool) -> Mapping[str, Any]:
            return self.direct.put(name, self.base + key, data, checksum=checksum)

        def by_s3fs() -> tuple[Mapping[str, Any], bool]:
            answer = self.call("put_object", key, Body=data, attempts=1, **self.extra)
            return answer, not holds_other_bytes(answer, data)

        def directly() -> tuple[Mapping[str, Any], bool]:
            answer = self._with_checksum(send)
            return answer, self._arrived(answer, data)

        def once() -> None:
            answer, arrived = or_by_s3fs(self.direct, directly, by_s3fs)
            if not arrived:
                wrong.append(answer.get("ETag"))
                raise _DamagedError(f"{name} was damaged on its way")

        try:
            persist(once)
        except MMError as error:
            if wrong:
                self.delete_ours(key, wrong[-1])
            if isinstance(error, _DamagedError):
                told = f"{name}: S3 stored other bytes than were sent"
                raise IntegrityError(told) from error
            raise

    def put_part(
        self, key: str, upload: str, number: int, data: Buffer, *, composite: bool
    ) -> dict[str, Any]:
        """Store a part of an upload by one try; what ends the upload with it.

        An upload that was begun as `composite` takes no part without a checksum.
        """
        name = self.name(key)

        def send(checksum: bool) -> Mapping[str, Any]:
            whole = self.base + key
            return self.direct.put_part(name, whole, upload, number, data, checksum=checksum)

        def directly() -> tuple[Mapping[str, Any], bool]:
            answer = send(True) if composite else self._with_checksum(send)
            return answer, self._arrived(answer, data)

        def by_s3fs() -> tuple[Mapping[str, Any], bool]:
            body = bytes(data) if isinstance(data, memoryview) else data
            extra = {n: v for n, v in self.extra.items() if n in _FOR_PARTS}
            answer = self.call(
                "upload_part",
                key,
                attempts=1,
                UploadId=upload,
                PartNumber=number,
                Body=body,
                **extra,
            )
            return answer, not holds_other_bytes(answer, data)

        answer, arrived = or_by_s3fs(self.direct, directly, by_s3fs)
        if not arrived:
            raise TransientError(f"{name}: part {number} was damaged on its way")
        return part_of(number, answer)

    def blocks(self, key: str, start: int, end: int | None, etags: set[str]) -> Iterator[Any]:
        """The bytes ``[start, end)`` by one GET; nothing from beyond the end.

        The object's ETag is added to `etags`; `SourceChangedError` if it holds another.
        """
        if end is not None and start >= end:
            return
        try:
            yield from _up_to(
                None if end is None else end - start, self._sent(key, start, end, etags)
            )
        except RangeError:
            return

    def delete(self, names: Sequence[Mapping[str, str]]) -> None:
        """Delete up to 1,000 objects by their own names, tried again."""
        persist(partial(self._delete, names))

    def _sent(
        self, key: str, start: int, end: int | None, etags: set[str]
    ) -> Generator[Any, None, None]:
        used = self.direct.routes()
        if used is not None:
            try:
                yield from self.direct.get(self.name(key), self.base + key, start, end, etags)
                return
            except ElsewhereError:
                self.direct.move(used)
        yield from self._by_s3fs(key, start, end, etags)

    def _by_s3fs(self, key: str, start: int, end: int | None, etags: set[str]) -> Iterator[Any]:
        wanted = f"bytes={start}-{'' if end is None else end - 1}"
        ranged = {"Range": wanted} if start or end is not None else {}
        answer = self.call("get_object", key, attempts=1, **ranged)
        etags.add(answer.get("ETag", ""))
        if len(etags) > 1:
            raise SourceChangedError(f"{self.name(key)} was replaced while it was read")
        yield from self.api.blocks(answer, _READ, self.name(key))

    def _arrived(self, answer: Mapping[str, Any], data: Buffer) -> bool:
        """By the CRC32 that S3 repeats, else by TLS, else by the md5 that its ETag is."""
        sent, told = answer.get("SentCRC32"), answer.get("ChecksumCRC32")
        if sent is not None and told is not None:
            return bool(sent == told)
        return self.direct.secure or not holds_other_bytes(answer, data)

    def _with_checksum(self, send: Callable[[bool], T]) -> T:
        """`send` with a checksum; without, from when a store has refused one and taken none."""
        if self._refuses_checksums or not self.direct.checksums:
            return send(False)
        try:
            return send(True)
        except ChecksumRefusedError as error:
            answer = send(False)
            self._refuses_checksums = True
            _log.info("the store takes no CRC32; none is sent", extra={"reason": str(error)})
            return answer

    def _delete(self, names: Sequence[Mapping[str, str]]) -> None:
        batch = {"Objects": names, "Quiet": True}
        root = f"s3://{self.bucket}/{self.base}".rstrip("/")
        answer = self.api.ask("delete_objects", root, attempts=1, Delete=batch)
        for error in answer.get("Errors", ()):
            code = error.get("Code", "")
            what = f"s3://{self.bucket}/{error.get('Key')} was not deleted: {code}"
            if code == "AccessDenied":
                raise AuthError(what, hint="the right s3:DeleteObject is needed")
            if code in ("InternalError", "SlowDown", "ServiceUnavailable"):
                raise TransientError(what)
            if code != "NoSuchKey":
                raise StorageError(f"{what} {error.get('Message', '')}".rstrip())


class _DamagedError(TransientError):
    """S3 tells of other bytes than were sent."""


def _up_to(count: int | None, blocks: Generator[Any, None, None]) -> Iterator[Any]:
    """The first `count` bytes of `blocks`: a store may send more than it was asked for."""
    left = count
    with closing(blocks):
        for block in blocks:
            if left is None:
                yield block
                continue
            yield block[:left]
            left -= min(left, len(block))
            if not left:
                return


def _is(head: Mapping[str, Any], etag: str | None) -> bool:
    """Whether the object of `head` is the one that S3 stored as `etag`."""
    return etag is not None and head["ETag"].strip('"') == etag.strip('"')


def bears(head: Mapping[str, Any], mark: str) -> bool:
    """Whether the object of `head` was stored with `mark` in its metadata."""
    return bool(head.get("Metadata", {}).get(MARK) == mark)


def part_of(number: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What an upload is ended with for a part that S3 answered for, or listed."""
    told = {name: answer[name] for name in ("ETag", "ChecksumCRC32") if answer.get(name)}
    return {"PartNumber": number, **told}
