"""What the hub on loopback holds, logs, and can be told to do wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".bin", ".safetensors", ".onnx", ".pt", ".jit", ".gguf", ".h5", ".msgpack")


@dataclass(slots=True)
class Fault:
    """One way to fail: for files that match `pattern` (a glob over whole paths), `times` times.

    The first `skip` requests that match are answered as they should be. A `pattern`
    that starts with ``/api/`` is for the routes of the API, by status only. `then`
    is called when the fault strikes. `kind` is a status such as ``503``, ``429`` or
    ``403``, or

    - ``cut``: the connection ends after `after_bytes` of the body;
    - ``stall``: no byte after `after_bytes` until the server closes;
    - ``truncate``: `after_bytes` bytes as if they were all;
    - ``overstate``: Content-Length states `after_bytes` more than come;
    - ``pad``: `after_bytes` more bytes than the file has, stated and sent;
    - ``linked-size``: X-Linked-Size is off by one;
    - ``corrupt``: the right size and wrong bytes;
    - ``ignore-range``: 200 with the whole file;
    - ``wrong-range``, ``wrong-total``: 206 with a Content-Range that is off by one;
    - ``short-range``, ``long-range``: 206 with half of what was asked for, or with
      `after_bytes` more, and a Content-Range that says so;
    - ``redirect``: 302 to the second origin.
    """

    pattern: str
    kind: str
    times: int = 1
    after_bytes: int = 0
    retry_after: float | None = None
    skip: int = 0
    then: Callable[[], None] | None = None


class Zeros:
    """A file of `size` zero bytes that takes no memory, with a sha256 that is made up."""

    def __init__(self, size: int, sha256: str = "0" * 64) -> None:
        self.size = size
        self.sha256 = sha256

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> Zeros:
        return Zeros(len(range(*part.indices(self.size))), self.sha256)

    def __bytes__(self) -> bytes:
        return bytes(self.size)


@dataclass(frozen=True, slots=True)
class Logged:
    """One request that arrived, and the kind of the fault that it met, if any.

    `authorized` tells whether it had an Authorization header.
    """

    method: str
    path: str
    status: int
    range: str | None
    authorized: bool
    headers: Mapping[str, str]
    origin: str
    fault: str | None = None


@dataclass(slots=True)
class Repo:
    """A repository: the files of each commit, and the names of some commits."""

    name: str
    token: str | None
    gated: bool
    private: bool
    pipeline_tag: str | None
    license: str | None
    raw_tree_paths: tuple[str, ...]
    card: Mapping[str, Any]
    commits: dict[str, dict[str, bytes | Zeros]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    xet: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit names; None without one."""
        named = self.refs.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


def git_sha1(data: bytes | Zeros) -> str:
    """git's name for a blob."""
    data = bytes(data)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the hub keeps a file of that name in large file storage."""
    return path.endswith(LFS_SUFFIXES)
