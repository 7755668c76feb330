"""What only a disk can show: links, crashes, full disks, folders that come and go."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mm_core import (
    AlreadyExistsError,
    AuthError,
    ConfigError,
    InvalidNameError,
    NotFoundError,
    StorageError,
    TransientError,
)
from mm_core.sink import read_bytes
from mm_core.testing.material import noise
from mm_plugins.sinks import _staging
from mm_plugins.sinks.local import LocalSink

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sink(root) -> LocalSink:
    return open_sink(root)


def open_sink(root, **settings) -> LocalSink:
    return LocalSink(LocalSink.Config(root=str(root), **settings))


def everything(root: Path) -> list[str]:
    """All files and folders, the hidden ones too."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# -- roots and links ---------------------------------------------------------------


def test_one_folder_has_one_root(tmp_path, monkeypatch):
    """A relative path, a link, a home folder and a file URL lead to the same root."""
    real = tmp_path / "real folder"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["real folder", "./link", "~/link/", str(real), f"file://{tmp_path}/real%20folder"]
    assert {open_sink(name).root for name in names} == {str(real)}


def test_a_file_url_of_another_machine_is_refused():
    """file://host/path is no folder here."""
    with pytest.raises(ConfigError):
        open_sink("file://elsewhere/models")


def test_a_linked_folder_inside_the_root_is_no_way_out(root, sink, tmp_path):
    """Keys through a symbolic link are refused, and nothing behind it is listed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    sink.put("a/file", b"x")
    (root / "a" / "out").symlink_to(outside)
    (root / "a" / "in").symlink_to(root)
    for key in ("a/out/secret", "a/out/new", "a/in/a/file"):
        for attempt in (
            lambda key=key: sink.put(key, b"x"),
            lambda key=key: sink.create(key, b"x"),
            lambda key=key: list(sink.read(key)),
            lambda key=key: sink.stat(key),
            lambda key=key: sink.delete([key]),
            lambda key=key: sink.copy("a/file", key),
            lambda key=key: sink.copy(key, "b"),
            lambda: list(sink.list("a/out/")),
        ):
            with pytest.raises(InvalidNameError):
                attempt()
    assert [o.key for o in sink.list("")] == ["a/file"]
    assert everything(outside) == ["secret"]


def test_a_linked_file_is_no_object(root, sink, tmp_path):
    """It is neither read, listed nor followed when it is overwritten or deleted."""
    target = tmp_path / "target"
    target.write_bytes(b"target")
    root.mkdir()
    (root / "link").symlink_to(target)
    os.mkfifo(root / "pipe")
    for name in ("link", "pipe"):
        assert sink.stat(name) is None
        with pytest.raises(NotFoundError):
            list(sink.read(name))
        with pytest.raises(NotFoundError):
            sink.copy(name, "copy")
    assert list(sink.list("")) == []
    sink.delete(["link"])
    sink.put("link", b"new")
    assert target.read_bytes() == b"target"
    assert read_bytes(sink, "link") == b"new"


# -- crashes -----------------------------------------------------------------------

CRASH = """
import sys
from mm_plugins.sinks.local import LocalSink
sink = LocalSink(LocalSink.Config(root=sys.argv[1]))
def chunks():
    yield b"x" * 5_000_000
    print("half", flush=True)
    sys.stdin.read()
