"""What the conformance suites are made of: seeded bytes, their digests, and races."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from mm_core.sink import Buffer


def noise(size: int) -> bytes:
    """`size` bytes that do not repeat, the same each time."""
    return random.Random(size).randbytes(size)


def cut(data: bytes, size: int = 1_000_003) -> Iterator[bytes]:
    """`data` in pieces whose size fits no part."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def sha256(data: bytes) -> str:
    """The sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def digest(buffers: Iterable[Buffer]) -> str:
    """The sha256 of all `buffers`, in hex."""
    total = hashlib.sha256()
    for buffer in buffers:
        total.update(buffer)
    return total.hexdigest()


def race(actions: Sequence[Callable[[], bool]]) -> list[bool]:
    """Start all `actions` at the same moment, each in a thread; what each returned."""
    start = threading.Barrier(len(actions))

    def run(action: Callable[[], bool]) -> bool:
        start.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def ask(
    method: str, url: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Put one request to a server on loopback; the status and the body of its answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def without_proxy() -> dict[str, str]:
    """What keeps a proxy of the environment from standing before a server on loopback."""
    names = ("NO_PROXY", "no_proxy")
    return {name: ",".join(filter(None, (os.environ.get(name), "127.0.0.1"))) for name in names}
