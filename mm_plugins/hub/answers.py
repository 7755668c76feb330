"""Answers: JSON, and the errors that the Hub's clients know how to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from mm_core import (
    AuthError,
    ConfigError,
    ConflictError,
    MissingExtraError,
    MMError,
    NotFoundError,
    OfflineError,
    PluginError,
    PolicyError,
    TransientError,
    UsageError,
    redact,
)

RETRY_AFTER = 2.0
"""Seconds after which a client may ask again, where nobody says otherwise."""


@dataclass(eq=False)
class ProblemError(Exception):
    """A request that is answered with an error, in the Hub's own words."""

    status: int
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hint: str | None = None

    def __str__(self) -> str:
        return self.message


def json_answer(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`value` as JSON."""
    return Response(
        json.dumps(value, separators=(",", ":")).encode(),
        status,
        dict(headers or {}),
        media_type="application/json",
    )


def error_answer(problem: ProblemError) -> Response:
    """The answer to a request that failed."""
    headers = {"X-Error-Message": _line(problem.message), **problem.headers}
    if problem.code is not None:
        headers["X-Error-Code"] = problem.code
    document: dict[str, Any] = {"error": problem.message}
    if problem.hint:
        document["hint"] = problem.hint
    return json_answer(document, problem.status, headers)


def problem_of(error: MMError) -> ProblemError:
    """What an error of the library is to a client; it holds no secret."""
    message, hint = redact(error.message), redact(error.hint) if error.hint else None
    headers = {}
    match error:
        case NotFoundError():
            status = 404
        case ConfigError() | PluginError() | MissingExtraError():
            status = 500  # this hub is not set up right: nothing that a client asks differently
        case UsageError():
            status = 400
        case PolicyError():
            status = 403
        case AuthError():
            status = 502  # ours were not good enough, not the client's
        case ConflictError():
            status = 409
        case OfflineError():
            status = 503
        case TransientError():
            status, headers = 503, {"Retry-After": retry_after(error)}
        case _:
            status = 502  # the store's fault, or that of what stands in it
    return ProblemError(status, message, headers=headers, hint=hint)


def retry_after(error: TransientError) -> str:
    """What a client is told to wait: what upstream said, else a little."""
    seconds = getattr(error, "retry_after", None)
    return str(max(1, math.ceil(RETRY_AFTER if seconds is None else seconds)))


def no_repo(name: str, *, known: bool) -> ProblemError:
    """There is no such model, or the caller may not know of it; `known` if they have a token."""
    message = "Repository not found"
    if not known:  # as the Hub: who has no token might see it with one
        return ProblemError(401, message, "RepoNotFound", {"WWW-Authenticate": "Bearer"})
    return ProblemError(404, message, "RepoNotFound", hint=f"there is no model {name}")


def no_revision(revision: str) -> ProblemError:
    """There is no such version, alias or commit."""
    return ProblemError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def no_entry(path: str, commit: str) -> ProblemError:
    """There is no such file in that version."""
    headers = {"X-Repo-Commit": commit}
    return ProblemError(404, f"Entry not found: {path}", "EntryNotFound", headers)


def gated(name: str, *, known: bool) -> ProblemError:
    """The files of that model are for some only."""
    message = f"Access to model {name} is restricted. Ask whoever runs this hub for a token."
    return ProblemError(403 if known else 401, message, "GatedRepo")


def forbidden(message: str, *, known: bool) -> ProblemError:
    """The caller may not do that."""
    if known:
        return ProblemError(403, message)
    return ProblemError(401, message, headers={"WWW-Authenticate": "Bearer"})


def _line(text: str) -> str:
    """`text` as the value of a header."""
    line = "".join(c if c.isprintable() else " " for c in text[:1000])
    return line.encode("latin-1", errors="replace").decode("latin-1")
