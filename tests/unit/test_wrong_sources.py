"""The suite for sources can fail: each test of it catches a source that breaks just its promise."""

from __future__ import annotations

import hashlib
import random
import time

import pytest
from wrong import CAUGHT, methods_of, run_test

from mm_core import (
    NotFoundError,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    SourceChangedError,
    StorageError,
    TransientError,
)
from mm_core.testing import SourceTests

pytestmark = pytest.mark.unit

SECRET = "hunter2hunter2"
URL = "plain://model"
FILES = {
    "a.json": b"{}",
    "b.txt": b"text",
    "weights.bin": random.Random(5).randbytes((1 << 20) + 333),
}
WRONG: list[tuple[type[Plain], str, dict]] = []


def caught_by(*tests: str, **parameters):
    """Note a wrong source with the tests that catch it, and the parameters of those."""

    def note(source):
        WRONG.extend((source, test, parameters) for test in tests)
        return source

    return note


class Plain(Source):
    """One model in memory, and all that a source promises."""

    type = "plain"
    schemes = ("plain",)
    broken: Exception | None = None

    def __init__(self):
        super().__init__()
        self.files = dict(FILES)

    def snapshot(self, request):
        self.refuse_broken()
        if request.url != URL:
            raise NotFoundError("there is no such model")
        files = tuple(self.listed(request))
        revision = self.revision()
        if request.revision not in (None, revision):
            raise NotFoundError(f"there is no revision {request.revision}")
        return Snapshot(source=URL, revision=revision, files=files, model_id="model")

    def listed(self, request):
        return [self.told(p, d) for p, d in self.files.items() if request.selects(p)]

    def told(self, path, data):
        return RemoteFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def revision(self):
        return hashlib.sha256(repr(sorted(self.files.items())).encode()).hexdigest()[:40]

    def read(self, file, start=0, end=None):
        self.refuse_broken()
        data = self.files[file.path]
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise SourceChangedError(f"{file.path} changed")
        yield from self.pieces(data, start, end)

    def pieces(self, data, start, end):
        part = data[start:end]
        for place in range(0, len(part), 100_000):
            yield part[place : place + 100_000]

    def refuse_broken(self):
        if self.broken is not None:
            raise self.broken

    def change(self):
        self.files["weights.bin"] = bytes(len(FILES["weights.bin"]))

    def fail(self):
        self.broken = TransientError("the line was cut")


@caught_by("test_it_declares_itself")
class HasOneScheme(Plain):
    schemes = "plain"


@caught_by("test_all_files_are_listed")
class ForgetsAFile(Plain):
    def listed(self, request):
        return super().listed(request)[1:]


@caught_by("test_the_snapshot_is_repeatable")
class ListsInAnyOrder(Plain):
    turns = 0

    def listed(self, request):
        self.turns += 1
        return super().listed(request)[:: 1 if self.turns % 2 else -1]


@caught_by("test_the_revision_is_fixed")
class NamesABranch(Plain):
    def revision(self):
        return "refs/heads/main"


@caught_by("test_an_unknown_revision_is_not_found")
class TakesAnyRevision(Plain):
    def snapshot(self, request):
        return super().snapshot(Request(url=request.url, include=request.include))


@caught_by("test_what_is_stated_is_true")
class StatesOtherHashes(Plain):
    def told(self, path, data):
        return RemoteFile(path=path, size=len(data), sha256="0" * 64)


@caught_by("test_files_read_whole")
class LosesTheLastByte(Plain):
    def pieces(self, data, start, end):
        return super().pieces(data[:-1], start, end)


@caught_by("test_ranges", start=1000, end=1_000_000)
class IgnoresTheEnd(Plain):
    def pieces(self, data, start, end):
        return super().pieces(data, start, None)


@caught_by("test_ranges", start=1, end=2)
class IncludesTheEnd(Plain):
    def pieces(self, data, start, end):
        return super().pieces(data, start, None if end is None else end + 1)


@caught_by("test_ranges_at_the_end")
class FailsBeyondTheEnd(Plain):
    def pieces(self, data, start, end):
        if end is not None and end > len(data):
            raise StorageError("there is no such range")
        return super().pieces(data, start, end)


class WholeReader:
    """Fills all of the caller's memory, whatever the range."""

    def __init__(self, data):
        self.data = data

    def readinto(self, buffer):
        count = min(len(buffer), len(self.data))
        buffer[:] = self.data[:count] + bytes(len(buffer) - count)
        self.data = self.data[count:]
        return count

    def close(self):
        pass


