"""Large files in parts: a part file beside its target, and a journal of what it holds.

Both have names that no key can have and that follow from the target's name, so
that the next attempt finds them. Whoever has locked the journal owns the pair.
The journal names a part only after its bytes were handed to the system: what
survives the process is known exactly. A power cut may take bytes that the
journal names, which a reader-back finds by their hash.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import NamedTuple

from mm_core import IntegrityError, TransientError, UnfinishedUpload, Upload, UploadLostError
from mm_plugins.sinks import _staging
from mm_plugins.sinks._disk_errors import translated

try:
    import fcntl
except ImportError:  # Windows has neither these locks nor pwrite: files go in one piece there
    fcntl = None  # type: ignore[assignment]  # the name stands for "no locks here"

PART_SIZE = 4 << 20
SUPPORTED = fcntl is not None and hasattr(os, "preadv")

_FORMAT = 1
_ATTEMPTS = 100
_RECORD = re.compile(rb"^(\d{8})\n", re.MULTILINE)
_OPEN = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)


class LocalUpload(Upload):
    """One large file in a part file. Without a journal it is of this process alone."""

    part_size = PART_SIZE
    readable = True

    def __init__(
        self, target: str, path: str, descriptor: int, journal: _Journal | None, *,
        size: int, kept: frozenset[int], durable: bool, root: str,
    ) -> None:  # fmt: skip
        self.size = size
        self.kept = kept
        self._target = target
        self._path = path
        self._descriptor = descriptor
        self._journal = journal
        self._durable = durable
        self._root = root
        self._stored = set(kept)
        self._idle = threading.Condition()
        self._users = 0
        self._open = True

    def write_part(self, number: int, data: memoryview) -> None:
        """Write the bytes at their place, and then the part's number into the journal."""
        if len(data) != self._length(number):
            raise IntegrityError(
                f"part {number} of {self._target} should have {self._length(number)} bytes, "
                f"but {len(data)} came"
            )
        with self._in_use() as descriptor:
            _write_at(descriptor, data, number * self.part_size)
            if self._durable:
                _start_writing_back(descriptor, number * self.part_size, len(data))
            self._check_there(descriptor)
            if self._journal is not None:
                self._journal.add(number)
            with self._idle:
                self._stored.add(number)

    def read_part(self, number: int, buffer: memoryview) -> None:
        """Read the part from its place."""
        view = buffer[: self._length(number)]
        offset, filled = number * self.part_size, 0
        with self._in_use() as descriptor:
            while filled < len(view):
                count = os.preadv(descriptor, [view[filled:]], offset + filled)
                if not count:
                    raise TransientError(f"part {number} of {self._target} is cut short")
                filled += count

    def commit(self) -> None:
        """Wait for the disk, rename, wait for the name, and forget the journal."""
        if missing := self._count - len(self._stored):
            raise IntegrityError(f"{self._target} lacks {missing} parts; nothing was stored")
        with self._in_use() as descriptor:
            self._check_there(descriptor)
            if os.fstat(descriptor).st_size != self.size:
                raise self._lost()
            _staging.publish(
                descriptor, self._path, self._target, self._move, durable=self._durable
            )
        self._end(remove=True)

    def check_space(self) -> None:
        """Raise ENOSPC if the disk has no room for what is still to come."""
        with self._in_use() as descriptor:
            free = _free_bytes(os.fstatvfs(descriptor))
            if free is not None and free + os.fstat(descriptor).st_blocks * 512 < self.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._target)

    def keep(self) -> None:
        """Close both files and so unlock them. Nothing is left where nothing was stored."""
        self._end(remove=self._journal is None)

    def discard(self) -> None:
        """Remove both files, and the folders that are empty then."""
        self._end(remove=True)

    @property
    def _count(self) -> int:
        return -(-self.size // self.part_size)

    def _length(self, number: int) -> int:
        return min(self.part_size, self.size - number * self.part_size)

    @contextmanager
    def _in_use(self) -> Iterator[int]:
        """The open part file, which stays open meanwhile: its number must not become another's."""
        with self._idle:
            if not self._open:
                raise self._lost()
            self._users += 1
        try:
            with translated(self._target):
                yield self._descriptor
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def _end(self, *, remove: bool) -> None:
        with self._idle:
            if not self._open:
                return
            self._open = False
            self._idle.wait_for(lambda: not self._users)
        remove = remove or not self._stored
        if remove and _is_at(self._descriptor, self._path):
            _staging.remove(self._path)
        os.close(self._descriptor)
        if self._journal is not None:  # the last to go: it is the lock of both
            self._journal.close(remove=remove)
        if remove:
            _staging.remove_empty_folders(os.path.dirname(self._target), self._root)

    def _check_there(self, descriptor: int) -> None:
        """Raise `UploadLostError` if somebody removed the part file or put another in its place."""
        if not _is_at(descriptor, self._path):
            raise self._lost()

    def _move(self, path: str, target: str) -> None:
        try:
            os.replace(path, target)
        except FileNotFoundError as error:
            raise self._lost() from error

    def _lost(self) -> UploadLostError:
        return UploadLostError(f"the unfinished parts of {self._target} were removed")


class _Journal:
    """An open, locked journal: a line that says what is being stored, and a line per part."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def lock(cls, path: str) -> _Journal | None:
        """The journal at `path`, made where there is none; None while another has it.

        None as well on a disk without locks: a pair that cannot be owned is not shared.
        """
        for _ in range(_ATTEMPTS):
            descriptor = os.open(path, _OPEN | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return cls(path, descriptor)
            os.close(descriptor)  # its owner finished and removed it meanwhile
        return None

    def take_up(self, header: bytes) -> frozenset[int] | None:
        """The parts it names, if it begins with `header`; None if it tells of something else."""
        content = _content(self._descriptor)
        if not content.startswith(header):
            return None
        os.write(self._descriptor, b"\n")  # ends what a crash may have torn
        return frozenset(map(int, _RECORD.findall(content, len(header))))

    def begin(self, header: bytes) -> None:
        """Forget all and begin with `header`."""
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, header)

    def add(self, number: int) -> None:
        """Note a part, in one write: a torn line has another length, and is no part's."""
        os.write(self._descriptor, b"%08d\n" % number)

    def close(self, *, remove: bool = False) -> None:
        """Unlock it, or remove it while it is locked."""
        if remove and _is_at(self._descriptor, self.path):
            _staging.remove(self.path)
        os.close(self._descriptor)


def begin(target: str, *, size: int, identity: str | None, durable: bool, root: str) -> LocalUpload:
    """An upload of `target`: what an earlier attempt left of the same content, or a fresh one.

    While another writer is at the same target, it is one that nobody can take up.
    """
    folder, name = os.path.split(target)
    path = os.path.join(folder, _staging.parts_name(name))

    def open_pair() -> tuple[_Journal, int, frozenset[int]] | None:
        journal = _Journal.lock(path + _staging.JOURNAL)
        if journal is None:
            return None
        try:
            return (journal, *_open_parts(path, journal, name, size, identity))
        except BaseException:
            journal.close()
            raise

    opened = _staging.made_in(folder, open_pair, durable=durable)
    if opened is None:
        path, descriptor = _staging.in_folder(folder, _staging.open_locked, durable=durable)
    journal, descriptor, kept = opened or (None, descriptor, frozenset())
    upload = LocalUpload(
        target, path, descriptor, journal, size=size, kept=kept, durable=durable, root=root
    )
    try:
        upload.check_space()
    except BaseException:
        upload.keep()
        raise
    return upload


def left_in(folder: str, names: Iterable[str]) -> Iterator[UnfinishedUpload]:
    """The unfinished uploads among `names` in `folder`; their key is the target's name.

    Where no journal tells that, the key is the name of the part file itself. The size
    counts what the next attempt can take up: the parts that the journal names, which
    are all but those that were being written.
    """
    for parts in sorted({name.removesuffix(_staging.JOURNAL) for name in names}):
        path = os.path.join(folder, parts)
        file, journal = _status(path), _status(path + _staging.JOURNAL)
        told = _told(path + _staging.JOURNAL)
        found = [status for status in (file, journal) if status]
        if found:
            there = file.st_size if file else 0
            yield UnfinishedUpload(
                key=told.name if told else parts,
                id=parts,
                modified=datetime.fromtimestamp(max(s.st_mtime for s in found), timezone.utc),
                size=told.stored(there) if told else file.st_blocks * 512 if file else 0,
            )


def discard(path: str) -> bool:
    """Remove a part file and its journal unless a living writer has them; whether they are gone."""
    if _status(path) is None and _status(path + _staging.JOURNAL) is None:
        return True
    journal = _Journal.lock(path + _staging.JOURNAL)
    if journal is None:
        return False
    _staging.remove(path)
    journal.close(remove=True)
    return True


def _open_parts(
    path: str, journal: _Journal, name: str, size: int, identity: str | None
) -> tuple[int, frozenset[int]]:
    header = _header(name, size, identity)
    named = journal.take_up(header) if identity is not None else None
    if named is not None:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, _OPEN)
            there = os.fstat(descriptor).st_size
            return descriptor, _whole(named, size, there)
    # Never emptied in place: should a disk's locks lie, its other writer finds it gone.
    _staging.remove(path)
    journal.begin(header)
    return os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666), frozenset()


