"""Every fsspec URL: a folder or one file in S3, GCS, or any other store that fsspec knows."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from mm_core import (
    Buffer,
    NotFoundError,
    PluginConfig,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    SourceChangedError,
    UsageError,
    check_path,
    hookimpl,
    redact_url,
)
from mm_plugins._fsspec import make_file_system, protocol_of, speaks, translated

_BLOCK = 8 << 20
_ETAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "generation", "LastModified", "mtime")


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer fsspec's URLs."""
    return [FsspecSource]


class FsspecSource(Source):
    """A prefix, or one object. Its revision is a digest over names, sizes and ETags.

    Stores that state no ETag, no generation and no time have no revision: then
    the caller must name a version. The bytes themselves are not stated to have
    any hash, so that what arrives is recorded, and its size checked.
    """

    type = "fsspec"
    schemes = ("s3", "s3a", "gs", "gcs")

    class Config(PluginConfig):
        """The settings of a store."""

        root: str | None = Field(default=None, description="Where NAME:PATH begins")
        options: dict[str, Any] = Field(
            default_factory=dict, repr=False, description="Passed on to fsspec"
        )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._systems: dict[str, Any] = {}

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer what fsspec has a protocol for, except http."""
        return speaks(url)

    def snapshot(self, request: Request) -> Snapshot:
        """List the prefix anew; nothing of the content is read."""
        url = request.url.rstrip("/")
        if request.revision is not None:
            raise UsageError(f"{redact_url(url)} has no revisions to choose from")
        with translated(url):
            system = self._system(url)
            root = system._strip_protocol(url)  # noqa: SLF001  # fsspec's documented way to a path
            found = system.find(root, detail=True, withdirs=False)
        if not found:
            raise NotFoundError(f"there is nothing at {redact_url(url)}")
        files = []
        for name, info in sorted(found.items()):
            path = name[len(root) :].lstrip("/") or name.rpartition("/")[2]
            if request.selects(check_path(path)):
                files.append(_describe(url, name, path, info))
        return Snapshot(
            source=redact_url(url),
            revision=_digest(files),
            files=tuple(files),
            model_id=root.rstrip("/").rpartition("/")[2] or "model",
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """Ranged reads of 8 MiB; `SourceChangedError` if the object is no longer the listed one."""
        url, name = file.extra["url"], file.extra["name"]
        system = self._system(url)
        self._check_same(system, url, name, file)
        stop = file.size or 0 if end is None else min(end, file.size or 0)
        while start < stop:
            with translated(url):
                block = system.cat_file(name, start=start, end=min(start + _BLOCK, stop))
            if not block:
                raise SourceChangedError(f"{file.path} is shorter than it was listed")
            start += len(block)
            yield block

    def _check_same(self, system: Any, url: str, name: str, file: RemoteFile) -> None:
        with translated(url):
            info = system.info(name)
        if info.get("size") != file.size or _etag(info) != file.etag:
            raise SourceChangedError(
                f"{file.path} changed since it was listed", hint="pull again: it is another version"
            )

    def _system(self, url: str) -> Any:
        protocol = protocol_of(url)
        with self._lock:
            if protocol not in self._systems:
                self._systems[protocol] = make_file_system(url, self.config.options)
            return self._systems[protocol]


def _describe(url: str, name: str, path: str, info: dict[str, Any]) -> RemoteFile:
    return RemoteFile(
        path=path, size=info["size"], etag=_etag(info), extra={"url": url, "name": name}
    )


def _etag(info: dict[str, Any]) -> str | None:
    for field in _ETAGS:
        if info.get(field):
            return str(info[field])
    return None


def _digest(files: list[RemoteFile]) -> str | None:
    if any(file.etag is None for file in files):
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.etag}\n".encode())
    return digest.hexdigest()[:40]
