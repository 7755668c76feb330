"""Multipart uploads: begun, taken up again, ended. The open upload itself is the journal."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

from mm_core import (
    AuthError,
    Buffer,
    MMError,
    NotFoundError,
    StorageError,
    TransientError,
    UnfinishedUpload,
    Upload,
    UploadLostError,
)
from mm_plugins.sinks._patience import persist
from mm_plugins.sinks._s3_checksums import etag_of
from mm_plugins.sinks._s3_objects import S3Objects, bears, part_of

_log = logging.getLogger(__name__)
_PAGE = 1000
_AT_ONCE = 8
_CRC32 = {"ChecksumAlgorithm": "CRC32"}
_PLAIN = ("PartNumber", "ETag")
_WITH_CHECKSUM = (*_PLAIN, "ChecksumCRC32")


class Multipart:
    """One multipart upload under `key`, and the parts that S3 has taken. Any thread may send.

    A `composite` one was begun with a checksum, and is ended with those of its parts.
    Its object will bear `mark`, unless the upload was begun by another process.
    """

    def __init__(
        self,
        objects: S3Objects,
        key: str,
        id: str,
        *,
        composite: bool = False,
        mark: str | None = None,
    ) -> None:
        self._objects = objects
        self._key = key
        self._id = id
        self._composite = composite
        self._mark = mark
        self._parts: dict[int, dict[str, Any]] = {}

    @property
    def id(self) -> str:
        """S3's own name for it."""
        return self._id

    @property
    def numbers(self) -> frozenset[int]:
        """The parts that are there, counted from 1."""
        return frozenset(self._parts)

    def send(self, number: int, data: Buffer) -> None:
        """Store one part by one try. `UploadLostError` where S3 has forgotten the upload."""
        self._parts[number] = self._objects.put_part(
            self._key, self._id, number, data, composite=self._composite
        )

    def copy(self, number: int, source: Mapping[str, str], start: int, end: int) -> None:
        """Store as a part the bytes ``[start, end)`` of another object of the bucket."""
        answer = self._objects.call(
            "upload_part_copy",
            self._key,
            UploadId=self._id,
            PartNumber=number,
            CopySource=source,
            CopySourceRange=f"bytes={start}-{end - 1}",
        )
        self._parts[number] = part_of(number, answer["CopyPartResult"])

    def load(self, size_of: Callable[[int], int | None]) -> None:
        """Take up the parts that S3 lists with just the size that they must have."""
        more: dict[str, Any] = {}
        while True:
            page = self._objects.call(
                "list_parts", self._key, UploadId=self._id, MaxParts=_PAGE, **more
            )
            algorithm = page.get("ChecksumAlgorithm")
            if algorithm not in (None, *_CRC32.values()):
                raise StorageError(f"{self._objects.name(self._key)}: an upload of another kind")
            self._composite = algorithm is not None
            for part in page.get("Parts", ()):
                if part["Size"] == size_of(part["PartNumber"]):
                    self._parts[part["PartNumber"]] = part_of(part["PartNumber"], part)
            marker = page.get("NextPartNumberMarker")
            if not page.get("IsTruncated") or more.get("PartNumberMarker") == marker:
                return
            more = {"PartNumberMarker": marker}

    def complete(self) -> str | None:
        """End the upload: the object appears. Its ETag, as far as S3 says it."""
        return persist(self._complete)

    def abort(self) -> None:
        """Give the parts up, as far as S3 lets us."""
        with contextlib.suppress(MMError):
            self._objects.call("abort_multipart_upload", self._key, UploadId=self._id)

    def _complete(self) -> str | None:
        """Where the answer is lost, what stands there tells whether it was done."""
        told = _WITH_CHECKSUM if self._composite else _PLAIN
        parts = [
            {name: part[name] for name in told if name in part}
            for _, part in sorted(self._parts.items())
        ]
        try:
            answer = self._objects.call(
                "complete_multipart_upload",
                self._key,
                attempts=1,
                UploadId=self._id,
                MultipartUpload={"Parts": parts},
            )
        except TransientError as error:
            head = self._objects.head_after(error, self._key)
            if head is None or not self._made(head, etag_of([part["ETag"] for part in parts])):
                raise
            answer = head
        etag: str | None = answer.get("ETag")
        return etag

    def _made(self, head: Mapping[str, Any], etag: str | None) -> bool:
        """Whether it became the object of `head`; with keys of KMS no ETag tells that."""
        if self._mark is not None and bears(head, self._mark):
            return True
        return etag is not None and head["ETag"].strip('"') == etag


class S3Upload(Upload):
    """A large file on its way, by one multipart upload. What a process leaves is taken up again."""

    def __init__(
        self, objects: S3Objects, key: str, multipart: Multipart, size: int, part_size: int
    ) -> None:
        self.size = size
        self.part_size = part_size
        self.kept = frozenset(number - 1 for number in multipart.numbers)
        self.id = multipart.id
        self._objects = objects
        self._key = key
        self._multipart = multipart

    def write_part(self, number: int, data: memoryview) -> None:
        """One PUT.

        `UploadLostError` also where S3 refuses it for an upload that was taken up,
        which may have been begun in another way, such as with another key.
        """
        with self._given_up_if_refused():
            self._multipart.send(number + 1, data)

    def commit(self) -> None:
        """End the upload, and compare the size of what stands there.

        `UploadLostError` where S3 does not end an upload with the parts it had kept.
        """
        with self._given_up_if_refused():
            etag = self._multipart.complete()
        self._objects.check_stored(self._key, self.size, etag)

    def keep(self) -> None:
        """Nothing to do: S3 keeps the parts until the upload is ended or aborted."""

    def discard(self) -> None:
        """Abort the upload."""
        self._multipart.abort()

    @contextlib.contextmanager
    def _given_up_if_refused(self) -> Iterator[None]:
        """Abort an upload that was taken up if S3 refuses it for good, so that none takes it up."""
        try:
            yield
        except StorageError as error:
            if not self.kept:
                raise
            self._multipart.abort()
            raise UploadLostError(f"{error}: its parts were given up") from error


