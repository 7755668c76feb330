"""Checkpoints: the whole state after some commit, so that a new reader need not start at 1.

They are a convenience: each can be lost or damaged, and the log still says it all.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator

from mm_core.exceptions import IntegrityError
from mm_core.registry.layout import CHECKPOINT_PREFIX
from mm_core.registry.records import Records
from mm_core.registry.state import State
from mm_core.schemas import canonical_json, sha256_hex

_LEVEL = 3
_OPEN = b',"models":{\n'
_CLOSE = b"}}"


def encode(state: State) -> bytes:
    """The bytes of a checkpoint: one JSON document with a line for each model.

    Neither the text nor the parsed models are ever in memory as a whole.
    """
    packer = zlib.compressobj(_LEVEL, wbits=31)
    packed = [packer.compress(canonical_json(state.head_json())[:-1] + _OPEN)]
    lines = Records.of(state.models).lines()
    packed += [packer.compress(line + b",\n") for line in lines[:-1]]
    packed += [packer.compress(line + b"\n") for line in lines[-1:]]
    return b"".join((*packed, packer.compress(_CLOSE), packer.flush()))


def decode(data: bytes) -> State:
    """The state in the bytes of a checkpoint, whoever wrote it; `IntegrityError` for no state.

    What is in lines is taken apart when it is asked for; any other form of the
    same document is read at once.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            first = file.readline()
            if not first.endswith(_OPEN):
                return State.from_json(json.loads(first + file.read()))
            head = json.loads(first.removesuffix(_OPEN) + b"}")
            return State.from_json(head, Records.from_lines(_entries(file)))
    except IntegrityError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise IntegrityError(f"a checkpoint cannot be read: {error}") from error


def checkpoint_key(seq: int, data: bytes) -> str:
    """The key of the checkpoint after commit `seq`."""
    return f"{CHECKPOINT_PREFIX}{seq:012d}-{sha256_hex(data)[:12]}.json.gz"


def _entries(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        if line == _CLOSE:
            return
        yield line.removesuffix(b"\n").removesuffix(b",")
    raise ValueError("it is cut short")
