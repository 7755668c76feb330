"""A small but true model repository, made by hand: what ``mm demo`` pulls."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping

_LAYER = "encoder.layer.0."
_SHAPES = {
    "embeddings.word_embeddings.weight": (128, 64),
    "embeddings.position_embeddings.weight": (64, 64),
    "embeddings.token_type_embeddings.weight": (2, 64),
    "embeddings.LayerNorm.weight": (64,),
    "embeddings.LayerNorm.bias": (64,),
    **{f"{_LAYER}attention.self.{name}.weight": (64, 64) for name in ("query", "key", "value")},
    **{f"{_LAYER}attention.self.{name}.bias": (64,) for name in ("query", "key", "value")},
    f"{_LAYER}attention.output.dense.weight": (64, 64),
    f"{_LAYER}attention.output.dense.bias": (64,),
    f"{_LAYER}attention.output.LayerNorm.weight": (64,),
    f"{_LAYER}attention.output.LayerNorm.bias": (64,),
    f"{_LAYER}intermediate.dense.weight": (128, 64),
    f"{_LAYER}intermediate.dense.bias": (128,),
    f"{_LAYER}output.dense.weight": (64, 128),
    f"{_LAYER}output.dense.bias": (64,),
    f"{_LAYER}output.LayerNorm.weight": (64,),
    f"{_LAYER}output.LayerNorm.bias": (64,),
    "pooler.dense.weight": (64, 64),
    "pooler.dense.bias": (64,),
}
_CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
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
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": _vocabulary(), "unk_token": "[UNK]"},
    }
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    return {
        "README.md": _CARD.encode(),
        "config.json": _json(_CONFIG),
        "model.safetensors": safetensors(_SHAPES, seed=7),
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json({**about, "pad_token": "[PAD]"}),
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
