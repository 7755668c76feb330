"""The local sink: a folder on a disk, also a shared one."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING

from mm_core import (
    AlreadyExistsError,
    Buffer,
    ConfigError,
    InvalidNameError,
    LazyConfig,
    NotFoundError,
    ResumableSink,
    Sink,
    StorageError,
    StoredObject,
    UnfinishedUpload,
    Upload,
    hookimpl,
)
from mm_plugins.sinks import _staging
from mm_plugins.sinks._disk_errors import translate, translated
from mm_plugins.sinks._keys import check_key, check_prefix, check_size

_BUFFER = 1 << 20
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_Names = list[str]  # the class has a method of that name
_Entries = list[tuple[str, os.DirEntry[str]]]


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer the local sink."""
    return [LocalSink]


class LocalSink(ResumableSink):
    """A folder. Files are written beside their target and appear whole, in one system call.

    Only plain files are objects: symbolic links inside the root are neither
    followed nor listed, so that no key leads out of it.
    """

    type = "local"
    schemes = ("file",)

    plain_config = True

    if TYPE_CHECKING:
        from mm_plugins.sinks._local_config import Config
    else:
        Config = LazyConfig("mm_plugins.sinks._local_config:Config")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._root = os.path.realpath(os.path.expanduser(_as_path(config.root)))
        self._durable = config.fsync
        self._swept: set[str] = set()
        self._writing: set[str] = set()

    @classmethod
    def answers(cls, url: str) -> bool:
        """Answer everything that is not a URL."""
        return "://" not in url

    @property
    def root(self) -> str:
        """The absolute path of the folder, without symbolic links."""
        return self._root

    @property
    def case_blind(self) -> bool:
        """Whether this disk takes two names that differ only by case for one; looked up once."""
        return self._case_blind

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """Write beside the target, wait for the disk, and rename."""
        with self._staged(key) as (target, new):
            for chunk in chunks:
                with translated(key):
                    new.append(chunk)
            check_size(key, new.size, size)
            with translated(key):
                new.publish(target, os.replace)

    def create(self, key: str, data: bytes) -> None:
        """Write beside the target, wait for the disk, and link: the one exclusive step there is."""
        with self._staged(key) as (target, new), translated(key):
            new.append(data)
            new.publish(target, _link)

    def put(self, key: str, data: bytes) -> None:
        """Write beside the target and rename."""
        self.write(key, (data,), size=len(data))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """Yield from one open file, which stays the same even if another takes its name."""
        with self._opened(key) as file:
            file.seek(start)
            position = start
            while end is None or position < end:
                with translated(key):
                    data = file.read(_BUFFER if end is None else min(end - position, _BUFFER))
                if not data:
                    return
                position += len(data)
                yield data

    def stat(self, key: str) -> StoredObject | None:
        """The file's size and time; None also for a folder or a link."""
        try:
            with translated(key):
                return _stored(key, os.lstat(self._path(key)))
        except NotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Walk the folders that can hold such keys."""
        check_prefix(prefix)
        path, folder_key = self._folder_of(prefix)
        return self._walk(path, folder_key, prefix)

    def copy(self, source_key: str, key: str) -> None:
        """Make a second name for the same bytes where the disk can, else have the system copy them.

        A second name is safe because no file is ever changed in place.
        """
        if not self._linked(self._file(source_key), key):
            self._copy_bytes(source_key, key)

    def copies_from(self, other: Sink) -> bool:
        """Whether both are on one disk."""
        if not isinstance(other, LocalSink):
            return False
        return _disk_of(self.root) == _disk_of(other.root)

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """Make a second name for the same bytes, where the disk can."""
        if not isinstance(other, LocalSink) or not self.copies_from(other):
            return False
        source = other._file(source_key)  # noqa: SLF001  # of the same class
        if self._durable:
            with translated(source_key):
                _staging.sync_file(source)  # it may be durable, or not, by the settings of `other`
        return self._linked(source, key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the files, and then the folders that are empty."""
        folders = set()
        for key in keys:
            try:
                with translated(key):
                    path = self._path(key)
                    if _staging.is_object(os.lstat(path)):
                        os.unlink(path)
                        folders.add(os.path.dirname(path))
            except NotFoundError:
                continue
        for folder in sorted(folders, reverse=True):
            _staging.remove_empty_folders(folder, self._root)

    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        """Open the part file beside the target. Its journal remembers `identity`."""
        from mm_plugins.sinks import _local_upload

        target = self._path(key)
        if size <= _local_upload.PART_SIZE or not _local_upload.SUPPORTED:
            return None
        folder = os.path.dirname(target)
        with self._tidy(folder), translated(key):
            if os.path.isdir(target):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
            upload = _local_upload.begin(
                target, size=size, identity=identity, durable=self._durable, root=self._root
            )
            self._sweep_once(folder)
            return upload

    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Walk the folders that can hold such keys, for part files and their journals."""
        from mm_plugins.sinks import _local_upload

        for folder, folder_key, names in self._folders(prefix):
            for left in _local_upload.left_in(folder, filter(_staging.is_parts, names)):
                if (folder_key + left.key).startswith(prefix):
                    yield dataclasses.replace(left, key=folder_key + left.key)

    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        """Remove the part file and its journal, unless a living writer has them."""
        from mm_plugins.sinks import _local_upload

        if not _staging.is_parts(upload.id):
            raise InvalidNameError(f"{upload.id!r} is no unfinished upload of {self._root}")
        folder, _ = self._folder_of(upload.key)
        with translated(upload.key):
            gone = _local_upload.discard(os.path.join(folder, upload.id))
        _staging.remove_empty_folders(folder, self._root)
        return gone

    def free_bytes(self) -> int | None:
        """What an ordinary user may still write to the disk that holds the root."""
        from mm_plugins.sinks import _local_upload

        with translated(self._root):
            return _local_upload.free_bytes(self._root)

    def close(self) -> None:
        """Remove what is still being written: its threads may be stuck, and die with the process.

        A write that goes on all the same fails (`TransientError`).
        """
        for path in tuple(self._writing):
            if os.name != "nt":  # an open file cannot be removed there
                _staging.remove(path)
                _staging.remove_empty_folders(os.path.dirname(path), self._root)

    def url(self, key: str) -> str:
        """The absolute path."""
        return os.path.join(self._root, *check_key(key).split("/"))

    def _path(self, key: str) -> str:
        """The path of `key`; refused if a link or a name of ours stands in the way."""
        path = self.url(key)
        if any(_staging.is_staged(segment) for segment in key.split("/")):
            raise InvalidNameError(f"key {key!r} has a part that is reserved for unfinished writes")
        folder = os.path.dirname(path)
        if os.path.realpath(folder) != folder:
            raise InvalidNameError(
                f"key {key!r} runs through a symbolic link inside {self._root}",
                hint="make the real folder the root of a backend of its own",
            )
        return path

    def _file(self, key: str) -> str:
        """The path of `key`, where a plain file stands; `NotFoundError` where not."""
        path = self._path(key)
        with translated(key):
            if not _staging.is_object(os.lstat(path)):
                raise NotFoundError(f"{path} is not a file")
        return path

    def _folder_of(self, prefix: str) -> tuple[str, str]:
        """The folder that holds the keys with this prefix, and what its own keys begin with."""
        folder, slash, _ = prefix.rpartition("/")
        return os.path.dirname(self._path(f"{folder}{slash}any")), folder + slash

    def _opened(self, key: str) -> io.FileIO:
        path = self._file(key)
        with translated(key):
            return open(path, "rb", buffering=0)

    @contextmanager
    def _staged(self, key: str) -> Iterator[tuple[str, _staging.Staged]]:
        target = self._path(key)
        folder = os.path.dirname(target)
        with self._tidy(folder), ExitStack() as stack:
            with translated(key):
                new = stack.enter_context(_staging.staged(target, durable=self._durable))
            self._writing.add(new.path)
            stack.callback(self._writing.discard, new.path)
            self._sweep_once(folder)
            yield target, new

    @contextmanager
    def _tidy(self, folder: str) -> Iterator[None]:
        """Leave no empty folders behind when what is done in `folder` fails."""
        try:
            yield
        except BaseException:
            _staging.remove_empty_folders(folder, self._root)
            raise

    def _sweep_once(self, folder: str) -> None:
        if folder not in self._swept:
            self._swept.add(folder)
            _staging.sweep(folder)

    def _copy_bytes(self, source_key: str, key: str) -> None:
        opened, staged = self._opened(source_key), self._staged(key)
        with opened as file, staged as (target, new), translated(key):
            new.append_file(file.fileno())
            new.publish(target, os.replace)

    def _linked(self, source: str, key: str) -> bool:
        """Whether `key` could be made a second name of the file at `source`."""
        target = self._path(key)
        try:
            with self._tidy(os.path.dirname(target)), translated(key):
                self._link_over(source, target)
        except _NoLinksError:
            return False
        return True

    def _link_over(self, source: str, target: str) -> None:
        def link(path: str) -> None:
            _link(source, path)

        path, _ = _staging.in_folder(os.path.dirname(target), link, durable=self._durable)
        try:
            os.replace(path, target)
        finally:
            _staging.remove(path)  # a rename onto another name of the same file does nothing
        if self._durable:
            _staging.sync_folder(os.path.dirname(target))

    def _walk(self, folder: str, folder_key: str, prefix: str) -> Iterator[StoredObject]:
        for name, entry in self._entries(folder):
            key = folder_key + name
            if name.endswith("/"):
                if _may_hold(key, prefix):
                    yield from self._walk(entry.path, key, prefix)
            elif key.startswith(prefix):
                try:
                    found = _stored(key, entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue
                if found is not None:
                    yield found

    def _folders(self, prefix: str) -> Iterator[tuple[str, str, _Names]]:
        """Each folder that can hold keys with `prefix`: its path, its key, its files' names."""
        check_prefix(prefix)
        top, top_key = self._folder_of(prefix)
        for path, folders, names in os.walk(top, onerror=_raise_unless_gone):
            below = path[len(top) :].replace(os.sep, "/").strip("/")
            key = f"{top_key}{below}/" if below else top_key
            folders[:] = [name for name in folders if _may_hold(f"{key}{name}/", prefix)]
            yield path, key, names

    def _entries(self, folder: str) -> _Entries:
        """What stands in `folder`, in the order of the keys: a folder's name ends in a slash."""
        found: _Entries = []
        try:
            with translated(folder), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found.append((entry.name + "/", entry))
                    elif entry.is_file(follow_symlinks=False) and _is_ours(entry.name):
                        found.append((entry.name, entry))
        except NotFoundError:
            return []
        return sorted(found, key=lambda pair: pair[0])

    @cached_property
    def _case_blind(self) -> bool:
        folder = self._root
        try:
            path = _staging.staged_path(folder)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            try:
                return os.path.exists(os.path.join(folder, os.path.basename(path).upper()))
            finally:
                _staging.remove(path)
        except OSError:  # absent, or not ours to write: look at its own name instead
            return _name_is_case_blind(folder)