def _header(name: str, size: int, identity: str | None) -> bytes:
    about = {
        "format": _FORMAT, "name": name, "size": size,
        "part_size": PART_SIZE, "identity": identity,
    }  # fmt: skip
    return json.dumps(about).encode() + b"\n"


def _end_of(number: int, size: int) -> int:
    return size if number == (size - 1) // PART_SIZE else (number + 1) * PART_SIZE


def _whole(named: frozenset[int], size: int, there: int) -> frozenset[int]:
    """Those of the parts `named` that fit into the file, of which `there` bytes exist."""
    return frozenset(number for number in named if _end_of(number, size) <= min(there, size))


class _Told(NamedTuple):
    """What a journal says of the file that it is kept for."""

    name: str
    size: int
    named: frozenset[int]

    def stored(self, there: int) -> int:
        """The bytes in the parts that it names, of a part file that is `there` bytes long."""
        whole = _whole(self.named, self.size, there)
        return sum(_end_of(number, self.size) - number * PART_SIZE for number in whole)


def _told(path: str) -> _Told | None:
    """What the journal at `path` says, if it can be read and names the file that it is beside."""
    try:
        with open(path, "rb") as file:
            about = json.loads(file.readline(1 << 16))
            name, size, part_size = about["name"], about["size"], about["part_size"]
            named = frozenset(map(int, _RECORD.findall(file.read())))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = isinstance(name, str) and path.endswith(_staging.parts_name(name) + _staging.JOURNAL)
    if not fits or type(size) is not int or part_size != PART_SIZE:
        return None
    return _Told(name, size, named)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def free_bytes(folder: str) -> int | None:
    """What an ordinary user may still write to the disk of `folder`, which may not exist yet."""
    if not hasattr(os, "statvfs"):
        return None
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return _free_bytes(os.statvfs(folder))


def _free_bytes(disk: os.statvfs_result) -> int | None:
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def _is_at(descriptor: int, path: str) -> bool:
    status = _status(path)
    return status is not None and os.path.samestat(os.fstat(descriptor), status)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _start_writing_back(descriptor: int, offset: int, size: int) -> None:
    """Have the system write these pages to the disk now, so that the last fsync waits for few.

    That is what Linux does with dirty pages that are not needed; others may do nothing.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
