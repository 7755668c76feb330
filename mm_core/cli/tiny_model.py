"""A small but true model repository, made by hand: what ``mm demo`` pulls."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping

_SHAPES = {
    "embeddings.word_embeddings.weight": (128, 64),
    "encoder.layer.0.attention.weight": (64, 64),
    "encoder.layer.0.attention.bias": (64,),
    "pooler.dense.weight": (64, 64),
}
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "model", "is", "small", "but", "true")

_CARD = """\
---
license: apache-2.0
pipeline_tag: feature-extraction
library_name: transformers
---
# tiny-model

Random weights of the right shape. It was made on this machine by `mm demo`.
"""


def tiny_model() -> dict[str, bytes]:
    """The files of the repository by path; the same bytes every time."""
    config = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": _vocabulary()}}
    return {
        "README.md": _CARD.encode(),
        "config.json": _json(config),
        "model.safetensors": safetensors(_SHAPES, seed=7),
        "tokenizer.json": _json(tokenizer),
        "vocab.txt": "\n".join(_WORDS).encode(),
    }


def safetensors(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> bytes:
    """A safetensors file with float32 tensors of these shapes, filled from a seeded generator."""
    generator = random.Random(seed)  # noqa: S311  # weights, not secrets
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes.items():
        start, count = len(data), _product(shape)
        data += struct.pack(f"<{count}f", *(generator.gauss(0, 0.02) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, len(data)]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes(data)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _vocabulary() -> dict[str, int]:
    return {word: index for index, word in enumerate(_WORDS)}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()
