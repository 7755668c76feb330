"""What files are by their content, and what hides in them. Nothing here is ever unpickled."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core import IntegrityError
from mm_core.content import RangedFile
from mm_core.formats import FileFormat, identify, look, look_through, read_header
from mm_core.testing.material import noise

pytestmark = pytest.mark.unit


class Evil:
    def __reduce__(self):
        return os.system, ("echo owned",)


EVIL = [pickle.dumps(Evil(), protocol=protocol) for protocol in range(6)]
HARMLESS = pickle.dumps({"a": [1, 2.5, "x"]})
SAFETENSORS = struct.pack("<Q", 2) + b"{}"


def weights(**tensors):
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
            for name, shape in tensors.items()
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header


def zipped(files, method=zipfile.ZIP_STORED, before=b""):
    out = io.BytesIO()
    out.write(before)
    with zipfile.ZipFile(out, "a" if before else "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)  # of 1980: the same at any time
    return out.getvalue()


def gzipped(data, level=9):
    return gzip.compress(data, level, mtime=0)


def short(value):
    """A name for a case that has bytes: parts of them make names that no shell prints."""
    return value[:4].hex() if isinstance(value, bytes) else None


def tarred(files, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def npy(descr, data=b""):
    header = (
        repr({"descr": descr, "fortran_order": False, "shape": (1,)}).encode().ljust(117) + b"\n"
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def opened(data, reads=None):
    def read(start, end):
        if reads is not None:
            reads.append(end - start)
        yield data[start:end]

    return RangedFile(read, len(data))


def looked(data, **options):
    return list(look_through(opened(data), len(data), **options))


def words(data):
    return [one.value for one in identify(opened(data), len(data))]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        *[(data, ["pickle"]) for data in EVIL],
        (HARMLESS, ["pickle"]),
        (SAFETENSORS, ["safetensors"]),
        (weights(a=[2, 3]) + bytes(24), ["safetensors"]),
        (b"GGUF" + bytes(40), ["gguf"]),
        (zipped({"a": b"x"}), ["zip"]),
        (zipped({}), ["zip"]),
        (zipped({"archive/data.pkl": HARMLESS, "archive/data/0": bytes(8)}), ["torch"]),
        (zipped({"a": b"x"}, before=noise(5000)), ["zip"]),
        (zipped({"a": b"x"}, before=HARMLESS), ["pickle", "zip"]),
        (tarred({"a": b"x"}), ["tar"]),
        (gzipped(b"x"), ["gzip"]),
        (bz2.compress(b"x"), ["bzip2"]),
        (lzma.compress(b"x"), ["xz"]),
        (zlib.compress(b"x" * 100), ["zlib"]),
        (b"\x04\x22\x4d\x18" + bytes(20), ["lz4"]),
        (npy("<f4", bytes(4)), ["npy"]),
        (npy("|O", HARMLESS), ["pickle", "npy"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), ["hdf5"]),
        (b'{"a": 1}\n', ["json"]),
        (b"[1, 2", ["text"]),
        ("# Ü\n".encode() * 9000, ["text"]),
        (b"", ["text"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ["lfs-pointer"]),
        (noise(3000), ["other"]),
        (b"\xff", ["other"]),
    ],
    ids=short,
)
def test_a_file_is_what_its_content_says(data, expected):
    """By the front, the end, and as little between as there is."""
    assert words(data) == expected


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("pack", "member"),
    [
        (lambda data: data, ""),
        (lambda data: zipped({"x/model.safetensors": data}), "x/model.safetensors"),
        (lambda data: zipped({"a": data}, zipfile.ZIP_DEFLATED), "a"),
        (lambda data: zipped({"in.zip": zipped({"b": data})}), "in.zip!/b"),
        (lambda data: zipped({"in.zip": zipped({"b": data})}, zipfile.ZIP_DEFLATED), "in.zip!/b"),
        (lambda data: tarred({"a": b"", "b": data}), "b"),
        (lambda data: tarred({"a" * 200: data}), "a" * 200),
        (lambda data: tarred({"b": data}, "w:gz"), "!!/b"),
        (lambda data: gzipped(zipped({"b": data})), "!!/b"),
        (gzipped, "!"),
        (lambda data: gzipped(b"") + gzipped(data), "!"),
        (bz2.compress, "!"),
        (lzma.compress, "!"),
        (zlib.compress, "!"),
        (lambda data: npy("|O", data), ""),
        (lambda data: zipped({"x.npy": npy("|O", data)}), "x.npy"),
        (lambda data: zipped({"b": data}, before=noise(70_000)), "b"),
        (lambda data: HARMLESS * 3 + data + noise(100), ""),
    ],
)
def test_a_pickle_is_found_wherever_it_hides(pack, member, protocol):
    """With what it imports, whichever protocol and archive it is in."""
    hidden = [one for one in looked(pack(EVIL[protocol])) if one.member == member]
    assert any(
        "system" in name for found in hidden for one in found.pickles for name in one.globals
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (EVIL[4][:-1], "breaks off"),
        (zipped({"a": b"x" * 100}, zipfile.ZIP_LZMA), "method 14"),
        (zipped({"a": b"x"})[:-4], "zip"),
        (gzipped(noise(5000))[:-2000], "ends in the midst"),
        (
            gzipped(gzipped(gzipped(gzipped(gzipped(HARMLESS))))),
            "packed 4",
        ),
        (b"\x04\x22\x4d\x18" + bytes(20), "cannot be unpacked here"),
    ],
    ids=short,
)
def test_what_cannot_be_looked_through_is_told(data, why):
    """Nobody may take it for harmless."""
    assert any(why in (found.unread or "") for found in looked(data))


def test_bombs_end_early(monkeypatch):
    """What unpacks to more than anybody should spend is told, and so are members without end."""
    monkeypatch.setattr(look, "MOST_UNPACKED", 1 << 20)
    monkeypatch.setattr(look, "MOST_MEMBERS", 100)
    bomb = gzipped(gzipped(EVIL[0] + bytes(50 << 20)) + b"")
    assert [found.pickles for found in looked(bomb)][-1]  # what comes first is seen
    deep = zipped({"z": zipped({"a": bytes(9 << 20)}, before=bytes(4 << 20))}, zipfile.ZIP_DEFLATED)
    assert "too much" in str([found.unread for found in looked(deep)])
    many = zipped({str(number): b"" for number in range(200)})
    assert "so many members" in looked(many)[-1].unread


def test_little_is_read_of_much():
    """Of tensors only the front, of a long pickle not its data."""
    tensors = {f"archive/data/{number}": bytes(3 << 20) for number in range(4)}
    data = zipped({"archive/data.pkl": pickle.dumps(b"x" * (5 << 20)), **tensors})
    reads = []
    found = list(look_through(opened(data, reads), len(data)))
    assert [one.value for one in found[0].formats] == ["torch"]
    assert len(found) == 6
    assert sum(reads) < 3 << 20 < len(data)


def test_a_skeleton_imports_what_the_pickle_does():
    """And is short."""
    data = pickle.dumps([Evil(), b"x" * (1 << 20), "y" * 100_000])
    (found,) = looked(data, skeletons=True)
    (one,) = found.pickles
    assert len(one.skeleton) < 1000
    (again,) = looked(one.skeleton)
    assert again.pickles[0].globals == one.globals


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.randoms())
def test_nothing_raises(data, chance):
    """Whatever the bytes, also where good files were damaged."""
    base = chance.choice(
        [
            b"",
            *EVIL,
            HARMLESS,
            SAFETENSORS,
            zipped({"a": EVIL[2]}),
            tarred({"a": b"x"}),
            gzipped(EVIL[4]),
            npy("|O", EVIL[1]),
            b"GGUF\x03\0\0\0",
        ]
    )
    damaged = bytearray(base)
    for _ in range(chance.randrange(4)):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    for content in (data, bytes(damaged), bytes(damaged) + data, data + bytes(damaged)):
        found = looked(content, skeletons=True)
        assert found[0].member == ""
        for format_ in FileFormat:
            try:
                read_header(opened(content), len(content), format_)
            except IntegrityError:
                pass


def test_a_file_that_is_shorter_than_was_said_is_no_finding():
    """It is an error of whoever holds it."""
    data = zipped({"a": noise(100_000)})

    def read(start, end):
        yield data[:50_000][start:end]

    with pytest.raises(IntegrityError, match="shorter"):
        list(look_through(RangedFile(read, len(data)), len(data)))


class TestHeaders:
    def test_safetensors(self):
        data = weights(a=[2, 3], b=[4])
        facts = read_header(opened(data), len(data), FileFormat.SAFETENSORS)
        assert (facts["parameters"], facts["dtypes"], facts["tensors"]) == (10, {"F32": 10}, 2)

    def test_gguf(self):
        def text(value):
            return struct.pack("<Q", len(value)) + value.encode()

        values = [
            text("general.architecture") + struct.pack("<I", 8) + text("llama"),
            text("general.file_type") + struct.pack("<II", 4, 15),
            text("llama.context_length") + struct.pack("<II", 4, 4096),
            text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        ]
        tensors = [
            text("t.weight") + struct.pack("<IQQIQ", 2, 32, 4, 12, 0),
            text("n.weight") + struct.pack("<IQIQ", 1, 7, 0, 0),
        ]
        data = (
            b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values + tensors)
        )
        facts = read_header(opened(data), len(data), FileFormat.GGUF)
        assert facts == {
            "format": "gguf",
            "version": 3,
            "tensors": 2,
            "parameters": 135,
            "dtypes": {"Q4_K": 128, "F32": 7},
            "architecture": "llama",
            "name": None,
            "quantization": "Q4_K_M",
            "context_length": 4096,
        }

    def test_onnx(self):
        def field(number, wire, value):
            key = bytes([number << 3 | wire])
            return key + (bytes([value]) if wire == 0 else bytes([len(value)]) + value)

        tensor = field(1, 0, 3) + field(1, 0, 5) + field(2, 0, 1) + field(9, 2, bytes(60))
        graph = field(1, 2, b"") + field(1, 2, b"") + field(5, 2, tensor)
        data = (
            field(1, 0, 8)
            + field(2, 2, b"maker")
            + field(8, 2, field(2, 0, 17))
            + field(7, 2, graph)
        )
        assert words(data) == ["onnx"]
        facts = read_header(opened(data), len(data), FileFormat.ONNX)
        assert (facts["opset"], facts["nodes"], facts["parameters"]) == (17, 2, 15)
        assert facts["dtypes"] == {"FLOAT": 15}
        assert facts["producer"] == "maker"

    @pytest.mark.parametrize("format_", [FileFormat.SAFETENSORS, FileFormat.GGUF, FileFormat.ONNX])
    def test_another_file_is_an_integrity_error(self, format_):
        data = noise(5000, seed=3) if "seed" in noise.__code__.co_varnames else noise(5000)
        with pytest.raises(IntegrityError):
            read_header(opened(data), len(data), format_)
        assert random.Random(0) is not None


def test_long_headers_are_refused_and_not_held():
    """A header that announces gigabytes costs nothing."""
    data = struct.pack("<Q", 90_000_000) + b"{" + bytes(100)

    def read(start, end):
        yield (data[start:end]).ljust(min(end, 1 << 30) - start, b" ")

    with pytest.raises(IntegrityError, match="too long"):
        read_header(RangedFile(read, 1 << 30), 1 << 30, FileFormat.SAFETENSORS)
