"""The read cache: a registry's state on this machine's disk, brought forward commit by commit.

Nothing is ever decided by it: what is to be committed is checked against the log.
The file is only ever changed in short transactions; it is replaced by one of a
new name, so that no process loses what it is reading. Whatever is wrong with it,
it is left behind and made anew, or done without.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mm_core.exceptions import IntegrityError, OfflineError
from mm_core.names import fold
from mm_core.parallel import at_once
from mm_core.registry.chain import CommitRecord, Patience, read_commits
from mm_core.registry.layout import FORMAT_KEY, log_key, parse_format
from mm_core.registry.log import Log
from mm_core.registry.memory import Seen
from mm_core.registry.operations import replay
from mm_core.registry.rows import SCHEMA, Position, Rows
from mm_core.registry.state import State
from mm_core.schemas import sha256_hex
from mm_core.sink import read_if_exists

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_AFTER = 120.0
"""Seconds after which it is made sure that the store still holds the same registry."""

_SUFFIX = f"-v{SCHEMA}.sqlite3"
_BUSY = 2.0
_LEFT = 3600.0
_CACHE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_TRIES = 3
_MANY = 1_000
_AT_MOST = 512
"""So many commits are read one by one; beyond, the newest checkpoint is a shorter way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """What an answer is as of: commit number `commit`, when the store was asked last.

    `age` is in seconds, by this machine's clock.
    """

    commit: int
    age: float

    def to_json(self) -> dict[str, object]:
        """The freshness as JSON data."""
        return {"commit": self.commit, "age_seconds": round(self.age)}


class _UnfitError(Exception):
    """The cache does not go with the registry, or is far behind it."""


