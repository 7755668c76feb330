"""Say what is wrong with a setting: where it stands, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mm_core.config.origins import KeyPath, Origin, dotted
from mm_core.exceptions import ConfigError
from mm_core.redaction import redact

Find = Callable[[KeyPath], Origin | None]
"""Finds the origin of a setting, or of the nearest setting around it."""


def config_error(
    error: ValidationError, model: type[BaseModel], where: KeyPath, find: Find
) -> ConfigError:
    """One `ConfigError` for all that `error` holds, a line each. No value is ever shown."""
    lines, hints = [], []
    for line, hint in _problems(error, model, where, find):
        lines.append(line)
        hints += [hint] if hint else []
    return ConfigError("\n".join(dict.fromkeys(lines)), hint=hints[0] if hints else None)


def did_you_mean(word: str, known: Iterator[str] | list[str]) -> str:
    """``; did you mean 'root'?``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _problems(
    error: ValidationError, model: type[BaseModel], where: KeyPath, find: Find
) -> Iterator[tuple[str, str | None]]:
    for item in error.errors(include_url=False, include_context=False):
        inner: KeyPath = tuple(p for p in item["loc"] if p != "[key]")
        path = (*where, *inner)
        origin = find(path)
        prefix = f"{origin}: " if origin else ""
        name, kind = dotted(path), item["type"]
        if kind == "extra_forbidden":
            known = _fields_at(model, inner[:-1])
            guess = did_you_mean(str(path[-1]), known)
            hint = f"the settings here are {', '.join(sorted(known))}" if known else None
            yield f"{prefix}{name} is not a setting{guess}", hint
        elif kind == "missing":
            yield f"{prefix}{name} is missing", None
        else:
            yield f"{prefix}{name}: {_words(item['msg'])}", _quote_hint(kind, origin, path)


def _words(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "it should be", 1)
    return redact(message)


def _quote_hint(kind: str, origin: Origin | None, path: KeyPath) -> str | None:
    if kind != "string_type" or origin is None or not origin.raw:
        return None
    return f'YAML does not read this as text; put it in quotes: {path[-1]}: "{redact(origin.raw)}"'


def _fields_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The names of the fields of the model that stands at `path` within `model`."""
    here: Any = model
    for part in path:
        if _is_model(here):
            found = here.model_fields.get(part)
            here = None if found is None else found.annotation
        else:
            here = _value_type(here)
        here = _unwrapped(here)
    return sorted(here.model_fields) if _is_model(here) else []


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)


def _unwrapped(annotation: Any) -> Any:
    """The model in ``Model | None``."""
    for argument in getattr(annotation, "__args__", ()):
        if _is_model(argument) and not _is_mapping(annotation):
            return argument
    return annotation


def _is_mapping(annotation: Any) -> bool:
    origin = getattr(annotation, "__origin__", None)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _value_type(annotation: Any) -> Any:
    arguments = getattr(annotation, "__args__", ())
    return arguments[-1] if _is_mapping(annotation) and arguments else None
