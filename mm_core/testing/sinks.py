"""SinkTests: the contract of `mm_core.Sink`, sentence by sentence.

Subclass it and give a fixture `sink` that returns a new, empty store, and, where
the store outlives an instance, `other`: a second instance on the same store::

    class TestMySink(SinkTests):
        @pytest.fixture
        def sink(self, tmp_path):
            return MySink(MySink.Config(root=str(tmp_path)))

        @pytest.fixture
        def other(self, tmp_path, sink):
            return MySink(MySink.Config(root=str(tmp_path)))

A sink that copies by itself from another root (`copy_from`) is given such a one as `neighbour`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import ClassVar

import pytest

from mm_core.exceptions import (
    AlreadyExistsError,
    IntegrityError,
    InvalidNameError,
    NotFoundError,
    StorageError,
)
from mm_core.recall import plain_settings
from mm_core.schemas import StoredObject
from mm_core.sink import Buffer, ResumableSink, Sink, Upload, read_bytes, read_if_exists
from mm_core.testing.material import cut, digest, noise, race, sha256

MIB = 1 << 20
TEXT = b"0123456789"
ESCAPING_KEYS = ("", "..", "../x", "a/../../x", "/x", "/etc/x", "a/..")
ODD_KEYS = (
    "with space",
    "per%41cent",
    "hash#tag",
    "question?versionId=abc",
    "plus+and&and=",
    "ünïcödé-模型",
    "\U0001d49cstral",
    "quote'\"<>",
    "tilde~!@$^(),;[]{}",
    "a.b",
    ".hidden/.file",
    "deep/er/and/deep/er/still",
    "x" * 200,
)
ODD_CONTENTS = (
    b"",
    b"\0",
    b"\r\n--==0==\r\n",
    b"before\r\n--==0==--\r\nafter",
    b"--boundary--\r\n\r\n",
    b"0\r\n\r\n",
    b"\xff\xfe\x1f\x8b",
    bytes(range(256)),
)


class SinkTests:
    """What every sink must do. Override `many_keys` and `creates`, never a test."""

    many_keys: ClassVar[int] = 25
    """How many objects are listed and deleted at once; more than a page where that is quick."""

    creates: ClassVar[bool] = True
    """False for a sink that refuses `create` with `StorageError`: no registry can live there."""

    odd_keys: ClassVar[Sequence[str]] = ODD_KEYS

    @pytest.fixture
    def other(self, sink: Sink) -> Sink:
        return sink

    @pytest.fixture
    def neighbour(self) -> Sink | None:
        """An empty place of another root in the same store, from which `sink` copies by itself."""
        return None

    # -- write -----------------------------------------------------------------------

    def test_a_written_file_is_read_back_byte_for_byte(self, sink: Sink) -> None:
        """What was written is what is read, be it empty, small, or of several parts."""
        for size in (0, 1, 1000, 8 * MIB, 8 * MIB + 1, 9 * MIB, 16 * MIB):
            data = noise(size)
            sink.write("a/file", cut(data), size=size)
            assert digest(sink.read("a/file")) == sha256(data)
            stored = sink.stat("a/file")
            assert stored is not None
            assert stored.size == size

    def test_a_file_of_unknown_size_is_stored(self, sink: Sink) -> None:
        """`size` may be None."""
        sink.write("small", iter([b"a", b"", b"b"]), size=None)
        sink.write("none", iter([]), size=None)
        assert read_bytes(sink, "small") == b"ab"
        assert read_bytes(sink, "none") == b""

    def test_a_reused_buffer_is_stored_as_it_was_when_it_was_given(self, sink: Sink) -> None:
        """A buffer is valid only until the next one is asked for."""
        data = noise(9 * MIB + 17)

        def chunks() -> Iterator[Buffer]:
            buffer = bytearray(700_001)
            for start in range(0, len(data), len(buffer)):
                piece = data[start : start + len(buffer)]
                buffer[: len(piece)] = piece
                yield memoryview(buffer)[: len(piece)]
                buffer[:] = bytes(len(buffer))

        sink.write("file", chunks(), size=len(data))
        assert digest(sink.read("file")) == sha256(data)

    def test_one_huge_buffer_is_stored(self, sink: Sink) -> None:
        """Buffers may be of any size."""
        data = noise(20 * MIB + 3)
        sink.write("file", [memoryview(bytearray(data))], size=len(data))
        assert digest(sink.read("file")) == sha256(data)

    @pytest.mark.parametrize("before", [None, b"what stood before"])
    @pytest.mark.parametrize(
        ("passed", "error"), [(0, ValueError), (9 * MIB, OSError), (9 * MIB, KeyboardInterrupt)]
    )
    def test_a_write_whose_chunks_raise_changes_nothing(
        self, sink: Sink, passed: int, before: bytes | None, error: type[BaseException]
    ) -> None:
        """All or nothing: the error passes unchanged, what stood before stands, nothing is left."""
        if before is not None:
            sink.put("a/file", before)
        there = keys(sink)
        raised = error("the source broke")

        def chunks() -> Iterator[Buffer]:
            yield from cut(noise(passed))
            raise raised

        with pytest.raises(error) as caught:
            sink.write("a/file", chunks(), size=passed + 5)
        assert caught.value is raised
        assert read_if_exists(sink, "a/file") == before
        assert keys(sink) == there

    def test_a_write_of_another_size_than_promised_changes_nothing(self, sink: Sink) -> None:
        """Too few or too many bytes are an IntegrityError, and nothing is left."""
        sink.put("old", b"what stood before")
        for size, promised in [(5, 4), (5, 6), (5, 9 * MIB), (9 * MIB, 5), (9 * MIB, 10 * MIB)]:
            for key in ("new", "old"):
                with pytest.raises(IntegrityError):
                    sink.write(key, cut(noise(size)), size=promised)
        assert read_bytes(sink, "old") == b"what stood before"
        assert keys(sink) == ["old"]

    def test_an_unfinished_write_is_never_listed(self, sink: Sink, other: Sink) -> None:
        """Nobody sees a file that is still being written."""
        seen: list[list[str]] = []

        def chunks() -> Iterator[Buffer]:
            yield noise(9 * MIB)
            seen.append(keys(other))
            assert other.stat("a/file") is None
            yield b"end"

        sink.write("a/file", chunks(), size=9 * MIB + 3)
        assert seen == [[]]
        assert keys(other) == ["a/file"]

    def test_a_write_replaces_what_was_there(self, sink: Sink, other: Sink) -> None:
        """The last write wins, and every instance sees it at once."""
        sink.write("file", [noise(9 * MIB)], size=9 * MIB)
        assert other.stat("file") is not None
        sink.write("file", [b"new"], size=3)
        assert read_bytes(other, "file") == b"new"

    def test_many_threads_share_one_instance(self, sink: Sink) -> None:
        """One instance serves many threads at once."""

        def work(number: int) -> None:
            data = noise(100_000 + number)
            sink.write(f"t{number}/file", cut(data), size=len(data))
            assert digest(sink.read(f"t{number}/file")) == sha256(data)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(16)))
        assert len(keys(sink)) == 16

    def test_content_is_never_interpreted(self, sink: Sink) -> None:
        """Bytes that look like a boundary, a header or a compressed file are just bytes."""
        for number, content in enumerate(ODD_CONTENTS):
            sink.write(f"written/{number}", [content], size=len(content))
            sink.put(f"put/{number}", content)
            assert read_bytes(sink, f"written/{number}") == content
            assert read_bytes(sink, f"put/{number}") == content
            if self.creates:
                sink.create(f"created/{number}", content)
                assert read_bytes(sink, f"created/{number}") == content

    # -- create and put ---------------------------------------------------------------

    def test_create_stores_what_was_not_there(self, sink: Sink, other: Sink) -> None:
        """Created once, a key is taken for every instance until it is deleted."""
        if not self.creates:
            with pytest.raises(StorageError):
                sink.create("a/key", b"one")
            return
        sink.create("a/key", b"one")
        for again in (sink, other):
            with pytest.raises(AlreadyExistsError):
                again.create("a/key", b"two")
        assert read_bytes(other, "a/key") == b"one"
        sink.delete(["a/key"])
        other.create("a/key", b"three")
        assert read_bytes(sink, "a/key") == b"three"

    def test_create_is_refused_where_a_file_was_written(self, sink: Sink) -> None:
        """However it came there: what stands is never replaced by create."""
        if not self.creates:
            pytest.skip("this sink refuses create")
        sink.write("written", [noise(9 * MIB)], size=9 * MIB)
        sink.put("put", b"")
        for key in ("written", "put"):
            with pytest.raises(AlreadyExistsError):
                sink.create(key, b"x")

    def test_of_many_creators_exactly_one_wins(self, sink: Sink, other: Sink) -> None:
        """Create is exclusive: of 8 threads on two instances one returns, in each of 20 rounds."""
        if not self.creates:
            pytest.skip("this sink refuses create")
        for number in range(20):
            key = f"round/{number:03}"
            winners = race(
                [
                    partial(_created, (sink, other)[writer % 2], key, b"writer %d" % writer)
                    for writer in range(8)
                ]
            )
            assert winners.count(True) == 1
            assert read_bytes(sink, key) == b"writer %d" % winners.index(True)

    def test_put_replaces(self, sink: Sink, other: Sink) -> None:
        """The last put wins, also over a longer one."""
        sink.put("hint", b"a long one")
        other.put("hint", b"short")
        assert read_bytes(sink, "hint") == b"short"
        assert keys(sink) == ["hint"]

    def test_a_reader_sees_one_put_or_the_other(self, sink: Sink, other: Sink) -> None:
        """Put is atomic: a reader never finds a mixture, a part, or nothing."""
        versions = [bytes([65 + i]) * (50_000 + i * 1000) for i in range(4)]
        sink.put("hint", versions[0])
        done = threading.Event()

        def write() -> bool:
            for number in range(24):
                sink.put("hint", versions[number % 4])
            done.set()
            return True

        def read() -> bool:
            while not done.is_set():
                assert read_bytes(other, "hint") in versions
            return True

        assert race([write, read, read]) == [True] * 3

    # -- read and stat ----------------------------------------------------------------

    def test_ranges_are_half_open_and_end_with_the_object(self, sink: Sink) -> None:
        """[start, end) of what there is; beyond the end there is nothing."""
        sink.put("text", TEXT)
        sink.put("empty", b"")
        for start in (0, 3, 9, 10, 99):
            for end in (None, 0, 1, 4, 9, 10, 20, 200):
                found = b"".join(bytes(buffer) for buffer in sink.read("text", start, end))
                assert found == TEXT[start:end], (start, end)
                assert b"".join(bytes(b) for b in sink.read("empty", start, end)) == b""

    def test_ranges_of_a_large_file(self, sink: Sink) -> None:
        """Ranges that begin and end anywhere, also across the parts it was stored in."""
        data = noise(17 * MIB)
        sink.write("file", cut(data), size=len(data))
        for start, end in [(0, 1), (8 * MIB - 1, 8 * MIB + 1), (5 * MIB + 3, 16 * MIB + 9)]:
            assert digest(sink.read("file", start, end)) == sha256(data[start:end])

    def test_a_reader_may_stop_early(self, sink: Sink) -> None:
        """Closing the iterator is fine, and the sink goes on working."""
        sink.write("file", [noise(9 * MIB)], size=9 * MIB)
        for _ in range(5):
            reader = sink.read("file")
            assert next(iter(reader))
            reader.close()  # type: ignore[attr-defined]  # an Iterator need not have it; ours do
        assert len(read_bytes(sink, "file")) == 9 * MIB

    def test_what_is_not_there_is_not_found(self, sink: Sink) -> None:
        """NotFoundError from read and copy, None from stat, nothing from list."""
        sink.put("a/file", b"x")
        for absent in ("absent", "a", "a/file2", "a/fil", "a/file/below"):
            with pytest.raises(NotFoundError):
                list(sink.read(absent))
            with pytest.raises(NotFoundError):
                list(sink.read(absent, 1, 2))
            with pytest.raises(NotFoundError):
                sink.copy(absent, "copied")
            assert sink.stat(absent) is None
        assert keys(sink) == ["a/file"]

    def test_stat_and_list_tell_size_and_time_in_utc(self, sink: Sink) -> None:
        """Both say the same; times have a zone, UTC, and are of today by any clock."""
        sink.put("file", TEXT)
        stored = sink.stat("file")
        listed = list(sink.list("file"))
        assert stored is not None
        assert [(o.key, o.size) for o in (stored, *listed)] == [("file", 10)] * 2
        for found in (stored, *listed):
            assert found.modified.utcoffset() == timedelta(0)
            assert abs(datetime.now(timezone.utc) - found.modified) < timedelta(days=1)

    # -- list -------------------------------------------------------------------------

    def test_a_listing_is_recursive_and_ordered_by_code_point(self, sink: Sink) -> None:
        """As `sorted` orders the keys, whatever the folders."""
        names = [
            "b",
            "a/b",
            "a-b",
            "a.b",
            "a/b/c" + "d",
            "aB",
            "a0",
            "é",
            "a/é",
            "模",
            "\U0001d49c",
            "z/y/x",
        ]
        for name in names:
            sink.put(f"{name}/f", b"")
        assert keys(sink) == sorted(f"{name}/f" for name in names)

    def test_a_prefix_is_a_plain_string(self, sink: Sink) -> None:
        """``a/b`` also finds ``a/bc``; a folder is asked for with its slash."""
        names = ["a/b/1", "a/bc/2", "a/bd", "a/c", "ab", "b"]
        for name in names:
            sink.put(name, b"")
        for prefix in ("", "a", "a/", "a/b", "a/b/", "a/bc/2", "ab", "c", "a/b/1/"):
            assert keys(sink, prefix) == [name for name in names if name.startswith(prefix)]

    def test_nothing_is_cached(self, sink: Sink, other: Sink) -> None:
        """Each instance sees at once what the other did, also where it had looked before."""
        for number in range(3):
            key = f"a/{number}"
            assert (other.stat(key), keys(other, key)) == (None, [])
            sink.put(key, TEXT)
            assert other.stat(key) is not None
            assert keys(other, key) == [key]
            sink.put(key, TEXT * 2)
            assert read_bytes(other, key) == TEXT * 2
            assert other.stat(key).size == 20  # type: ignore[union-attr]  # it is there
            sink.delete([key])
            assert (other.stat(key), keys(other, key)) == (None, [])

    def test_many_objects_are_listed_and_deleted(self, sink: Sink) -> None:
        """Also more than fit a page of the store's."""
        names = [f"m/{number:05}" for number in range(self.many_keys)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: sink.put(name, b"x"), [*names, "n"]))
        assert keys(sink, "m/") == names
        sink.delete(name for name in names)
        assert keys(sink) == ["n"]

    # -- copy and delete --------------------------------------------------------------

    def test_a_copy_is_a_file_of_its_own(self, sink: Sink, other: Sink) -> None:
        """It replaces what was there, and outlives and never follows its source."""
        data = noise(9 * MIB)
        sink.write("a/source", [data], size=len(data))
        sink.put("b/copy", b"old")
        sink.copy("a/source", "b/copy")
        sink.copy("a/source", "b/copy")
        sink.put("a/source", b"new")
        assert digest(other.read("b/copy")) == sha256(data)
        sink.delete(["a/source"])
        assert keys(other) == ["b/copy"]
        assert digest(sink.read("b/copy")) == sha256(data)

    def test_copying_a_file_onto_itself_changes_nothing(self, sink: Sink) -> None:
        """The file is as it was, once."""
        sink.put("file", TEXT)
        sink.copy("file", "file")
        assert read_bytes(sink, "file") == TEXT
        assert keys(sink) == ["file"]

    def test_a_copy_of_nothing_leaves_the_target(self, sink: Sink) -> None:
        """NotFoundError, and the target stands."""
        sink.put("target", TEXT)
        with pytest.raises(NotFoundError):
            sink.copy("absent", "target")
        assert read_bytes(sink, "target") == TEXT

    def test_a_neighbours_file_is_copied_by_the_store(
        self, sink: Sink, neighbour: Sink | None
    ) -> None:
        """The same bytes stand under the new key, whatever was there; the source is as it was."""
        if neighbour is None:
            pytest.skip("this store copies from no other root, or the suite was given none")
        assert sink.root != neighbour.root
        assert sink.copies_from(neighbour)
        data = noise(9 * MIB)
        neighbour.write("a/source", [data], size=len(data))
        sink.put("b/c/copy", b"old")
        for _ in range(2):
            assert sink.copy_from(neighbour, "a/source", "b/c/copy")
        assert digest(sink.read("b/c/copy")) == sha256(data)
        assert (keys(sink), keys(neighbour)) == (["b/c/copy"], ["a/source"])
        neighbour.delete(["a/source"])
        assert digest(sink.read("b/c/copy")) == sha256(data)
        with pytest.raises(NotFoundError):
            sink.copy_from(neighbour, "a/source", "b/c/copy")
        assert digest(sink.read("b/c/copy")) == sha256(data)
        for key in ESCAPING_KEYS:
            with pytest.raises(InvalidNameError):
                sink.copy_from(neighbour, key, "copied")

    def test_a_strangers_file_is_not_copied_by_the_store(self, sink: Sink) -> None:
        """From a store of another kind nothing is copied, and nothing changes."""
        sink.put("file", TEXT)
        stranger = _Stranger(None)
        assert not sink.copies_from(stranger)
        assert not sink.copy_from(stranger, "file", "file")
        assert (keys(sink), read_bytes(sink, "file")) == (["file"], TEXT)

    def test_deleting_nothing_is_fine(self, sink: Sink) -> None:
        """Absent keys are passed over, and only what was named goes."""
        for name in ("a/b", "a/bc", "a/b.c"):
            sink.put(name, b"")
        sink.delete([])
        sink.delete(["absent", "a/b", "a", "absent/too", "a/b"])
        assert keys(sink) == ["a/b.c", "a/bc"]

    # -- keys -------------------------------------------------------------------------

    def test_odd_keys_are_kept_as_they_are(self, sink: Sink, other: Sink) -> None:
        """No key is decoded, cut, or taken for something else."""
        for number, key in enumerate(self.odd_keys):
            data = b"%d" % number
            sink.write(key, [data], size=len(data))
        assert keys(other) == sorted(self.odd_keys)
        for number, key in enumerate(self.odd_keys):
            assert read_bytes(other, key) == b"%d" % number
            assert other.stat(key) is not None
            assert keys(other, key) == [key]
            sink.copy(key, f"copies/{key}")
            assert read_bytes(other, f"copies/{key}") == b"%d" % number
        sink.delete(self.odd_keys)
        assert keys(other) == sorted(f"copies/{key}" for key in self.odd_keys)

    def test_a_key_never_leaves_the_root(self, sink: Sink) -> None:
        """Such a key is an InvalidNameError to each method."""
        sink.put("file", b"x")
        attempts: list[Callable[[str], object]] = [
            lambda key: sink.write(key, [b"x"], size=1),
            lambda key: sink.put(key, b"x"),
            lambda key: list(sink.read(key)),
            sink.stat,
            lambda key: sink.copy("file", key),
            lambda key: sink.copy(key, "copied"),
            lambda key: sink.delete([key]),
            sink.url,
        ]
        if self.creates:
            attempts.append(lambda key: sink.create(key, b"x"))
        for key in ESCAPING_KEYS:
            for attempt in attempts:
                with pytest.raises(InvalidNameError):
                    attempt(key)
        assert keys(sink) == ["file"]

    def test_a_prefix_never_leaves_the_root(self, sink: Sink) -> None:
        """A listing of another place is an InvalidNameError."""
        for prefix in ("../", "a/../", "/", "/etc/"):
            with pytest.raises(InvalidNameError):
                list(sink.list(prefix))

    def test_plain_settings_do_where_the_sink_says_so(self, sink: Sink) -> None:
        """With `plain_config`, an object with the same attributes opens the same place."""
        if not sink.plain_config:
            pytest.skip("this sink is always given a validated Config")
        again = type(sink)(plain_settings(sink.config))
        again.put("a/b", b"data")
        assert again.root == sink.root
        assert read_bytes(sink, "a/b") == b"data"
        assert [stored.key for stored in again.list("a/")] == ["a/b"]
        again.delete(["a/b"])
        again.close()

    def test_root_and_url_name_the_place(self, sink: Sink, other: Sink) -> None:
        """Instances on one store have one root; a URL begins with it and ends with the key."""
        assert sink.root == other.root
        assert not sink.root.endswith("/") or sink.root.endswith("://")
        assert sink.url("a/file.bin").startswith(sink.root)
        assert sink.url("a/file.bin").replace("\\", "/").endswith("/a/file.bin")


