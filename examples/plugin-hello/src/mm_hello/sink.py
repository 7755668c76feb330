"""A sink in one SQLite file: bytes under keys, safe for many threads and processes.

How each promise of `mm_core.Sink` is kept:

- exclusive `create`: the key is the PRIMARY KEY of the table; SQLite lets one insert win;
- all or nothing: content goes to rows that nothing refers to yet, and one short
  transaction makes them an object;
- readers see one state: a read is one transaction on a snapshot of the file (WAL).
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from pydantic import Field

from mm_core import (
    AlreadyExistsError,
    Buffer,
    IntegrityError,
    InvalidNameError,
    NotFoundError,
    PluginConfig,
    Sink,
    StorageError,
    StoredObject,
    TransientError,
)

BLOCK = 1 << 20
PAGE = 500
NOW = "(julianday('now') - 2440587.5) * 86400.0"
SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    key TEXT PRIMARY KEY, content TEXT NOT NULL, size INTEGER NOT NULL, modified REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    content TEXT, start INTEGER, data BLOB NOT NULL, PRIMARY KEY (content, start)
);
"""


class HelloSink(Sink):
    """``hello:///path/to/store.sqlite`` keeps everything in that file."""

    type = "hello"
    schemes = ("hello",)

    class Config(PluginConfig):
        """The settings of the sink, as they stand in mm.yaml."""

        root: str = Field(description="The file: hello:///path/to/store.sqlite, or a path")
        timeout: float = Field(30.0, gt=0, description="Seconds to wait for another writer")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._file = Path(config.root.removeprefix("hello://")).expanduser().resolve()
        with _translated():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA)

    @property
    def root(self) -> str:
        """The file as a URL."""
        return f"hello://{self._file}"

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """Store blocks that nobody sees, then make them an object in one transaction."""
        _check(key)
        content = uuid.uuid4().hex
        try:
            count = self._stage(content, chunks)
            if size not in (None, count):
                raise IntegrityError(f"{key!r} should have {size} bytes, but {count} came")
            with self._transaction() as connection:
                _forget(connection, key)
                _insert(connection, key, content, count)
        except BaseException:
            with contextlib.suppress(Exception), self._transaction() as connection:
                connection.execute("DELETE FROM blocks WHERE content = ?", (content,))
            raise

    def create(self, key: str, data: bytes) -> None:
        """Insert; the PRIMARY KEY lets only one win."""
        _check(key)
        with self._transaction() as connection:
            content = uuid.uuid4().hex
            try:
                _insert(connection, key, content, len(data))
            except sqlite3.IntegrityError:
                raise AlreadyExistsError(f"{key!r} is there already") from None
            _add_block(connection, content, 0, data)

    def put(self, key: str, data: bytes) -> None:
        """Replace the row, and its blocks, in one transaction."""
        _check(key)
        with self._transaction() as connection:
            content = uuid.uuid4().hex
            _forget(connection, key)
            _insert(connection, key, content, len(data))
            _add_block(connection, content, 0, data)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The blocks of the range, all from one snapshot of the file."""
        _check(key)
        with _translated(), self._connection() as connection:
            connection.execute("BEGIN")
            found = connection.execute("SELECT content, size FROM objects WHERE key = ?", (key,))
            row = found.fetchone()
            if row is None:
                raise NotFoundError(f"there is no {key!r} in {self.root}")
            content, size = row
            end = size if end is None else min(end, size)
            blocks = connection.execute(
                "SELECT start, data FROM blocks WHERE content = ? AND start < ? "
                "AND start + length(data) > ? ORDER BY start",
                (content, end, start),
            )
            for offset, data in blocks:
                yield memoryview(data)[max(start - offset, 0) : end - offset]

    def stat(self, key: str) -> StoredObject | None:
        """One row, or none."""
        _check(key)
        with _translated(), self._connection() as connection:
            found = connection.execute(
                "SELECT key, size, modified FROM objects WHERE key = ?", (key,)
            )
            row = found.fetchone()
        return None if row is None else _stored(row)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """A page of rows at a time. SQLite orders text by its UTF-8, so by code points."""
        last = ""
        while True:
            with _translated(), self._connection() as connection:
                rows = connection.execute(
                    "SELECT key, size, modified FROM objects WHERE key > ? AND key >= ? "
                    "AND substr(key, 1, ?) = ? ORDER BY key LIMIT ?",
                    (last, prefix, len(prefix), prefix, PAGE),
                ).fetchall()
            yield from map(_stored, rows)
            if len(rows) < PAGE:
                return
            last = rows[-1][0]

    def copy(self, source_key: str, key: str) -> None:
        """Copy the rows within the file, in one transaction."""
        _check(source_key), _check(key)
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT content, size FROM objects WHERE key = ?", (source_key,)
            )
            row = found.fetchone()
            if row is None:
                raise NotFoundError(f"there is no {source_key!r} in {self.root}")
            content = uuid.uuid4().hex
            connection.execute(
                "INSERT INTO blocks SELECT ?, start, data FROM blocks WHERE content = ?",
                (content, row[0]),
            )
            _forget(connection, key)
            _insert(connection, key, content, row[1])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete all in one transaction; those that are not there are fine."""
        keys = [_check(key) for key in keys]
        with self._transaction() as connection:
            for key in keys:
                _forget(connection, key)

    def url(self, key: str) -> str:
        """A name for it. No other program opens it; `mm get` makes a folder of files."""
        return f"{self.root}/{key}" if key else self.root

    def _stage(self, content: str, chunks: Iterable[Buffer]) -> int:
        count, block = 0, bytearray()
        for chunk in chunks:
            block += chunk
            while len(block) >= BLOCK:
                self._store_block(content, count, bytes(block[:BLOCK]))
                count += BLOCK
                del block[:BLOCK]
        self._store_block(content, count, bytes(block))
        return count + len(block)

    def _store_block(self, content: str, start: int, data: bytes) -> None:
        with self._transaction() as connection:
            _add_block(connection, content, start, data)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _translated(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(
            self._file, timeout=self.config.timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        finally:
            connection.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The one seam where SQLite's errors become Model Manager's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise TransientError("the store is busy", hint="try again") from error
        raise StorageError(f"the store failed: {error}") from error
    except sqlite3.Error as error:
        raise StorageError(f"the store failed: {error}") from error


def _check(key: str) -> str:
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise InvalidNameError(f"the key {key!r} is not allowed")
    if not key.isprintable():
        raise InvalidNameError(f"the key {key!r} holds a control character")
    return key


def _insert(connection: sqlite3.Connection, key: str, content: str, size: int) -> None:
    connection.execute(f"INSERT INTO objects VALUES (?, ?, ?, {NOW})", (key, content, size))


def _add_block(connection: sqlite3.Connection, content: str, start: int, data: bytes) -> None:
    if data:
        connection.execute("INSERT INTO blocks VALUES (?, ?, ?)", (content, start, data))


def _forget(connection: sqlite3.Connection, key: str) -> None:
    connection.execute(
        "DELETE FROM blocks WHERE content = (SELECT content FROM objects WHERE key = ?)", (key,)
    )
    connection.execute("DELETE FROM objects WHERE key = ?", (key,))


def _stored(row: tuple[str, int, float]) -> StoredObject:
    key, size, modified = row
    return StoredObject(key=key, size=size, modified=datetime.fromtimestamp(modified, timezone.utc))
