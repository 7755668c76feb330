"""Models and their versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from mm_core import MMError
from mm_plugins.hub.rest.base import Asked, By, ModelId, Version
from mm_plugins.hub.rest.shapes import (
    CommitShape,
    DescribedShape,
    HistoryShape,
    ModelsAsked,
    ModelShape,
    ModelsShape,
    VersionShape,
    VersionsShape,
)
from mm_plugins.hub.shelf import Wish

router = APIRouter(tags=["models"])
last = APIRouter(tags=["models"])  # its path fits all that begins like it, so it comes last

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/models")
async def list_models(
    rest: Asked, caller: By, asked: Annotated[ModelsAsked, Query()]
) -> ModelsShape:
    """A page of the models, each with the version that is meant where nobody says which."""
    page = await rest.shelf.page(caller, Wish(**asked.model_dump()))
    shapes = [ModelShape.of(model) for model in page.models]
    return ModelsShape(models=shapes, total=page.total, next=page.next)


@router.get("/models/{model_id:path}/versions/{version}")
async def show_version(
    rest: Asked, caller: By, model_id: ModelId, version: Version
) -> DescribedShape:
    """All that is known of a version: files, facts, checks, signatures, licence, history."""
    entry = await rest.shelf.version(caller, model_id, version)
    shown = await rest.shelf.shown(entry)
    try:
        history, _ = await rest.shelf.history(caller, model_id, 100, entry.version)
    except MMError:  # a log that is damaged far back harms no version
        return DescribedShape.told(entry, shown, None)
    return DescribedShape.told(entry, shown, history)


@router.delete("/models/{model_id:path}/versions/{version}")
async def remove_version(
    rest: Asked, caller: By, model_id: ModelId, version: Version
) -> VersionShape:
    """Take a version out of use, with its aliases. Its files stay until `mm gc`."""
    return VersionShape.of(await rest.actions.remove(caller, model_id, version))


@router.get("/models/{model_id:path}/history")
async def show_history(
    rest: Asked, caller: By, model_id: ModelId, limit: Limit = 100
) -> HistoryShape:
    """What was done to a model, looked for in the newest 1,000 commits of the registry."""
    await rest.shelf.model(caller, model_id, removed=True)
    commits, whole = await rest.shelf.history(caller, model_id, limit)
    shapes = [CommitShape.model_validate(commit) for commit in commits]
    return HistoryShape(commits=shapes, whole=whole)


@last.get("/models/{model_id:path}")
async def show_model(
    rest: Asked,
    caller: By,
    model_id: ModelId,
    removed: Annotated[bool, Query(description="Also versions that were removed")] = False,
) -> VersionsShape:
    """A model with all its versions, of any state."""
    return VersionsShape.of(await rest.shelf.model(caller, model_id, removed=removed))
