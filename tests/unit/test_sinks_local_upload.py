"""Large files on a disk in parts: crashes, two writers, full disks, and what is left behind."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mm_core import (
    AuthError,
    IntegrityError,
    InvalidNameError,
    StorageError,
    TransientError,
    Upload,
    UploadLostError,
)
from mm_core.sink import read_bytes
from mm_core.testing.material import digest, noise, sha256
from mm_plugins.sinks import _local_upload, _staging
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit

PART = _local_upload.PART_SIZE
SIZE = 4 * PART + 123
CONTENT = noise(SIZE)
COUNT = 5


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sink(root) -> LocalSink:
    return open_sink(root)


def open_sink(root, **settings) -> LocalSink:
    return LocalSink(LocalSink.Config(root=str(root), **settings))


def begin(sink, key="m/file", size=SIZE, identity="sha256:aa") -> Upload:
    upload = sink.begin_upload(key, size=size, identity=identity)
    assert upload is not None
    return upload


def part(number: int, content: bytes = CONTENT) -> memoryview:
    return memoryview(content)[number * PART : (number + 1) * PART]


def send(upload, numbers=None) -> None:
    for number in sorted(set(range(COUNT)) - upload.kept) if numbers is None else numbers:
        upload.write_part(number, part(number))


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.rglob(".mm-*"))


def parts_file(root: Path, key="m/file") -> Path:
    path = root / key
    return path.with_name(_staging.parts_name(path.name))


def journal(root: Path, key="m/file") -> Path:
    return parts_file(root, key).with_suffix(".journal")


# -- crashes -----------------------------------------------------------------------

WRITER = """
import sys, threading
from mm_core.testing.material import noise
from mm_plugins.sinks.local import LocalSink
size, numbers = int(sys.argv[2]), filter(None, sys.argv[3].split(","))
content = memoryview(noise(size))
upload = LocalSink(LocalSink.Config(root=sys.argv[1])).begin_upload(
    "m/file", size=size, identity="sha256:aa")
for number in map(int, numbers):
    start = number * upload.part_size
    upload.write_part(number, content[start : start + upload.part_size])
    print(number, flush=True)
