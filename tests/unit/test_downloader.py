"""The guide's tests of ModelDownloader; the one that patched the hub's client asks a hub on loopback."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from mm_core.downloader import ModelDownloader
from mm_core.registry import ModelRegistry
from mm_core.schemas import ModelStatus, ModelType

pytestmark = pytest.mark.unit


@pytest.fixture
def mock_registry():
    return MagicMock(spec=ModelRegistry)


@pytest.fixture
def downloader(mock_registry, tmp_path):
    return ModelDownloader(registry=mock_registry, download_dir=tmp_path / "models", max_workers=1)


@pytest.mark.asyncio
async def test_download_model_hf_success(downloader, mock_registry, hub):
    """A new model is asked for, added once, fetched, and its status updated."""
    model_id = "test/model"
    hub.add_repo(model_id, files={"config.json": b"{}", "model.bin": b"\0" * 1000})

    mock_registry.get_model.return_value = None
    mock_registry.add_model.return_value = True
    mock_registry.update_model_status.return_value = True

    result = await downloader.download_model_hf(
        model_id=model_id, model_type=ModelType.TEXT_GENERATION
    )

    assert result is not None
    assert (result.path / "model.bin").read_bytes() == b"\0" * 1000
    mock_registry.get_model.assert_called_once_with(model_id)
    mock_registry.add_model.assert_called_once()
    assert mock_registry.add_model.call_args.args[0].status is ModelStatus.DOWNLOADING
    mock_registry.update_model_status.assert_called()
    assert mock_registry.update_model_status.call_args.args[1] is ModelStatus.AVAILABLE
    assert downloader.get_download_progress(model_id).fraction == 1.0


@pytest.mark.asyncio
async def test_download_existing_model(downloader, mock_registry):
    """A model that is AVAILABLE is returned at once; no hub is asked."""
    existing_entry = MagicMock()
    existing_entry.status = ModelStatus.AVAILABLE
    mock_registry.get_model.return_value = existing_entry

    result = await downloader.download_model_hf(
        model_id="existing/model", model_type=ModelType.TEXT_GENERATION
    )

    assert result == existing_entry
    mock_registry.add_model.assert_not_called()


@pytest.mark.asyncio
async def test_a_failed_download_is_marked(downloader, mock_registry, hub):
    """Wrong bytes from the hub: the error comes through, and the registry says FAILED."""
    from mm_core import IntegrityError
    from mm_core.testing.hub import Fault

    hub.add_repo("test/model", files={"model.bin": b"\0" * 1000})
    hub.faults.append(Fault("*.bin", kind="corrupt", times=99))
    mock_registry.get_model.return_value = None

    with pytest.raises(IntegrityError):
        await downloader.download_model_hf("test/model", ModelType.OTHER)

    assert mock_registry.update_model_status.call_args.args[1] is ModelStatus.FAILED
