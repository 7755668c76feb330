"""Checkpoints: the whole state after some commit, so that a new reader need not start at 1.

They are a convenience: each can be lost or damaged, and the log still says it all.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator

from mm_core.exceptions import IntegrityError
from mm_core.registry.layout import CHECKPOINT_PREFIX
from mm_core.registry.records import Records
from mm_core.registry.signing import Trust
from mm_core.registry.state import State
from mm_core.schemas import canonical_json, sha256_hex

_LEVEL = 3
_OPEN = b',"models":{\n'
_CLOSE = b"}"
_END = b"}"
_SIGNED = b',"signature":'


def encode(state: State, trust: Trust | None = None) -> bytes:
    """The bytes of a checkpoint: one JSON document with a line for each model.

    Neither the text nor the parsed models are ever in memory as a whole. With a
    key in `trust` it is signed: the hash of all before the signature.
    """
    packer, digest = zlib.compressobj(_LEVEL, wbits=31), hashlib.sha256()

    def pack(text: bytes) -> bytes:
        digest.update(text)
        return packer.compress(text)

    packed = [pack(canonical_json(state.head_json())[:-1] + _OPEN)]
    lines = Records.of(state.models).lines()
    packed += [pack(line + b",\n") for line in lines[:-1]]
    packed += [pack(line + b"\n") for line in lines[-1:]]
    packed.append(pack(_CLOSE))
    signature = trust.sign_checkpoint(digest.hexdigest()) if trust else None
    end = _END if signature is None else _SIGNED + canonical_json(signature) + _END
    return b"".join((*packed, packer.compress(end), packer.flush()))


def decode(data: bytes, trust: Trust | None = None) -> State:
    """The state in the bytes of a checkpoint, whoever wrote it; `IntegrityError` for no state.

    What is in lines is taken apart when it is asked for; any other form of the
    same document is read at once. Where `trust` believes only some keys, one that
    none of them signed is an `IntegrityError`, too.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            first = file.readline()
            if not first.endswith(_OPEN):
                if trust is not None:
                    trust.check_checkpoint("", None)
                return State.from_json(json.loads(first + file.read()))
            head = json.loads(first.removesuffix(_OPEN) + b"}")
            lines = _Lines(file, first, trust if trust is not None and trust.checks else None)
            return State.from_json(head, Records.from_lines(lines))
    except IntegrityError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise IntegrityError(f"a checkpoint cannot be read: {error}") from error


def checkpoint_key(seq: int, data: bytes) -> str:
    """The key of the checkpoint after commit `seq`."""
    return f"{CHECKPOINT_PREFIX}{seq:012d}-{sha256_hex(data)[:12]}.json.gz"


class _Lines:
    """The lines of the models; at their end the signature is looked at, if it has to be."""

    def __init__(self, file: gzip.GzipFile, first: bytes, trust: Trust | None) -> None:
        self._file = file
        self._trust = trust
        self._digest = None if trust is None else hashlib.sha256(first)

    def __iter__(self) -> Iterator[bytes]:
        for line in self._file:
            if line.startswith(_CLOSE):
                self._finish(line.removeprefix(_CLOSE))
                return
            if self._digest is not None:
                self._digest.update(line)
            yield line.removesuffix(b"\n").removesuffix(b",")
        raise ValueError("it is cut short")

    def _finish(self, end: bytes) -> None:
        if not end.endswith(_END):
            raise ValueError("it is cut short")
        if self._trust is None or self._digest is None:
            return
        self._digest.update(_CLOSE)
        text = end.removesuffix(_END)
        signature = json.loads(text.removeprefix(_SIGNED)) if text.startswith(_SIGNED) else None
        self._trust.check_checkpoint(self._digest.hexdigest(), signature)