sink.write("a/file", chunks(), size=None)
"""


def start_writer(root: Path) -> subprocess.Popen[bytes]:
    writer = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    return writer


def test_a_killed_writer_leaves_nothing_that_is_seen(root, sink, monkeypatch):
    """What stood before stands; the unfinished file is hidden, and swept when nobody has it."""
    sink.put("a/file", b"before")
    writer = start_writer(root)
    monkeypatch.setattr(_staging, "_STALE_SECONDS", -1.0)  # as if ten minutes had gone by
    try:
        assert [o.key for o in sink.list("")] == ["a/file"]
        left = [name for name in everything(root) if _staging.is_staged(Path(name).name)]
        assert len(left) == 1
        open_sink(root).put("a/other", b"")
        assert set(left) <= set(everything(root)), "a living writer's file was swept"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert read_bytes(sink, "a/file") == b"before"
    open_sink(root).put("a/other", b"")
    assert everything(root) == ["a", "a/file", "a/other"]


def test_closing_removes_what_a_stuck_writer_has_begun(root, sink):
    """A thread that hangs in its source leaves nothing behind; its write fails if it goes on."""
    stuck, go_on = threading.Event(), threading.Event()

    def chunks():
        yield b"x"
        stuck.set()
        go_on.wait(10)
        yield b"y"

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(sink.write, "a/file", chunks(), size=None)
        stuck.wait(10)
        sink.close()
        assert everything(root) == []
        go_on.set()
        with pytest.raises(TransientError):
            writing.result()
    assert everything(root) == []


def test_what_a_killed_writer_left_does_not_keep_a_folder(root, sink, monkeypatch):
    """Deleting the last file removes the folder, stale unfinished files and all."""
    writer = start_writer(root)
    writer.kill()
    writer.communicate()
    sink.put("a/b", b"")
    monkeypatch.setattr(_staging, "_STALE_SECONDS", -1.0)
    sink.delete(["a/b"])
    assert everything(root) == []


def test_a_fresh_unfinished_file_is_left_alone(root, sink):
    """Before ten minutes have gone by, nobody sweeps: a lock may not reach across machines."""
    writer = start_writer(root)
    writer.kill()
    writer.communicate()
    open_sink(root).put("a/other", b"")
    assert len(everything(root)) == 3


def test_reserved_names_are_refused(sink):
    """A key that would look unfinished, and be hidden, is an InvalidNameError."""
    for key in (".mm-staged-0123456789abcdef", ".MM-STAGED-0123456789ABCDEF/file"):
        with pytest.raises(InvalidNameError):
            sink.put(key, b"")


# -- durability --------------------------------------------------------------------


@pytest.mark.parametrize("fsync", [True, False])
@pytest.mark.parametrize("way", ["write", "put", "create"])
def test_bytes_are_on_the_disk_before_their_name(root, monkeypatch, fsync, way):
    """The file is synced, then named, then its folder is synced; `fsync: false` leaves that out."""
    sink = open_sink(root, fsync=fsync)
    sink.put("a/first", b"")
    calls: list[str] = []

    def note(name, real):
        def call(*args, **kwargs):
            kind = ""
            if name == "fsync":
                kind = " folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else " file"
            calls.append(name + kind)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, note(name, getattr(os, name)))
    if way == "write":
        sink.write("a/file", [b"x"], size=1)
    else:
        getattr(sink, way)("a/file", b"x")
    step = "link" if way == "create" else "replace"
    assert calls == (["fsync file", step, "fsync folder"] if fsync else [step])


def test_new_folders_are_made_durable(root, sink, monkeypatch):
    """Each new folder's name is synced in its parent."""
    synced: list[str] = []
    real = _staging.sync_folder
    monkeypatch.setattr(_staging, "sync_folder", lambda p: (synced.append(p), real(p)))
    sink.put("a/b/file", b"")
    assert synced == [str(p) for p in (root.parent, root, root / "a", root / "a" / "b")]


# -- what disks refuse -------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EROFS, StorageError),
        (errno.EACCES, AuthError),
        (errno.EIO, StorageError),
        (errno.ESTALE, TransientError),
    ],
)
def test_a_failing_disk_is_told_and_leaves_nothing(root, sink, monkeypatch, code, expected):
    """The error is ours, says what to do where that is known, and what stood before stands."""
    sink.put("a/file", b"before")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    for attempt in (
        lambda: sink.write("a/file", [b"x"], size=1),
        lambda: sink.put("a/new", b"x"),
        lambda: sink.create("a/new", b"x"),
    ):
        with pytest.raises(expected) as caught:
            attempt()
        assert isinstance(caught.value.__cause__, OSError)
        assert (caught.value.hint is not None) == (code not in (errno.EIO, errno.ESTALE))
    assert everything(root) == ["a", "a/file"]
    assert read_bytes(sink, "a/file") == b"before"


def test_an_error_of_the_source_is_not_taken_for_the_disks(sink):
    """An OSError that `chunks` raises passes as it is."""
    raised = OSError(errno.ENOSPC, "the source's own disk")

    def chunks():
        yield b"x"
        raise raised

    with pytest.raises(OSError) as caught:
        sink.write("file", chunks(), size=None)
    assert caught.value is raised


def test_without_hard_links_there_is_no_create(sink, root, monkeypatch):
    """A disk without links refuses create, with a way out, and copies by reading."""

    def fail(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StorageError, match="hard links") as caught:
        sink.create("a", b"x")
    assert caught.value.hint
    assert everything(root) == []
    sink.put("b", b"x" * 3_000_000)
    sink.copy("b", "c/d")
    assert read_bytes(sink, "c/d") == b"x" * 3_000_000
    assert everything(root) == ["b", "c", "c/d"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("copied", [None, 0, 1_000_000])
def test_a_copy_without_links_is_made_by_the_system_or_by_hand(
    root, sink, monkeypatch, code, copied
):
    """Whatever the disk cannot do, and wherever its own copying stops, the copy is whole."""
    data = noise(3_000_001)

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    real, done = os.copy_file_range, []

    def some(source, target, count):
        if done or not copied:
            done.append(0)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        done.append(real(source, target, copied))
        return done[0]

    monkeypatch.setattr(os, "link", fail)
    if copied is not None:
        monkeypatch.setattr(os, "copy_file_range", some)
    sink.put("b", data)
    sink.put("c/d", b"before")
    sink.copy("b", "c/d")
    assert read_bytes(sink, "c/d") == data
    assert everything(root) == ["b", "c", "c/d"]
    assert not (root / "b").samefile(root / "c" / "d")


def test_a_copy_that_fills_the_disk_changes_nothing(root, sink, monkeypatch):
    """What stood there stands, and nothing is left."""

    def fail(code):
        def call(*_, **__):
            raise OSError(code, os.strerror(code))

        return call

    monkeypatch.setattr(os, "link", fail(errno.EXDEV))
    monkeypatch.setattr(os, "copy_file_range", fail(errno.ENOSPC))
    sink.put("b", b"new")
    sink.put("c/d", b"before")
    with pytest.raises(StorageError):
        sink.copy("b", "c/d")
    with pytest.raises(StorageError):
        sink.copy("b", "e/f")
    assert read_bytes(sink, "c/d") == b"before"
    assert everything(root) == ["b", "c", "c/d"]


def test_a_link_whose_answer_was_lost_is_known_as_ones_own(sink, monkeypatch):
    """On a network disk "exists" may be about one's own link: its link count tells."""
    real = os.link

    def lost(source, target, **_):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lost)
    sink.create("a", b"x")
    monkeypatch.setattr(os, "link", real)
    with pytest.raises(AlreadyExistsError):
        sink.create("a", b"y")