def begin(objects: S3Objects, key: str) -> Multipart:
    """A new upload, with CRC32 where the store also lists the checksums of parts.

    Without that list, an upload with checksums could not be taken up again: its end
    asks for those of all parts.
    """
    mark = secrets.token_hex(16)
    wanted = objects.direct.available() and objects.direct.checksums
    if wanted and objects.lists_checksums is None:
        tried = _begin_listed(objects, key, mark)
        objects.lists_checksums = tried is not None
        if tried is not None:
            return tried
    composite = wanted and objects.lists_checksums is True
    extra = {**objects.marked(mark), **(_CRC32 if composite else {})}
    answer = objects.call("create_multipart_upload", key, **extra)
    return Multipart(objects, key, answer["UploadId"], composite=composite, mark=mark)


def take_up(
    objects: S3Objects, key: str, size_of: Callable[[int], int | None] | None
) -> Multipart | None:
    """The newest upload under `key` that has whole parts, unless `size_of` is None.

    All others are aborted.
    """
    taken = None
    for left in sorted(_left(objects, key), key=lambda left: left.modified, reverse=True):
        multipart = Multipart(objects, key, left.id)
        if taken is None and size_of is not None and _holds_parts(multipart, size_of):
            taken = multipart
        else:
            multipart.abort()
    return taken


def join(objects: S3Objects, key: str, id: str, size_of: Callable[[int], int | None]) -> Multipart:
    """The upload that another process began, with the parts that are there by now."""
    multipart = Multipart(objects, key, id)
    try:
        multipart.load(size_of)
    except NotFoundError as error:
        raise UploadLostError(f"{objects.name(key)}: the upload is gone") from error
    return multipart


def unfinished(objects: S3Objects, prefix: str) -> Iterator[UnfinishedUpload]:
    """The open uploads whose keys begin with `prefix`, page by page."""
    root = f"s3://{objects.bucket}/{objects.base}".rstrip("/")
    start = objects.base + prefix
    more: dict[str, Any] = {}
    while True:
        page = objects.api.ask(
            "list_multipart_uploads", root, Prefix=start, MaxUploads=_PAGE, **more
        )
        for found in page.get("Uploads", ()):
            if found["Key"].startswith(start):
                yield UnfinishedUpload(
                    key=found["Key"][len(objects.base) :],
                    id=found["UploadId"],
                    modified=_utc(found["Initiated"]),
                )
        marks = {
            "KeyMarker": page.get("NextKeyMarker"),
            "UploadIdMarker": page.get("NextUploadIdMarker"),
        }
        marks = {name: mark for name, mark in marks.items() if mark}
        if not page.get("IsTruncated") or not marks or marks == more:
            return
        more = marks


def copy_in_parts(
    objects: S3Objects, source: Mapping[str, str], key: str, size: int, part: int
) -> str | None:
    """A large object copied on the server's side, several parts at once; the copy's ETag."""
    multipart = Multipart(
        objects,
        key,
        objects.call("create_multipart_upload", key, **objects.extra)["UploadId"],
    )
    with aborted_on_error(multipart):
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mm-s3-copy") as pool:
            done = [
                pool.submit(multipart.copy, number, source, start, min(start + part, size))
                for number, start in enumerate(range(0, size, part), start=1)
            ]
            try:
                for each in done:
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return multipart.complete()


@contextlib.contextmanager
def aborted_on_error(multipart: Multipart) -> Iterator[None]:
    """Abort the upload if the block raises; the block's error is the one to tell."""
    try:
        yield
    except BaseException:
        multipart.abort()
        raise


def _begin_listed(objects: S3Objects, key: str, mark: str) -> Multipart | None:
    """An upload with CRC32; None where the store refuses it or does not list it as such."""
    try:
        answer = objects.call("create_multipart_upload", key, **{**objects.marked(mark), **_CRC32})
    except StorageError as error:
        _log.debug("the store takes no CRC32", extra={"reason": str(error)})
        return None
    multipart = Multipart(objects, key, answer["UploadId"], composite=True, mark=mark)
    try:
        page = objects.call("list_parts", key, UploadId=answer["UploadId"], MaxParts=1)
    except AuthError:  # then nobody takes it up
        return multipart
    except BaseException:
        multipart.abort()
        raise
    if page.get("ChecksumAlgorithm") == _CRC32["ChecksumAlgorithm"]:
        return multipart
    multipart.abort()
    return None


def _holds_parts(multipart: Multipart, size_of: Callable[[int], int | None]) -> bool:
    try:
        multipart.load(size_of)
    except (AuthError, NotFoundError, StorageError, UploadLostError) as error:
        _log.debug("an unfinished upload cannot be used", extra={"reason": str(error)})
        return False
    return bool(multipart.numbers)


def _left(objects: S3Objects, key: str) -> list[UnfinishedUpload]:
    try:
        return [left for left in unfinished(objects, key) if left.key == key]
    except (AuthError, NotFoundError, StorageError) as error:
        _log.debug("unfinished uploads cannot be listed", extra={"reason": str(error)})
        return []


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc)
