"""Headers of weights files, honest and hostile."""

from __future__ import annotations

import json

import pytest

from mm_core import IntegrityError
from mm_core.formats import read_safetensors_header

pytestmark = pytest.mark.unit


def parse(header: bytes, *, length: int | None = None, size: int | None = None):
    data = (len(header) if length is None else length).to_bytes(8, "little") + header
    size = len(data) if size is None else size
    return read_safetensors_header(lambda start, end: data[start:end], size=size)


def test_facts_of_a_header():
    """Tensors, parameters by dtype, and the metadata."""
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F16", "shape": [], "data_offsets": [24, 26]},
    }
    facts = parse(json.dumps(header).encode(), size=1000)
    assert facts["tensors"] == 2
    assert facts["parameters"] == 7
    assert facts["dtypes"] == {"F32": 6, "F16": 1}
    assert facts["metadata"] == {"format": "pt"}


@pytest.mark.parametrize(
    "header",
    [
        b"{}x",
        b"[1]",
        b'{"w": 1}',
        b'{"w": {"dtype": "F32"}}',
        b'{"w": {"dtype": "F32", "shape": ["aaaa", 100000000000000]}}',
        b'{"w": {"dtype": "F32", "shape": [-1]}}',
        b"[" * 100_000,
    ],
    ids=lambda header: repr(header[:20]),
)
def test_hostile_headers_are_refused(header):
    """Whatever a header holds, the answer is IntegrityError and nothing large is made."""
    with pytest.raises(IntegrityError):
        parse(header)


@pytest.mark.parametrize("length", [0, 1, 2**63, 200_000_000])
def test_impossible_lengths_are_refused(length):
    """A header longer than its file, or than the format allows, is not read."""
    with pytest.raises(IntegrityError):
        parse(b"{}", length=length)
