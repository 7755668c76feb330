"""The entry point for a server of one's own: ``uvicorn mm_core.main:app``.

``mm serve`` does the same and more: see docs/serve.md. The settings are found as
every command finds them; ``MM_CONFIG`` names another file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_core.manager import ModelManager
    from mm_core.service import ASGIApp, Service

__all__ = ["app", "make_app", "service_of"]  # noqa: F822  # made when it is asked for


def service_of(manager: ModelManager) -> Service:
    """The service that the section ``serve`` of the settings names, with its settings.

    Raises `ConfigError` and `PluginError`.
    """
    from mm_core.config import build_config

    wanted = manager.settings.serve
    kind = manager.plugins.service_type(wanted.type)
    return kind(build_config(kind.Config, wanted.values, "serve", manager.settings))


def make_app(manager: ModelManager | None = None) -> ASGIApp:
    """The application over `manager`; without it, over one by the settings as they are found."""
    if manager is None:
        from mm_core.manager import ModelManager

        manager = ModelManager()
    return service_of(manager).app(manager)


def __getattr__(name: str) -> Any:
    """``app``, made when it is first asked for: an import alone opens nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = made = make_app()
    return made
