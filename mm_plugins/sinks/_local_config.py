"""The settings of a local backend."""

from __future__ import annotations

from pydantic import Field

from mm_core import PluginConfig


class Config(PluginConfig):
    """The settings of a local backend."""

    root: str = Field(description="The folder; ~ is the home folder")
    fsync: bool = Field(
        default=True,
        description="Wait until the disk itself has what was written, so that it outlives a "
        "power cut",
    )
