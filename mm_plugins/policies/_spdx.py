"""SPDX licence expressions: names joined by AND, OR and WITH, with parentheses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LENGTH = 4_096
DEPTH = 32
"""Longer and deeper ones are refused: no licence is stated so."""

_TOKEN = re.compile(r"[()]|[^\s()]+")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?::[A-Za-z0-9][\w.-]*)?\+?", re.ASCII)
_WORDS = frozenset({"and", "or", "with", "(", ")"})


@dataclass(frozen=True, slots=True)
class License:
    """One licence in lower case, and the exception that it is given with, if any."""

    name: str
    exception: str | None = None

    def spellings(self) -> Iterator[str]:
        """All that it may be called by in a list, such as ``gpl-2.0+`` for ``gpl-2.0-or-later``.

        Who may choose a later version may choose this one, and an exception only
        gives more leave: so these go by the bare name as well.
        """
        for name in self._names():
            yield name
            if self.exception is not None:
                yield f"{name} with {self.exception}"

    def _names(self) -> Iterator[str]:
        bare = self.name.removesuffix("+").removesuffix("-or-later").removesuffix("-only")
        yield from (bare, f"{bare}-only")
        if self.name.endswith(("+", "-or-later")):
            yield from (f"{bare}+", f"{bare}-or-later")
        kind, _, named = self.name.partition(":")
        if named:
            yield from (self.name, kind)


@dataclass(frozen=True, slots=True)
class Group:
    """Several expressions of which all hold, or one of which may be chosen (`any_suffices`)."""

    parts: tuple[License | Group, ...]
    any_suffices: bool

    def licenses(self) -> Iterator[License]:
        """Every licence in it."""
        for part in self.parts:
            yield from part.licenses() if isinstance(part, Group) else (part,)

    def holds(self, permits: Callable[[License], bool]) -> bool:
        """Whether the licences that `permits` lets through are enough."""
        held = (p.holds(permits) if isinstance(p, Group) else permits(p) for p in self.parts)
        return any(held) if self.any_suffices else all(held)


def parse(text: str) -> Group | None:
    """The expression in `text`, of any case; None if it is none."""
    if len(text) > LENGTH:
        return None
    parser = _Parser(_TOKEN.findall(text.lower()))
    try:
        found = parser.alternatives(0)
    except ValueError:
        return None
    return found if parser.at_end else None


class _Parser:
    """Reads tokens one by one; `ValueError` for those that make no sense."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    @property
    def at_end(self) -> bool:
        return self._next == len(self._tokens)

    def alternatives(self, depth: int) -> Group:
        parts = [self._together(depth)]
        while self._take("or"):
            parts.append(self._together(depth))
        return Group(tuple(parts), any_suffices=True)

    def _together(self, depth: int) -> Group:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return Group(tuple(parts), any_suffices=False)

    def _one(self, depth: int) -> License | Group:
        if not self._take("("):
            name = self._name()
            return License(name, self._name() if self._take("with") else None)
        if depth == DEPTH:
            raise ValueError("too deep")
        inside = self.alternatives(depth + 1)
        if not self._take(")"):
            raise ValueError("a parenthesis stays open")
        return inside

    def _name(self) -> str:
        token = self._peek()
        if token in _WORDS or not _NAME.fullmatch(token):
            raise ValueError(f"{token!r} is no name")
        self._next += 1
        return token

    def _take(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._next += 1
        return True

    def _peek(self) -> str:
        return "" if self.at_end else self._tokens[self._next]
