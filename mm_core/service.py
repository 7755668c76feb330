"""Service: the port to a server over the backends, which others ask over the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

from mm_core.lazy_config import LazyConfig

if TYPE_CHECKING:
    from mm_core.manager import ModelManager
    from mm_core.plugin_config import PluginConfig

ASGIApp = Callable[..., Awaitable[None]]
"""An application as ASGI 3 has it: called with scope, receive and send."""


class Service(ABC):
    """Something that answers requests over the network, from what a manager can reach.

    Its settings are the section ``serve`` of ``mm.yaml``, where ``type`` names it.
    """

    type: ClassVar[str]
    """The word for it in ``mm.yaml``."""

    if TYPE_CHECKING:

        class Config(PluginConfig):
            """The settings; override it to have some."""
    else:
        Config = LazyConfig("mm_core.plugin_config:PluginConfig")

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    @abstractmethod
    def app(self, manager: ModelManager) -> ASGIApp:
        """The application; whoever runs it closes `manager` after its last request.

        Called once. It asks nobody and must be quick; what takes time is for the
        application's own start-up (the ``lifespan`` of ASGI). Raises `ConfigError` for
        settings that do not fit together.
        """
