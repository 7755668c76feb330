"""Service: the port to a server over the backends, which others ask over the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mm_core.configured import Configured

if TYPE_CHECKING:
    from mm_core.manager import ModelManager

ASGIApp = Callable[..., Awaitable[None]]
"""An application as ASGI 3 has it: called with scope, receive and send."""


class Service(Configured):
    """Something that answers requests over the network, from what a manager can reach.

    Its settings are the section ``serve`` of ``mm.yaml``, where ``type`` names it.
    """

    @abstractmethod
    def app(self, manager: ModelManager) -> ASGIApp:
        """The application; whoever runs it closes `manager` after its last request.

        Called once. It asks nobody and must be quick; what takes time is for the
        application's own start-up (the ``lifespan`` of ASGI). Raises `ConfigError` for
        settings that do not fit together.
        """
