"""Fit what was configured to a plugin's own ``Config``."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from mm_core.config.origins import Text
from mm_core.redaction import remember_secret


def typed_values(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, where text from the environment under a free-form setting gets YAML's type.

    ``MM_BACKENDS__LAKE__OPTIONS__USE_SSL=false`` must be false, not the text
    "false"; where a field has a type, pydantic does that by itself.
    """
    return {key: _typed(value) if _is_free(cls, key) else value for key, value in values.items()}


def with_paths(
    cls: type[BaseModel], values: Mapping[str, Any], folder_of: Callable[[str], Path | None]
) -> dict[str, Any]:
    """`values`, where a relative path of a `Path` field is one from the folder of its file.

    `folder_of` tells the folder of the file that states a setting; None where none does.
    """

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(key, item) for item in value]
        folder = folder_of(key)
        if not isinstance(value, str) or folder is None or value.startswith("~"):
            return value
        return os.path.normpath(folder / value)

    return {
        key: absolute(key, value) if _has(cls, key, Path) else value
        for key, value in values.items()
    }


def remember_secrets(config: BaseModel) -> None:
    """Have the values of all `SecretStr` fields redacted from now on."""
    for name in type(config).model_fields:
        _remember(getattr(config, name))


def _remember(value: Any) -> None:
    if isinstance(value, SecretStr):
        remember_secret(value.get_secret_value())
    elif isinstance(value, BaseModel):
        remember_secrets(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            _remember(inner)


def _is_free(cls: type[BaseModel], key: str) -> bool:
    field = cls.model_fields.get(key)
    return field is not None and Any in _arguments(field.annotation)


def _has(cls: type[BaseModel], key: str, kind: type[Any]) -> bool:
    """Whether a field is of that `kind`, or holds such values."""
    field = cls.model_fields.get(key)
    return field is not None and kind in (field.annotation, *_arguments(field.annotation))


def _arguments(annotation: Any) -> tuple[Any, ...]:
    """All that stands between the brackets of `annotation`, at any depth."""
    found: list[Any] = []
    for argument in typing.get_args(annotation):
        found += [argument, *_arguments(argument)]
    return tuple(found)


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if not isinstance(value, Text):
        return value
    import yaml

    try:
        typed = yaml.safe_load(value)
    except yaml.YAMLError:
        return str(value)
    return typed if isinstance(typed, (bool, int, float)) else str(value)
