"""``mm.yaml``, the environment and flags, as typed settings that know where they come from."""

from __future__ import annotations

from mm_core.config.schema import json_schema, starter, validate
from mm_core.config.sections import Defaults, parse_duration, parse_rate, parse_size
from mm_core.config.settings import (
    BackendSettings,
    Settings,
    SourceSettings,
    build_config,
    is_address,
    load_settings,
)

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
    "starter",
    "validate",
]
