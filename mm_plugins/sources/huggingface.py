"""The Hugging Face Hub, and every server that speaks its protocol."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from pydantic import Field, SecretStr

from mm_core import (
    Buffer,
    EnvironmentContext,
    ModelType,
    OfflineError,
    PluginConfig,
    RangeReader,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    StorageError,
    TransientError,
    UsageError,
    check_path,
    hookimpl,
    remember_secret,
)
from mm_plugins._guard import Guard
from mm_plugins.http import Head, HttpClient, Target, same_origin
from mm_plugins.sources._hub_errors import explain, not_understood, translated
from mm_plugins.sources._hub_facts import facts_of, license_of
from mm_plugins.sources._xet import XetReader

logger = logging.getLogger(__name__)

T = TypeVar("T")

PUBLIC_HUB = "https://huggingface.co"
RANGE_LIMIT = 8 << 30
"""The most bytes that one request asks for: CDNs refuse answers above 50 GB."""

METADATA_TRIES = 4
PATIENCE = 60.0
"""The longest wait, in seconds, before a question about a repository is put again."""

MAX_ENTRIES = 250_000
DOCUMENT_LIMIT = 64 << 20


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer the Hub."""
    return [HuggingFaceSource]


@hookimpl
def mm_environment(context: EnvironmentContext) -> Mapping[str, str]:
    """Say where clients of the Hub find the models."""
    from mm_plugins.sources._hub_environment import variables

    return variables(context)


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
            connect_timeout=self.config.connect_timeout,
            read_timeout=self.config.read_timeout,
            permit=Guard(chosen=urlsplit(self._endpoint).hostname),
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
            source=f"hf://{_own_name(repo, info)}@{commit}",
            revision=commit,
            files=tuple(self._files(repo, commit, tree, request)),
            model_id=repo,
            model_type=ModelType.from_tag(info.pipeline_tag),
            license=license_of(info),
            facts=facts_of(info, revision),
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes of `file` at its commit, by Xet or by HTTP ranges."""
        repo, commit = file.extra["repo"], file.extra["commit"]
        self._refuse_offline(repo)
        stop = file.size or 0 if end is None else min(end, file.size or 0)
        if start >= stop:
            return
        if self._goes_by_xet(file):
            reader = self._xet_reader(repo, commit)
            yield from reader.read(file.extra["xet"], file.size or 0, start, stop)
            return
        target = self._target(file)
        for position in range(start, stop, RANGE_LIMIT):
            yield from self._http.read(target, position, min(position + RANGE_LIMIT, stop))

    def open(self, file: RemoteFile, start: int = 0, end: int | None = None) -> RangeReader:
        """The same, into the caller's memory."""
        stop = file.size or 0 if end is None else min(end, file.size or 0)
        if start >= stop or stop - start > RANGE_LIMIT or self._goes_by_xet(file):
            return super().open(file, start, end)
        self._refuse_offline(file.extra["repo"])
        return self._http.open(self._target(file), start, stop)

    def splits(self, file: RemoteFile) -> bool:
        """Xet reads in parallel by itself; a server may turn out to know no ranges."""
        return not self._goes_by_xet(file) and self._http.honours_ranges(self._url(file))

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
            with translated(repo, self._page(repo), signed_in=token is not None):
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
        seen: set[str] = set()
        while url is not None:
            if len(entries) > MAX_ENTRIES:
                raise StorageError(
                    f"{repo} has more than {MAX_ENTRIES:,} files, which is more than a model has",
                    hint="the Hub itself advises less than 100,000; is it a dataset?",
                )
            if not same_origin(first, url) or url in seen:
                raise StorageError(f"the list of files of {repo} leads astray, or never ends")
            seen.add(url)
            head, page = _patiently(partial(self._document, repo, url))
            if not isinstance(page, list):
                raise StorageError(f"the hub's list of files of {repo} is none")
            entries += [_entry(repo, item) for item in page]
            url = _next_page(head)
        return entries

    def _document(self, repo: str, url: str) -> tuple[Head, Any]:
        target = Target(
            url=url,
            headers=self._authorization(),
            explain=partial(explain, repo, self._page(repo)),
        )
        head, body = self._http.get(target, limit=DOCUMENT_LIMIT)
        try:
            return head, json.loads(body)
        except (ValueError, RecursionError) as error:
            raise not_understood(repo, error) from error

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

    def _target(self, file: RemoteFile) -> Target:
        repo = file.extra["repo"]
        return Target(
            url=self._url(file),
            headers=self._authorization(),
            size=file.size,
            immutable=True,
            explain=partial(explain, repo, self._page(repo)),
        )

    def _url(self, file: RemoteFile) -> str:
        repo, commit = file.extra["repo"], file.extra["commit"]
        return f"{self._endpoint}/{repo}/resolve/{commit}/{quote(file.path)}"

    def _goes_by_xet(self, file: RemoteFile) -> bool:
        return "xet" in file.extra and self._speaks_xet()

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
                    raise not_understood(repo, error) from error
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
            logger.warning("Retrying the hub, in %.1f s: %s", pause, error)
            time.sleep(pause)
    raise AssertionError


def _entry(repo: str, item: Any) -> Mapping[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise not_understood(repo, TypeError(item))
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
        raise not_understood(repo, error) from error


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")


def _parse(url: str) -> tuple[str, str | None]:
    """The repository and the revision in ``hf://org/name[@revision]``."""
    path, _, revision = url.partition("://")[2].partition("@")
    if ":" in path:
        raise UsageError(
            "hf:// takes no user, password or port", hint="write hf://org/name or hf://org/name@rev"
        )
    parts = [part for part in path.split("/") if part]
    if parts[:1] in (["datasets"], ["spaces"]):
        raise UsageError(f"{url} is no model: {parts[0]} are not supported")
    if not 1 <= len(parts) <= 2:
        raise UsageError(
            f"{url!r} names no model repository", hint="write hf://org/name or hf://org/name@rev"
        )
    return "/".join(parts), revision or None


def _own_name(repo: str, info: Any) -> str:
    """The hub's own name of a repository: it also answers to former names, and in other case."""
    name = str(info.id or "")
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) else repo


def _commit(repo: str, info: Any) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise StorageError(
            f"the hub named no commit of {repo}",
            hint="its `sha` must be 40 hex digits: see HF_ENDPOINT, or `endpoint` in mm.yaml",
        )
    return str(info.sha)
