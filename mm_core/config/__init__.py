"""``mm.yaml``, the environment and flags, as typed settings that know where they come from.

Everything here is imported on first use (PEP 562): to look where the files lie
(`mm_core.config.locations`) must not cost a validation library.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mm_core.config.schema import json_schema, starter, validate
    from mm_core.config.sections import Defaults
    from mm_core.config.settings import (
        BackendSettings,
        Settings,
        SourceSettings,
        build_config,
        is_address,
        load_settings,
        settings_from,
    )
    from mm_core.units import parse_duration, parse_rate, parse_size

__all__ = [
    "BackendSettings",
    "Defaults",
    "Settings",
    "SourceSettings",
    "build_config",
    "is_address",
    "json_schema",
    "load_settings",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "settings_from",
    "starter",
    "validate",
]

_HOME = {
    "Defaults": "mm_core.config.sections",
    "json_schema": "mm_core.config.schema",
    "parse_duration": "mm_core.units",
    "parse_rate": "mm_core.units",
    "parse_size": "mm_core.units",
    "starter": "mm_core.config.schema",
    "validate": "mm_core.config.schema",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME.get(name, "mm_core.config.settings"))
    value = getattr(module, name)
    globals()[name] = value
    return value
