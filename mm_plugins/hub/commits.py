"""A commit as clients of the Hub send it: lines of JSON, and the version that comes of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from mm_core import (
    Buffer,
    ModelType,
    RemoteFile,
    Request,
    Sink,
    Snapshot,
    Source,
    StoredSource,
    check_path,
)
from mm_plugins._front_matter import front_matter
from mm_plugins.hub.answers import ProblemError
from mm_plugins.hub.staging import Stage, Staged
from mm_plugins.sources._hub_facts import bounded

CARD = "README.md"

_LINE = 8 << 20
_IN_MEMORY = 32 << 20
_MOST_STEPS = 100_000
_INLINE = re.compile(rb'\s*\{\s*"key"\s*:\s*"file"\s*,\s*"value"\s*:\s*\{\s*"content"\s*:\s*"')
_CARD_LIMIT = 1 << 20


@dataclass
class Change:
    """What a commit does to the files that were there: in order, so that the last word counts."""

    summary: str = ""
    parent: str | None = None
    steps: list[tuple[str, str, Any]] = field(default_factory=list)

    @property
    def inline(self) -> list[Staged]:
        """The files whose bytes came with it."""
        return [what for kind, _, what in self.steps if kind == "file"]


async def read_change(stage: Stage, model_id: str, body: AsyncIterator[bytes]) -> Change:
    """The lines of a commit. Files in them that are large go to the stage as they come."""
    change, lines, held = Change(), _Lines(body), 0
    try:
        while (line := await lines.next()) is not None:
            if len(change.steps) >= _MOST_STEPS:
                raise ProblemError(413, f"A commit has {_MOST_STEPS} files at most")
            if isinstance(line, bytes):
                if line.strip():
                    held = await _note(change, stage, model_id, _document(line), held)
                continue
            staged = await stage.inline(model_id, line)
            rest = _document(b'{"key":"file","value":{"content":""' + await lines.rest())
            change.steps.append(("file", _path(rest["value"]), staged))
    except BaseException:
        stage.forget(change.inline)
        raise
    return change


async def _note(
    change: Change, stage: Stage, model_id: str, document: Mapping[str, Any], held: int
) -> int:
    key, value = document["key"], document["value"]
    if key == "header":
        change.summary = str(value.get("summary", ""))[:1000]
        parent = value.get("parentCommit")
        change.parent = None if parent is None else str(parent)
    elif key == "file":
        data = _decoded(value)
        held += len(data)
        if held > _IN_MEMORY:
            staged = await stage.inline(model_id, _once(data))
        else:
            staged = Staged(len(data), hashlib.sha256(data).hexdigest(), data=data)
        change.steps.append((key, _path(value), staged))
    elif key == "lfsFile":
        oid, size = str(value.get("oid", "")), value.get("size")
        if not re.fullmatch("[0-9a-f]{64}", oid):
            raise ProblemError(400, "An lfsFile is named by 64 hex digits")
        change.steps.append((key, _path(value), (oid, size if isinstance(size, int) else None)))
    elif key in ("deletedFile", "deletedFolder"):
        change.steps.append((key, _path(value), None))
    else:
        raise ProblemError(400, f"This hub knows no {str(key)[:50]!r} in a commit")
    return held


class _Lines:
    """The lines of a body. A long line that holds a file is a stream of that file instead."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._held = bytearray()

    async def next(self) -> bytes | AsyncIterator[bytes] | None:
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > _LINE:
                match = _INLINE.match(self._held)
                if match is None:
                    raise ProblemError(413, f"A line of the commit is larger than {_LINE} bytes")
                del self._held[: match.end()]
                return self._content()
            if not await self._more():
                line, self._held = bytes(self._held), bytearray()
                return line or None
        return self._cut(end)

    async def rest(self) -> bytes:
        """What follows the content in its line."""
        while (end := self._held.find(b"\n")) < 0 and await self._more():
            if len(self._held) > _LINE:
                raise ProblemError(413, f"A line of the commit is larger than {_LINE} bytes")
        return self._cut(len(self._held) if end < 0 else end)

    async def _content(self) -> AsyncIterator[bytes]:
        """The bytes up to the next quote, out of base64."""
        while True:
            end = self._held.find(b'"')
            usable = end if end >= 0 else len(self._held) // 4 * 4
            yield _unbased(bytes(self._held[:usable]))
            del self._held[: usable + (end >= 0)]
            if end >= 0:
                return
            if not await self._more():
                raise ProblemError(400, "The commit ends within a file")

    async def _more(self) -> bool:
        async for piece in self._body:
            self._held += piece
            return True
        return False

    def _cut(self, end: int) -> bytes:
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line