class _NoLinksError(StorageError):
    """The disk has no hard links, or no more for this file, or the two are on different disks."""


def _disk_of(path: str) -> int:
    """The device of `path`, or of where it will be made."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    with translated(path):
        return os.stat(path).st_dev


def _as_path(root: str) -> str:
    if "://" not in root:
        return root
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(root)
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        raise ConfigError(
            f"root {root!r} is not a folder of this machine",
            hint="write a path, or file:///path",
        )
    return url2pathname(parts.path)


def _name_is_case_blind(path: str) -> bool:
    folder, name = os.path.split(path)
    if not name:
        return False
    if not os.path.exists(path) or name == name.swapcase():
        return _name_is_case_blind(folder)
    other = os.path.join(folder, name.swapcase())
    return os.path.exists(other) and os.path.samefile(path, other)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        # A network disk may repeat a request whose answer was lost, and meet our own link.
        if not os.path.samestat(os.lstat(source), os.lstat(target)):
            raise AlreadyExistsError(f"{target} exists") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise _NoLinksError(
            f"{os.path.dirname(target)} is on a disk without hard links ({error.strerror}), so "
            "nothing can be created exclusively there",
            hint="keep the registry on another disk, or in a bucket",
        ) from error


def _stored(key: str, status: os.stat_result) -> StoredObject | None:
    if not _staging.is_object(status):
        return None
    modified = datetime.fromtimestamp(_staging.changed(status), timezone.utc)
    return StoredObject(key=key, size=status.st_size, modified=modified)


def _may_hold(folder_key: str, prefix: str) -> bool:
    return folder_key.startswith(prefix) or prefix.startswith(folder_key)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise translate(error, error.filename)


def _is_ours(name: str) -> bool:
    shown = not any(unicodedata.category(char) in ("Cc", "Cs") for char in name)
    return shown and not _staging.is_staged(name)
