"""The bucket sinks in processes of their own: no disk, little memory, exclusive creates."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mm_core import Plugins
from mm_core.sink import read_bytes

pytestmark = pytest.mark.integration

FRUGAL = """
import os, resource, sys

def watch(event, args):
    if event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        opened.append(args[0])

opened = []
from mm_core import Plugins
kind = Plugins.discover().sink_for(sys.argv[1])
sink = kind(kind.Config(root=sys.argv[1]))
block = bytes(1 << 20)

def write(count):
    sink.write(f"file-{count}", (block for _ in range(count)), size=count << 20)

write(40)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.addaudithook(watch)
write(150)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
opened = [name for name in opened if name != os.devnull]
assert not opened, f"written to disk: {opened}"
assert grown < 32 << 10, f"{grown} KiB more for 110 MiB more"
"""


@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_a_large_file_needs_no_disk_and_no_memory_of_its_size(store, request, tmp_path):
    """While 150 MiB are stored, no file is opened for writing, and memory does not grow."""
    root = request.getfixturevalue(store)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRUGAL, root],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


CREATE = """
import sys
from mm_core import AlreadyExistsError, Plugins
root, name = sys.argv[1:]
kind = Plugins.discover().sink_for(root)
sink = kind(kind.Config(root=root))
sink.stat("warm")
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    try:
        sink.create(f"log/{number:03}", name.encode())
    except AlreadyExistsError:
        continue
    print(number, flush=True)
"""


@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_of_many_processes_one_creates(store, request):
    """Of 4 processes exactly one wins each of 25 names; so the test servers are good for races."""
    root = request.getfixturevalue(store)
    racers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CREATE, root, f"p{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [racer.communicate()[0].split() for racer in racers]
    assert sorted(int(n) for mine in won for n in mine) == list(range(25))
    kind = Plugins.discover().sink_for(root)
    sink = kind(kind.Config(root=root))
    for racer, mine in enumerate(won):
        for number in mine:
            assert read_bytes(sink, f"log/{int(number):03}") == f"p{racer}".encode()