def test_a_file_and_a_folder_of_one_name_clash(sink):
    """What buckets can hold and disks cannot is a StorageError."""
    sink.put("a", b"")
    sink.put("b/c", b"")
    for key in ("a/b", "a/b/c", "b"):
        with pytest.raises(StorageError) as caught:
            sink.put(key, b"")
        assert caught.value.hint
    assert [o.key for o in sink.list("")] == ["a", "b/c"]


def test_a_name_too_long_for_the_disk_is_refused(sink):
    """Whatever is asked."""
    for attempt in (lambda key: sink.put(key, b""), sink.stat, lambda key: sink.delete([key])):
        with pytest.raises(InvalidNameError):
            attempt("x" * 300)


def test_case_is_told_apart_and_looking_leaves_nothing(root, sink):
    """`case_blind` is found out without a trace, also before the root exists."""
    here = (root.parent / "Probe").exists()
    (root.parent / "probe").mkdir()
    expected = (root.parent / "PROBE").exists()
    assert not here
    assert sink.case_blind == expected
    assert not root.exists()
    other = open_sink(root)
    other.put("a", b"")
    assert other.case_blind == expected
    assert everything(root) == ["a"]


# -- folders that come and go ------------------------------------------------------


def test_empty_folders_go_with_their_last_file(root, sink):
    """Up to the root, which stays."""
    for key in ("a/b/c/1", "a/b/2", "d/3"):
        sink.put(key, b"")
    sink.delete(["a/b/c/1"])
    assert everything(root) == ["a", "a/b", "a/b/2", "d", "d/3"]
    sink.delete(["a/b/2", "d/3"])
    assert everything(root) == []
    assert root.exists()


def test_a_failed_write_leaves_no_folders(root, sink):
    """Not even empty ones."""
    with pytest.raises(ZeroDivisionError):
        sink.write("a/b/c", (1 // 0 for _ in "x"), size=1)
    assert everything(root) == []


def test_writing_survives_the_deletion_of_its_folder(sink, root):
    """While others delete the last file of a folder, nobody's write into it fails."""
    stop = threading.Event()

    def delete() -> None:
        other = open_sink(root, fsync=False)
        while not stop.is_set():
            other.delete(["a/b/gone"])

    deleter = threading.Thread(target=delete)
    deleter.start()
    try:
        mine = open_sink(root, fsync=False)
        for number in range(300):
            mine.put("a/b/gone", b"")
            mine.create(f"a/b/{number}", b"x")
            mine.delete([f"a/b/{number}"])
    finally:
        stop.set()
        deleter.join()


def test_a_copy_takes_no_space(root, sink):
    """It is a second name for the same bytes, as young as the copy."""
    sink.put("a", b"x")
    os.utime(root / "a", (1e9, 1e9))
    sink.copy("a", "b/c")
    sink.copy("a", "b/c")
    assert everything(root) == ["a", "b", "b/c"]
    assert (root / "a").samefile(root / "b" / "c")
    copied, fresh = sink.stat("b/c"), (sink.put("now", b""), sink.stat("now"))[1]
    assert abs((fresh.modified - copied.modified).total_seconds()) < 60


# -- many processes ----------------------------------------------------------------


def create_all(root: str, name: str, rounds: int, start) -> list[int]:
    sink = LocalSink(LocalSink.Config(root=root, fsync=False))
    start.wait()
    won = []
    for number in range(rounds):
        try:
            sink.create(f"log/{number:04}", name.encode())
        except AlreadyExistsError:
            continue
        won.append(number)
    return won


def test_of_many_processes_one_creates(root, sink):
    """Of 4 processes exactly one wins each of 200 names."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(4) as pool:
        start = manager.Barrier(4)
        jobs = [(str(root), f"p{number}", 200, start) for number in range(4)]
        won = pool.starmap(create_all, jobs, chunksize=1)
    assert sorted(number for mine in won for number in mine) == list(range(200))
    for process, mine in enumerate(won):
        for number in mine:
            assert read_bytes(sink, f"log/{number:04}") == f"p{process}".encode()
