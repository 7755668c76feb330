"""The memory sink: for tests and trials. The data live as long as the process."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import ClassVar

from pydantic import Field

from mm_core import (
    AlreadyExistsError,
    Buffer,
    NotFoundError,
    PluginConfig,
    ResumableSink,
    Sink,
    StoredObject,
    UnfinishedUpload,
    Upload,
    UploadLostError,
    hookimpl,
)
from mm_plugins.sinks._keys import check_key, check_prefix, check_size

_BUFFER = 1 << 20


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer the memory sink."""
    return [MemorySink]


class _Store:
    """The objects of one root, and the lock that makes `create` exclusive."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.kept: dict[str, _Kept] = {}


@dataclasses.dataclass
class _Kept:
    """The parts of an unfinished upload of a file of `size` bytes."""

    size: int
    identity: str | None
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    parts: dict[int, bytes] = dataclasses.field(default_factory=dict)
    modified: datetime = dataclasses.field(default_factory=lambda: datetime.now(timezone.utc))


class MemoryUpload(Upload):
    """Parts in the store, under their file's key.

    Uploads of one key with an equal identity share them; any other takes their place.
    """

    part_size = 4 << 20
    readable = True

    def __init__(self, store: _Store, key: str, kept: _Kept, *, joined: bool = False) -> None:
        self.size = kept.size
        self.id = kept.id
        self._joined = joined
        self.kept = frozenset(kept.parts)
        self._store, self._key, self._parts = store, key, kept.parts

    def write_part(self, number: int, data: memoryview) -> None:
        """Copy the bytes."""
        part = bytes(data)
        check_size(self._key, len(part), min(self.part_size, self.size - number * self.part_size))
        with self._store.lock:
            self._own().modified = datetime.now(timezone.utc)
            self._parts[number] = part

    def read_part(self, number: int, buffer: memoryview) -> None:
        """Copy the bytes back."""
        part = self._parts[number]
        buffer[: len(part)] = part

    def commit(self) -> None:
        """Join the parts and store them under the lock."""
        data = b"".join(self._parts[number] for number in sorted(self._parts))
        check_size(self._key, len(data), self.size)
        with self._store.lock:
            self._own()
            self._store.objects[self._key] = (data, datetime.now(timezone.utc))
            del self._store.kept[self._key]

    def keep(self) -> None:
        """Nothing has to be done, and nothing is kept where nothing was stored by anybody."""
        if not (self._parts or self._joined):
            self.discard()

    def discard(self) -> None:
        """Forget the parts."""
        with self._store.lock, suppress(UploadLostError):
            self._own()
            del self._store.kept[self._key]

    def _own(self) -> _Kept:
        kept = self._store.kept.get(self._key)
        if kept is None or kept.parts is not self._parts:
            raise UploadLostError(f"the unfinished parts of {self._key!r} were removed")
        return kept


class MemorySink(ResumableSink):
    """Objects in this process's memory. Sinks with the same root share them."""

    shares_uploads = True
    type = "memory"
    schemes = ("memory",)

    class Config(PluginConfig):
        """The settings of a memory backend."""

        root: str = Field("memory://", description="A name for the store: memory://NAME")

    # Sharing by name is this sink's whole point: a second instance is a second client.
    _stores: ClassVar[dict[str, _Store]] = {}
    _stores_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._root = "memory://" + config.root.partition("://")[2].strip("/")
        with self._stores_lock:
            self._store = self._stores.setdefault(self._root, _Store())

    @property
    def root(self) -> str:
        """``memory://NAME``."""
        return self._root

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """Gather the whole object and then store it."""
        check_key(key)
        data = bytearray()
        for chunk in chunks:
            data += chunk
        check_size(key, len(data), size)
        self.put(key, bytes(data))

    def create(self, key: str, data: bytes) -> None:
        """Store under the lock, unless the key is taken."""
        check_key(key)
        with self._store.lock:
            if key in self._store.objects:
                raise AlreadyExistsError(f"{self.url(key)} exists")
            self._store.objects[key] = (bytes(data), datetime.now(timezone.utc))

    def put(self, key: str, data: bytes) -> None:
        """Store, whatever was there."""
        check_key(key)
        with self._store.lock:
            self._store.objects[key] = (bytes(data), datetime.now(timezone.utc))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """Yield the bytes that stood there when the reading began."""
        data, _ = self._get(key)
        stop = len(data) if end is None else min(end, len(data))
        for position in range(start, stop, _BUFFER):
            yield data[position : min(position + _BUFFER, stop)]

    def stat(self, key: str) -> StoredObject | None:
        """The object's size and time."""
        try:
            data, modified = self._get(key)
        except NotFoundError:
            return None
        return StoredObject(key=key, size=len(data), modified=modified)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects that there are at the first step."""
        check_prefix(prefix)
        with self._store.lock:
            found = [(k, *o) for k, o in self._store.objects.items() if k.startswith(prefix)]
        for key, data, modified in sorted(found):
            yield StoredObject(key=key, size=len(data), modified=modified)

    def copy(self, source_key: str, key: str) -> None:
        """Store the same bytes under another key."""
        data, _ = self._get(source_key)
        self.put(key, data)

    def copies_from(self, other: Sink) -> bool:
        """Whatever is in this process's memory."""
        return isinstance(other, MemorySink)

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """Store the same bytes in this store, too."""
        if not isinstance(other, MemorySink):
            return False
        data, _ = other._get(source_key)  # noqa: SLF001  # of the same class
        self.put(key, data)
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Forget the objects."""
        for key in keys:
            check_key(key)
            with self._store.lock:
                self._store.objects.pop(key, None)

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        """Take up the parts of an equal upload, or begin with none."""
        check_key(key)
        if size <= MemoryUpload.part_size:
            return None
        with self._store.lock:
            kept = self._store.kept.get(key)
            if kept is None or identity is None or (kept.size, kept.identity) != (size, identity):
                kept = self._store.kept[key] = _Kept(size, identity)
            return MemoryUpload(self._store, key, kept)

    def join_upload(self, key: str, *, size: int, id: str) -> Upload:
        """The upload `id`, as long as it is the one under `key`."""
        check_key(key)
        with self._store.lock:
            kept = self._store.kept.get(key)
            if kept is None or (kept.id, kept.size) != (id, size):
                raise UploadLostError(f"the unfinished parts of {key!r} were removed")
            return MemoryUpload(self._store, key, kept, joined=True)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """The uploads that there are at the first step."""
        check_prefix(prefix)
        with self._store.lock:
            found = [
                UnfinishedUpload(
                    key=key, id=kept.id, modified=kept.modified,
                    size=sum(map(len, kept.parts.values())),
                )
                for key, kept in self._store.kept.items() if key.startswith(prefix)
            ]  # fmt: skip
        yield from found

    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        """Forget the parts, if they are still those."""
        with self._store.lock:
            kept = self._store.kept.get(upload.key)
            if kept is not None and kept.id == upload.id:
                del self._store.kept[upload.key]
        return True

    def url(self, key: str) -> str:
        """``memory://NAME/KEY``; nobody else can open it."""
        return f"{self._root}/{check_key(key)}" if self._root[-1] != "/" else self._root + key

    def _get(self, key: str) -> tuple[bytes, datetime]:
        check_key(key)
        with self._store.lock:
            found = self._store.objects.get(key)
        if found is None:
            raise NotFoundError(f"{self.url(key)} does not exist")
        return found
