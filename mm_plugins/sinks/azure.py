"""The Azure sink: block blobs that appear whole, and creates by If-None-Match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from mm_core import (
    Buffer,
    LazyConfig,
    NotFoundError,
    ResumableSink,
    Sink,
    StoredObject,
    UnfinishedUpload,
    Upload,
    hookimpl,
)
from mm_plugins.sinks import _azure_upload
from mm_plugins.sinks._azure_account import account_of, open_container, place_of
from mm_plugins.sinks._azure_blobs import AzureBlobs, is_file, stored
from mm_plugins.sinks._copying import copied_unless_refused
from mm_plugins.sinks._keys import check_key, check_prefix, check_size
from mm_plugins.sinks._parts import Parts, part_size
from mm_plugins.sinks._patience import read_on

if TYPE_CHECKING:
    from mm_plugins.sinks._azure_upload import BlockUpload

_DELETERS = 16


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer the Azure sink."""
    return [AzureSink]


class AzureSink(ResumableSink):
    """A prefix in a container. Blobs appear whole: by one Put Blob, or one Put Block List.

    Exclusive create is ``If-None-Match: *`` on one Put Blob. Memory for each write is one
    part: the whole of a file of up to 8 MiB, else 8 MiB of it, 32 MiB where the size is
    unknown. Blocks that were staged and not made a blob are seen by nobody.
    """

    type = "azure"
    schemes = ("az", "abfs", "abfss")

    plain_config = True

    if TYPE_CHECKING:
        from mm_plugins.sinks._azure_config import Config
    else:
        Config = LazyConfig("mm_plugins.sinks._azure_config:Config")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._place = place_of(config.root)
        make = partial(open_container, self._place, config.options)
        self._blobs = AzureBlobs(make, self._place)

    @property
    def root(self) -> str:
        """``az://container/prefix``; with the account's host where the settings' root names it."""
        return self._place.root

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """One Put Blob for what fits a part, else blocks, one after the other."""
        check_key(key)
        parts = Parts(chunks, part_size(size))
        part = next(parts)
        if parts.ended:
            check_size(key, parts.count, size)
            self._blobs.send(key, part, overwrite=True)
            return
        stream = _azure_upload.Stream(self._blobs, key)
        try:
            for number in count():
                stream.append(number, part)
                part = bytearray()  # let it go before the next is filled
                if parts.ended:
                    break
                part = next(parts)
            check_size(key, parts.count, size)
            stream.commit(parts.count)
        except BaseException:
            stream.discard()
            raise

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        """Blocks; those that were left of the same content are taken up again."""
        check_key(key)
        whole = part_size(size)
        if size <= whole:
            return None
        upload: BlockUpload = _azure_upload.begin(
            self._blobs, key, size=size, part_size=whole, identity=identity
        )
        return upload

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """The uploads of keys under which no blob stands yet, and that nobody has given up."""
        return _azure_upload.unfinished(self._blobs, check_prefix(prefix))

    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        """Give the upload up; Azure drops its blocks within a week."""
        check_key(upload.key)
        return _azure_upload.discard(self._blobs, upload)

    def create(self, key: str, data: bytes) -> None:
        """One Put Blob with ``If-None-Match: *``, sent once: a repetition could meet itself."""
        self._blobs.send(key, data, overwrite=False, attempts=1)

    def put(self, key: str, data: bytes) -> None:
        """One Put Blob."""
        self._blobs.send(key, data, overwrite=True)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """GETs of 8 MiB, all of the same state of the blob."""
        check_key(key)
        etags: list[str] = []
        if end is not None and start >= end and self._blobs.properties(key) is None:
            raise NotFoundError(f"{self.url(key)} is not there")
        return read_on(lambda position: self._blobs.blocks(key, position, end, etags), start)

    def stat(self, key: str) -> StoredObject | None:
        """One request for the blob's properties."""
        found = self._blobs.properties(key)
        return None if found is None else stored(key, found)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Pages of 5,000, always asked anew, and put in order: accounts have their own."""
        found = [
            stored(self._blobs.key_of(blob), blob)
            for blob in self._blobs.listed(check_prefix(prefix), "metadata", "copy")
            if is_file(blob)
        ]
        found = [blob for blob in found if blob.key and not blob.key.endswith("/")]
        yield from sorted(found, key=lambda blob: blob.key)

    def copy(self, source_key: str, key: str) -> None:
        """On the server's side."""
        self._copy(self, source_key, key)

    def copies_from(self, other: Sink) -> bool:
        """Whether both are in one account, reached by the same credentials."""
        if not isinstance(other, AzureSink):
            return False
        ours, theirs = self.config.options, other.config.options
        same = account_of(self._place, ours) == account_of(other._place, theirs)  # noqa: SLF001  # of the same class
        return bool(same and ours == theirs)

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """On the server's side, also from another container; False where Azure refuses that."""
        if not isinstance(other, AzureSink) or not self.copies_from(other):
            return False
        copy = partial(self._copy, other, source_key, key)
        return copied_unless_refused(copy, source=other, target=self)

    def delete(self, keys: Iterable[str]) -> None:
        """One request for each, several at a time."""
        names = [check_key(key) for key in keys]
        with ThreadPoolExecutor(min(len(names), _DELETERS) or 1) as pool:
            list(pool.map(self._blobs.remove, names))

    def url(self, key: str) -> str:
        """The root and the key."""
        return self._blobs.name(key)

    def close(self) -> None:
        """Let the connections go."""
        self._blobs.close()

    def _copy(self, other: AzureSink, source_key: str, key: str) -> None:
        if other.stat(source_key) is None:
            raise NotFoundError(f"{other.url(source_key)} is not there")
        if other.url(source_key) != self.url(key):
            self._blobs.copy(other._blobs, source_key, key)
