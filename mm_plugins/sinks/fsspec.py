"""Any store of fsspec's as a sink, where its create is exclusive."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from mm_core import (
    AlreadyExistsError,
    Buffer,
    ConfigError,
    IntegrityError,
    InvalidNameError,
    NotFoundError,
    PluginConfig,
    Sink,
    StorageError,
    StoredObject,
    TransientError,
    hookimpl,
    parse_rfc3339,
    redact_url,
)
from mm_plugins._fsspec import make_file_system, protocol_of, speaks, translated
from mm_plugins.sinks._keys import check_key, check_prefix, check_size

_BLOCK = 8 << 20

_EXCLUSIVE = {
    "s3": "If-None-Match on one PUT",
    "s3a": "If-None-Match on one PUT",
    "gs": "ifGenerationMatch=0 on one upload",
    "gcs": "ifGenerationMatch=0 on one upload",
    "abfs": "If-None-Match on one PUT",
    "abfss": "If-None-Match on one PUT",
    "az": "If-None-Match on one PUT",
}
"""Where ``pipe_file(mode="create")`` is the store's own condition; others look, then write."""


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer fsspec's stores."""
    return [FsspecSink]


class FsspecSink(Sink):
    """A prefix in a store that fsspec knows.

    A file is written under a name of its own and then moved, so that it appears
    whole; how atomic that move is, is the store's affair. `create` is refused
    with `StorageError` where fsspec only looks before it writes: no registry can
    live there.
    """

    type = "fsspec"

    class Config(PluginConfig):
        """The settings of a store."""

        root: str = Field(description="protocol://place/prefix")
        options: dict[str, Any] = Field(
            default_factory=dict, repr=False, description="Passed on to fsspec"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._protocol = protocol_of(config.root)
        if not self._protocol:
            raise ConfigError(
                f"root {redact_url(config.root)!r} has no protocol",
                hint="write protocol://place/prefix, or use type: local for a folder",
            )
        self._lock = threading.Lock()
        self._made: Any = None

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer what fsspec has a protocol for."""
        return speaks(url)

    @property
    def root(self) -> str:
        """The URL without credentials and without a slash at its end."""
        parts = urlsplit(self.config.root)
        host = parts.netloc.rpartition("@")[2] if ":" in parts.netloc else parts.netloc
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """Write under a name of its own, then move: a failure leaves what stood before."""
        target = self._path(key)
        part = f"{target.rpartition('/')[0]}/.mm-part-{secrets.token_hex(8)}"
        try:
            count = self._write_part(part, chunks)
            check_size(key, count, size)
            self._check_stored(key, part, count)
            self._ask(lambda fs: fs.mv(part, target))
        except BaseException:
            self._remove(part)
            raise

    def _check_stored(self, key: str, path: str, count: int) -> None:
        """What the store says it holds: some of fsspec's uploads are cut short without a word."""
        found = self._info(path)
        if found is None or found["size"] != count:
            raise IntegrityError(
                f"{key!r}: {self.root} did not keep the {count} bytes it was given"
            )

    def create(self, key: str, data: bytes) -> None:
        """By the store's own condition; `StorageError` where it has none."""
        if self._protocol not in _EXCLUSIVE:
            raise StorageError(
                f"{self._protocol}:// has no exclusive create in fsspec, so that a registry "
                f"cannot live at {self.root}",
                hint=f"use a backend of type local, s3 or gcs, or: {', '.join(_EXCLUSIVE)}",
            )
        path = self._path(key)
        try:
            self._ask(lambda fs: fs.pipe_file(path, data, mode="create"))
        except TransientError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise AlreadyExistsError(f"{key} exists at {self.root}") from error
            raise

    def put(self, key: str, data: bytes) -> None:
        """One request where the store replaces in one; else written beside it and moved."""
        path = self._path(key)
        if self._protocol in _EXCLUSIVE:
            self._ask(lambda fs: fs.pipe_file(path, data))
        else:
            self.write(key, (data,), size=len(data))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """A small object in one request, so that it is of one piece; else blocks of 8 MiB."""
        path = self._path(key)
        info = self._info(path)
        if info is None:
            raise NotFoundError(f"{self.url(key)} is not there")
        if start == 0 and end is None and info["size"] <= _BLOCK:
            yield self._ask(lambda fs: fs.cat_file(path))
            return
        stop = info["size"] if end is None else min(end, info["size"])
        for position in range(start, stop, _BLOCK):
            yield self._ask(partial(_block, path, position, min(position + _BLOCK, stop)))

    def stat(self, key: str) -> StoredObject | None:
        """Size and time as the store says them."""
        info = self._info(self._path(key))
        return None if info is None else self._stored(key, info)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Find below the folder of `prefix`, and keep what begins with it."""
        check_prefix(prefix)
        base = self._base
        folder = f"{base}/{prefix.rpartition('/')[0]}".rstrip("/")
        try:
            found = self._ask(lambda fs: fs.find(folder, detail=True, withdirs=False))
        except NotFoundError:
            return
        keys = {name[len(base) :].lstrip("/"): info for name, info in found.items()}
        for key in sorted(keys):
            if key.startswith(prefix) and "/.mm-part-" not in f"/{key}":
                yield self._stored(key, keys[key])

    def copy(self, source_key: str, key: str) -> None:
        """As the store copies; else by reading and writing."""
        if self.stat(source_key) is None:
            raise NotFoundError(f"{source_key} is not at {self.root}")
        self.write(key, self.read(source_key), size=None)

    def delete(self, keys: Iterable[str]) -> None:
        """One after the other."""
        for key in keys:
            self._remove(self._path(key))

    def url(self, key: str) -> str:
        """The root and the key."""
        return f"{self.root}/{check_key(key)}"

    def _write_part(self, path: str, chunks: Iterable[Buffer]) -> int:
        count = 0
        self._ask(lambda fs: _prepare(fs, path))
        stream = self._ask(lambda fs: fs.open(path, "wb"))
        try:
            for chunk in chunks:
                with translated(self.root):
                    stream.write(chunk)
                count += len(chunk)
        finally:
            # Left open by an error, fsspec's file would be committed later all the same.
            with translated(self.root):
                stream.close()
        return count

    def _info(self, path: str) -> dict[str, Any] | None:
        """What the store says of a file; None where there is none, or something else."""
        try:
            info: dict[str, Any] = self._ask(lambda fs: fs.info(path))
        except NotFoundError:
            return None
        except StorageError as error:
            if isinstance(error.__cause__, NotADirectoryError):
                return None
            raise
        return info if info["type"] == "file" else None

    def _remove(self, path: str) -> None:
        try:
            self._ask(lambda fs: fs.rm_file(path))
        except NotFoundError:
            return
        except StorageError as error:
            if not isinstance(error.__cause__, IsADirectoryError | NotADirectoryError):
                raise

    def _stored(self, key: str, info: dict[str, Any]) -> StoredObject:
        moment = info.get("LastModified") or info.get("last_modified") or info.get("mtime")
        moment = moment or info.get("updated") or info.get("created") or 0
        return StoredObject(key=key, size=int(info["size"]), modified=_as_time(moment))

    def _path(self, key: str) -> str:
        if "?versionId=" in key:  # s3fs cuts the key there
            raise InvalidNameError(f"key {key!r} would be read as the version of another")
        return f"{self._base}/{check_key(key)}"

    @property
    def _base(self) -> str:
        base: str = self._fs._strip_protocol(self.config.root)  # noqa: SLF001  # fsspec's documented way to a path
        return base.rstrip("/")

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        fs = self._fs
        with translated(self.root):
            return question(fs)

    @property
    def _fs(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = make_file_system(self.config.root, self.config.options)
            return self._made


def _prepare(fs: Any, path: str) -> None:
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)


def _block(path: str, start: int, end: int, fs: Any) -> bytes:
    block: bytes = fs.cat_file(path, start=start, end=end)
    return block


def _as_time(moment: Any) -> datetime:
    if isinstance(moment, datetime):
        return moment.astimezone(timezone.utc)
    if isinstance(moment, str):
        return parse_rfc3339(moment).astimezone(timezone.utc)
    return datetime.fromtimestamp(float(moment), timezone.utc)
