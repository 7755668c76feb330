"""What `mm serve` gives out of a disk, beside nginx and beside a bare file response.

    python benchmarks/hub.py [--size-mib 1000] [--clients 64] [--rounds 3] [--json FILE]

Two tables, each way in turns in every round, over the same files:

- large: so many clients read one file at once; nginx with sendfile is 1.00. The peak of
  the server's memory (RSS, with its threads) is told as well;
- small: 32 clients read 500 files of 4 kB, each over a connection of its own that stays
  open; a Starlette `FileResponse` under the same server is 1.00.

Clients throw bytes away in the kernel (MSG_TRUNC), so that they cost little beside the
servers; heads are read. Needs nginx. Everything listens on 127.0.0.1. Nothing fails
because of a figure.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mm_core import ModelManager

MODEL = "org/model"
SMALL, SMALL_FILES, SMALL_CLIENTS = 4096, 500, 32
BUFFER = 4 << 20


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], url: str, cwd: Path) -> Iterator[tuple[str, int]]:
    """A server, until it answers and while it is needed: its URL and its process."""
    with (cwd / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
    try:
        at = urlsplit(url)
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection((at.hostname, at.port), timeout=1).close()
                break
            time.sleep(0.05)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def hub(store: Path, work: Path) -> Iterator[tuple[str, int]]:
    """Ours."""
    folder = work / "hub"
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = [
        sys.executable, "-m", "mm_core", "-q", "serve", "--backend", str(store), "--port", str(port)
    ]  # fmt: skip
    with running(command, f"http://127.0.0.1:{port}", folder) as server:
        yield server


@contextlib.contextmanager
def nginx(store: Path, work: Path) -> Iterator[tuple[str, int]]:
    """As its own documentation advises for files, with as many workers as there are cores."""
    folder, port = work / "nginx", free_port()
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes auto; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 1024; }\n"
        "http { sendfile on; tcp_nopush on; keepalive_requests 100000; access_log off;\n"
        f"server {{ listen 127.0.0.1:{port}; root {store}; }} }}\n"
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, f"http://127.0.0.1:{port}", folder) as server:
        yield server


BARE = """
import sys
import uvicorn
from starlette.responses import FileResponse

async def app(scope, receive, send):
    if scope["type"] == "http":
        await FileResponse(sys.argv[1] + scope["path"])(scope, receive, send)

uvicorn.run(app, port=int(sys.argv[2]), http="httptools", log_level="error", access_log=False)
"""


@contextlib.contextmanager
def bare(store: Path, work: Path) -> Iterator[tuple[str, int]]:
    """Starlette's own response, and nothing else."""
    folder, port = work / "bare", free_port()
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BARE, str(store), str(port)]
    with running(command, f"http://127.0.0.1:{port}", folder) as server:
        yield server


def read_at_once(url: str, path: str, size: int, clients: int) -> float:
    """Bytes a second that so many clients get of one file, all in one thread."""
    at = urlsplit(url)
    waiting, buffer, began = selectors.DefaultSelector(), bytearray(BUFFER), time.perf_counter()
    left: dict[int, int] = {}
    for _ in range(clients):
        line = socket.create_connection((at.hostname, at.port))
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        waiting.register(line, selectors.EVENT_READ)
        left[line.fileno()] = -1
    while left:
        for key, _ in waiting.select():
            line: socket.socket = key.fileobj  # type: ignore[assignment]
            if left[key.fd] < 0:  # the head has not come yet
                head, _, body = line.recv(65536).partition(b"\r\n\r\n")
                assert b" 200 " in head.partition(b"\r\n")[0], head
                left[key.fd] = size - len(body)
            else:
                got = line.recv_into(buffer, BUFFER, socket.MSG_TRUNC)
                assert got, "a connection was cut"
                left[key.fd] -= got
            if left[key.fd] == 0:
                waiting.unregister(line)
                del left[key.fd]
                line.close()
    return size * clients / (time.perf_counter() - began)


