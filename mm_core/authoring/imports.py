"""What an import brought along, from what ``python -X importtime`` prints."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| ( *)(\S+)")

ALLOWED = frozenset(
    {
        "annotated_types",
        "click",
        "mm_core",
        "mm_plugins",
        "pluggy",
        "pydantic",
        "pydantic_core",
        "typing_extensions",
        "typing_inspection",
    }
)
"""What every plugin may import: Model Manager, and what that cannot do without."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One module, with the microseconds that it and all below it took."""

    name: str
    depth: int
    microseconds: int

    @property
    def package(self) -> str:
        """The name at the top."""
        return self.name.partition(".")[0]


def strangers(printed: str, module: str) -> tuple[int, dict[str, int]]:
    """The microseconds that `module` took, and those of each foreign package that it imported.

    What Model Manager, or a library that it needs, imports for its own sake does not count.
    """
    own = module.partition(".")[0]
    lines = [Imported(m[4], len(m[3]), int(m[2])) for m in _LINE.finditer(printed)]
    lines.reverse()  # what imports others comes after them
    start = next((i for i, line in enumerate(lines) if line.name == module), None)
    if start is None:
        return 0, {}
    found: dict[str, int] = {}
    for one in _foreign(lines, start, own):
        found[one.package] = found.get(one.package, 0) + one.microseconds
    return lines[start].microseconds, found


def _foreign(lines: Sequence[Imported], start: int, own: str) -> Iterator[Imported]:
    """The foreign modules below the one at `start`, without what those import themselves."""
    closed: int | None = None
    for line in lines[start + 1 :]:
        if line.depth <= lines[start].depth:
            return
        if closed is not None and line.depth > closed:
            continue
        closed = None
        if line.package == own:
            continue
        closed = line.depth
        if line.package not in ALLOWED and line.package not in sys.stdlib_module_names:
            yield line
