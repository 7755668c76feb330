"""Tokens: who may do what, kept hashed beside the registry, so that every server knows them."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any

from cachetools import TTLCache

from mm_core import (
    IntegrityError,
    NotFoundError,
    Sink,
    UsageError,
    parse_rfc3339,
    remember_secret,
    rfc3339,
)

PREFIX = ".mm/tokens/"
SCOPES = ("read", "write", "admin")
"""What a token is for. Each includes those before it."""

_TEXT = re.compile(r"mm_([0-9a-f]{12})([0-9a-f]{40})")
_ID = re.compile(r"[0-9a-f]{12}")
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token as it is kept: its text is not, only the sha256 of it."""

    id: str
    name: str
    scope: str
    models: tuple[str, ...]
    sha256: str
    created: datetime
    expires: datetime | None = None

    def allows(self, scope: str, model_id: str) -> bool:
        """Whether it is good for `scope` on a model."""
        return self.has(scope) and any(fnmatchcase(model_id, glob) for glob in self.models)

    def has(self, scope: str) -> bool:
        """Whether it is good for `scope` on some model; one of an unknown scope is for nothing."""
        return self.scope in SCOPES and SCOPES.index(scope) <= SCOPES.index(self.scope)

    def is_over(self, now: datetime) -> bool:
        """Whether its time is up."""
        return self.expires is not None and self.expires <= now

    def to_json(self) -> dict[str, Any]:
        """The token as JSON data for people: without what it is checked by."""
        return {
            "id": self.id,
            "name": self.name,
            "scope": self.scope,
            "models": list(self.models),
            "created": rfc3339(self.created),
            "expires": None if self.expires is None else rfc3339(self.expires),
        }


class TokenBook:
    """The tokens of one backend: an object each, below ``.mm/tokens/``.

    The secret part of a token has 160 random bits, so a plain hash of it can be kept:
    nobody guesses it from that. `refresh` are the seconds for which an answer is
    taken as known, so for which a revoked token may still work. Safe among threads.
    """

    def __init__(self, sink: Sink, *, refresh: float = 5.0) -> None:
        self._sink = sink
        self._known: TTLCache[str, Token | None] = TTLCache(_MOST_KNOWN, ttl=refresh)
        self._lock = threading.Lock()

    def create(
        self,
        name: str,
        *,
        scope: str = "read",
        models: Sequence[str] = ("*",),
        expires: datetime | None = None,
    ) -> tuple[str, Token]:
        """A new token, and its text, which is told this once."""
        if scope not in SCOPES:
            raise UsageError(f"there is no scope {scope!r}", hint=f"one of {', '.join(SCOPES)}")
        if not models:
            raise UsageError("a token without models is good for nothing", hint="give '*' for all")
        if not name or not name.isprintable() or len(name) > 200:
            raise UsageError("a token's name is 1 to 200 printable characters")
        id_, secret = secrets.token_hex(6), secrets.token_hex(20)
        text = f"mm_{id_}{secret}"
        remember_secret(text)
        token = Token(
            id=id_,
            name=name,
            scope=scope,
            models=tuple(models),
            sha256=_hash(text),
            created=datetime.now(timezone.utc),
            expires=expires,
        )
        document = {**token.to_json(), "sha256": token.sha256}
        self._sink.create(_key(id_), json.dumps(document, sort_keys=True).encode())
        return text, token

    def all(self) -> Iterator[Token]:
        """All tokens, by id. One that is gone meanwhile is left out."""
        for stored in self._sink.list(PREFIX):
            token = self._load(stored.key.removeprefix(PREFIX).removesuffix(".json"))
            if token is not None:
                yield token

    def revoke(self, id_: str) -> None:
        """Make a token worthless: here at once, in other servers when they look again.

        One that cannot be read goes as well. `NotFoundError` where there is none.
        """
        if not _ID.fullmatch(id_) or self._sink.stat(_key(id_)) is None:
            raise NotFoundError(f"there is no token {id_!r}", hint="see `mm token list`")
        self._sink.delete([_key(id_)])
        with self._lock:
            self._known.pop(id_, None)

    def find(self, text: str) -> Token | None:
        """The token of this text, if there is one and its time is not up."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        token = self._recall(match[1])
        fits = hmac.compare_digest(_hash(text), token.sha256 if token else _hash(""))
        if token is None or not fits or token.is_over(datetime.now(timezone.utc)):
            return None
        return token

    def get(self, id_: str) -> Token | None:
        """The token of this id, if there is one and its time is not up."""
        token = self._recall(id_) if _ID.fullmatch(id_) else None
        return None if token is None or token.is_over(datetime.now(timezone.utc)) else token

    def knows(self, text: str) -> bool:
        """Whether `find` would answer without asking the store."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return True
        with self._lock:
            return match[1] in self._known

    def _recall(self, id_: str) -> Token | None:
        with self._lock:
            if id_ in self._known:
                return self._known[id_]
        token = self._load(id_)
        with self._lock:
            self._known[id_] = token
        return token

    def _load(self, id_: str) -> Token | None:
        try:
            data = b"".join(bytes(buffer) for buffer in self._sink.read(_key(id_)))
        except NotFoundError:
            return None
        try:
            raw = json.loads(data)
            expires = raw.get("expires")
            return Token(
                id=id_,
                name=str(raw["name"]),
                scope=str(raw["scope"]),
                models=tuple(map(str, raw["models"])),
                sha256=str(raw["sha256"]),
                created=parse_rfc3339(raw["created"]),
                expires=None if expires is None else parse_rfc3339(expires),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"the token {id_} at {self._sink.root} cannot be read: {error}",
                hint=f"remove it: `mm token revoke {id_}`",
            ) from error


def looks_like_ours(text: str) -> bool:
    """Whether somebody means one of our tokens, and not that of another hub."""
    return text.startswith("mm_")


def _key(id_: str) -> str:
    return f"{PREFIX}{id_}.json"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
