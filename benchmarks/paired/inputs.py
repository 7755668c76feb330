"""What is pulled: repositories of made-up files, and what a hub says about them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
OWNER = "bench"


@dataclass(frozen=True)
class File:
    """One file of a repository."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Repo:
    """A repository in a folder: ``files/`` and the hub's two documents about it."""

    name: str
    folder: Path
    files: tuple[File, ...]

    @property
    def id(self) -> str:
        """Its name with its owner."""
        return f"{OWNER}/{self.name}"

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(file.size for file in self.files)

    @property
    def commit(self) -> str:
        """A commit that depends on the content alone."""
        text = "".join(f"{file.path}\0{file.sha256}\n" for file in self.files)
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @property
    def url_base(self) -> str:
        """The path under which the hub serves the files."""
        return f"/{self.id}/resolve/{self.commit}"


def make_repo(folder: Path, name: str, sizes: list[int], *, sparse: bool = False) -> Repo:
    """Write files of `sizes`, each with other bytes, and the documents about them.

    The bytes are pseudo-random, so that nothing on the way can be compressed. A
    `sparse` file has a first block of its own and holes after it.
    """
    root = folder / name
    (root / "files").mkdir(parents=True)
    files = []
    for number, size in enumerate(sizes, start=1):
        path = f"model-{number:05}-of-{len(sizes):05}.safetensors"
        blocks = _blocks(f"{name}/{number}", size, sparse=sparse)
        files.append(File(path, size, _write(root / "files" / path, blocks, sparse=sparse)))
    repo = Repo(name, root, tuple(files))
    (root / "info.json").write_text(json.dumps(_info(repo)))
    (root / "tree.json").write_text(json.dumps([_entry(file) for file in repo.files]))
    return repo


def _blocks(seed: str, size: int, *, sparse: bool) -> Iterator[bytes]:
    source, zeros = random.Random(seed), bytes(MIB)
    for start in range(0, size, MIB):
        length = min(MIB, size - start)
        yield zeros[:length] if sparse and start else source.randbytes(length)


def _write(path: Path, blocks: Iterator[bytes], *, sparse: bool) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number, block in enumerate(blocks):
            digest.update(block)
            if sparse and number:
                file.truncate(file.seek(len(block), 1))
            else:
                file.write(block)
    return digest.hexdigest()


def _info(repo: Repo) -> dict[str, Any]:
    date = "2026-01-01T00:00:00.000Z"
    return {
        "_id": repo.commit[:24],
        "id": repo.id,
        "modelId": repo.id,
        "sha": repo.commit,
        "private": False,
        "gated": False,
        "tags": [],
        "cardData": {},
        "lastModified": date,
        "createdAt": date,
        "siblings": [{"rfilename": file.path} for file in repo.files],
    }


def _entry(file: File) -> dict[str, Any]:
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    ).encode()
    blob = b"blob %d\0" % len(pointer) + pointer
    return {
        "type": "file",
        "path": file.path,
        "size": file.size,
        "oid": hashlib.sha1(blob, usedforsecurity=False).hexdigest(),
        "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)},
    }
