"""Every fsspec URL: a folder or one file in S3, GCS, or any other store that fsspec knows."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

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
    StorageError,
    TransientError,
    UsageError,
    check_path,
    hookimpl,
    redact_url,
)
from mm_plugins._fsspec import make_file_system, protocol_of, speaks, translated

_BLOCK = 8 << 20
_CONTENT_MARKS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "generation")
_TIME_MARKS = ("LastModified", "last_modified", "mtime", "modified")


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer fsspec's URLs."""
    return [FsspecSource]


class FsspecSource(Source):
    """A prefix, or one object. Its revision is a digest over names, sizes and ETags.

    A store that states no ETag, checksum or generation has no revision: a time
    says that something changed, not what it is. Then the caller must name a
    version. No hash of the bytes is stated; what arrives is recorded.
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
        self._systems: dict[tuple[str, str], Any] = {}

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer what fsspec has a protocol for, except http."""
        return speaks(url)

    def snapshot(self, request: Request) -> Snapshot:
        """List the prefix anew; nothing of the content is read."""
        url = _checked(request.url)
        shown = redact_url(url)
        root, found = self._list(url)
        files = []
        for name, info in sorted(found.items()):
            path = check_path(name[len(root) :].lstrip("/") or name.rpartition("/")[2])
            if request.selects(path):
                files.append(_describe(url, name, path, info))
        revision = _digest(files)
        if request.revision not in (None, revision):
            raise NotFoundError(
                f"{shown} has no revision {request.revision!r}: there is only what it holds now",
                hint="leave --revision out",
            )
        return Snapshot(
            source=shown,
            revision=revision,
            files=tuple(files),
            model_id=root.rpartition("/")[2] or "model",
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """Ranged reads of 8 MiB; `SourceChangedError` if the object is not the listed one.

        Looked at again after the last byte, so that a change in the middle shows.
        """
        system = self._system(file.extra["url"])
        size = _look(system, file) if file.size is None else file.size
        stop = size if end is None else min(end, size)
        if start >= stop:
            return
        if stop - start > _BLOCK:
            _look(system, file)
        while start < stop:
            with translated(file.extra["url"]):
                block = system.cat_file(
                    file.extra["name"], start=start, end=min(start + _BLOCK, stop)
                )
            if not block:
                break
            start += len(block)
            yield block
        _look(system, file)
        if start < stop:
            raise TransientError(f"{file.path} ended {stop - start} bytes too early")

    def splits(self, file: RemoteFile) -> bool:
        """Most stores give more over several connections."""
        return True

    def _list(self, url: str) -> tuple[str, dict[str, Any]]:
        """The path of `url` in its store, and what stands there, by name."""
        with translated(url):
            system = self._system(url)
            root = system._strip_protocol(url).rstrip("/")  # noqa: SLF001  # fsspec's documented way to a path
            listed = system.find(root, detail=True, withdirs=False)
        found = {name: info for name, info in listed.items() if not _is_folder_marker(name, info)}
        if not found:
            raise NotFoundError(
                f"there is nothing at {redact_url(url)}", hint="check the bucket and the prefix"
            )
        return root, found

    def _system(self, url: str) -> Any:
        key = (protocol_of(url), urlsplit(url).netloc)
        with self._lock:
            if key not in self._systems:
                self._systems[key] = make_file_system(url, self.config.options)
            return self._systems[key]


def _checked(url: str) -> str:
    """`url` with its protocol in lower case, without a slash at the end.

    A password is refused: what is in the URL is passed on and written down.
    """
    if urlsplit(url).password:
        raise UsageError(
            f"{redact_url(url)} holds a password",
            hint="put it into `options` of a source of type fsspec in mm.yaml",
        )
    protocol, _, rest = url.rstrip("/").partition("://")
    if "::" in protocol:
        raise UsageError(
            f"{redact_url(url)} is a chain of protocols", hint="give the URL of the store itself"
        )
    return f"{protocol.lower()}://{rest}"


def _look(system: Any, file: RemoteFile) -> int:
    """The size of the object now; `SourceChangedError` if it is not the listed one any more."""
    with translated(file.extra["url"]):
        info = system.info(file.extra["name"])
    size = info.get("size")
    if file.size not in (None, size) or file.etag not in (None, _mark(info)):
        raise SourceChangedError(
            f"{file.path} changed since it was listed", hint="pull again: it is another version"
        )
    if size is None:
        raise StorageError(f"the store does not say how large {file.path} is")
    return int(size)


def _is_folder_marker(name: str, info: Mapping[str, Any]) -> bool:
    """What consoles of object stores leave behind for "a new folder"."""
    return name.endswith("/") and not info.get("size")


def _describe(url: str, name: str, path: str, info: Mapping[str, Any]) -> RemoteFile:
    extra = {"url": url, "name": name}
    if _first(info, _CONTENT_MARKS) is not None:
        extra["content"] = "known"
    return RemoteFile(path=path, size=info.get("size"), etag=_mark(info), extra=extra)


def _mark(info: Mapping[str, Any]) -> str | None:
    """What changes whenever the object does, as far as its store tells.

    Listings and single answers of one store differ in quotes and in fractions of seconds.
    """
    content = _first(info, _CONTENT_MARKS)
    if content is not None:
        return str(content).strip('"')
    moment = _first(info, _TIME_MARKS)
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    return f"time {int(moment)}" if isinstance(moment, (int, float)) else None


def _first(info: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((info[name] for name in names if info.get(name)), None)


def _digest(files: list[RemoteFile]) -> str | None:
    if any("content" not in file.extra for file in files):
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.etag}\n".encode())
    return digest.hexdigest()[:40]
