"""The formats of Xet, made here by hand: what is sent in pieces comes out whole, or not at all."""

from __future__ import annotations

import random

import pytest

from mm_core import IntegrityError
from mm_core.testing.material import noise
from mm_core.testing.xet import chunk, shard
from mm_plugins.hub.xet import Segment, chunks, read_segments, read_shard

pytest.importorskip("lz4")
pytestmark = pytest.mark.unit

XORB = "0123456789abcdef" * 4
SHA256 = "fedcba9876543210" * 4


def cut(data: bytes, size: int = 7):
    return (data[i : i + size] for i in range(0, len(data), size))


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 1000, 65537])
def test_chunks(kind, size):
    """As they are, packed, and with the bytes of each four apart."""
    parts = [noise(size), b"second" * 100, noise(11)]
    xorb = b"".join(chunk(part, kind) for part in parts)
    assert list(chunks(cut(xorb, 1000), 0, 3)) == parts
    assert list(chunks(cut(xorb, 1), 1, 2)) == parts[1:2] or size > 1000
    assert list(chunks([xorb + b"XETBLOB rest"], 2, 3)) == parts[2:]


def test_any_range_of_a_file():
    """Across segments and chunks, with a xorb that is used twice."""
    rows = [noise(100), b"b" * 50, noise(77), b"d"]
    xorb = b"".join(chunk(row, index % 3) for index, row in enumerate(rows))
    segments = [
        Segment(XORB, 0, 2, 150),
        Segment(XORB, 3, 4, 1),
        Segment(XORB, 1, 4, 128),
    ]
    whole = rows[0] + rows[1] + rows[3] + rows[1] + rows[2] + rows[3]
    for start in range(0, len(whole) + 1, 13):
        for end in range(start, len(whole) + 1, 17):
            pairs = [(segment, cut(xorb)) for segment in segments]
            assert b"".join(read_segments(pairs, start, end)) == whole[start:end]


def test_a_shard():
    """With and without what it may leave out; a file without a sha256 cannot be asked for."""
    segments = (Segment(XORB, 0, 2, 150), Segment(SHA256, 5, 9, 1))
    assert read_shard(shard(segments, SHA256)) == {SHA256: segments}
    assert read_shard(shard(segments, SHA256, verified=False)) == {SHA256: segments}
    assert read_shard(shard(segments, None)) == {}


@pytest.mark.parametrize("seed", range(300))
def test_rubbish_is_told_as_such(seed):
    """Cut, changed, or made up: an `IntegrityError`, or the bytes as they are; never more memory."""
    choice = random.Random(seed)
    good = shard((Segment(XORB, 0, 2, 150), Segment(SHA256, 5, 9, 1)), SHA256)
    xorb = b"".join(chunk(noise(50) + bytes(500), kind) for kind in (0, 1, 2))
    for data, read in [
        (good, read_shard),
        (xorb, lambda rubbish: list(chunks(cut(rubbish), 0, 3))),
    ]:
        rubbish = bytearray(data[: choice.randrange(len(data) + 1)] if seed % 2 else data)
        for _ in range(choice.randrange(1, 8)):
            if rubbish:
                rubbish[choice.randrange(len(rubbish))] = choice.randrange(256)
        try:
            read(bytes(rubbish))
        except IntegrityError:
            pass


def test_a_chunk_that_swells_is_cut_off():
    """No more is unpacked than it states."""
    import lz4.frame

    bomb = lz4.frame.compress(bytes(200 << 20))
    head = b"\0" + len(bomb).to_bytes(3, "little") + b"\1" + (10).to_bytes(3, "little")
    with pytest.raises(IntegrityError, match="another size"):
        list(chunks([head + bomb], 0, 1))


def test_fewer_chunks_than_promised():
    with pytest.raises(IntegrityError, match="1 chunks, of which 2"):
        list(chunks([chunk(b"x")], 0, 2))
    with pytest.raises(IntegrityError, match="of another size"):
        list(read_segments([(Segment(XORB, 0, 1, 2), [chunk(b"x")])], 0, 2))
