"""What all kinds of plugins with settings have: a word for them, a ``Config``, and one of it."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar

from mm_core.lazy_config import LazyConfig

if TYPE_CHECKING:
    from mm_core.plugin_config import PluginConfig


class Configured(ABC):  # the ports have the abstract methods
    """Something that a plugin offers, with `config`: its settings, checked."""

    type: ClassVar[str]
    """The word for it in ``mm.yaml``."""

    if TYPE_CHECKING:

        class Config(PluginConfig):
            """The settings; override it to have some."""
    else:
        Config = LazyConfig("mm_core.plugin_config:PluginConfig")

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config
