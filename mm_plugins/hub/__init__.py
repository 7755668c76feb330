"""The hub: one's own backends, served in the protocol of the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm_core import ASGIApp, LazyConfig, MissingExtraError, Service, hookimpl

if TYPE_CHECKING:
    import click

    from mm_core import ModelManager
    from mm_plugins.hub.pulls import Pulls


@hookimpl
def mm_services() -> list[type[Service]]:
    """Offer the hub."""
    return [HubService]


@hookimpl
def mm_cli() -> list[click.Command]:
    """Offer ``mm serve`` and ``mm token``."""
    from mm_plugins.hub.commands import serve, token

    return [serve, token]


class HubService(Service):
    """A backend, as every client of the Hugging Face Hub understands it."""

    type = "hub"
    if TYPE_CHECKING:
        from mm_plugins.hub.config import HubConfig as Config
    else:
        Config = LazyConfig("mm_plugins.hub.config:HubConfig")

    pulls: Pulls | None = None
    """The pulls of the process, where an application takes over from a former one."""

    def app(self, manager: ModelManager) -> ASGIApp:
        """The application; `MissingExtraError` without the libraries that it is made of."""
        try:
            from mm_plugins.hub.app import make_hub
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"the hub needs {error.name}", hint="pip install 'model-manager[serve]'"
            ) from error
        return make_hub(manager, self.config, self.pulls)
