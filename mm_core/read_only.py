"""A sink that is only read: something whole that is looked into as if it were a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from mm_core.exceptions import StorageError
from mm_core.sink import Buffer, Sink


class ReadOnlySink(Sink):
    """Every write is a `StorageError`."""

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """Refuse."""
        self._refuse()

    def create(self, key: str, data: bytes) -> None:
        """Refuse."""
        self._refuse()

    def put(self, key: str, data: bytes) -> None:
        """Refuse."""
        self._refuse()

    def copy(self, source_key: str, key: str) -> None:
        """Refuse."""
        self._refuse()

    def delete(self, keys: Iterable[str]) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StorageError(f"{self.root} is only read, and never written to")
