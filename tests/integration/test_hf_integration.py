"""The guide's integration test, with the hub on loopback in place of the real one."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from mm_core.downloader import ModelDownloader
from mm_core.registry import ModelRegistry
from mm_core.schemas import ModelStatus, ModelType

pytestmark = pytest.mark.integration

MODEL = "hf-internal-testing/tiny-random-gpt2"


@pytest.mark.asyncio
async def test_real_hf_download(hub):
    """A small model is downloaded, verified, and stands where its entry says."""
    hub.add_repo(MODEL, files={"config.json": b"{}", "model.safetensors": b"\1" * 5000})
    with tempfile.TemporaryDirectory() as temp_dir:
        temp_path = Path(temp_dir)
        registry_file = temp_path / "registry.json"

        registry = ModelRegistry(registry_file=registry_file)
        downloader = ModelDownloader(registry=registry, download_dir=temp_path / "models")

        result = await downloader.download_model_hf(
            model_id=MODEL, model_type=ModelType.TEXT_GENERATION
        )

        assert result is not None
        assert result.status == ModelStatus.AVAILABLE
        assert result.path.exists()
        assert any(result.path.iterdir())  # Has files
        assert registry.get_model(MODEL).status == ModelStatus.AVAILABLE


@pytest.mark.asyncio
async def test_downloads_with_a_semaphore(hub, tmp_path):
    """The guide's pattern: many downloads gathered, three at a time, one registry."""
    models = [f"org/model-{i}" for i in range(6)]
    for model_id in models:
        hub.add_repo(model_id, files={"model.bin": model_id.encode() * 100})
    registry = ModelRegistry(registry_file=tmp_path / "registry.json")
    downloader = ModelDownloader(registry=registry, download_dir=tmp_path / "models")
    semaphore = asyncio.Semaphore(3)

    async def download(model_id: str):
        async with semaphore:
            return await downloader.download_model_hf(model_id, ModelType.OTHER)

    entries = await asyncio.gather(*(download(model_id) for model_id in models))

    assert {e.model_id for e in entries} == set(models)
    assert {e.status for e in registry.list_models()} == {ModelStatus.AVAILABLE}
    for entry in entries:
        assert (entry.path / "model.bin").read_bytes() == entry.model_id.encode() * 100


@pytest.mark.asyncio
async def test_one_registry_beside_the_models(hub, tmp_path):
    """The registry of the download folder itself can be the one that is given."""
    from mm_core import ModelManager

    hub.add_repo(MODEL, files={"model.bin": b"x"})
    with ModelManager(backend=str(tmp_path / "models")) as manager:
        downloader = ModelDownloader(manager.registry(), download_dir=tmp_path / "models")
        first = await downloader.download_model_hf(MODEL, ModelType.TEXT_GENERATION)
        second = await downloader.download_model_hf(MODEL, ModelType.TEXT_GENERATION)
        assert first.version == second.version
        assert len(manager.list_models()) == 1
        assert manager.verify().ok