print("done", flush=True)
sys.stdin.read()
"""


def start_writer(root: Path, numbers: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), str(SIZE), numbers],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_what_a_killed_process_stored_is_taken_up(root, sink):
    """All parts whose write had returned are kept, none else, and the file comes out right."""
    writer = start_writer(root, "3,0")
    assert [writer.stdout.readline() for _ in range(3)] == ["3\n", "0\n", "done\n"]
    assert list(sink.list("")) == []
    end(writer)
    upload = begin(sink)
    assert upload.kept == {0, 3}
    send(upload)
    upload.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)
    assert left(root) == []


def test_a_process_killed_at_any_moment_loses_no_finished_part(root, sink):
    """Killed at random moments, again and again: what was reported stored is kept and right."""
    moments = random.Random(8)
    reported: set[int] = set()
    for _ in range(6):
        writer = start_writer(root, ",".join(str(n) for n in range(COUNT) if n not in reported))
        for _ in range(moments.randint(0, 2)):
            line = writer.stdout.readline().strip()
            if not line.isdigit():  # all done
                break
            reported.add(int(line))
        threading.Event().wait(moments.random() / 50)
        end(writer)
        upload = begin(sink)
        assert upload.kept >= reported
        for number in upload.kept:
            buffer = memoryview(bytearray(PART))
            upload.read_part(number, buffer)
            assert buffer[: len(part(number))] == part(number)
        upload.keep()
    upload = begin(sink)
    send(upload)
    upload.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)


def test_a_crash_between_the_rename_and_the_journal_is_harmless(root, sink, monkeypatch):
    """A journal whose part file has become the file names nothing that is there."""
    upload = begin(sink)
    send(upload)
    monkeypatch.setattr(_local_upload.LocalUpload, "_end", lambda *_, **__: None)
    upload.commit()
    monkeypatch.undo()
    assert left(root) == [journal(root).name]
    os.close(upload._descriptor)
    upload._journal.close()
    again = begin(sink)
    assert again.kept == frozenset()
    again.discard()
    assert digest(sink.read("m/file")) == sha256(CONTENT)
    assert left(root) == []


@pytest.mark.parametrize("torn", [b"0", b"0000000"])
def test_a_torn_line_of_the_journal_is_no_part(root, sink, torn):
    """Neither it nor what is written behind it later is taken for another part."""
    upload = begin(sink)
    send(upload, [0])
    upload.keep()
    with journal(root).open("ab") as file:
        file.write(torn)
    upload = begin(sink)
    assert upload.kept == {0}
    send(upload, [2])
    upload.keep()
    upload = begin(sink)
    assert upload.kept == {0, 2}
    upload.discard()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{", b"00000000\n", b"\0" * 100, b'{"format": 2}\n00000000\n']
)
def test_an_unreadable_journal_starts_anew(root, sink, content):
    """What nobody can read is discarded."""
    upload = begin(sink)
    send(upload, [0])
    upload.keep()
    journal(root).write_bytes(content)
    upload = begin(sink)
    assert upload.kept == frozenset()
    send(upload)
    upload.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)


def test_another_part_size_starts_anew(root, sink):
    """A journal of a release with larger parts tells nothing about these."""
    upload = begin(sink)
    send(upload, [0])
    upload.keep()
    content = journal(root).read_bytes()
    journal(root).write_bytes(content.replace(str(PART).encode(), str(2 * PART).encode()))
    upload = begin(sink)
    assert upload.kept == frozenset()
    upload.discard()


def test_parts_beyond_the_end_of_the_part_file_are_not_kept(root, sink):
    """A power cut may take what the journal names."""
    upload = begin(sink)
    send(upload, [0, 1, 4])
    upload.keep()
    with parts_file(root).open("rb+") as file:
        file.truncate(2 * PART - 1)
    upload = begin(sink)
    assert upload.kept == {0}
    with pytest.raises(TransientError):
        upload.read_part(1, memoryview(bytearray(PART)))
    upload.discard()


def test_a_journal_names_numbers_of_this_file_only(root, sink):
    """A line with a number that the file has not is no part."""
    upload = begin(sink)
    send(upload, [4])
    upload.keep()
    with journal(root).open("ab") as file:
        file.write(b"00000005\n99999999\n")
    upload = begin(sink)
    assert upload.kept == {4}
    upload.discard()


# -- two writers -------------------------------------------------------------------


def test_a_second_living_writer_has_a_file_of_its_own(root, sink):
    """Neither sees the other's parts; both commit; the last one wins; nothing is left."""
    first, second = begin(sink), begin(open_sink(root), identity="sha256:bb")
    other = noise(SIZE + 1)[1:]
    send(first, [0, 1])
    for number in range(COUNT):
        second.write_part(number, part(number, other))
    assert second.kept == frozenset()
    send(first, [2, 3, 4])
    first.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)
    second.commit()
    assert digest(sink.read("m/file")) == sha256(other)
    assert left(root) == []


def test_a_second_writer_keeps_nothing(root, sink):
    """What nobody could take up is removed, and the first one's parts stay."""
    first, second = begin(sink), begin(open_sink(root))
    send(first, [0])
    send(second, [1, 2])
    second.keep()
    first.keep()
    upload = begin(sink)
    assert upload.kept == {0}
    upload.discard()


def test_many_writers_of_one_key_end_in_one_whole_file(root):
    """Eight at once, some of other content: whatever stands there is one of the contents."""
    contents = [noise(SIZE + n)[n:] for n in range(4)]

    def work(number: int) -> None:
        content = contents[number % 4]
        upload = begin(open_sink(root, fsync=False), identity=f"sha256:{number % 4}")
        for n in set(range(COUNT)) - upload.kept:
            upload.write_part(n, part(n, content))
        (upload.commit, upload.commit, upload.keep, upload.discard)[number // 4 % 4]()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert digest(open_sink(root).read("m/file")) in {sha256(content) for content in contents}


def test_a_disk_without_locks_shares_nothing(root, sink, monkeypatch):
    """Two writers there have a file each, which cannot be taken up."""

    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_local_upload.fcntl, "flock", fail)
    first, second = begin(sink), begin(sink)
    send(first)
    send(second, [0])
    second.keep()
    first.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)


