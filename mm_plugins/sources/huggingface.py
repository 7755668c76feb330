"""The Hugging Face Hub, and every server that speaks its protocol."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urljoin

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
    StorageError,
    TransientError,
    UsageError,
    check_path,
    hookimpl,
    redact,
    redact_url,
    remember_secret,
)
from mm_plugins.http import Head, HttpClient, Target, error_for, same_origin
from mm_plugins.sources._xet import XetReader

T = TypeVar("T")

PUBLIC_HUB = "https://huggingface.co"
RANGE_LIMIT = 8 << 30
"""The most bytes that one request asks for: CDNs refuse answers above 50 GB."""

METADATA_TRIES = 4
PATIENCE = 60.0
"""The longest wait, in seconds, before a question about a repository is put again."""

MAX_ENTRIES = 1_000_000
DOCUMENT_LIMIT = 64 << 20
FACT_LIMIT = 16_384
"""The most bytes of card data, and of tags, that are kept."""

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
        commit = _commit(repo, info)
        if info.gated:
            self._ask(repo, lambda api: api.auth_check(repo))
        tree = self._tree(repo, commit)
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
            explain=partial(_explain, repo, self._page(repo)),
        )
        for position in range(start, stop, RANGE_LIMIT):
            yield from self._http.read(target, position, min(position + RANGE_LIMIT, stop))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        with self._lock:
            self._xet.clear()

    def _files(
        self, repo: str, commit: str, tree: Iterable[Mapping[str, Any]], request: Request
    ) -> Iterator[RemoteFile]:
        for item in tree:
            if item.get("type") != "file":
                continue
            path = check_path(str(item["path"]))
            if request.selects(path):
                yield _described(repo, commit, path, item)

    # -- talking to the hub ----------------------------------------------------------

    def _ask(self, repo: str, question: Callable[[Any], T]) -> T:
        """Ask through the hub's own client; its errors become ours."""
        from huggingface_hub import HfApi

        token = self._token()
        api = HfApi(endpoint=self._endpoint, token=token or False, library_name="model-manager")

        def ask() -> T:
            with _translated(repo, self._page(repo), signed_in=token is not None):
                return question(api)

        return _patiently(ask)

    def _tree(self, repo: str, commit: str) -> list[Mapping[str, Any]]:
        """All entries of the tree, page by page.

        Read by ourselves: the hub's client waits without a bound where it is
        told to, and takes the token along to wherever the next page is.
        """
        first = f"{self._endpoint}/api/models/{repo}/tree/{commit}?recursive=true"
        entries: list[Mapping[str, Any]] = []
        url: str | None = first
        while url is not None:
            if not same_origin(first, url) or len(entries) > MAX_ENTRIES:
                raise StorageError(f"the list of files of {repo} leads astray, or never ends")
            head, page = _patiently(partial(self._document, repo, url))
            entries += [_entry(repo, item) for item in page]
            url = _next_page(head)
        return entries

    def _document(self, repo: str, url: str) -> tuple[Head, Any]:
        target = Target(
            url=url,
            headers=self._authorization(),
            explain=partial(_explain, repo, self._page(repo)),
        )
        head, body = self._http.get(target, limit=DOCUMENT_LIMIT)
        try:
            return head, json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _not_understood(repo, error) from error

    def _token(self) -> str | None:
        configured = self.config.token.get_secret_value().strip() if self.config.token else ""
        if configured:
            token: str | None = configured
        else:
            from huggingface_hub import get_token

            token = get_token()
        if token:
            remember_secret(token)
        return token or None

    def _authorization(self) -> dict[str, str]:
        token = self._token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _page(self, repo: str) -> str:
        return f"{self._endpoint}/{repo}"

    def _speaks_xet(self) -> bool:
        wanted = bool(self.config.xet) and not _is_set("HF_HUB_DISABLE_XET")
        return wanted and importlib.util.find_spec("hf_xet") is not None

    def _xet_reader(self, repo: str, commit: str) -> XetReader:
        url = f"{self._endpoint}/api/models/{repo}/xet-read-token/{commit}"
        with self._lock:
            if url not in self._xet:
                _, grant = self._document(repo, url)
                try:
                    self._xet[url] = XetReader(grant, url, self._authorization())
                except (KeyError, TypeError, ValueError) as error:
                    raise _not_understood(repo, error) from error
            return self._xet[url]

    @staticmethod
    def _refuse_offline(repo: str) -> None:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MM_OFFLINE"):
            if _is_set(name):
                raise OfflineError(
                    f"{repo} was not asked for: {name} is set",
                    hint=f"unset {name}, or use a version that is stored already",
                )


