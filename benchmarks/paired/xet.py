"""The Xet way: reading hf_xet's stream and hashing it, against a pull through our source.

    python xet.py serve CAS SIZE     fill a content store, and be a hub that offers it
    python xet.py read CAS JSON      the limit: the stream, a sha256, and nothing else
    python xet.py pull HUB           a pull into a sink that takes everything and keeps nothing

The content store is a folder (``local://``), which hf_xet reads as it reads a remote one.
Each is run as a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys

REPO = "bench/xet"
NAME = "model.safetensors"
BLOCK = 1 << 20


def content(size: int) -> bytes:
    """The one file: the same in every process."""
    source = random.Random("xet")
    return b"".join(source.randbytes(min(BLOCK, size - at)) for at in range(0, size, BLOCK))


def read(cas: str, described: str) -> None:
    """Read the file's stream to nothing, and hash it."""
    import hf_xet

    info = json.loads(described)
    digest = hashlib.sha256()
    group = hf_xet.XetSession().new_download_stream_group(endpoint=f"local://{cas}")
    for chunk in group.download_stream(hf_xet.XetFileInfo(info["hash"], info["size"])):
        digest.update(chunk)
    if digest.hexdigest() != info["sha256"]:
        sys.exit("other bytes came")


def serve(cas: str, size: int) -> None:
    """A hub on loopback, until standard input ends."""
    from pathlib import Path

    from mm_core.testing.hub import HubServer

    data = content(size)
    with HubServer(xet=Path(cas)) as hub:
        hub.add_repo(REPO, files={NAME: data})
        (file_hash,) = hub.repos[REPO].xet.values()
        sha256 = hashlib.sha256(data).hexdigest()
        print(hub.endpoint)
        print(json.dumps({"hash": file_hash, "size": size, "sha256": sha256}), flush=True)
        sys.stdin.read()


def pull(hub: str) -> None:
    """Pull through the public API, with a sink of our own."""
    import discard

    from mm_core import ModelManager
    from mm_core.config import load_settings
    from mm_core.plugins import Plugins

    settings = load_settings(
        overrides={"sources": {"hf": {"type": "huggingface", "endpoint": hub}}}
    )
    plugins = Plugins.discover(extra=[discard])
    with ModelManager(settings, plugins=plugins, backend="discard://all") as manager:
        manager.pull(f"hf://{REPO}")


def main() -> None:
    command, *given = sys.argv[1:]
    if command == "read":
        read(*given)
    elif command == "serve":
        serve(given[0], int(given[1]))
    else:
        pull(*given)


if __name__ == "__main__":
    main()