# -- parts that vanish -------------------------------------------------------------


@pytest.mark.parametrize("how", ["folder", "file", "replaced"])
def test_parts_that_somebody_removed_are_lost(root, sink, how):
    """Writing on and committing say so, and nothing becomes visible."""
    upload = begin(sink)
    send(upload, range(4))
    if how == "folder":
        for name in left(root):
            (root / "m" / name).unlink()
        (root / "m").rmdir()
    else:
        parts_file(root).unlink()
    if how == "replaced":
        parts_file(root).write_bytes(b"somebody else's")
    with pytest.raises(UploadLostError):
        upload.write_part(4, part(4))
    upload._stored.add(4)
    with pytest.raises(UploadLostError):
        upload.commit()
    upload.discard()
    assert list(sink.list("")) == []
    assert parts_file(root).exists() == (how == "replaced")


def test_parts_that_vanish_in_the_last_moment_are_lost(root, sink, monkeypatch):
    """Also between the look and the rename."""
    upload = begin(sink)
    send(upload)
    monkeypatch.setattr(_staging, "_fsync", lambda _: parts_file(root).unlink())
    with pytest.raises(UploadLostError):
        upload.commit()
    upload.discard()


def test_a_folder_with_parts_outlives_its_last_file(root, sink, monkeypatch):
    """Deleting what stands beside them neither removes nor sweeps them."""
    monkeypatch.setattr(_staging, "_STALE_SECONDS", -1.0)
    upload = begin(sink)
    send(upload, [0])
    upload.keep()
    sink.put("m/other", b"")
    sink.delete(["m/other"])
    open_sink(root).put("m/third", b"")
    upload = begin(sink)
    assert upload.kept == {0}
    sink.delete(["m/third"])
    upload.discard()
    assert list(root.iterdir()) == []


# -- what is left ------------------------------------------------------------------


def test_an_upload_without_parts_leaves_nothing(root, sink):
    """Neither kept nor discarded, not even folders."""
    begin(sink).keep()
    begin(sink).discard()
    assert list(root.iterdir()) == []


def test_an_upload_of_a_living_writer_is_listed_and_not_discarded(root, sink):
    """Its parts are seen at work, and stay."""
    upload = begin(sink)
    send(upload, [0])
    (found,) = open_sink(root).unfinished("m/")
    assert found.key == "m/file"
    assert found.size >= PART
    assert not open_sink(root).discard_unfinished(found)
    send(upload)
    upload.commit()
    assert open_sink(root).discard_unfinished(found)
    assert digest(sink.read("m/file")) == sha256(CONTENT)


