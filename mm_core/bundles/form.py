"""How a bundle lies on a disk: the port that every form fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from mm_core.bundles.contents import Index


class Form(ABC):
    """One bundle, opened for reading, of which all but the bytes of its members is checked.

    That is: what is not a member, and that each member is there with its size, and
    nothing beside them.
    """

    index: Index

    @abstractmethod
    def read(self, member: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes ``[start, stop)`` of a member. `IntegrityError` where it ends before."""

    def close(self) -> None:
        """Give back what is open."""
