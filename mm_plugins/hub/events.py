"""Server-sent events: pulls, as they go on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse

from mm_plugins.hub.access import Caller
from mm_plugins.hub.actions import sees_pull
from mm_plugins.hub.pulls import Pull, Pulls

EVENT_STREAM = "text/event-stream"

_LASTS = 60.0  # then the client asks again, so that its token is looked at again
_PATIENCE = 15.0
_PAUSE = 0.25  # between events of one pull, however fast it is


def events(
    pulls: Pulls, caller: Caller, tell: Callable[[Pull], object] = Pull.to_json
) -> StreamingResponse:
    """A stream of what becomes of the pulls that the caller may know of."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_told(pulls, caller, tell), media_type=EVENT_STREAM, headers=headers)


async def _told(pulls: Pulls, caller: Caller, tell: Callable[[Pull], object]) -> AsyncIterator[str]:
    end = time.monotonic() + _LASTS
    yield "retry: 1000\n\n"
    with pulls.watch() as watch:
        while not watch.is_over and time.monotonic() < end:
            changed = await watch.changes(_PATIENCE)
            for pull in changed:
                if sees_pull(caller, pull):
                    yield f"event: pull\ndata: {json.dumps(tell(pull))}\n\n"
            if changed:
                await asyncio.sleep(_PAUSE)
            else:
                yield ": still here\n\n"
