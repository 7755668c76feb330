"""Aliases: names that move from version to version."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.rest.base import Asked, By, ModelId
from mm_plugins.hub.rest.shapes import (
    AliasesShape,
    AliasMove,
    AliasShape,
    VersionShape,
    aliases_of,
)

router = APIRouter(tags=["aliases"])


def _alias(alias: Annotated[str, Path(description="Such as `prod`")]) -> str:
    return alias.replace("%2F", "/")


Alias = Annotated[str, Depends(_alias)]


@router.get("/models/{model_id:path}/aliases")
async def list_aliases(rest: Asked, caller: By, model_id: ModelId) -> AliasesShape:
    """All aliases of a model."""
    return AliasesShape(aliases=aliases_of(await rest.shelf.model(caller, model_id)))


@router.get("/models/{model_id:path}/aliases/{alias}")
async def show_alias(rest: Asked, caller: By, model_id: ModelId, alias: Alias) -> AliasShape:
    """What an alias names."""
    found = aliases_of(await rest.shelf.model(caller, model_id))
    if alias not in found:
        raise ProblemError(404, f"There is no alias {alias[:200]} of {model_id}")
    return AliasShape(alias=alias, version=found[alias])


@router.put("/models/{model_id:path}/aliases/{alias}")
async def set_alias(
    rest: Asked, caller: By, model_id: ModelId, alias: Alias, move: AliasMove
) -> VersionShape:
    """Let an alias name an AVAILABLE version."""
    expect = move.expect if "expect" in move.model_fields_set else ...
    entry = await rest.actions.set_alias(caller, model_id, alias, move.version, expect=expect)
    return VersionShape.of(entry)


@router.delete("/models/{model_id:path}/aliases/{alias}", status_code=204)
async def remove_alias(rest: Asked, caller: By, model_id: ModelId, alias: Alias) -> None:
    """Forget an alias."""
    await rest.actions.remove_alias(caller, model_id, alias)
