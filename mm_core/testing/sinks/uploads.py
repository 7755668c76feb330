"""Tests of `ResumableSink`: large files in parts that outlive who began them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

from mm_core.exceptions import InvalidNameError, UploadLostError
from mm_core.sink import ResumableSink, Sink, Upload, read_bytes
from mm_core.testing.material import digest, noise, sha256
from mm_core.testing.sinks.base import ESCAPING_KEYS, TEXT, SinkFixtures, keys


class UploadTests(SinkFixtures):
    """What a `ResumableSink` promises besides. A file of `large` bytes has four parts or more."""

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

    def test_a_small_file_needs_no_upload(self, resumable: ResumableSink) -> None:
        """What `write` takes in one step is not begun."""
        assert resumable.begin_upload("small", size=10, identity=None) is None

    def test_parts_in_any_order_make_the_file(self, resumable: ResumableSink, other: Sink) -> None:
        """Nobody sees anything of it before `commit`, and after it no unfinished upload."""
        content = noise(self.large)
        upload = self.begin(resumable, "m/large", self.large)
        assert upload.kept == frozenset()
        self.send(upload, content)
        assert other.stat("m/large") is None
        assert keys(other) == []
        upload.commit()
        stored = other.stat("m/large")
        assert stored is not None
        assert stored.size == self.large
        assert digest(other.read("m/large")) == sha256(content)
        assert isinstance(other, ResumableSink)
        assert list(other.unfinished("")) == []

    def test_another_process_may_write_parts(self, resumable: ResumableSink, other: Sink) -> None:
        """Where uploads are shared, whoever joins adds parts, and whoever takes it up ends it."""
        if not resumable.shares_uploads:
            pytest.skip("each upload belongs to one process")
        assert isinstance(other, ResumableSink)
        content = noise(self.large)
        begun = self.begin(resumable, "m/large", self.large)
        assert begun.id is not None
        for sink, number in ((other, 2), (resumable, 0)):
            joined = sink.join_upload("m/large", size=self.large, id=begun.id)
            assert (joined.size, joined.part_size) == (begun.size, begun.part_size)
            self.send(joined, content, [number])
            joined.keep()
        assert other.join_upload("m/large", size=self.large, id=begun.id).kept == {0, 2}
        assert other.stat("m/large") is None
        taken = self.begin(other, "m/large", self.large)
        assert taken.kept == {0, 2}
        self.send(taken, content)
        taken.commit()
        assert digest(other.read("m/large")) == sha256(content)
        with pytest.raises(UploadLostError):
            self.send(other.join_upload("m/large", size=self.large, id=begun.id), content, [1])

    def test_many_threads_write_parts(self, resumable: ResumableSink, other: Sink) -> None:
        """Eight threads write different parts of one file at once."""
        content = noise(self.large)
        upload = self.begin(resumable, "threads", self.large)
        count = -(-self.large // upload.part_size)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: self.send(upload, content, [number]), range(count)))
        upload.commit()
        assert digest(other.read("threads")) == sha256(content)

    def test_an_upload_replaces_what_stood_there(
        self, resumable: ResumableSink, other: Sink
    ) -> None:
        """What stood under the key stands until `commit`."""
        resumable.put("again", TEXT)
        content = noise(self.large)
        upload = self.begin(resumable, "again", self.large)
        self.send(upload, content)
        assert read_bytes(other, "again") == TEXT
        upload.commit()
        assert digest(other.read("again")) == sha256(content)

    def test_what_was_kept_is_taken_up_by_another_process(
        self, resumable: ResumableSink, other: Sink
    ) -> None:
        """The next attempt finds just the parts that were stored, and sends the others."""
        content = noise(self.large)
        first = self.begin(resumable, "m/resumed", self.large)
        self.send(first, content, [0, 2])
        first.keep()
        assert keys(other) == []
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

    def test_another_size_or_no_identity_starts_anew(
        self, resumable: ResumableSink, other: Sink
    ) -> None:
        """Parts are taken up only for a file of which it is known that it is the same."""
        content = noise(self.large)
        for key, size, identity in (
            ("size", self.large + 1, "sha256:aa"),
            ("none", self.large, None),
        ):
            first = self.begin(resumable, key, self.large)
            self.send(first, content, [0, 1])
            first.keep()
            second = self.begin(other, key, size, identity)
            if identity is None:
                assert second.kept == frozenset()
            second.discard()

    def test_another_identity_starts_anew(self, resumable: ResumableSink, other: Sink) -> None:
        """Parts of other content are of no use."""
        if not self.identifies:
            pytest.skip(
                "this sink declares that it records no identity (`identifies` is False): "
                "the caller reads back"
            )
        first = self.begin(resumable, "identity", self.large)
        self.send(first, noise(self.large), [0, 1])
        first.keep()
        second = self.begin(other, "identity", self.large, "sha256:bb")
        assert second.kept == frozenset()
        second.discard()

    def test_what_was_discarded_is_gone(self, resumable: ResumableSink, other: Sink) -> None:
        """After `discard` nothing is listed, and the next attempt begins with nothing."""
        assert isinstance(other, ResumableSink)
        upload = self.begin(resumable, "m/dropped", self.large)
        self.send(upload, noise(self.large), [1])
        upload.discard()
        assert list(other.unfinished("")) == []
        again = self.begin(other, "m/dropped", self.large)
        assert again.kept == frozenset()
        again.discard()
        assert keys(other) == []

    def test_unfinished_uploads_are_listed_and_discarded(
        self, resumable: ResumableSink, other: Sink
    ) -> None:
        """What was kept is found below its prefix, and can be ended by anybody, more than once."""
        assert isinstance(other, ResumableSink)
        for key in ("m/a", "m/b", "n/c"):
            upload = self.begin(resumable, key, self.large)
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

    def test_an_upload_never_leaves_the_root(self, resumable: ResumableSink) -> None:
        """A key that would leave it is an InvalidNameError."""
        for key in ESCAPING_KEYS:
            with pytest.raises(InvalidNameError):
                resumable.begin_upload(key, size=self.large, identity=None)
