"""The blobs below one prefix of a container, by single calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

from mm_core import (
    Buffer,
    ConflictError,
    IntegrityError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    StoredObject,
)
from mm_plugins.sinks._azure_account import READ, Place
from mm_plugins.sinks._azure_errors import ChangedError, RangeError, translated
from mm_plugins.sinks._keys import check_key
from mm_plugins.sinks._patience import ATTEMPTS, persist

T = TypeVar("T")

_PAGE = 5000
_COPY_POLL = 0.5


class Block(NamedTuple):
    """A block that is in no blob yet."""

    id: str
    size: int


class AzureBlobs:
    """Keys, calls, and what Azure says of what it holds. `make` builds the container's client."""

    def __init__(self, make: Callable[[], Any], place: Place) -> None:
        self._make = make
        self._place = place
        self._lock = threading.Lock()
        self._made: Any = None

    def name(self, key: str) -> str:
        """The URL of a blob, without secrets."""
        return f"{self._place.root}/{check_key(key)}"

    def ask(self, key: str, question: Callable[[Any], T], *, attempts: int = ATTEMPTS) -> T:
        """Put a question to the client of one blob; again after a fault, unless `attempts` is 1."""
        name = self.name(key)

        def once() -> T:
            with translated(name):
                return question(self.client(key))

        return persist(once, attempts=attempts)

    def client(self, key: str) -> Any:
        """The client of one blob."""
        return self._container.get_blob_client(self._place.base + check_key(key))

    def send(self, key: str, data: Buffer, *, overwrite: bool, attempts: int = ATTEMPTS) -> None:
        """Store a blob by one Put Blob; without `overwrite`, only where there is none."""
        body = bytes(data)

        def put(blob: Any) -> None:
            blob.upload_blob(
                body, length=len(body), overwrite=overwrite, validate_content=self._plain
            )

        self.ask(key, put, attempts=attempts)

    def stage(self, key: str, block: str, data: Buffer, *, attempts: int = 1) -> None:
        """Store a block that nobody sees."""
        body = bytes(data)

        def put(blob: Any) -> None:
            blob.stage_block(block, body, length=len(body), validate_content=self._plain)

        self.ask(key, put, attempts=attempts)

    def commit(self, key: str, blocks: Sequence[str], size: int) -> None:
        """Let the blocks become the blob, and compare its size. Doing it again is safe."""
        from azure.storage.blob import BlobBlock

        listed = [BlobBlock(block_id=block) for block in blocks]
        made = self.ask(key, lambda blob: blob.commit_block_list(listed))
        found = self.properties(key)
        if found is not None and found.size == size:
            return
        if found is not None and found.etag != made["etag"]:
            raise ConflictError(
                f"{self.name(key)} was replaced by somebody else as soon as it was stored",
                hint="what stands there was left alone",
            )
        self.remove(key, etag=made["etag"])
        raise IntegrityError(
            f"{self.name(key)}: Azure did not keep the {size} bytes it was given",
            hint="try once more",
        )

    def staged(self, key: str) -> tuple[datetime, list[Block]]:
        """The blocks that are in no blob yet, and what time it is by Azure's clock."""
        clock: list[datetime] = []

        def look(blob: Any) -> list[Block]:
            hook = _noting_time(clock)
            _, uncommitted = blob.get_block_list("uncommitted", raw_response_hook=hook)
            return [Block(found.id, found.size) for found in uncommitted]

        try:
            blocks = self.ask(key, look)
        except NotFoundError:
            blocks = []
        return (clock[-1] if clock else datetime.now(timezone.utc)), blocks

    def properties(self, key: str) -> Any:
        """What Azure says of a blob; None where there is none, or none that is whole."""
        try:
            found = self.ask(key, lambda blob: blob.get_blob_properties())
        except NotFoundError:
            return None
        return found if is_file(found) else None

    def blocks(self, key: str, start: int, end: int | None, etags: list[str]) -> Iterator[bytes]:
        """The bytes ``[start, end)`` by GETs of 8 MiB, all of one state of the blob.

        The first ETag that comes is put into `etags`, and holds from then on.
        """
        position = start
        while end is None or position < end:
            length = READ if end is None else min(READ, end - position)
            try:
                data, total = self._get(key, position, length, etags)
            except RangeError:
                return
            except ChangedError as error:
                name = self.name(key)
                raise SourceChangedError(f"{name} was replaced while it was read") from error
            if data:
                yield data
            position += len(data)
            if position >= total or not data:
                return

    def listed(self, prefix: str, *include: str) -> Iterator[Any]:
        """What Azure lists of all blobs whose keys begin with `prefix`, page by page."""
        token: str | None = None
        while True:
            found, token = persist(lambda token=token: self._page(prefix, include, token))  # type: ignore[misc]  # bound now
            yield from found
            if not token:
                return

    def key_of(self, found: Any) -> str:
        """The key of what was listed."""
        return str(found.name)[len(self._place.base) :]

    def remove(self, key: str, *, etag: str | None = None) -> None:
        """Delete a blob; with `etag`, only that one. None there is fine."""
        condition = {} if etag is None else _if_unchanged(etag)
        try:
            self.ask(key, lambda blob: blob.delete_blob(delete_snapshots="include", **condition))
        except (NotFoundError, ChangedError):
            return

    def copy(self, source: AzureBlobs, source_key: str, key: str) -> None:
        """Let Azure copy a blob, and wait until it has."""
        url = source.client(source_key).url
        asked = self.ask(key, lambda blob: blob.start_copy_from_url(url))
        status = asked["copy_status"]
        while status == "pending":
            time.sleep(_COPY_POLL)
            status = self.ask(key, lambda blob: blob.get_blob_properties()).copy.status
        if status != "success":
            raise StorageError(f"{self.name(key)}: Azure did not copy it ({status})")

    def close(self) -> None:
        """Let the connections go; the next call opens new ones."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def _get(self, key: str, start: int, length: int, etags: list[str]) -> tuple[bytes, int]:
        condition = _if_unchanged(etags[0]) if etags else {}

        def read(blob: Any) -> tuple[bytes, Any]:
            answer = blob.download_blob(offset=start, length=length, max_concurrency=1, **condition)
            return answer.readall(), answer.properties

        data, found = self.ask(key, read, attempts=1)
        if not is_file(found):
            raise NotFoundError(f"{self.name(key)} is not there")
        if not etags:
            etags.append(found.etag)
        return data, _whole_size(found)

    def _page(
        self, prefix: str, include: Sequence[str], token: str | None
    ) -> tuple[list[Any], str | None]:
        with translated(self._place.root):
            pages = self._container.list_blobs(
                name_starts_with=self._place.base + prefix,
                include=list(include),
                results_per_page=_PAGE,
            ).by_page(continuation_token=token)
            return list(next(pages, ())), pages.continuation_token

    @property
    def _plain(self) -> bool:
        """Whether an md5 goes along: nothing else would tell damage on the way without TLS."""
        return not str(self._container.url).startswith("https:")

    @property
    def _container(self) -> Any:
        with self._lock:
            if self._made is None:
                with translated(self._place.root):
                    self._made = self._make()
            return self._made


def _whole_size(found: Any) -> int:
    """The size of the blob that a part was read of; releases differ in what `size` is."""
    total = str(found.content_range or "").rpartition("/")[2]
    return int(total) if total.isdecimal() else int(found.size)


def is_file(found: Any) -> bool:
    """Whether this is a whole blob: no folder of a hierarchical account, no copy under way."""
    metadata = {name.lower(): value for name, value in (found.metadata or {}).items()}
    status = found.copy.status if found.copy is not None else None
    return metadata.get("hdi_isfolder") != "true" and status in (None, "success")


def stored(key: str, found: Any) -> StoredObject:
    """Size and time of a blob, as Azure tells them."""
    return StoredObject(
        key=key, size=int(found.size or 0), modified=found.last_modified.astimezone(timezone.utc)
    )


def _if_unchanged(etag: str) -> dict[str, Any]:
    from azure.core import MatchConditions

    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _noting_time(clock: list[datetime]) -> Callable[[Any], None]:
    def note(response: Any) -> None:
        told = response.http_response.headers.get("Date")
        if told:
            clock.append(parsedate_to_datetime(told).astimezone(timezone.utc))

    return note
