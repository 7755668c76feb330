"""A real model, unpacked from its wheel: pushed, served by the Hub's protocol, pulled, got back."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mm_core import ModelManager

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WHEEL = "silero-vad==6.2.3"


@pytest.fixture(scope="module")
def silero(tmp_path_factory) -> dict[str, bytes]:
    """The model files of silero-vad: safetensors, ONNX and TorchScript. The package is not imported."""
    folder = tmp_path_factory.mktemp("silero")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {
            Path(name).name: archive.read(name)
            for name in archive.namelist()
            if "/data/" in name and not name.endswith((".py", "/"))
        }


def test_there_and_back_again(silero, hub, local, s3, tmp_path):
    """push to local, serve, pull into S3, get: the bytes are equal, and the header is read."""
    folder = tmp_path / "silero"
    folder.mkdir()
    for name, data in silero.items():
        (folder / name).write_bytes(data)
    weights = [name for name in silero if name.endswith(".safetensors")]
    assert weights

    with ModelManager(backend=local) as manager:
        manager.push(folder, "snakers4/silero-vad", aliases=["prod"])
        pushed = manager.get("snakers4/silero-vad:prod").path

    commit = hub.add_repo(
        "snakers4/silero-vad", folder=pushed, pipeline_tag="voice-activity-detection"
    )
    with ModelManager(backend=s3) as manager:
        pulled = manager.pull("hf://snakers4/silero-vad")
        assert pulled.entry.version == commit
        got = manager.get("snakers4/silero-vad", output=tmp_path / "back")
        assert {p.name: p.read_bytes() for p in got.path.iterdir()} == silero
        header = manager.show("snakers4/silero-vad").headers[weights[0]]
    assert header["parameters"] > 100_000
    assert header["tensors"] > 10
    assert "F32" in header["dtypes"]
