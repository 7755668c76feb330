"""What a hub's refusals mean, whether its own client or our reader met them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mm_core import (
    AuthError,
    GatedError,
    MMError,
    NotFoundError,
    OfflineError,
    StorageError,
    TransientError,
    UsageError,
    redact,
    redact_url,
)
from mm_plugins.http import error_for

_HOW_TO_SIGN_IN = "put an access token into HF_TOKEN, or run `hf auth login`"


def explain(repo: str, page: str, status: int, headers: Mapping[str, str]) -> MMError | None:
    """The error of a refusal, where the hub's own codes say more than the status."""
    code = headers.get("x-error-code")
    if code == "GatedRepo":
        return gated(repo, page)
    if status in (401, 403) and code is None:
        return AuthError(f"the hub refused the access to {repo}", hint=_HOW_TO_SIGN_IN)
    if code == "RepoNotFound":
        return no_repo(repo)
    return no_revision(repo) if code == "RevisionNotFound" else None


def gated(repo: str, page: str) -> GatedError:
    """For a model whose owner must grant access; `page` is where to ask."""
    return GatedError(
        f"{repo} is gated: its owner grants access on request",
        hint=f"ask for access at {redact_url(page)}, then {_HOW_TO_SIGN_IN}",
    )


def no_repo(repo: str) -> NotFoundError:
    """For a model that is not there, or hidden."""
    return NotFoundError(
        f"the hub has no model {repo}, or not for these credentials",
        hint=f"check the name; if the model is private, {_HOW_TO_SIGN_IN}",
    )


def no_revision(repo: str) -> NotFoundError:
    """For a branch, tag or commit that is not there."""
    return NotFoundError(
        f"{repo} has no such revision", hint="name a branch, a tag or a commit of the model"
    )


def not_understood(repo: str, error: Exception) -> StorageError:
    """For answers that are not the Hub's protocol."""
    return StorageError(
        f"what the hub said about {repo} is not understood: {type(error).__name__}",
        hint="check that HF_ENDPOINT, or `endpoint` in mm.yaml, is a hub",
    )


@contextmanager
def translated(repo: str, page: str, *, signed_in: bool) -> Iterator[None]:
    """Turn the errors of the hub's client into ours."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the right one of 1.x and 2.x

    try:
        yield
    except errors.GatedRepoError:
        raise gated(repo, page) from None
    except errors.RepositoryNotFoundError as error:
        if signed_in and error.response is not None and error.response.status_code == 401:
            raise _http_error(repo, error) from error
        raise no_repo(repo) from None
    except errors.RevisionNotFoundError:
        raise no_revision(repo) from None
    except errors.HFValidationError as error:
        raise UsageError(redact(str(error)), hint="write hf://org/name") from None
    except errors.HfHubHTTPError as error:
        raise _http_error(repo, error) from error
    except httpx.HTTPError as error:
        raise TransientError(
            f"the hub gave no answer about {repo}: {redact(str(error)) or type(error).__name__}",
            hint="look at the connection, and at HF_ENDPOINT if it is set",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise OfflineError(redact(str(error))) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise not_understood(repo, error) from error


def _http_error(repo: str, error: Any) -> MMError:
    response = error.response
    if response is None:
        return TransientError(f"the hub gave no answer about {repo}")
    status = response.status_code
    if status in (401, 403):
        return AuthError(
            f"the hub answered {status} about {repo}",
            hint=f"the token is wrong or lacks the right: {_HOW_TO_SIGN_IN}",
        )
    headers = {name.lower(): value for name, value in response.headers.items()}
    return error_for(status, headers, str(response.url))