class _Stranger(Sink):
    """A sink of a kind of its own. It is only shown, never asked."""

    type = "stranger"

    @property
    def root(self) -> str:
        return "stranger://"

    def write(self, key: str, chunks: Iterable[Buffer], *, size: int | None) -> None:
        raise NotImplementedError

    def create(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        raise NotImplementedError

    def stat(self, key: str) -> StoredObject | None:
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[StoredObject]:
        raise NotImplementedError

    def copy(self, source_key: str, key: str) -> None:
        raise NotImplementedError

    def delete(self, keys: Iterable[str]) -> None:
        raise NotImplementedError

    def url(self, key: str) -> str:
        raise NotImplementedError


def keys(sink: Sink, prefix: str = "") -> list[str]:
    """The keys of a listing."""
    return [found.key for found in sink.list(prefix)]


def _created(sink: Sink, key: str, data: bytes) -> bool:
    try:
        sink.create(key, data)
    except AlreadyExistsError:
        return False
    return True


class ResumableSinkTests(SinkTests):
    """What a `ResumableSink` must do besides. A file of `large` bytes has four parts or more."""

    large: ClassVar[int] = 40 * MIB + 12_345

    identifies: ClassVar[bool] = True
    """Whether the sink records the identity of what was begun; where not, readers-back find out."""

    @staticmethod
    def begin(sink: Sink, key: str, size: int, identity: str | None = "sha256:aa") -> Upload:
        """An upload of `size` bytes, which must go in parts."""
        assert isinstance(sink, ResumableSink)
        upload = sink.begin_upload(key, size=size, identity=identity)
        assert upload is not None
        assert upload.size == size
        return upload

    @staticmethod
    def send(upload: Upload, content: bytes, numbers: Iterable[int] | None = None) -> None:
        """Write the parts `numbers` of `content`, or all that are not kept, last first."""
        view = memoryview(content)
        count = -(-upload.size // upload.part_size)
        chosen = set(range(count)) - upload.kept if numbers is None else set(numbers)
        for number in sorted(chosen, reverse=True):
            start = number * upload.part_size
            upload.write_part(number, view[start : start + upload.part_size])

    def test_a_small_file_needs_no_upload(self, sink: Sink) -> None:
        assert isinstance(sink, ResumableSink)
        assert sink.begin_upload("small", size=10, identity=None) is None

    def test_parts_in_any_order_make_the_file(self, sink: Sink, other: Sink) -> None:
        content = noise(self.large)
        upload = self.begin(sink, "m/large", self.large)
        assert upload.kept == frozenset()
        self.send(upload, content)
        assert other.stat("m/large") is None
        assert list(other.list("")) == []
        upload.commit()
        stored = other.stat("m/large")
        assert stored is not None
        assert stored.size == self.large
        assert digest(other.read("m/large")) == sha256(content)
        assert isinstance(other, ResumableSink)
        assert list(other.unfinished("")) == []

    def test_many_threads_write_parts(self, sink: Sink, other: Sink) -> None:
        content = noise(self.large)
        upload = self.begin(sink, "threads", self.large)
        count = -(-self.large // upload.part_size)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: self.send(upload, content, [number]), range(count)))
        upload.commit()
        assert digest(other.read("threads")) == sha256(content)

    def test_an_upload_replaces_what_stood_there(self, sink: Sink, other: Sink) -> None:
        sink.put("again", TEXT)
        content = noise(self.large)
        upload = self.begin(sink, "again", self.large)
        self.send(upload, content)
        assert read_bytes(other, "again") == TEXT
        upload.commit()
        assert digest(other.read("again")) == sha256(content)

    def test_what_was_kept_is_taken_up_by_another_process(self, sink: Sink, other: Sink) -> None:
        content = noise(self.large)
        first = self.begin(sink, "m/resumed", self.large)
        self.send(first, content, [0, 2])
        first.keep()
        assert list(other.list("")) == []
        second = self.begin(other, "m/resumed", self.large)
        assert second.part_size == first.part_size
        assert second.kept == {0, 2}
        if second.readable:
            buffer = memoryview(bytearray(second.part_size))
            second.read_part(2, buffer)
            start = 2 * second.part_size
            assert buffer == content[start : start + second.part_size]
        self.send(second, content)
        second.commit()
        assert digest(other.read("m/resumed")) == sha256(content)

    def test_another_size_or_no_identity_starts_anew(self, sink: Sink, other: Sink) -> None:
        content = noise(self.large)
        for key, size, identity in (
            ("size", self.large + 1, "sha256:aa"),
            ("none", self.large, None),
        ):
            first = self.begin(sink, key, self.large)
            self.send(first, content, [0, 1])
            first.keep()
            second = self.begin(other, key, size, identity)
            if size == self.large:
                assert second.kept == frozenset()
            second.discard()

    def test_another_identity_starts_anew(self, sink: Sink, other: Sink) -> None:
        if not self.identifies:
            pytest.skip("this store records no identity: the caller reads back")
        first = self.begin(sink, "identity", self.large)
        self.send(first, noise(self.large), [0, 1])
        first.keep()
        second = self.begin(other, "identity", self.large, "sha256:bb")
        assert second.kept == frozenset()
        second.discard()

    def test_what_was_discarded_is_gone(self, sink: Sink, other: Sink) -> None:
        assert isinstance(other, ResumableSink)
        upload = self.begin(sink, "m/dropped", self.large)
        self.send(upload, noise(self.large), [1])
        upload.discard()
        assert list(other.unfinished("")) == []
        again = self.begin(other, "m/dropped", self.large)
        assert again.kept == frozenset()
        again.discard()
        assert list(other.list("")) == []

    def test_unfinished_uploads_are_listed_and_discarded(self, sink: Sink, other: Sink) -> None:
        assert isinstance(other, ResumableSink)
        for key in ("m/a", "m/b", "n/c"):
            upload = self.begin(sink, key, self.large)
            self.send(upload, noise(self.large), [0])
            upload.keep()
        found = {left.key: left for left in other.unfinished("m/")}
        assert set(found) == {"m/a", "m/b"}
        for left in found.values():
            assert abs(datetime.now(timezone.utc) - left.modified) < timedelta(hours=1)
            other.discard_unfinished(left)
            other.discard_unfinished(left)
        assert [left.key for left in other.unfinished("")] == ["n/c"]
        assert self.begin(other, "m/a", self.large).kept == frozenset()

    def test_an_upload_never_leaves_the_root(self, sink: Sink) -> None:
        assert isinstance(sink, ResumableSink)
        for key in ESCAPING_KEYS:
            with pytest.raises(InvalidNameError):
                sink.begin_upload(key, size=self.large, identity=None)
