"""The objects of a registry in a backup file, read as if it were a store."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mm_core.exceptions import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UsageError,
)
from mm_core.read_only import ReadOnlySink
from mm_core.registry.layout import FORMAT_KEY, LOG_PREFIX, read_format
from mm_core.schemas import StoredObject
from mm_core.sink import Buffer
from mm_core.upkeep.commits import Link, link_of, number_of
from mm_core.upkeep.store import Store

BACKUP_FORMAT = "model-manager-backup"
BACKUP_VERSION = 1
CONTENTS = "backup.json"

_ALLOWED = re.compile(
    r"\.mm/(format\.json|log/\d{12}\.json|snap/\d{12}-[0-9a-f]{12}\.json\.gz"
    r"|manifests/[0-9a-f]{64}\.json|signatures/[0-9a-f]{64}/[0-9a-f]{12}\.json)"
)
_LARGEST = 1 << 30
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
"""What reading a damaged zip file raises; one with features that it never had, a RuntimeError."""
_LONG_AGO = datetime(1980, 1, 1, tzinfo=timezone.utc)


class Copies(ReadOnlySink):
    """A backup, for reading only. `close` it.

    Raises `NotFoundError` if there is no such file, `UsageError` if it is no backup,
    `StorageError` for one of a newer version.
    """

    type = "backup"

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self.path = path
        self._zip = _opened(path)
        try:
            self.contents: Mapping[str, Any] = self._read_contents()
            self.keys = sorted(self._checked_keys())
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    @property
    def root(self) -> str:
        """The file's path."""
        return str(self.path)

    @property
    def format(self) -> dict[str, Any] | None:
        """What its ``format.json`` says."""
        data = self.get(FORMAT_KEY)
        found = json.loads(data) if data is not None else None
        return found if isinstance(found, dict) else None

    def commits(self) -> dict[int, Link]:
        """The commits in it, by number."""
        found = ((key, self.get(key)) for key in self.keys if key.startswith(LOG_PREFIX))
        links = [link_of(number_of(key), data) for key, data in found if data is not None]
        return {link.seq: replace(link, record=None) for link in links}

    def get(self, key: str) -> bytes | None:
        """The bytes of one object; None if it is not in the backup.

        `IntegrityError` where they were damaged since.
        """
        try:
            return self._zip.read(key)
        except KeyError:
            return None
        except _DAMAGE as error:
            raise IntegrityError(
                f"{key} in the backup {self.path} cannot be read: {error}",
                hint="use another backup",
            ) from error

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of one object."""
        data = self.get(key)
        if data is None:
            raise NotFoundError(f"{key} is not in the backup {self.path}")
        yield data[start:end]

    def stat(self, key: str) -> StoredObject | None:
        """Its size."""
        if key not in self.keys:
            return None
        size = self._zip.getinfo(key).file_size
        return StoredObject(key=key, size=size, modified=_LONG_AGO)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects below `prefix`."""
        for key in self.keys:
            if key.startswith(prefix):
                size = self._zip.getinfo(key).file_size
                yield StoredObject(key=key, size=size, modified=_LONG_AGO)

    def url(self, key: str) -> str:
        """The file's path and the key."""
        return f"{self.path}!{key}"

    def _read_contents(self) -> dict[str, Any]:
        data = self.get(CONTENTS)
        try:
            contents = json.loads(data or b"null")
            known, version = contents["format"] == BACKUP_FORMAT, int(contents["version"])
        except (ValueError, KeyError, TypeError):
            known, version = False, 0
        if not known:
            raise UsageError(
                f"{self.path} is no backup of a registry",
                hint="`mm registry backup FILE` makes one",
            )
        if version > BACKUP_VERSION:
            raise StorageError(
                f"the backup {self.path} has version {version}; this release reads versions up "
                f"to {BACKUP_VERSION}",
                hint="upgrade it: pip install --upgrade model-manager",
            )
        return dict(contents)

    def _checked_keys(self) -> Iterator[str]:
        for info in self._zip.infolist():
            if info.filename == CONTENTS:
                continue
            if not _ALLOWED.fullmatch(info.filename) or info.file_size > _LARGEST:
                raise UsageError(
                    f"{self.path} holds {info.filename!r}, which is no part of a registry",
                    hint="use a backup that `mm registry backup` made",
                )
            yield info.filename


def refuse_another(store: Store, copies: Copies) -> None:
    """Raise `ConflictError` if a backup is not of the registry in `store`, where one is known."""
    try:
        standing = read_format(store.sink, store.deadline())
    except IntegrityError:  # damaged: nobody knows
        return
    own = copies.format or {}
    if standing is not None and standing.get("id") != own.get("id"):
        raise ConflictError(
            f"another registry is at {store.sink.root}: its id is {standing.get('id')}, that of "
            f"the backup is {own.get('id')}",
            hint="name the backup of this registry, or restore into an empty root, with --to",
        )


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {str(path)!r}") from None
    except zipfile.BadZipFile as error:
        raise UsageError(
            f"{path} is no backup of a registry: {error}",
            hint="`mm registry backup FILE` makes one",
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise IntegrityError(
            f"the backup {path} cannot be read: {error}", hint="use another backup"
        ) from error