def test_the_size_counts_what_can_be_taken_up(root, sink):
    """Neither the journal's own bytes nor a part that was still being written."""
    upload = begin(sink)
    send(upload, [0])
    with open(parts_file(root, "m/file"), "r+b") as file:  # the next part, torn
        file.seek(PART)
        file.write(CONTENT[PART : PART + 999])
    assert [u.size for u in sink.unfinished("")] == [PART]
    send(upload, [len(CONTENT) // PART])  # the last, which is shorter
    upload.keep()
    assert [u.size for u in sink.unfinished("")] == [PART + len(CONTENT) % PART]
    with open(journal(root, "m/file"), "ab") as file:
        file.write(b"0000")
    assert [u.size for u in sink.unfinished("")] == [PART + len(CONTENT) % PART]
    os.truncate(parts_file(root, "m/file"), PART - 1)
    assert [u.size for u in sink.unfinished("")] == [0]


def test_orphans_are_found_and_discarded(root, sink):
    """A part file without its journal, or one whose journal nobody can read, has its own name."""
    for key in ("m/a", "m/b", "top"):
        upload = begin(sink, key)
        send(upload, [0])
        upload.keep()
    journal(root, "m/a").unlink()
    journal(root, "m/b").write_bytes(b'{"name": "../../evil"}\n')
    parts_file(root, "top").unlink()
    found = {u.key: u for u in sink.unfinished("")}
    names = {f"m/{parts_file(root, 'm/a').name}", f"m/{parts_file(root, 'm/b').name}"}
    assert set(found) == names | {"top"}
    for upload in found.values():
        assert sink.discard_unfinished(upload)
    assert list(root.iterdir()) == []


def test_only_uploads_below_the_prefix_are_found(root, sink):
    """The prefix is a plain string prefix, as in a listing."""
    for key in ("a/b/x", "a/bc/y", "b/z", "ab"):
        upload = begin(sink, key)
        send(upload, [0])
        upload.keep()
    assert {u.key for u in sink.unfinished("a/b")} == {"a/b/x", "a/bc/y"}
    assert {u.key for u in sink.unfinished("a/b/")} == {"a/b/x"}
    assert {u.key for u in sink.unfinished("")} == {"a/b/x", "a/bc/y", "b/z", "ab"}
    assert list(sink.unfinished("none/such")) == []


def test_only_names_of_parts_are_discarded(root, sink):
    """An id that is a file's name, or a path, is refused."""
    sink.put("m/file", b"x")
    upload = begin(sink)
    send(upload, [0])
    upload.keep()
    (found,) = sink.unfinished("")
    for name in ("file", "../m/file", f"../m/{found.id}", ""):
        with pytest.raises(InvalidNameError):
            sink.discard_unfinished(dataclasses.replace(found, id=name))
    with pytest.raises(InvalidNameError):
        sink.discard_unfinished(dataclasses.replace(found, key="../m/file"))
    assert read_bytes(sink, "m/file") == b"x"


def test_names_of_parts_are_no_keys(root, sink):
    """They are refused whatever is asked, and never listed."""
    for key in (".mm-parts-0123456789abcdef", "a/.mm-parts-0123456789abcdef.journal"):
        for attempt in (
            lambda key=key: sink.put(key, b""),
            lambda key=key: sink.stat(key),
            lambda key=key: begin(sink, key),
        ):
            with pytest.raises(InvalidNameError):
                attempt()
    upload = begin(sink)
    send(upload)
    assert list(sink.list("")) == []
    upload.discard()


# -- what disks refuse -------------------------------------------------------------


def test_a_disk_without_room_is_seen_at_the_start(root, sink):
    """More than is free is refused before a byte is sent, and leaves nothing."""
    with pytest.raises(StorageError) as caught:
        begin(sink, size=sink.free_bytes() + (1 << 40))
    assert caught.value.hint
    assert list(root.iterdir()) == []


def test_what_is_stored_already_needs_no_room(root, sink, monkeypatch):
    """A file that is half there needs room for the other half only."""
    upload = begin(sink)
    send(upload, [0, 1])
    upload.keep()
    monkeypatch.setattr(_local_upload, "_free_bytes", lambda _: 3 * PART)
    upload = begin(sink)
    assert upload.kept == {0, 1}
    upload.keep()
    monkeypatch.setattr(_local_upload, "_free_bytes", lambda _: 2 * PART)
    with pytest.raises(StorageError):
        begin(sink)
    monkeypatch.undo()
    assert begin(sink).kept == {0, 1}


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={SIZE + 2 * PART}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_cleanly_and_is_resumed(small_disk):
    """The parts before stay; once there is room, it goes on."""
    sink = open_sink(small_disk / "store")
    free = sink.free_bytes()
    upload = begin(sink)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (free - 3 * PART))
    with pytest.raises(StorageError) as caught:
        send(upload)
    assert caught.value.hint
    upload.keep()
    with pytest.raises(StorageError):
        begin(sink)
    filler.unlink()
    upload = begin(sink)
    assert upload.kept >= {0, 1}
    send(upload)
    upload.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)
    assert left(small_disk) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_failing_disk_is_told_and_the_part_is_not_kept(root, sink, monkeypatch, code):
    """The error is ours; the journal does not name the part."""
    upload = begin(sink)
    send(upload, [0])

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StorageError):
        send(upload, [1])
    monkeypatch.undo()
    upload.keep()
    upload = begin(sink)
    assert upload.kept == {0}
    upload.discard()


