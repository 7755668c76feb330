"""Pulls: begun, looked at, cancelled, and told of as they go on."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from mm_plugins.hub.actions import PullWish
from mm_plugins.hub.events import EVENT_STREAM, events
from mm_plugins.hub.rest.base import PREFIX, Asked, By
from mm_plugins.hub.rest.shapes import PullAsked, PullShape, PullsShape

router = APIRouter(prefix="/pulls", tags=["pulls"])


@router.post("", status_code=202)
async def begin_pull(rest: Asked, caller: By, asked: PullAsked, response: Response) -> PullShape:
    """Begin a pull, which goes on by itself. From where it may be, `serve.pull_sources` says."""
    pull = rest.actions.begin_pull(caller, PullWish(**asked.model_dump()))
    response.headers["Location"] = f"{PREFIX}/pulls/{pull.id}"
    return PullShape.of(pull)


@router.get("")
async def list_pulls(rest: Asked, caller: By) -> PullsShape:
    """All pulls of this server: those under way, and the last hundred that have ended."""
    return PullsShape(pulls=[PullShape.of(pull) for pull in rest.actions.pulls(caller)])


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {EVENT_STREAM: {}}, "description": "Server-sent events"}},
)
async def follow_pulls(rest: Asked, caller: By) -> StreamingResponse:
    """Events named `pull`, each with a pull as it is then: all at first, then what changes.

    The stream ends after a minute; clients of such streams ask again by themselves.
    """
    return events(rest.hub.pulls, caller)


@router.get("/{pull_id}")
async def show_pull(rest: Asked, caller: By, pull_id: str) -> PullShape:
    """One pull."""
    return PullShape.of(rest.actions.pull(caller, pull_id))


@router.delete("/{pull_id}")
async def cancel_pull(rest: Asked, caller: By, pull_id: str) -> PullShape:
    """Ask a pull to end. What it has stored by then is found again by the next."""
    return PullShape.of(rest.actions.cancel_pull(caller, pull_id))
