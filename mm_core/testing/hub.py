"""A Hub on loopback: the Hugging Face Hub's read protocol over repositories in memory.

For tests and for ``mm demo``. It is a real server: huggingface_hub's own client
works against it. It can be told to fail in the ways that real servers do.
"""

from __future__ import annotations

import fnmatch
import hashlib
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mm_core.testing._hub_data import Fault, Logged, Repo, Zeros, git_sha1, is_lfs
from mm_core.testing._hub_routes import HubHandler

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KINDS", "Fault", "HubServer", "Logged", "Zeros", "git_sha1", "is_lfs"]


KINDS = (
    "429",
    "503",
    "cut",
    "truncate",
    "overstate",
    "corrupt",
    "ignore-range",
    "wrong-range",
    "short-range",
    "long-range",
)
"""What `HubServer.fail_at_random` chooses from; see `Fault`."""


class _QuietServer(ThreadingHTTPServer):
    """A client that goes away is no news, above all where clients are killed on purpose."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class HubServer:
    """A Hub on ``127.0.0.1``, as a context manager. `endpoint` is what HF_ENDPOINT takes.

    `page_size` is how many entries a page of the tree has, and `page_origin` where the
    next one is said to be. `xet` names a folder
    for a content store: large files are then also offered by the Xet protocol
    (needs hf_xet). With `redirect_lfs` they are sent by a second origin, as the
    Hub's are. `requests` is the log; `faults` may be changed at any time.
    `sent_bytes` counts the bytes of files that were handed to the network.
    """

    def __init__(
        self, *, page_size: int = 1000, xet: Path | None = None, redirect_lfs: bool = False
    ) -> None:
        self.page_size = page_size
        self.redirect_lfs = redirect_lfs
        self.xet_folder = xet
        self.repos: dict[str, Repo] = {}
        self.requests: list[Logged] = []
        self.faults: list[Fault] = []
        self._digests: dict[bytes, str] = {}
        self._random = random.Random()
        self._rate = 0.0
        self._kinds: Sequence[str] = ()
        self._sent = 0
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self.closing = threading.Event()
        self._servers = [self._server("hub"), self._server("other")]
        self.page_origin = self.endpoint

    @property
    def endpoint(self) -> str:
        """The hub's URL."""
        return _origin(self._servers[0])

    @property
    def other_origin(self) -> str:
        """The URL of the second origin, to which ``redirect`` faults lead."""
        return _origin(self._servers[1])

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes | Zeros] | None = None,
        *,
        folder: Path | None = None,
        revision: str = "main",
        tags: tuple[str, ...] = (),
        pipeline_tag: str | None = None,
        license: str | None = None,
        gated: bool = False,
        private: bool = False,
        token: str | None = None,
        raw_tree_paths: tuple[str, ...] = (),
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Commit `files` (or all of `folder`) to a branch; return the commit, 40 hex digits.

        The commit depends on the content alone; `tags` are moved to it. `card`
        is what the model's card states beside the licence.
        `raw_tree_paths` are listed in the tree as they stand, for servers that lie.
        """
        content: dict[str, bytes | Zeros] = dict(files or {})
        if folder is not None:
            content |= _read_folder(folder)
        repo = self.repos.setdefault(
            name,
            Repo(name, token, gated, private, pipeline_tag, license, raw_tree_paths, card or {}),
        )
        repo.raw_tree_paths = raw_tree_paths
        digest = hashlib.sha1(name.encode(), usedforsecurity=False)
        for path in sorted(content):
            digest.update(path.encode() + b"\0" + self.sha256(content[path]).encode())
        commit = digest.hexdigest()
        repo.commits[commit] = content
        repo.refs[revision] = commit
        repo.tags |= dict.fromkeys(tags, commit)
        if self.xet_folder is not None:
            self._fill_xet(repo, content)
        return commit

    def replace_file(self, name: str, path: str, data: bytes) -> None:
        """Put other bytes in the place of a file, in every commit: what a real Hub never does."""
        for files in self.repos[name].commits.values():
            if path in files:
                files[path] = data

    def fail_at_random(self, rate: float, *, kinds: Sequence[str] = KINDS, seed: int = 0) -> None:
        """From now on each request meets one of `kinds` with probability `rate`; 0 for none.

        Faults in `faults` come first.
        """
        with self._lock:
            self._rate, self._kinds, self._random = rate, kinds, random.Random(seed)

    def take_fault(self, path: str, kinds: Callable[[str], bool], *, size: int) -> Fault | None:
        """The next fault for `path` whose kind passes, used up once; None without one.

        One at random strikes somewhere within the `size` bytes of the answer.
        """
        with self._lock:
            for fault in self.faults:
                if path.startswith("/api/") and not fault.pattern.startswith("/api/"):
                    continue
                if fault.times > 0 and kinds(fault.kind) and fnmatch.fnmatch(path, fault.pattern):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
            fitting = [kind for kind in self._kinds if kinds(kind)]
            if not fitting or self._random.random() >= self._rate:
                return None
            after = self._random.randrange(size) if size else 0
            return Fault(path, self._random.choice(fitting), after_bytes=after)

    def sha256(self, data: bytes | Zeros) -> str:
        """The digest of a file, worked out once."""
        if isinstance(data, Zeros):
            return data.sha256
        if data not in self._digests:
            self._digests[data] = hashlib.sha256(data).hexdigest()
        return self._digests[data]

    def log(self, entry: Logged) -> None:
        """Note one request."""
        with self._arrived:
            self.requests.append(entry)
            self._arrived.notify_all()

    def wait_for_requests(self, count: int, *, timeout: float) -> bool:
        """Wait until `count` requests are logged; whether they came within `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.requests) >= count, timeout)

    @property
    def sent_bytes(self) -> int:
        """Bytes of files that were sent so far, over all requests."""
        with self._lock:
            return self._sent

    def count_sent(self, count: int) -> None:
        """Note that `count` bytes of a file were sent."""
        with self._arrived:
            self._sent += count
            self._arrived.notify_all()

    def wait_for_sent(self, count: int, *, timeout: float) -> bool:
        """Wait until `sent_bytes` is `count` or more; whether it was within `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: self._sent >= count, timeout)

    def _server(self, origin: str) -> ThreadingHTTPServer:
        handler = type("Handler", (HubHandler,), {"hub": self, "origin": origin})
        server = _QuietServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server

    def _fill_xet(self, repo: Repo, content: Mapping[str, bytes | Zeros]) -> None:
        import hf_xet

        assert self.xet_folder is not None
        self.xet_folder.mkdir(parents=True, exist_ok=True)
        session = hf_xet.XetSession()
        with session.new_upload_commit(endpoint=f"local://{self.xet_folder}") as commit:
            handles = {
                path: commit.start_upload_bytes(bytes(data))
                for path, data in content.items()
                if is_lfs(path)
            }
        for path, handle in handles.items():
            repo.xet[self.sha256(content[path])] = handle.result().xet_info.hash


def _origin(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def _read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
