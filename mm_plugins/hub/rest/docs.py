"""The page that tells of the REST API, made of its own OpenAPI document."""

from __future__ import annotations

from typing import Any

from mm_plugins.hub.pages.rendering import page


def render(document: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    shapes = document.get("components", {}).get("schemas", {})
    return page("api.html", api=document, shapes=shapes, kind=_kind)


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
