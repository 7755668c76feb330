"""The hfcache sink: a cache of the Hugging Face Hub, out of which its loaders work offline."""

from __future__ import annotations

import dataclasses
import heapq
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from mm_core import (
    Buffer,
    LazyConfig,
    NamingSink,
    NotFoundError,
    ResumableSink,
    Sink,
    StoredObject,
    UnfinishedUpload,
    Upload,
    hookimpl,
)
from mm_plugins.sinks import _hfcache_blobs as blobs
from mm_plugins.sinks import _hfcache_refs as refs
from mm_plugins.sinks import _staging
from mm_plugins.sinks._hfcache_layout import (
    Snapshot,
    is_hubs,
    key_of,
    place_of,
    repository_of,
    snapshot_of,
    snapshots_in,
)
from mm_plugins.sinks._keys import check_key, check_prefix
from mm_plugins.sinks.local import LocalSink

_SCHEME = "hfcache://"


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer caches of the Hub."""
    return [HfCacheSink]


class HfCacheSink(ResumableSink, NamingSink):
    """A folder as `huggingface_hub` keeps it: versions that are commits are its snapshots.

    The files are plain ones in ``snapshots/<commit>``, where that client keeps links; large
    ones whose hash the source states have a second name in ``blobs``, so that they are not
    fetched again for another revision. What the client itself has written is no object of
    this sink, and is left alone: a snapshot is ours where our mark says so.
    """

    type = "hfcache"
    schemes = ("hfcache",)

    plain_config = True

    if TYPE_CHECKING:
        from mm_plugins.sinks._hfcache_config import Config
    else:
        Config = LazyConfig("mm_plugins.sinks._hfcache_config:Config")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        root = (config.root or "").removeprefix(_SCHEME) or _hub_cache()
        self._disk = LocalSink(LocalSink.Config(root=root, fsync=config.fsync))

    @property
    def root(self) -> str:
        """The absolute path of the folder, without symbolic links."""
        return self._disk.root

    @property
    def case_blind(self) -> bool:
        """Whether this disk takes two names that differ only by case for one."""
        return self._disk.case_blind

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """As a local sink, in the snapshot's folder."""
        with self.marked(key) as place:
            self._disk.write(place, chunks, size=size)

    def create(self, key: str, data: bytes) -> None:
        """As a local sink."""
        with self.marked(key) as place:
            self._disk.create(place, data)

    def put(self, key: str, data: bytes) -> None:
        """As a local sink."""
        with self.marked(key) as place:
            self._disk.put(place, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """As a local sink."""
        return self._disk.read(self._ours(key), start, end)

    def stat(self, key: str) -> StoredObject | None:
        """As a local sink; None for what the Hub's client has put there."""
        try:
            found = self._disk.stat(self._ours(key))
        except NotFoundError:
            return None
        return None if found is None else dataclasses.replace(found, key=key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Walk the snapshots that are ours, and what is in no snapshot."""
        check_prefix(prefix)
        inside = (_renamed(self._disk.list(at), found) for at, found in self._snapshots(prefix))
        listings = chain.from_iterable(inside), self._outside(prefix)
        return heapq.merge(*listings, key=lambda stored: stored.key)

    def copy(self, source_key: str, key: str) -> None:
        """As a local sink: by a second name where the disk can."""
        source = self._ours(source_key)
        if self._disk.stat(source) is None:
            raise NotFoundError(f"{self.url(source_key)} is not there")
        with self.marked(key) as place:
            self._disk.copy(source, place)

    def copies_from(self, other: Sink) -> bool:
        """Whether both are on one disk."""
        return self._disk.copies_from(_disk_of(other))

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """By a second name for the same bytes, where the disk can."""
        if not self.copies_from(other):
            return False
        source = other._ours(source_key) if isinstance(other, HfCacheSink) else source_key  # noqa: SLF001  # of the same class
        with self.marked(key) as place:
            return self._disk.copy_from(_disk_of(other), source, place)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the files, the blobs that only they were, and the marks of empty snapshots."""
        places = []
        used: dict[str, set[tuple[int, int]]] = {}
        touched: dict[Snapshot, str] = {}
        for key in keys:
            try:
                places.append(place := self._ours(key))
            except NotFoundError:
                continue
            if (snapshot := snapshot_of(key)) is not None:
                touched[snapshot] = key
                if (inode := blobs.inode_of(self._path(place))) is not None:
                    used.setdefault(snapshot.repository, set()).add(inode)
        self._disk.delete(places)
        for repository, inodes in used.items():
            blobs.release(self.root, repository, inodes)
        for key in touched.values():
            self.tidy(key)

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        """As a local sink; where `identity` is a hash, the file becomes a blob of that name."""
        with self.marked(key) as place:
            upload = self._disk.begin_upload(place, size=size, identity=identity)
        if upload is None or snapshot_of(key) is None:
            return upload
        return _SharedUpload(self, upload, key, identity)

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """As a local sink."""
        check_prefix(prefix)
        for place, snapshot in self._snapshots(prefix):
            for left in self._disk.unfinished(place):
                yield dataclasses.replace(left, key=key_of(left.key, snapshot))
        if _is_outside(prefix):
            for left in self._disk.unfinished(prefix):
                if not is_hubs(left.key.partition("/")[0]):
                    yield left

    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        """As a local sink."""
        gone = self._disk.discard_unfinished(
            dataclasses.replace(upload, key=self._place(upload.key))
        )
        self.tidy(upload.key)
        return gone

    def show_names(self, model_id: str, names: Mapping[str, str]) -> None:
        """Write ``refs``, out of which ``from_pretrained`` finds the commit of a ``revision``."""
        if repository_of(model_id) is not None:
            refs.write(self._disk, model_id, names)

    def free_bytes(self) -> int | None:
        """As a local sink."""
        return self._disk.free_bytes()

    def close(self) -> None:
        """As a local sink."""
        self._disk.close()

    def url(self, key: str) -> str:
        """The absolute path."""
        return self._path(self._place(key))

    # -- within ----------------------------------------------------------------------

    def _place(self, key: str) -> str:
        return place_of(check_key(key))

    def _path(self, place: str) -> str:
        return os.path.join(self.root, *place.split("/"))

    def _ours(self, key: str) -> str:
        """The place of `key`; `NotFoundError` in a snapshot that is not ours."""
        place, snapshot = self._place(key), snapshot_of(key)
        if snapshot is not None and self._disk.stat(snapshot.mark) is None:
            raise NotFoundError(f"{self._path(place)} is not there, or not Model Manager's")
        return place

    @contextmanager
    def marked(self, key: str) -> Iterator[str]:
        """The place of `key`, in a snapshot that is ours from before its first file to its last."""
        place, snapshot = self._place(key), snapshot_of(key)
        if snapshot is None:
            yield place
            return
        self._mark(snapshot)
        replaced = blobs.inode_of(self._path(place))
        try:
            yield place
        except BaseException:
            self.tidy(key)
            raise
        self._mark(snapshot)  # a deletion of all other files may have taken it away
        if replaced is not None and blobs.inode_of(self._path(place)) != replaced:
            blobs.release(self.root, snapshot.repository, {replaced})

    def share(self, key: str, name: str) -> None:
        """Let the file of `key` be the blob `name` of its model, too, if that is a hash."""
        snapshot = snapshot_of(key)
        if snapshot is not None and name:
            blobs.share(self.root, snapshot.repository, self._path(self._place(key)), name)

    def tidy(self, key: str) -> None:
        """Take the mark off the snapshot of `key`, if nothing of ours is there any more."""
        snapshot = snapshot_of(key)
        if snapshot is None:
            return
        below = f"{snapshot.folder}/"
        left = chain(self._disk.list(below), self._disk.unfinished(below))
        if next(left, None) is None:
            self._disk.delete([snapshot.mark])

    def _mark(self, snapshot: Snapshot) -> None:
        if self._disk.stat(snapshot.mark) is None:
            self._disk.put(snapshot.mark, b"")

    def _snapshots(self, prefix: str) -> Iterator[tuple[str, Snapshot]]:
        """What to list of each snapshot of ours that can hold keys with `prefix`."""
        named = snapshot_of(prefix) if "/" in prefix else None
        known = snapshots_in(self.root) if named is None else [named]
        for snapshot in known:
            own = f"{snapshot.prefix}/"
            if own.startswith(prefix):
                place = f"{snapshot.folder}/"
            elif prefix.startswith(own):
                place = place_of(prefix)
            else:
                continue
            if named is None or self._disk.stat(snapshot.mark) is not None:
                yield place, snapshot

    def _outside(self, prefix: str) -> Iterator[StoredObject]:
        """What is in no snapshot, and none of the Hub's."""
        if not _is_outside(prefix):
            return
        if "/" in prefix:
            yield from self._disk.list(prefix)
            return
        for name in sorted(filter(lambda name: name.startswith(prefix), self._tops())):
            if name.endswith("/"):
                yield from self._disk.list(name)
            elif (found := self._disk.stat(name)) is not None:
                yield found

    def _tops(self) -> Iterator[str]:
        """What stands in the root and is not the Hub's; the names of folders end in a slash."""
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if not is_hubs(entry.name) and (
                        is_folder or not _staging.is_staged(entry.name)
                    ):
                        yield f"{entry.name}/" if is_folder else entry.name
        except (FileNotFoundError, NotADirectoryError):
            return


class _SharedUpload(Upload):
    """A large file on its way into a snapshot. Once it stands there, it is a blob as well."""

    def __init__(self, sink: HfCacheSink, upload: Upload, key: str, identity: str | None) -> None:
        self.size, self.part_size = upload.size, upload.part_size
        self.kept, self.readable = upload.kept, upload.readable
        self._sink = sink
        self._upload = upload
        self._key = key
        self._name = (identity or "").rpartition(":")[2]

    def write_part(self, number: int, data: memoryview) -> None:
        self._upload.write_part(number, data)

    def read_part(self, number: int, buffer: memoryview) -> None:
        self._upload.read_part(number, buffer)

    def commit(self) -> None:
        with self._sink.marked(self._key):
            self._upload.commit()
        self._sink.share(self._key, self._name)

    def keep(self) -> None:
        self._upload.keep()
        self._sink.tidy(self._key)

    def discard(self) -> None:
        self._upload.discard()
        self._sink.tidy(self._key)


def _renamed(found: Iterable[StoredObject], snapshot: Snapshot) -> Iterator[StoredObject]:
    for stored in found:
        yield dataclasses.replace(stored, key=key_of(stored.key, snapshot))


def _is_outside(prefix: str) -> bool:
    """Whether keys with `prefix` can stand in no snapshot, and be none of the Hub's."""
    snapshot = snapshot_of(prefix)
    if snapshot is not None and prefix.startswith(f"{snapshot.prefix}/"):
        return False
    first, slash, _ = prefix.partition("/")
    return not (slash and is_hubs(first))


def _disk_of(sink: Sink) -> Sink:
    return sink._disk if isinstance(sink, HfCacheSink) else sink  # noqa: SLF001  # of this module


def _hub_cache() -> str:
    """Where the Hub's client keeps its cache on this machine, by the variables that it reads."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return os.path.expandvars(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return os.path.join(os.path.expandvars(home), "hub")