def _document(line: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(line)
        if isinstance(document["key"], str) and isinstance(document["value"], dict):
            return dict(document)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ProblemError(400, "Each line of a commit should be JSON with a key and a value")


def _decoded(value: Mapping[str, Any]) -> bytes:
    content = value.get("content")
    if not isinstance(content, str) or value.get("encoding", "utf-8") not in ("utf-8", "base64"):
        raise ProblemError(400, "A file of a commit has its content in base64 or utf-8")
    try:
        data = content.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON may hold
        raise ProblemError(400, "A file of the commit is no text") from None
    return _unbased(data) if value.get("encoding") == "base64" else data


def _unbased(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ProblemError(400, "A file of the commit is no base64") from None


def _path(value: Mapping[str, Any]) -> str:
    return check_path(str(value.get("path", "")).rstrip("/"))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


# -- the version that comes of it ----------------------------------------------------


class CommitSource(Source):
    """The files of a former version and what a commit did to them, as a source.

    What is stored already is copied by the store; only what came in parts is read.
    """

    type = "hub"
    needs_network = False

    def __init__(self, sink: Sink, model_id: str, former: StoredSource | None) -> None:
        super().__init__()
        self._sink = sink
        self._model_id = model_id
        self._former = former
        self._before: Snapshot | None = None if former is None else former.snapshot(_ANY)
        self.files: dict[str, RemoteFile] = (
            {} if self._before is None else {file.path: file for file in self._before.files}
        )
        self._staged: dict[str, Staged] = {}
        self._others: dict[str, Source] = {}
        self.by = ""
        self.summary = ""

    def put(self, path: str, staged: Staged) -> None:
        """Let `path` be what was sent."""
        self.files[path] = RemoteFile(path=path, size=staged.size, sha256=staged.sha256)
        self._staged[path] = staged

    def put_stored(self, path: str, file: RemoteFile, source: Source) -> None:
        """Let `path` be a file of a version that is there, of which `source` tells."""
        self.files[path] = replace(file, path=path)
        self._others[path] = source
        self._staged.pop(path, None)

    def delete(self, path: str, *, folder: bool) -> None:
        """Leave a file out, or all of a folder. `ProblemError` where there is none."""
        doomed = [p for p in self.files if p.startswith(f"{path}/")] if folder else [path]
        if not doomed or any(p not in self.files for p in doomed):
            raise ProblemError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for one in doomed:
            del self.files[one]
            self._staged.pop(one, None)

    @property
    def is_new(self) -> bool:
        """Whether the files differ from those of the former version."""
        before = () if self._before is None else self._before.files
        return _digests(before) != _digests(tuple(self.files.values()))

    def commit(self, parent: str) -> str:
        """The 40 hex digits that name it: made of what it holds and what it follows."""
        digest = hashlib.sha1(f"{self._model_id}\0{parent}\0".encode(), usedforsecurity=False)
        for path, sha256 in sorted(_digests(tuple(self.files.values())).items()):
            digest.update(f"{path}\0{sha256}\0".encode())
        return digest.hexdigest()

    def snapshot(self, request: Request) -> Snapshot:
        """All files, and what the card among them states."""
        card, before = self._card(), self._before
        if card is None and before is not None:
            facts, type_, licence = dict(before.facts), before.model_type, before.license
        else:
            card = card or {}
            type_, licence = ModelType.from_tag(_text(card, "pipeline_tag")), _licence(card)
            told = {
                "card": bounded(card),
                "tags": bounded(card.get("tags")),
                "library_name": _text(card, "library_name"),
            }
            facts = {name: value for name, value in told.items() if value}
        facts["commit"] = {"summary": self.summary, "by": self.by}
        return Snapshot(
            source=f"hub:{quote(self.by)}",
            revision=None,
            files=tuple(sorted(self.files.values(), key=lambda file: file.path)),
            model_id=self._model_id,
            model_type=type_,
            license=licence,
            facts=facts,
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes that were sent, or that are stored."""
        staged = self._staged.get(file.path)
        if staged is not None:
            return staged.read(self._sink, start, end)
        return self._sink.read(file.extra["key"], start, end)

    def splits(self, file: RemoteFile) -> bool:
        """Every store reads ranges, but pieces of Xet are found from the front."""
        staged = self._staged.get(file.path)
        return staged is None or not staged.pieces

    def copies_to(self, file: RemoteFile, sink: Sink) -> bool:
        """What is one object already, and whose hash somebody here has computed."""
        return self._key(file) is not None and sink.copies_from(self._sink)

    def copy_to(self, file: RemoteFile, sink: Sink, key: str) -> bool:
        """As the store copies."""
        source = self._key(file)
        return source is not None and sink.copy_from(self._sink, source, key)

    def confirm(self, snapshot: Snapshot) -> None:
        """Whether what was copied from is there still."""
        if self._former is not None:
            self._former.confirm(snapshot)
        for path in self.files.keys() & self._others.keys():
            self._others[path].confirm(snapshot)

    def _key(self, file: RemoteFile) -> str | None:
        staged = self._staged.get(file.path)
        if staged is None:
            return str(file.extra["key"])
        return staged.keys[0][0] if staged.checked and len(staged.keys) == 1 else None

    def _card(self) -> dict[str, Any] | None:
        """What stands before the model card; None where it is the one of before."""
        if CARD not in self._staged:
            return None if CARD in self.files else {}
        file = self.files[CARD]
        if (file.size or 0) > _CARD_LIMIT:
            return {}
        return front_matter(b"".join(map(bytes, self.read(file))).decode("utf-8", "replace"))


def _digests(files: tuple[RemoteFile, ...]) -> dict[str, str | None]:
    return {file.path: file.sha256 for file in files}


def _text(card: Mapping[str, Any], name: str) -> str | None:
    value = card.get(name)
    return value if isinstance(value, str) else None


def _licence(card: Mapping[str, Any]) -> str | None:
    """The licence that a card names; of several, all hold."""
    stated = card.get("license")
    found = [one for one in (stated if isinstance(stated, list) else [stated]) if one]
    return " AND ".join(map(str, found)) or None


_ANY = Request(url="hub:")
