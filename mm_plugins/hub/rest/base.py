"""What the routes of the REST API share: who asks, and which model is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from mm_plugins.hub.access import Caller
from mm_plugins.hub.actions import Actions
from mm_plugins.hub.edge import CALLER
from mm_plugins.hub.hub import Hub
from mm_plugins.hub.shelf import Shelf

PREFIX = "/mm/v1"

_BEARER = HTTPBearer(auto_error=False, description="A token that `mm token create` printed")


@dataclass(frozen=True, slots=True)
class Rest:
    """What the routes work with."""

    hub: Hub
    shelf: Shelf
    actions: Actions


def rest_of(request: Request) -> Rest:
    """What the application works with."""
    rest: Rest = request.app.state.rest
    return rest


async def caller_of(request: Request, _told: Annotated[object, Depends(_BEARER)]) -> Caller:
    """Whoever asks, by their bearer token. Cookies count for nothing here."""
    caller = await rest_of(request).hub.caller(request)
    request.scope[CALLER] = caller.name
    return caller


def _model_id(
    model_id: Annotated[str, Path(description="Such as `org/name`; slashes may be `%2F`")],
) -> str:
    return _whole(model_id)


def _version(
    version: Annotated[str, Path(description="A version; to read, also an alias or a commit")],
) -> str:
    return _whole(version)


def _whole(text: str) -> str:
    return text.replace("%2F", "/")


Asked = Annotated[Rest, Depends(rest_of)]
By = Annotated[Caller, Depends(caller_of)]
ModelId = Annotated[str, Depends(_model_id)]
Version = Annotated[str, Depends(_version)]