@caught_by("test_a_range_is_read_into_memory_of_the_callers")
class WritesBehindTheRange(Plain):
    def open(self, file, start=0, end=None):
        return WholeReader(self.files[file.path][start:end])


class Leaks(Plain):
    left = 3

    def take(self):
        if not self.left:
            raise StorageError("no connection is left")
        self.left -= 1


@caught_by("test_a_reader_may_be_closed_in_the_middle")
class LeaksReaders(Leaks):
    def open(self, file, start=0, end=None):
        self.take()
        return super().open(file, start, end)


@caught_by("test_closing_early")
class LeaksConnections(Leaks):
    def read(self, file, start=0, end=None):
        self.take()
        yield from super().read(file, start, end)
        self.left += 1


@caught_by("test_many_threads")
class HasOnePosition(Plain):
    def pieces(self, data, start, end):
        self.at = start
        stop = len(data) if end is None else min(end, len(data))
        while self.at < stop:
            piece = data[self.at : min(self.at + 50_000, stop)]
            time.sleep(0.001)
            self.at += len(piece)
            yield piece


@caught_by("test_include_and_exclude")
class KnowsNoExclude(Plain):
    def listed(self, request):
        return super().listed(Request(url=request.url, include=request.include))


@caught_by("test_a_chosen_file_reads_like_any")
class ReadsByPlace(Plain):
    def listed(self, request):
        found = super().listed(request)
        self.order = {file.path: place for place, file in enumerate(found)}
        return found

    def read(self, file, start=0, end=None):
        path = list(self.files)[self.order[file.path]]
        yield from self.pieces(self.files[path], start, end)


@caught_by("test_an_unknown_model_is_not_found")
class IsEmptyWhereNothingIs(Plain):
    def snapshot(self, request):
        if request.url == URL:
            return super().snapshot(request)
        return Snapshot(source=request.url, revision="1", files=(), model_id="model")


@caught_by("test_what_changed_is_never_mixed")
class ReadsWhateverIsThere(Plain):
    def read(self, file, start=0, end=None):
        yield from self.pieces(self.files[file.path], start, end)


@caught_by("test_what_changed_is_never_mixed")
class KeepsAMovingRevision(Plain):
    def revision(self):
        return "main"


@caught_by("test_foreign_errors_are_translated")
class FailsInForeignWords(Plain):
    def fail(self):
        self.broken = KeyError("no such member")


@caught_by("test_foreign_errors_are_translated")
class TellsSecretsWhenItFails(Plain):
    def fail(self):
        self.broken = TransientError(f"cannot reach plain://user:{SECRET}@host/")


@caught_by("test_no_secret_is_told")
class KeepsSecretsInItsAddress(Plain):
    def snapshot(self, request):
        shot = super().snapshot(request)
        return Snapshot(
            source=f"{URL}?token={SECRET}",
            revision=shot.revision,
            files=shot.files,
            model_id=shot.model_id,
        )


@caught_by("test_there_are_enough_files", expected={"weights.bin": FILES["weights.bin"]})
class HasOneFile(Plain):
    pass


def fixtures(kind: type[Plain], **given) -> dict:
    source = kind()
    largest = source.told("weights.bin", FILES["weights.bin"])
    return {
        "source": source,
        "url": URL,
        "unknown_url": f"{URL}-not",
        "expected": FILES,
        "largest": largest,
        "content": FILES["weights.bin"],
        "change_it": source.change,
        "break_it": source.fail,
        "secrets": [SECRET],
        **given,
    }


@pytest.mark.parametrize(
    ("wrong", "test", "given"), WRONG, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_wrong_source_is_caught(wrong, test, given):
    """Each is caught by the test of the promise that it breaks, as its author would see it."""
    foreign = (KeyError,) if wrong is FailsInForeignWords else ()
    with pytest.raises((*CAUGHT, *foreign)):
        run_test(SourceTests, test, fixtures(wrong, **given))


@pytest.mark.parametrize("test", sorted(methods_of(SourceTests)))
def test_the_right_source_passes_what_the_wrong_ones_do_not(test):
    """It is the source that makes the difference: the same calls are fine with the right one."""
    given = next(parameters for _, caught, parameters in WRONG if caught == test)
    run_test(SourceTests, test, fixtures(Plain, **{**given, "expected": FILES}))


def test_every_test_of_the_suite_catches_something():
    """There is no test in it that cannot fail."""
    assert {test for _, test, _ in WRONG} == methods_of(SourceTests)