class CacheFile:
    """The file of one registry in `folder`, which holds nothing else.

    All methods but the first two do what they can, and raise nothing.
    """

    def __init__(self, folder: Path, root: str) -> None:
        self._folder = folder
        self._root = root

    def open(self) -> Rows | None:
        """The rows, if there are some of this root and this release. Raises `sqlite3.Error`."""
        for _ in range(_TRIES):
            path = self._newest()
            if path is None:
                return None
            try:
                return self._opened(path)
            except sqlite3.OperationalError:
                if path.exists():
                    raise  # else another process has just replaced it
        return None

    def replace(self, state: State, *, registry: str, stamp: str, checked: float) -> None:
        """Make a new file of `state`, and leave the old ones behind. Raises `sqlite3.Error`."""
        staged = self._folder / f".{uuid.uuid4().hex}.new"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            self._fill(staged, state, registry=registry, stamp=stamp, checked=checked)
            old = self._files()
            number = 1 + max(map(_number, old), default=0)
            staged.rename(self._folder / f"{number:06d}-{uuid.uuid4().hex[:8]}{_SUFFIX}")
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error
        finally:
            _unlink(staged)
        _discard(old)

    def discard(self) -> None:
        """Leave behind what is there, so that it is made anew."""
        _discard(self._files())

    def is_there(self) -> bool:
        """Whether there is a file, good or bad."""
        return self._newest() is not None

    def touch(self) -> None:
        """Note that the store was asked just now."""
        path = self._newest()
        if path is not None:
            with contextlib.suppress(OSError):
                os.utime(path)

    def age(self) -> float | None:
        """Seconds since `touch`; None where there is no file."""
        path = self._newest()
        with contextlib.suppress(OSError):
            return None if path is None else max(0.0, time.time() - path.stat().st_mtime)
        return None

    def _newest(self) -> Path | None:
        return max(self._files(), default=None)

    def _files(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path.name.endswith(_SUFFIX)]
        except OSError:
            return []

    def _opened(self, path: Path) -> Rows | None:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        rows = Rows(sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None))
        try:
            meta = rows.meta()
            if (meta["schema"], meta["root"]) == (SCHEMA, self._root):
                return rows
        except BaseException:
            rows.close()
            raise
        rows.close()
        return None

    def _fill(self, staged: Path, state: State, **meta: Any) -> None:
        os.close(os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(staged, isolation_level=None)
        with contextlib.closing(connection):
            connection.execute("PRAGMA journal_mode = OFF")  # nobody sees it before it is whole
            connection.execute("PRAGMA synchronous = OFF")
            Rows(connection).create(state, root=self._root, **meta)
        descriptor = os.open(staged, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Delete what those left who were ended while they made a new file."""
        for path in self._folder.glob(".*.new"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT:
                    path.unlink()


def _discard(paths: Iterable[Path]) -> None:
    for path in paths:
        _unlink(path)
        _unlink(Path(f"{path}-journal"))


class InMemory:
    """Answers of the newest state, from rows in memory that follow the log's own state."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._state: State | None = None
        self._rows: Rows | None = None

    def answer(self, ask: Callable[[Rows], T]) -> T:
        """What `ask` finds in rows of the newest state. Raises the errors of the store."""
        state = self._log.refresh()
        with self._lock:
            return ask(self._at(state))

    def _at(self, state: State) -> Rows:
        old, rows = self._state, self._rows
        if old is None or rows is None:
            rows = Rows.in_memory(state)
        elif old is not state:
            keys = {*old.models, *state.models}
            changed = [key for key in keys if old.models.get(key) is not state.models.get(key)]
            with rows.transaction():
                rows.change(old, state, changed)
        self._state, self._rows = state, rows
        return rows


class Cached:
    """Answers of the newest state, from the cache, brought forward, as long as that can be had."""

    def __init__(self, log: Log, file: CacheFile | None, patience: Patience) -> None:
        self._log = log
        self._file = file
        self._patience = patience
        self._memory = InMemory(log)
        self._compared = False

    def answer(self, ask: Callable[[Rows], T]) -> T:
        """What `ask` finds in rows of the newest state. Raises the errors of the store."""
        for _ in range(2 if self._file is not None else 0):
            try:
                with self._rows() as rows:
                    return ask(rows)
            except _CACHE_ERRORS as error:
                logger.info("the read cache is not used", extra={"error": str(error)})
                if not _is_damage(error):
                    break
                self.discard()
        return self._memory.answer(ask)

    def state_with(self, key: str) -> State:
        """A newest state that has at least the model of this folded id.

        Where neither the state nor a cache is there, and the registry is large, no
        cache is made for it: that would cost more than the answer.
        """
        if self._file is None or self._log.known is not None:
            return self._log.refresh()
        if not self._file.is_there():
            state = self._log.refresh()
            if len(state.models) > _MANY:
                return state
        return self.answer(lambda rows: rows.state_of([key]))

    def discard(self) -> None:
        """Leave the cache behind: what the store holds now is right."""
        if self._file is not None:
            self._file.discard()

    def committed(self, state: State) -> None:
        """See, once, that the cache is not ahead of a commit of this process: then it is another's.

        The next answer makes sure of it. No error is raised.
        """
        if self._compared or self._file is None:
            return
        self._compared = True
        with contextlib.suppress(*_CACHE_ERRORS):
            rows = self._file.open()
            if rows is not None:
                with contextlib.closing(rows):
                    at = rows.position()
                    if at.seq > state.seq or (at.seq == state.seq and at.head != state.head):
                        rows.note_check(0.0, "")

    @contextlib.contextmanager
    def _rows(self) -> Iterator[Rows]:
        rows = self._brought_forward() or self._made_anew()
        with contextlib.closing(rows), rows.transaction("DEFERRED"):
            yield rows

    def _brought_forward(self) -> Rows | None:
        """The rows in the file, as of now; None where they do not go with the registry."""
        assert self._file is not None
        rows = self._file.open()
        if rows is None:
            return None
        try:
            before = rows.position()
            self._make_sure(rows)
            self._follow(rows)
            self._compare_with_memory(rows, before)
        except (_UnfitError, IntegrityError) as error:  # if the log is damaged, the log says so
            logger.info("the read cache is made anew", extra={"reason": str(error)})
            rows.close()
            self._log.reload()
            return None
        except BaseException:
            rows.close()
            raise
        self._file.touch()
        return rows

    def _made_anew(self) -> Rows:
        assert self._file is not None
        stamp, now = _stamp(self._log.sink.root), time.time()
        state = self._log.refresh()
        found = self._log.format
        if found is None or state.seq == 0:
            self.discard()
            raise sqlite3.OperationalError("there is nothing to keep")
        self._file.replace(state, registry=str(found["id"]), stamp=stamp, checked=now)
        rows = self._file.open()
        if rows is None:
            raise sqlite3.OperationalError("it is gone again")
        return rows

    def _make_sure(self, rows: Rows) -> None:
        """Now and then, and when the local store's folder is another, look at what is behind."""
        meta, now, stamp = rows.meta(), time.time(), _stamp(self._log.sink.root)
        if 0 <= now - meta["checked"] < CHECK_AFTER and stamp == meta["stamp"]:
            return
        self._look_behind(meta)
        with contextlib.suppress(sqlite3.OperationalError):  # busy, or read-only
            rows.note_check(now, stamp)

    def _look_behind(self, meta: dict[str, Any]) -> None:
        """Make sure that the store holds this registry, and the commit that the rows show."""
        sink, patience = self._log.sink, self._patience

        def read(key: str) -> bytes | None:
            return patience().persist(lambda: read_if_exists(sink, key))

        format_, data = at_once(read, [FORMAT_KEY, log_key(meta["seq"])])
        found = parse_format(sink, format_, lambda: read(FORMAT_KEY))
        if found is None or str(found["id"]) != meta["registry"]:
            raise _UnfitError("the store holds another registry")
        if data is None or sha256_hex(data) != meta["head"]:
            raise _UnfitError("the store holds another commit of that number, or none")

    def _follow(self, rows: Rows) -> None:
        for _ in range(_TRIES):
            at = rows.position()
            commits = self._after(at)
            if not commits or _applied(rows, at, commits):
                return
        raise sqlite3.OperationalError("others were always first")

    def _compare_with_memory(self, rows: Rows, before: Position) -> None:
        """Where this machine has seen a higher commit, or another, the log has to say why.

        Where it remembers less than the rows showed `before`, somebody may have
        accepted that the registry went back: nothing is noted unsure.
        """
        memory, root = self._log.memory, self._log.sink.root
        if memory is None:
            return
        meta = rows.meta()
        seen, at = memory.recall(meta["registry"], root), Seen(meta["seq"], meta["head"])
        if seen == at:
            return
        if seen is not None and seen.seq >= at.seq:
            raise _UnfitError("another commit was seen there")
        if seen is not None and seen.seq < before.seq:
            self._look_behind(meta)
        memory.note(meta["registry"], root, at)

    def _after(self, at: Position) -> list[CommitRecord]:
        log = self._log
        found = read_commits(log.sink, at.seq, at.head, self._patience, log.trust)
        commits = list(islice(found, _AT_MOST + 1))
        if len(commits) > _AT_MOST:
            raise _UnfitError("it is far behind")
        return commits


class CacheAlone:
    """Answers from the cache as it stands: the store is not asked."""

    def __init__(self, file: CacheFile | None, root: str) -> None:
        self._file = file
        self._root = root

    def answer(self, ask: Callable[[Rows], T]) -> T:
        """What `ask` finds. `OfflineError` where there is no cache that can be read."""
        try:
            rows = None if self._file is None else self._file.open()
            if rows is not None:
                with contextlib.closing(rows), rows.transaction("DEFERRED"):
                    return ask(rows)
            why = "there is none yet"
        except _CACHE_ERRORS as error:
            why = str(error)
        raise OfflineError(
            f"the registry at {self._root} cannot be asked offline, and no cache of it "
            f"can be read: {why}",
            hint="run `mm list` once without --offline; MM_CACHE=off keeps no cache",
        )

    def state_with(self, key: str) -> State:
        """A state that has at least the model of this folded id."""
        return self.answer(lambda rows: rows.state_of([key]))

    def freshness(self) -> Freshness:
        """How old the answers are."""
        age = None if self._file is None else self._file.age()
        seq = self.answer(lambda rows: rows.position().seq)
        return Freshness(commit=seq, age=age or 0.0)


def _applied(rows: Rows, at: Position, commits: Sequence[CommitRecord]) -> bool:
    """Bring rows forward from `at`; False where another process was first."""
    keys = {fold(str(o.get("model_id"))) for commit in commits for o in commit.operations}
    with rows.transaction():
        if rows.position() != at:
            return False
        old = rows.state_of(keys)
        rows.change(old, replay(old, commits), keys)
    return True


def _stamp(root: str) -> str:
    """What tells a local store from one that was made anew in its place; empty for others."""
    if "://" in root:
        return ""
    try:
        found = Path(root, FORMAT_KEY).stat()
    except OSError:
        return "gone"
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is wrong, not only busy, full or out of reach."""
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


def _number(path: Path) -> int:
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
