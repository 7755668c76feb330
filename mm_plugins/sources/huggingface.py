"""The Hugging Face Hub, and every server that speaks its protocol."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import Field, SecretStr

from mm_core import (
    AuthError,
    Buffer,
    GatedError,
    MMError,
    ModelType,
    NotFoundError,
    OfflineError,
    PluginConfig,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    TransientError,
    UsageError,
    check_path,
    hookimpl,
    redact,
    remember_secret,
)
from mm_plugins.http import HttpClient, Target, retry_after
from mm_plugins.sources._xet import XetReader

T = TypeVar("T")

PUBLIC_HUB = "https://huggingface.co"
RANGE_LIMIT = 8 << 30
"""The most bytes that one request asks for: CDNs refuse answers above 50 GB."""

METADATA_TRIES = 4
FACT_LIMIT = 16_384
"""The most bytes of card data that are kept."""

_HOW_TO_SIGN_IN = "put an access token into HF_TOKEN, or run `hf auth login`"


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer the Hub."""
    return [HuggingFaceSource]


class HuggingFaceSource(Source):
    """``hf://org/name[@revision]``: a model repository at a fixed commit.

    The tree states the size of every file, and its sha256 or git sha1, so that
    every byte can be verified. Bytes come by ranged reads of our own, or through
    hf_xet where the server offers Xet and hf_xet is installed. Honours HF_TOKEN
    (and the token file), HF_ENDPOINT and HF_HUB_OFFLINE.
    """

    type = "huggingface"
    schemes = ("hf",)

    class Config(PluginConfig):
        """The settings of a hub."""

        endpoint: str | None = Field(
            default=None, description="The hub's URL; HF_ENDPOINT or huggingface.co without it"
        )
        token: SecretStr | None = Field(
            default=None, description="An access token; HF_TOKEN or the token file without it"
        )
        xet: bool = Field(default=True, description="Read by the Xet protocol where it is offered")
        connect_timeout: float = Field(default=10.0, gt=0, description="Seconds")
        read_timeout: float = Field(default=60.0, gt=0, description="Seconds without a byte")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        endpoint = self.config.endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC_HUB
        self._endpoint = endpoint.rstrip("/")
        self._http = HttpClient(
            connect_timeout=self.config.connect_timeout, read_timeout=self.config.read_timeout
        )
        self._lock = threading.Lock()
        self._xet: dict[str, XetReader] = {}

    def snapshot(self, request: Request) -> Snapshot:
        """The repository at the commit that the revision (default ``main``) names now."""
        repo, revision = _parse(request.url)
        revision = request.revision or revision or "main"
        self._refuse_offline(repo)
        info = self._ask(repo, lambda api: api.model_info(repo, revision=revision))
        commit = str(info.sha)
        if info.gated:
            self._ask(repo, lambda api: api.auth_check(repo))
        tree = self._ask(
            repo, lambda api: list(api.list_repo_tree(repo, recursive=True, revision=commit))
        )
        return Snapshot(
            source=f"hf://{repo}@{commit}",
            revision=commit,
            files=tuple(self._files(repo, commit, tree, request)),
            model_id=repo,
            model_type=ModelType.from_tag(info.pipeline_tag),
            license=_license(info),
            facts=_facts(info, revision),
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of `file` at its commit, by Xet or by HTTP ranges."""
        repo, commit = file.extra["repo"], file.extra["commit"]
        self._refuse_offline(repo)
        stop = file.size or 0 if end is None else min(end, file.size or 0)
        if start >= stop:
            return
        if "xet" in file.extra and self._speaks_xet():
            reader = self._xet_reader(repo, commit)
            yield from reader.read(file.extra["xet"], file.size or 0, start, stop)
            return
        target = Target(
            url=f"{self._endpoint}/{repo}/resolve/{commit}/{quote(file.path)}",
            headers=self._authorization(),
            size=file.size,
            immutable=True,
            explain=lambda status, headers: _explain(repo, status, headers),
        )
        for position in range(start, stop, RANGE_LIMIT):
            yield from self._http.read(target, position, min(position + RANGE_LIMIT, stop))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        with self._lock:
            self._xet.clear()

    def _files(
        self, repo: str, commit: str, tree: Iterable[Any], request: Request
    ) -> Iterator[RemoteFile]:
        for item in tree:
            if not hasattr(item, "blob_id"):
                continue
            path = check_path(item.path)
            if not request.selects(path):
                continue
            lfs, extra = item.lfs, {"repo": repo, "commit": commit}
            if item.xet_hash:
                extra["xet"] = item.xet_hash
            yield RemoteFile(
                path=path,
                size=item.size if lfs is None else lfs.size,
                sha256=None if lfs is None else lfs.sha256,
                git_sha1=item.blob_id if lfs is None else None,
                extra=extra,
            )

    # -- talking to the hub ----------------------------------------------------------

    def _ask(self, repo: str, question: Callable[[Any], T]) -> T:
        """Ask the hub's own client, again where that may help; its errors become ours."""
        from huggingface_hub import HfApi

        api = HfApi(
            endpoint=self._endpoint, token=self._token() or False, library_name="model-manager"
        )
        for attempt in range(METADATA_TRIES):
            try:
                with _translated(repo):
                    return question(api)
            except TransientError as error:
                if attempt + 1 == METADATA_TRIES or isinstance(error, OfflineError):
                    raise
                pause = error.retry_after or random.uniform(0, 0.5 * 2**attempt)  # noqa: S311  # jitter
                if pause > 60:
                    raise
                time.sleep(pause)
        raise AssertionError

    def _token(self) -> str | None:
        if self.config.token is not None and self.config.token.get_secret_value():
            token: str | None = self.config.token.get_secret_value()
        else:
            from huggingface_hub import get_token

            token = get_token()
        if token:
            remember_secret(token)
        return token

    def _authorization(self) -> dict[str, str]:
        token = self._token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _speaks_xet(self) -> bool:
        return bool(self.config.xet) and importlib.util.find_spec("hf_xet") is not None

    def _xet_reader(self, repo: str, commit: str) -> XetReader:
        url = f"{self._endpoint}/api/models/{repo}/xet-read-token/{commit}"
        with self._lock:
            if url not in self._xet:
                target = Target(
                    url=url,
                    headers=self._authorization(),
                    explain=lambda status, headers: _explain(repo, status, headers),
                )
                body = b"".join(bytes(buffer) for buffer in self._http.read(target))
                self._xet[url] = XetReader(json.loads(body), url, self._authorization())
            return self._xet[url]

    @staticmethod
    def _refuse_offline(repo: str) -> None:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MM_OFFLINE"):
            if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
                raise OfflineError(
                    f"{repo} was not asked for: {name} is set",
                    hint=f"unset {name}, or use a version that is stored already",
                )


def _parse(url: str) -> tuple[str, str | None]:
    """The repository and the revision in ``hf://org/name[@revision]``."""
    path, _, revision = url.removeprefix("hf://").partition("@")
    parts = [part for part in path.split("/") if part]
    if parts[:1] in (["datasets"], ["spaces"]):
        raise UsageError(f"{url} is no model: {parts[0]} are not supported")
    if not 1 <= len(parts) <= 2:
        raise UsageError(
            f"{url!r} names no model repository", hint="write hf://org/name or hf://org/name@rev"
        )
    return "/".join(parts), revision or None


def _explain(repo: str, status: int, headers: Mapping[str, str]) -> MMError | None:
    code = headers.get("x-error-code")
    if code == "GatedRepo":
        return _gated(repo)
    if status in (401, 403) and code is None:
        return AuthError(f"the hub refused the access to {repo}", hint=_HOW_TO_SIGN_IN)
    if code == "RepoNotFound":
        return _no_repo(repo)
    return None


def _gated(repo: str) -> GatedError:
    endpoint = os.environ.get("HF_ENDPOINT", PUBLIC_HUB).rstrip("/")
    return GatedError(
        f"{repo} is gated: its owner grants access on request",
        hint=f"ask for access at {endpoint}/{repo}, then {_HOW_TO_SIGN_IN}",
    )


def _no_repo(repo: str) -> NotFoundError:
    return NotFoundError(
        f"the hub has no model {repo}, or not for these credentials",
        hint=f"check the name; if the model is private, {_HOW_TO_SIGN_IN}",
    )


@contextmanager
def _translated(repo: str) -> Iterator[None]:
    """Turn the errors of the hub's client into ours."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the right one of 1.x and 2.x

    try:
        yield
    except errors.GatedRepoError:
        raise _gated(repo) from None
    except errors.RepositoryNotFoundError:
        raise _no_repo(repo) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(
            f"{repo} has no such revision", hint="name a branch, a tag or a commit of the model"
        ) from None
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


def _http_error(repo: str, error: Any) -> MMError:
    response = error.response
    status = 0 if response is None else response.status_code
    headers = {} if response is None else {k.lower(): v for k, v in response.headers.items()}
    what = f"the hub answered {status} about {repo}"
    if status in (401, 403):
        return AuthError(what, hint=f"the token is wrong or lacks the right: {_HOW_TO_SIGN_IN}")
    if status == 404:
        return NotFoundError(what)
    return TransientError(what, retry_after=retry_after(headers))


def _license(info: Any) -> str | None:
    for tag in info.tags or ():
        if tag.startswith("license:"):
            return str(tag.removeprefix("license:"))
    return None


def _facts(info: Any, asked_revision: str) -> dict[str, Any]:
    card = info.card_data.to_dict() if info.card_data is not None else {}
    facts = {
        "requested_revision": asked_revision,
        "tags": list(info.tags or ()),
        "library_name": info.library_name,
        "gated": info.gated or False,
        "card": _json_safe(card),
    }
    if len(json.dumps(facts["card"])) > FACT_LIMIT:
        facts["card"] = {"note": "left out: too large"}
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _json_safe(value: Any) -> Any:
    """`value` with everything that JSON does not know as text: dates, NaN, and the like."""
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
