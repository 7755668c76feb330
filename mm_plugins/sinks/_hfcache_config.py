"""The settings of a cache of the Hugging Face Hub."""

from __future__ import annotations

from pydantic import Field

from mm_core import PluginConfig


class Config(PluginConfig):
    """The settings of a cache of the Hugging Face Hub."""

    root: str | None = Field(
        default=None,
        description="The folder; what HF_HUB_CACHE or HF_HOME says without it",
    )
    fsync: bool = Field(
        default=True,
        description="Wait until the disk itself has what was written, so that it outlives a "
        "power cut",
    )
