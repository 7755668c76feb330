"""Sink: the port to where models are kept. Bytes under keys; it knows nothing of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mm_core.exceptions import NotFoundError
from mm_core.lazy_config import LazyConfig
from mm_core.schemas import StoredObject, UnfinishedUpload

if TYPE_CHECKING:
    from mm_core.plugin_config import PluginConfig

Buffer = bytes | bytearray | memoryview
"""A run of bytes. It may be reused: it is valid only until the next one is asked for."""


class Sink(ABC):
    """Where models, and the registry beside them, are kept.

    Keys are relative, ``/``-separated and were checked at the border; a sink
    refuses a key that would leave its root all the same (`InvalidNameError`).
    One instance serves many threads at once; many processes on many machines
    use one store at once.

    What is written is durable and visible to every reader when the call
    returns. Nothing is cached: `stat`, `list` and `read` see other writers.

    Errors: `NotFoundError`, `AuthError`, `AlreadyExistsError`; `TransientError`
    where a retry may help; `StorageError` for good. Errors of the library
    underneath are translated, also while an iterator is being consumed.
    """

    type: ClassVar[str]
    """The word for it in ``mm.yaml``."""

    schemes: ClassVar[tuple[str, ...]] = ()
    """The URL schemes that name a root of this kind, such as ``("s3",)``."""

    plain_config: ClassVar[bool] = False
    """Whether the sink only reads the attributes of its settings, never their methods.

    Then it may be given an equal plain object, remembered from an earlier run, in
    place of a ``Config``, so that a short command need not validate them again.
    """

    if TYPE_CHECKING:

        class Config(PluginConfig):
            """The settings. ``root`` is the URL or folder under which all keys lie."""

            root: str
    else:
        Config = LazyConfig("mm_core.plugin_config:RootedConfig")

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def case_blind(self) -> bool:
        """Whether two keys that differ only by case or Unicode form are one to this store."""
        return False

    @classmethod
    def answers(cls, url: str) -> bool:
        """Whether a root such as `url` is of this kind. Asked only where no scheme matches."""
        return False

    @property
    @abstractmethod
    def root(self) -> str:
        """The canonical URL (or the absolute path) of the root, without secrets.

        Two sinks on the same store have the same root.
        """

    @abstractmethod
    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        """Store the bytes of `chunks` under `key`: all or nothing.

        Each buffer is valid only until the next is asked for. `size` is the
        number of bytes to come, None if unknown. If `chunks` raises, or yields
        another number of bytes (`IntegrityError`), or the store fails, what
        stood under `key` before still stands and nothing is left behind.
        Memory is bounded, whatever the size; no temporary disk is used, except
        beside the target on a disk.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Store a small object only if nothing stands under `key`: atomic and exclusive.

        Of any number of callers on any number of machines one returns and all
        others raise `AlreadyExistsError`. On any other error the object may or
        may not have been made: read it back. There is no default.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store a small object, replacing what is there: atomic, the last one wins."""

    @abstractmethod
    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` under `key`, in order; to the end where `end` is None.

        A range beyond the end yields what there is. `NotFoundError`, at the
        latest when the first buffer is asked for.
        """

    @abstractmethod
    def stat(self, key: str) -> StoredObject | None:
        """Size and time of the object under `key`; None if there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key starts with `prefix`, recursive, ordered by key (code points).

        `prefix` is a plain string prefix: ``a/b`` also finds ``a/bc``. Nothing
        there is an empty listing. Unfinished writes are never listed.
        """

    @abstractmethod
    def copy(self, source_key: str, key: str) -> None:
        """Store under `key` what stands under `source_key`: atomic, in the store where it can."""

    def copies_from(self, other: Sink) -> bool:
        """Whether `copy_from` may bring files of `other` here: both are in one store. Cheap."""
        return False

    def copy_from(self, other: Sink, source_key: str, key: str) -> bool:
        """Store under `key` what stands under `source_key` in `other`, as `copy` does.

        Only the store moves bytes, and it vouches for them. False where it does not do
        that, such as for lack of rights in `other`: then the caller reads and
        writes, and nothing has changed. `NotFoundError` where nothing stands there.
        """
        return False

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects under `keys`, in bulk where the store can. Absent ones are fine."""

    @abstractmethod
    def url(self, key: str) -> str:
        """What another program opens: a path on a local disk, else a URL without secrets."""

    def signed_url(self, key: str, *, seconds: int) -> str | None:
        """An http(s) address of the object under `key` for whoever has it, for so long.

        It takes GET, with a Range, and needs no header. Whether there is an object is not
        asked. The address is a secret: it goes to those who may read the object, and
        into no log. None where the store gives out no such addresses.
        """
        return None

    def free_bytes(self) -> int | None:
        """Bytes that may still be stored; None where nobody can say."""
        return None

    def close(self) -> None:
        """Give back connections."""


class Upload(ABC):
    """One large file on its way into a sink, in numbered parts, seen by nobody yet.

    Part ``n`` (from 0) holds the bytes from ``n * part_size`` on; all but the last
    are of `part_size` bytes. Any number of threads write different parts at once,
    in any order. It ends by exactly one of `commit`, `keep` and `discard`; where
    it ends by the death of the process, that is as `keep`.
    """

    size: int
    """Bytes of the whole file."""

    part_size: int
    """Bytes of each part but the last. The same for the same `size` in every attempt."""

    kept: frozenset[int] = frozenset()
    """The parts that an earlier attempt stored whole, as far as the store can tell."""

    id: str | None = None
    """By which another process may `ResumableSink.join_upload`; None where none may."""

    readable: bool = False
    """Whether `read_part` works. If not, kept parts are verified after `commit`."""

    @abstractmethod
    def write_part(self, number: int, data: memoryview) -> None:
        """Store one part. Once it returns, a later attempt finds it in `kept`.

        One try: the caller tries again after a `TransientError`, with the same
        bytes. `UploadLostError` where the store has forgotten the whole upload.
        """

    def read_part(self, number: int, buffer: memoryview) -> None:
        """Fill `buffer` with a part of `kept`. `TransientError` where it is not whole after all."""
        raise NotImplementedError

    @abstractmethod
    def commit(self) -> None:
        """Make the file stand under its key: atomic, durable. Every part has been stored.

        On an error nothing is visible; the upload may be kept or discarded.
        """

    @abstractmethod
    def keep(self) -> None:
        """Stop here. What is stored stays, invisible, for a later attempt."""

    @abstractmethod
    def discard(self) -> None:
        """Stop here and delete what is stored. Errors of the store are not raised."""


class ResumableSink(Sink):
    """A sink whose large writes go in parallel parts, and outlive the process that began them."""

    @abstractmethod
    def begin_upload(self, key: str, *, size: int, identity: str | None) -> Upload | None:
        """Begin to store a file of `size` bytes, or take up again what an earlier attempt left.

        `identity` tells the content (a hash, stated by its source): parts are
        taken up only for an equal one where the sink can record it; where it
        cannot, the caller finds out by reading back. Without one, and whenever
        it does not fit, what was left is discarded and nothing is kept.

        None where the file is so small that `write` does it in one step.
        """

    shares_uploads: ClassVar[bool] = False
    """Whether several processes may write parts of one upload at the same time."""

    def join_upload(self, key: str, *, size: int, id: str) -> Upload:  # as in `Upload`
        """The upload that another process began, to write some of its parts.

        Only where `shares_uploads`. Who began it has left it open, parts or none. Who joined
        leaves it by `keep`, which ends nothing; who takes it up by `begin_upload` ends it.
        `UploadLostError` where it is gone.
        """
        raise NotImplementedError

    @abstractmethod
    def unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """The uploads below `prefix` that ended by `keep`, or are under way just now."""

    @abstractmethod
    def discard_unfinished(self, upload: UnfinishedUpload) -> bool:
        """Delete the parts of such an upload; whether they are gone. One that was gone is fine.

        False where a writer at work has them, as far as the store can tell.
        """


class NamingSink(Sink):
    """A sink that shows other programs, in their own way, which version a name means."""

    @abstractmethod
    def show_names(self, model_id: str, names: Mapping[str, str]) -> None:
        """Let other programs find the version ``names[name]`` of this model by each ``name``.

        They are all its names; one that was shown before and is not among them is
        withdrawn. Called after each commit that may have changed them, also with what
        was told already. Nothing in the registry depends on it: errors are logged.
        """


def read_bytes(sink: Sink, key: str) -> bytes:
    """The whole small object under `key`. Raises `NotFoundError`."""
    return b"".join(bytes(buffer) for buffer in sink.read(key))


def read_if_exists(sink: Sink, key: str) -> bytes | None:
    """The whole small object under `key`, or None if there is none."""
    try:
        return read_bytes(sink, key)
    except NotFoundError:
        return None
