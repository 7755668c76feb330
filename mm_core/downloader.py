"""ModelDownloader: the guide's small async face over `ModelManager`."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

from mm_core.config import Settings
from mm_core.exceptions import MMError
from mm_core.manager import ModelManager
from mm_core.metrics import track_performance
from mm_core.registry import ModelRegistry
from mm_core.schemas import ModelEntry, ModelStatus, ModelType, Plan
from mm_core.transfer import Progress


class ModelDownloader:
    """Download models from the Hugging Face Hub into a folder, and note them in a registry.

    The files stand under ``download_dir/models/<model id>/<commit>/``, verified.
    `registry` is asked first and told last; `max_workers` files move at once.
    Several downloads may be awaited at the same time.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        download_dir: str | Path = "models",
        max_workers: int = 4,
        *,
        settings: Settings | None = None,
    ) -> None:
        self.registry = registry
        self.download_dir = Path(download_dir).expanduser().resolve()
        self.max_workers = max_workers
        self._manager = ModelManager(settings, backend=str(self.download_dir))

    @track_performance
    async def download_model_hf(
        self,
        model_id: str,
        model_type: ModelType = ModelType.OTHER,
        *,
        revision: str | None = None,
    ) -> ModelEntry:
        """The entry of `model_id`, downloaded if the registry has none that is AVAILABLE.

        With `revision`, a branch, tag or commit of the Hub, the Hub is always
        asked which commit that is now.
        While it runs the registry shows DOWNLOADING; afterwards AVAILABLE, or
        FAILED and the error is raised (see `mm_core.exceptions`).
        """
        if revision is None:
            existing = await asyncio.to_thread(self.registry.get_model, model_id)
            if existing is not None and existing.status == ModelStatus.AVAILABLE:
                return existing
        source = f"hf://{model_id}"
        plan = await asyncio.to_thread(
            self._manager.plan, source, revision=revision, model_type=model_type
        )
        entry = self._announced(plan)
        await asyncio.to_thread(self._announce, entry)
        try:
            pulled = await self._manager.apull(
                source,
                revision=plan.snapshot.revision,
                model_type=model_type,
                jobs=self.max_workers,
            )
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._give_up, entry))
            raise
        await asyncio.to_thread(self._set_status, entry, ModelStatus.AVAILABLE)
        return replace(
            entry,
            status=ModelStatus.AVAILABLE,
            path=pulled.entry.path,
            size_bytes=pulled.entry.size_bytes,
            metadata=pulled.entry.metadata,
        )

    def get_download_progress(self, model_id: str) -> Progress | None:
        """How far the download of `model_id` is; None if this downloader knows of none."""
        return self._manager.get_download_progress(model_id)

    def close(self) -> None:
        """Give back connections; downloads that still run are stopped."""
        self._manager.close()

    def _announced(self, plan: Plan) -> ModelEntry:
        return ModelEntry(
            model_id=plan.model_id,
            model_type=plan.model_type,
            path=self.download_dir / plan.prefix,
            status=ModelStatus.DOWNLOADING,
            version=plan.version,
            size_bytes=sum(planned.file.size or 0 for planned in plan.files),
            source=plan.snapshot.source,
            metadata=dict(plan.snapshot.facts),
        )

    def _give_up(self, entry: ModelEntry) -> None:
        """FAILED, unless another download of the same has made it AVAILABLE meanwhile."""
        with contextlib.suppress(MMError):  # the first error is the one to tell
            now = self.registry.get_model(entry.model_id, entry.version)
            if now is None or now.status != ModelStatus.AVAILABLE:
                self._set_status(entry, ModelStatus.FAILED)

    def _announce(self, entry: ModelEntry) -> None:
        if not self.registry.add_model(entry):
            self._set_status(entry, ModelStatus.DOWNLOADING)

    def _set_status(self, entry: ModelEntry, status: ModelStatus) -> None:
        self.registry.update_model_status(entry.model_id, status, version=entry.version)
