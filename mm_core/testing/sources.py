"""SourceTests: what every source must do, whatever it reads from.

Subclass it and give three fixtures: the `source`, the `url` of a model that is
there, and `expected`, its files as a mapping of paths to bytes. At least two
files, one of them larger than 1 MiB::

    class TestMySource(SourceTests):
        @pytest.fixture
        def source(self):
            made = MySource(MySource.Config())
            yield made
            made.close()

        @pytest.fixture
        def url(self):
            return "my://model"

        @pytest.fixture
        def expected(self):
            return {"config.json": b"{}", "weights.bin": bytes(2 << 20)}

A source of single files, such as one of URLs, has one file in `expected`, and
says ``many_files = False``. A source whose models have no fixed revision says
``has_revision = False``. What else may be given stands in the class; a test of
what was not given, or not declared, is skipped with its reason.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from mm_core.exceptions import MMError, NotFoundError, SourceChangedError
from mm_core.names import check_paths, check_version
from mm_core.schemas import RemoteFile, Request, Snapshot
from mm_core.source import Source

LARGEST_BUFFER = 16 << 20


class SourceTests:
    """One source and one model in it. Needs the fixtures `source`, `url` and `expected`."""

    many_files: ClassVar[bool] = True
    """False for a source of single files."""

    has_revision: ClassVar[bool] = True
    """False where models have no fixed revision: `Snapshot.revision` is None then."""

    @pytest.fixture
    def source(self) -> Source:
        raise NotImplementedError("give a fixture `source` that returns the source")

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError("give a fixture `url` that names a model of the source")

    @pytest.fixture
    def expected(self) -> Mapping[str, bytes]:
        raise NotImplementedError("give a fixture `expected` with the files of that model")

    @pytest.fixture
    def unknown_url(self, url: str) -> str:
        """The address of a model that is not there; override it where this is not one."""
        return f"{url.rstrip('/')}-that-is-not-there"

    @pytest.fixture
    def change_it(self) -> Callable[[], None] | None:
        """Changes the largest file of the model at its origin, as its owner would."""
        return None

    @pytest.fixture
    def break_it(self) -> Callable[[], None] | None:
        """Makes the origin fail from now on: the server is stopped, the file is gone."""
        return None

    @pytest.fixture
    def secrets(self) -> Sequence[str]:
        """Words in the source's settings, or in `url`, that nobody may be told."""
        return ()

    @pytest.fixture
    def largest(self, source: Source, url: str) -> RemoteFile:
        """The largest file of the model."""
        return max(_files(source, url).values(), key=lambda file: file.size or 0)

    @pytest.fixture
    def content(self, largest: RemoteFile, expected: Mapping[str, bytes]) -> bytes:
        """The bytes of the largest file."""
        data = expected[largest.path]
        assert len(data) > 1 << 20, "let one file of `expected` be larger than 1 MiB"
        return data

    def test_it_declares_itself(self, source: Source, url: str) -> None:
        """A type for mm.yaml, schemes as a tuple, and it answers its own addresses."""
        assert isinstance(source.type, str)
        assert isinstance(source.schemes, tuple)
        scheme = url.partition("://")[0] if "://" in url else None
        assert scheme in source.schemes or source.answers(url)

    def test_all_files_are_listed(
        self, source: Source, url: str, expected: Mapping[str, bytes]
    ) -> None:
        """All files of the model and no others, by relative paths that are allowed, once each."""
        files = source.snapshot(Request(url=url)).files
        check_paths(file.path for file in files)
        assert sorted(file.path for file in files) == sorted(expected)

    def test_the_snapshot_is_repeatable(self, source: Source, url: str) -> None:
        """What did not change is described in the same words, in the same order."""
        first, second = (source.snapshot(Request(url=url)) for _ in range(2))
        assert _facts(first) == _facts(second)

    def test_the_revision_is_fixed(self, source: Source, url: str) -> None:
        """It can name a version, and asking for just that revision finds the same again."""
        shot = source.snapshot(Request(url=url))
        if not self.has_revision:
            assert shot.revision is None
            pytest.skip("this source declares no fixed revisions: `has_revision` is False")
        assert shot.revision is not None
        assert check_version(shot.revision) == shot.revision
        again = source.snapshot(Request(url=url, revision=shot.revision))
        assert _facts(again) == _facts(shot)

    def test_an_unknown_revision_is_not_found(self, source: Source, url: str) -> None:
        """A revision that is not there is never replaced by another."""
        with pytest.raises(NotFoundError):
            source.snapshot(Request(url=url, revision="no-such-revision"))

    def test_what_is_stated_is_true(
        self, source: Source, url: str, expected: Mapping[str, bytes]
    ) -> None:
        """Sizes and hashes, where they are stated, are those of the bytes."""
        for path, file in _files(source, url).items():
            data = expected[path]
            assert file.size in (None, len(data))
            assert file.sha256 in (None, hashlib.sha256(data).hexdigest())
            blob = b"blob %d\0" % len(data) + data
            assert file.git_sha1 in (None, hashlib.sha1(blob, usedforsecurity=False).hexdigest())

    def test_files_read_whole(
        self, source: Source, url: str, expected: Mapping[str, bytes]
    ) -> None:
        """Every file gives its bytes, in buffers of a few MiB at most."""
        for path, file in _files(source, url).items():
            buffers = [bytes(buffer) for buffer in source.read(file)]
            assert b"".join(buffers) == expected[path], path
            assert max(map(len, buffers), default=0) <= LARGEST_BUFFER

    @pytest.mark.parametrize(
        ("start", "end"), [(0, 1), (1, 2), (1, None), (1000, 1_000_000), (0, 1 << 20), (777, 778)]
    )
    def test_ranges(
        self, source: Source, largest: RemoteFile, content: bytes, start: int, end: int | None
    ) -> None:
        """A range is [start, end), to the end of the file where `end` is None."""
        assert _read(source, largest, start, end) == content[start:end]

    def test_ranges_at_the_end(self, source: Source, largest: RemoteFile, content: bytes) -> None:
        """What lies beyond the end yields what there is: less, or nothing."""
        size = len(content)
        assert _read(source, largest, size - 3) == content[-3:]
        assert _read(source, largest, size - 3, size + 1000) == content[-3:]
        assert _read(source, largest, size) == b""
        assert _read(source, largest, size + 5) == b""
        assert _read(source, largest, size + 5, size + 9) == b""
        assert _read(source, largest, 5, 5) == b""

    def test_a_range_is_read_into_memory_of_the_callers(
        self, source: Source, largest: RemoteFile, content: bytes
    ) -> None:
        """`open` fills from the front what it is given, touches nothing behind, and ends with 0."""
        assert source.splits(largest) in (True, False)
        reader = source.open(largest, 5, 50_005)
        target = bytearray(b"\xa5" * 60_000)
        done = 0
        while count := reader.readinto(memoryview(target)[done : done + 7_001]):
            assert count <= 7_001
            done += count
        assert reader.readinto(memoryview(target)) == 0
        reader.close()
        reader.close()
        assert target[:done] == content[5:50_005]
        assert target[done:] == b"\xa5" * (60_000 - done)

    def test_a_reader_may_be_closed_in_the_middle(
        self, source: Source, largest: RemoteFile, content: bytes
    ) -> None:
        """What comes after it is not disturbed."""
        for _ in range(10):
            reader = source.open(largest)
            target = memoryview(bytearray(10))
            count = reader.readinto(target)
            assert target[:count] == content[:count]
            reader.close()
        assert _read(source, largest) == content

    def test_closing_early(self, source: Source, largest: RemoteFile, content: bytes) -> None:
        """A reader may stop at any time; what comes after it is not disturbed."""
        for _ in range(20):
            reading = iter(source.read(largest))
            first = bytes(next(reading))
            assert content.startswith(first)
            close = getattr(reading, "close", None)
            if close is not None:
                close()
        assert _read(source, largest) == content

    def test_many_threads(self, source: Source, largest: RemoteFile, content: bytes) -> None:
        """One instance serves eight threads at once, each with its own range."""
        step = len(content) // 8 + 1
        ranges = [(start, start + step) for start in range(0, len(content), step)] * 3
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda r: _read(source, largest, *r), ranges))
        assert b"".join(parts) == content * 3

    def test_include_and_exclude(
        self, source: Source, url: str, expected: Mapping[str, bytes]
    ) -> None:
        """Patterns are globs over whole paths; exclude wins; letter case counts."""
        one = min(expected)
        for options, wanted in (
            ({"include": (one,)}, {one}),
            ({"exclude": (one,)}, set(expected) - {one}),
            ({"include": ("*",)}, set(expected)),
            ({"include": ("*",), "exclude": ("*",)}, set()),
            ({"include": (one,), "exclude": (one[:-1] + "?",)}, set()),
            ({"include": ("no-such-name",)}, set()),
        ):
            assert set(_files(source, url, **options)) == wanted, options

    def test_a_chosen_file_reads_like_any(
        self, source: Source, url: str, expected: Mapping[str, bytes]
    ) -> None:
        """Patterns choose files; they do not change them."""
        one = max(expected)
        file = _files(source, url, include=(one,))[one]
        assert _read(source, file) == expected[one]

    def test_an_unknown_model_is_not_found(self, source: Source, unknown_url: str) -> None:
        """What is not there is `NotFoundError`, not an empty snapshot."""
        with pytest.raises(NotFoundError):
            source.snapshot(Request(url=unknown_url))

    def test_what_changed_is_never_mixed(
        self,
        source: Source,
        url: str,
        largest: RemoteFile,
        content: bytes,
        change_it: Callable[[], None] | None,
    ) -> None:
        """After a change the old snapshot's file is as it was or `SourceChangedError`.

        The next snapshot has another revision: a moving one was not kept as if it were fixed.
        """
        if change_it is None:
            pytest.skip("the suite was not told how the model changes: no `change_it`")
        before = source.snapshot(Request(url=url))
        change_it()
        with contextlib.suppress(SourceChangedError):
            assert _read(source, largest) == content
        after = source.snapshot(Request(url=url))
        assert _facts(after) != _facts(before)
        if self.has_revision:
            assert after.revision != before.revision

    def test_foreign_errors_are_translated(
        self,
        source: Source,
        url: str,
        largest: RemoteFile,
        break_it: Callable[[], None] | None,
        secrets: Sequence[str],
    ) -> None:
        """Where the origin fails, an `MMError` comes, also while reading; it tells no secret."""
        if break_it is None:
            pytest.skip("the suite was not told how the origin fails: no `break_it`")
        attempts: list[Callable[[], object]] = [
            lambda: source.snapshot(Request(url=url)),
            lambda: _read(source, largest),
            lambda: _read(source, largest, 1000, 2000),
            lambda: source.open(largest).readinto(memoryview(bytearray(10))),
        ]
        reading = iter(source.read(largest))
        next(reading)
        break_it()
        with contextlib.suppress(MMError):  # what came before may be enough to go on
            list(reading)
        for attempt in attempts:
            with pytest.raises(MMError) as caught:
                attempt()
            _refuse_secrets(f"{caught.value} {caught.value.hint}", secrets)

    def test_no_secret_is_told(
        self, source: Source, url: str, unknown_url: str, secrets: Sequence[str]
    ) -> None:
        """Neither what is stored beside a model, nor what is shown of it, nor an error has one."""
        if not secrets:
            pytest.skip("the suite was told of no secrets: no `secrets`")
        shot = source.snapshot(Request(url=url))
        _refuse_secrets(f"{_facts(shot)} {dict(shot.facts)} {shot!r}", secrets)
        for bad in (Request(url=url, revision="no-such-revision"), Request(url=unknown_url)):
            with pytest.raises(MMError) as caught:
                source.snapshot(bad)
            _refuse_secrets(f"{caught.value} {caught.value.hint}", secrets)

    def test_there_are_enough_files(self, expected: Mapping[str, bytes]) -> None:
        """`expected` is what this suite needs."""
        assert len(expected) > 1 or not self.many_files


def _files(source: Source, url: str, **options: Any) -> dict[str, RemoteFile]:
    return {file.path: file for file in source.snapshot(Request(url=url, **options)).files}


def _read(source: Source, file: RemoteFile, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(bytes(buffer) for buffer in source.read(file, start, end))


def _facts(shot: Snapshot) -> list[object]:
    files = [(f.path, f.size, f.sha256, f.git_sha1, f.etag) for f in shot.files]
    return [shot.source, shot.revision, shot.model_id, shot.model_type, shot.license, *files]


def _refuse_secrets(told: str, secrets: Sequence[str]) -> None:
    assert not [secret for secret in secrets if secret in told]
