"""Pull a model, find it in the registry, and get it back: the library in one page.

Runs without a network: the hub is served on loopback. With a real one, leave
`settings` out and pull any ``hf://org/model``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mm_core import ModelManager, TransferEvent
from mm_core.config import load_settings
from mm_core.testing.hub import HubServer


def tell(event: TransferEvent) -> None:
    if event.kind == "stored":
        print(f"  stored {event.path}, {event.done} bytes")


def main() -> None:
    files = {"config.json": b'{"model_type": "tiny"}', "model.bin": bytes(range(256)) * 1000}
    with HubServer() as hub, tempfile.TemporaryDirectory() as scratch:
        hub.add_repo("acme/tiny", files=files, pipeline_tag="text-generation")
        settings = load_settings(
            overrides={"sources": {"hf": {"type": "huggingface", "endpoint": hub.endpoint}}}
        )
        with ModelManager(settings, backend=f"{scratch}/store", on_event=tell) as manager:
            plan = manager.plan("hf://acme/tiny")
            print("to fetch:", [planned.file.path for planned in plan.files])

            pulled = manager.pull("hf://acme/tiny", aliases=["prod"])
            print("version", pulled.entry.version, "fetched", pulled.fetched_bytes, "bytes")

            again = manager.pull("hf://acme/tiny")
            print("a second pull fetches", again.fetched_bytes, "bytes")

            got = manager.get("acme/tiny:prod", output=Path(scratch, "checkout"))
            assert (got.path / "model.bin").read_bytes() == files["model.bin"]
            print("verified:", manager.verify().ok)


if __name__ == "__main__":
    main()
