"""A plugin with a sink that takes everything: of large files it keeps the size alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone

from mm_core import (
    AlreadyExistsError,
    NotFoundError,
    ResumableSink,
    Sink,
    StoredObject,
    UnfinishedUpload,
    Upload,
    hookimpl,
)

PART = 8 << 20


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    return [DiscardSink]


class Discarded(Upload):
    """An upload whose parts go nowhere."""

    part_size = PART

    def __init__(self, sink: DiscardSink, key: str, size: int) -> None:
        self.size = size
        self._sink = sink
        self._key = key

    def write_part(self, number: int, data: memoryview) -> None:
        pass

    def commit(self) -> None:
        self._sink.note(self._key, b"", self.size)

    def keep(self) -> None:
        pass

    def discard(self) -> None:
        pass


class DiscardSink(ResumableSink):
    """In this process alone: the registry's objects whole, and the sizes of all others."""

    type = "discard"
    schemes = ("discard",)

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, StoredObject]] = {}

    @property
    def root(self) -> str:
        return "discard://all"

    def note(self, key: str, data: bytes, size: int, *, only_new: bool = False) -> None:
        now = datetime.now(timezone.utc)
        with self._lock:
            if only_new and key in self._objects:
                raise AlreadyExistsError(f"{key} exists")
            self._objects[key] = (data, StoredObject(key=key, size=size, modified=now))

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        return Discarded(self, key, size) if size > PART else None

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        return iter(())

    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        return True

    def write(self, key: str, chunks: Iterable[bytes], *, size: int | None) -> None:
        self.note(key, b"", sum(len(chunk) for chunk in chunks))

    def create(self, key: str, data: bytes) -> None:
        self.note(key, bytes(data), len(data), only_new=True)

    def put(self, key: str, data: bytes) -> None:
        self.note(key, bytes(data), len(data))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if key not in self._objects:
            raise NotFoundError(f"{key} is not there")
        yield self._objects[key][0][start:end]

    def stat(self, key: str) -> StoredObject | None:
        found = self._objects.get(key)
        return found[1] if found else None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for key in sorted(self._objects):
            if key.startswith(prefix):
                yield self._objects[key][1]

    def copy(self, source_key: str, key: str) -> None:
        data, stored = self._objects[source_key]
        self.note(key, data, stored.size)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._objects.pop(key, None)

    def url(self, key: str) -> str:
        return f"{self.root}/{key}"