def test_a_short_write_is_continued(root, sink, monkeypatch):
    """A system may take fewer bytes than it was given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1_000_003], at))
    upload = begin(sink)
    send(upload)
    upload.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)


def test_a_folder_of_the_targets_name_is_told_at_the_start(root, sink):
    """Not after the last byte."""
    sink.put("m/file/inside", b"")
    with pytest.raises(StorageError) as caught:
        begin(sink)
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write_is_told(root, sink):
    root.mkdir(mode=0o500)
    with pytest.raises(AuthError):
        begin(sink)


def test_the_file_has_the_mode_that_the_umask_gives(root, sink):
    """As one that was written in one step."""
    old = os.umask(0o027)
    try:
        sink.put("plain", b"")
        upload = begin(sink)
        send(upload)
        upload.commit()
    finally:
        os.umask(old)
    assert (root / "m/file").stat().st_mode == (root / "plain").stat().st_mode
    assert (root / "plain").stat().st_mode & 0o777 == 0o640


def test_a_link_in_place_of_the_part_file_is_not_followed(root, sink, tmp_path):
    """Nobody's file is written to through a name that can be guessed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"victim")
    for name in (parts_file(root), journal(root)):
        (root / "m").mkdir(parents=True, exist_ok=True)
        name.symlink_to(victim)
        with suppress(StorageError):
            upload = begin(sink)
            send(upload)
            upload.discard()
        assert victim.read_bytes() == b"victim"
        name.unlink(missing_ok=True)


# -- durability and the end --------------------------------------------------------


@pytest.mark.parametrize("fsync", [True, False])
def test_bytes_are_on_the_disk_before_their_name(root, monkeypatch, fsync):
    """The file is synced, then named, then its folder is synced; `fsync: false` leaves that out."""
    upload = begin(open_sink(root, fsync=fsync))
    send(upload)
    calls: list[str] = []
    real_replace = os.replace
    monkeypatch.setattr(_staging, "_fsync", lambda _: calls.append("file"))
    monkeypatch.setattr(_staging, "sync_folder", lambda _: calls.append("folder"))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), real_replace(*a)))
    upload.commit()
    assert calls == (["file", "replace", "folder"] if fsync else ["replace"])


def test_a_file_that_lacks_a_part_is_not_committed(root, sink):
    """Holes are never shown."""
    upload = begin(sink)
    send(upload, [0, 1, 3, 4])
    with pytest.raises(IntegrityError):
        upload.commit()
    assert sink.stat("m/file") is None
    send(upload, [2])
    upload.commit()
    assert digest(sink.read("m/file")) == sha256(CONTENT)


def test_a_part_of_another_length_is_refused(sink):
    """It would leave a hole, or run into the next."""
    upload = begin(sink)
    for number, data in ((0, part(0)[:-1]), (4, part(0)), (5, part(0)[:1]), (0, part(0)[:0])):
        with pytest.raises(IntegrityError):
            upload.write_part(number, data)
    upload.discard()


def test_an_ended_upload_takes_nothing(root, sink):
    """A thread that comes late writes into nobody's file."""
    for ending in ("keep", "discard", "commit"):
        upload = begin(sink)
        send(upload)
        getattr(upload, ending)()
        with pytest.raises(UploadLostError):
            upload.write_part(0, part(0))
        upload.keep()
        upload.discard()
    assert digest(sink.read("m/file")) == sha256(CONTENT)


def test_the_end_waits_for_writers(root, sink, monkeypatch):
    """The file stays open while a thread writes to it."""
    entered, go_on = threading.Event(), threading.Event()
    real = os.pwrite

    def slow(*args):
        entered.set()
        go_on.wait(10)
        return real(*args)

    upload = begin(sink)
    monkeypatch.setattr(os, "pwrite", slow)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(send, upload, [1])
        entered.wait(10)
        ending = pool.submit(upload.keep)
        with pytest.raises(futures.TimeoutError):
            ending.result(0.1)
        go_on.set()
        writing.result()
        ending.result()
    monkeypatch.undo()
    assert begin(sink).kept == {1}


def test_free_bytes_are_those_of_the_nearest_folder(tmp_path):
    """Also before the root exists."""
    sink = open_sink(tmp_path / "not" / "yet")
    free, disk = sink.free_bytes(), os.statvfs(tmp_path)
    assert abs(free - disk.f_bavail * disk.f_frsize) < 1 << 30
    assert not (tmp_path / "not").exists()
