"""Source: the port to where models come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from mm_core.configured import Configured
from mm_core.schemas import RemoteFile, Request, Snapshot
from mm_core.sink import Buffer, Sink


class RangeReader(Protocol):
    """One range of one file, read in order into the caller's own memory."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from its front; how many bytes came, 0 only at the range's end.

        Fewer than fit may come at any time. Raises as `Source.read`.
        """

    def close(self) -> None:
        """Free the connection. Allowed at any time, and more than once."""


class Backends(Protocol):
    """The backends of ``mm.yaml``, as a source may ask for them."""

    def sink(self, backend: str) -> Sink:
        """The sink of a backend, by its name. It is shared: do not close it.

        Raises `ConfigError` where there is none of that name.
        """

    def registry(self, backend: str) -> Any:
        """The `ModelRegistry` of a backend, which believes the keys that the settings trust.

        Raises as `sink`.
        """


class Source(Configured):
    """Where models come from.

    One instance serves many threads at once. A source knows how to describe and
    to read; hashing, retries, resume, concurrency and progress are the engine's.

    Errors: `NotFoundError`, `AuthError` and `GatedError` are final;
    `TransientError` means that asking again may help. Errors of the library
    underneath never leave a source untranslated, neither at the call nor while
    an iterator is being consumed. No error message holds a secret.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    """The URL schemes it answers, such as ``("hf",)``."""

    needs_network: ClassVar[bool] = True
    """Whether it asks other machines: then it is refused while ``offline`` is set."""

    @classmethod
    def answers(cls, url: str) -> bool:
        """Whether this source answers `url`. Asked only where no scheme matches exactly.

        Must be cheap and must not touch the network.
        """
        return False

    def bind(self, backends: Backends) -> None:
        """Hear where the backends are. Called at most once, before anything else is asked."""

    @abstractmethod
    def snapshot(self, request: Request) -> Snapshot:
        """Find out what exists now.

        A moving revision (a branch, ``latest``) becomes a fixed one. All files
        that the request's patterns let through are listed, each with its size
        and its sha256 or git-sha1 where the source knows them. Reads no content.

        Raises `NotFoundError`, `AuthError`, `GatedError`, `TransientError`.
        """

    @abstractmethod
    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of `file`, in order; to its end where `end` is None.

        `file` is one of a snapshot of a source of the same type and settings.
        A range beyond the end of the file yields what there is. Buffers are
        valid only until the next is asked for, and no larger than a few MiB.
        Closing the iterator early frees the connection.

        Raises `TransientError` where a retry may help (also for fewer bytes
        than were promised), `SourceChangedError` where the file is no longer
        the one of the snapshot.
        """

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """The same bytes as `read`, into memory of the caller's.

        The engine reads large files so. A source that can fill a buffer without
        a copy overrides it; what is inherited copies what `read` yields.
        """
        return _Copied(self.read(file, start, end))

    def splits(self, file: RemoteFile) -> bool:
        """Whether several ranges of `file` may be read at once, and that gains something.

        Asked again after its first bytes came, since some servers only then show
        that they know no ranges. Must be cheap and must not touch the network.
        """
        return False

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """Whether `copy_to` may bring `file` into `sink`. Cheap, and touches no network.

        Only asked for a file whose sha256 is stated.
        """
        return False

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """Let the store of `sink` make `file` stand under `key`; False where it does not.

        Nobody reads the bytes on their way: a source answers True only if what
        stands there now are the bytes of which it stated the sha256. Raises as
        `read`, and what `Sink.copy_from` raises.
        """
        return False

    def confirm(self, snapshot: Snapshot) -> None:
        """Raise `SourceChangedError` if the files of `snapshot` may have changed since it was made.

        Asked before a version becomes AVAILABLE of whose files `copy_to` copied some.
        """

    def close(self) -> None:
        """Give back connections. Called once, when nobody reads any more."""


class _Copied:
    """A `RangeReader` over an iterator of buffers."""

    def __init__(self, buffers: Iterator[Buffer]) -> None:
        self._buffers = buffers
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._rest:
            following = next(self._buffers, None)
            if following is None:
                return 0
            self._rest = memoryview(following).cast("B")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        close = getattr(self._buffers, "close", None)
        if close is not None:
            close()


class PassingSource(Source):
    """A source that is another one: whoever looks at what passes overrides what they look at.

    It does not close the other.
    """

    type = "passing"

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def snapshot(self, request: Request) -> Snapshot:
        """As the other."""
        return self.source.snapshot(request)

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """As the other."""
        return self.source.read(file, start, end)

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """As the other."""
        return self.source.open(file, start, end)

    def splits(self, file: RemoteFile) -> bool:
        """As the other."""
        return self.source.splits(file)

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """As the other."""
        return self.source.copies_to(file, sink)

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """As the other."""
        return self.source.copy_to(file, sink, key)

    def confirm(self, snapshot: Snapshot) -> None:
        """As the other."""
        self.source.confirm(snapshot)
