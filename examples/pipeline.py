"""Several models at once in an asyncio pipeline, with a limit and with cancellation."""

from __future__ import annotations

import asyncio
import tempfile

from mm_core import ModelManager, Pulled
from mm_core.config import load_settings
from mm_core.testing.hub import HubServer

MODELS = ["acme/encoder", "acme/reranker", "acme/speech"]


async def pull_all(manager: ModelManager) -> list[Pulled]:
    two_at_a_time = asyncio.Semaphore(2)

    async def one(model_id: str) -> Pulled:
        async with two_at_a_time:
            return await manager.apull(f"hf://{model_id}", aliases=["nightly"])

    return await asyncio.gather(*(one(model_id) for model_id in MODELS))


def main() -> None:
    with HubServer() as hub, tempfile.TemporaryDirectory() as store:
        for model_id in MODELS:
            hub.add_repo(model_id, files={"model.bin": model_id.encode() * 10_000})
        settings = load_settings(
            overrides={"sources": {"hf": {"type": "huggingface", "endpoint": hub.endpoint}}}
        )
        with ModelManager(settings, backend=store) as manager:
            for pulled in asyncio.run(pull_all(manager)):
                print(pulled.entry.model_id, pulled.entry.version[:12], pulled.fetched_bytes)


if __name__ == "__main__":
    main()