def _patiently(question: Callable[[], T]) -> T:
    """Ask again where that may help, a few times and never long."""
    for attempt in range(METADATA_TRIES):
        try:
            return question()
        except TransientError as error:
            if attempt + 1 == METADATA_TRIES or isinstance(error, OfflineError):
                raise
            pause = error.retry_after or random.uniform(0, 0.5 * 2**attempt)  # noqa: S311  # jitter
            if pause > PATIENCE:
                raise
            time.sleep(pause)
    raise AssertionError


def _entry(repo: str, item: Any) -> Mapping[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise _not_understood(repo, TypeError(item))
    return item


def _next_page(head: Head) -> str | None:
    match = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', head.headers.get("link", ""))
    return urljoin(head.url, match[1]) if match else None


def _described(repo: str, commit: str, path: str, item: Mapping[str, Any]) -> RemoteFile:
    """The oid of a large file is that of its pointer: it says nothing about the bytes."""
    lfs, extra = item.get("lfs"), {"repo": repo, "commit": commit}
    if item.get("xetHash"):
        extra["xet"] = str(item["xetHash"])
    try:
        return RemoteFile(
            path=path,
            size=int(item["size"] if lfs is None else lfs["size"]),
            sha256=None if lfs is None else str(lfs["oid"]),
            git_sha1=str(item["oid"]) if lfs is None else None,
            extra=extra,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _not_understood(repo, error) from error


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")


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


def _commit(repo: str, info: Any) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise StorageError(
            f"the hub named no commit of {repo}",
            hint="its `sha` must be 40 hex digits: see HF_ENDPOINT, or `endpoint` in mm.yaml",
        )
    return str(info.sha)


def _explain(repo: str, page: str, status: int, headers: Mapping[str, str]) -> MMError | None:
    code = headers.get("x-error-code")
    if code == "GatedRepo":
        return _gated(repo, page)
    if status in (401, 403) and code is None:
        return AuthError(f"the hub refused the access to {repo}", hint=_HOW_TO_SIGN_IN)
    if code == "RepoNotFound":
        return _no_repo(repo)
    return _no_revision(repo) if code == "RevisionNotFound" else None


def _gated(repo: str, page: str) -> GatedError:
    return GatedError(
        f"{repo} is gated: its owner grants access on request",
        hint=f"ask for access at {redact_url(page)}, then {_HOW_TO_SIGN_IN}",
    )


def _no_repo(repo: str) -> NotFoundError:
    return NotFoundError(
        f"the hub has no model {repo}, or not for these credentials",
        hint=f"check the name; if the model is private, {_HOW_TO_SIGN_IN}",
    )


def _no_revision(repo: str) -> NotFoundError:
    return NotFoundError(
        f"{repo} has no such revision", hint="name a branch, a tag or a commit of the model"
    )


def _not_understood(repo: str, error: Exception) -> StorageError:
    return StorageError(
        f"what the hub said about {repo} is not understood: {type(error).__name__}",
        hint="check that HF_ENDPOINT, or `endpoint` in mm.yaml, is a hub",
    )


@contextmanager
def _translated(repo: str, page: str, *, signed_in: bool) -> Iterator[None]:
    """Turn the errors of the hub's client into ours."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the right one of 1.x and 2.x

    try:
        yield
    except errors.GatedRepoError:
        raise _gated(repo, page) from None
    except errors.RepositoryNotFoundError as error:
        if signed_in and error.response is not None and error.response.status_code == 401:
            raise _http_error(repo, error) from error
        raise _no_repo(repo) from None
    except errors.RevisionNotFoundError:
        raise _no_revision(repo) from None
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
        raise _not_understood(repo, error) from error


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


def _license(info: Any) -> str | None:
    for tag in info.tags or ():
        if tag.startswith("license:"):
            return _text(tag.removeprefix("license:"))
    stated = info.card_data.get("license") if info.card_data is not None else None
    return _text(stated) if isinstance(stated, str) and stated else None


def _facts(info: Any, asked_revision: str) -> dict[str, Any]:
    card = info.card_data.to_dict() if info.card_data is not None else {}
    facts = {
        "requested_revision": asked_revision,
        "tags": _bounded(list(info.tags or ())),
        "library_name": _bounded(info.library_name),
        "gated": _bounded(info.gated or False),
        "card": _bounded(card),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _bounded(value: Any) -> Any:
    try:
        safe = _json_safe(value)
        small = len(json.dumps(safe)) <= FACT_LIMIT
    except RecursionError:
        small = False
    return safe if small else {"note": "left out: too large"}


def _json_safe(value: Any) -> Any:
    """`value` with everything that JSON does not know as text: dates, NaN, and the like."""
    if isinstance(value, dict):
        return {_text(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float, bool, type(None))) else _text(value)


def _text(value: Any) -> str:
    """`value` as text that can be written as UTF-8, whatever a hub's JSON may hold."""
    return str(value).encode(errors="replace").decode()