def latencies(url: str, paths: list[str], clients: int) -> list[float]:
    """Seconds until each small file was there, read by so many clients."""
    at = urlsplit(url)
    todo, found, lock = list(paths), [], threading.Lock()

    def client() -> None:
        line = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
        while True:
            with lock:
                if not todo:
                    return
                path = todo.pop()
            began = time.perf_counter()
            line.request("GET", path)
            answer = line.getresponse()
            data = answer.read()
            took = time.perf_counter() - began
            assert (answer.status, len(data)) == (200, SMALL)
            with lock:
                found.append(took)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(paths), "a client failed"
    return found


@contextlib.contextmanager
def peak_of(pid: int) -> Iterator[Callable[[], int]]:
    """The most memory of a process, looked at every 20 ms."""
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
                most.append(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: max(most)
    finally:
        done.set()
        thread.join()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--size-mib", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    if shutil.which("nginx") is None:
        raise SystemExit("this needs nginx: apt-get install nginx-light")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o755)
        told = measure(work, wanted)
    if wanted.json:
        wanted.json.write_text(json.dumps(told, indent=1))


def measure(work: Path, wanted: argparse.Namespace) -> dict[str, object]:
    """All rounds, in a folder that is thrown away."""
    source, store = work / "source", work / "store"
    source.mkdir()
    size = wanted.size_mib << 20
    with (source / "large.bin").open("wb") as file:
        for _ in range(wanted.size_mib):
            file.write(os.urandom(1 << 20))
    for number in range(SMALL_FILES):
        (source / f"small-{number}.bin").write_bytes(b"small" + os.urandom(SMALL - 5))
    with ModelManager(backend=str(store)) as manager:
        entry = manager.push(source, MODEL).entry
    below = f"/{Path(str(entry.path)).relative_to(store).as_posix()}"
    ours = f"/{MODEL}/resolve/main"
    rates: dict[str, list[float]] = {"nginx": [], "hub": []}
    small: dict[str, list[float]] = {"bare": [], "hub": []}
    peaks: list[int] = []
    with (
        hub(store, work) as (hub_url, pid),
        nginx(store, work) as (nginx_url, _),
        bare(store, work) as (bare_url, _),
    ):
        read_at_once(nginx_url, f"{below}/large.bin", size, 1)  # into the page cache
        for _ in range(wanted.rounds):
            turns = ["nginx", "hub"]
            random.shuffle(turns)
            for way in turns:
                url, path = (nginx_url, below) if way == "nginx" else (hub_url, ours)
                with peak_of(pid) as peak:
                    rate = read_at_once(url, f"{path}/large.bin", size, wanted.clients)
                rates[way].append(rate)
                if way == "hub":
                    peaks.append(peak())
            for way in random.sample(["bare", "hub"], 2):
                url, path = (bare_url, below) if way == "bare" else (hub_url, ours)
                paths = [f"{path}/small-{number}.bin" for number in range(SMALL_FILES)]
                small[way].append(statistics.median(latencies(url, paths, SMALL_CLIENTS)))
    report(wanted, rates, small, peaks)
    return {"rates": rates, "small": small, "peaks": peaks}


def report(
    wanted: argparse.Namespace,
    rates: dict[str, list[float]],
    small: dict[str, list[float]],
    peaks: list[int],
) -> None:
    """Medians, and their ratios."""
    print(f"{wanted.clients} clients, one file of {wanted.size_mib} MiB, {wanted.rounds} rounds")
    base = statistics.median(rates["nginx"])
    for way, found in rates.items():
        rate = statistics.median(found)
        print(f"  {way:6} {rate / 1e6:8.0f} MB/s  {rate / base:5.2f}")
    print(f"  the hub's memory at most {max(peaks) / (1 << 20):.0f} MiB")
    print(f"{SMALL_FILES} files of {SMALL} bytes by {SMALL_CLIENTS} clients, median latency")
    base = statistics.median(small["bare"])
    for way, found in small.items():
        latency = statistics.median(found)
        print(f"  {way:6} {latency * 1e3:8.2f} ms    {latency / base:5.2f}")


if __name__ == "__main__":
    main()
