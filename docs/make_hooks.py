"""Makes ``docs/hooks.md`` of the docstrings in `mm_core.hookspecs`: ``nox -s hooks``.

A test compares the page with what this makes, and finds a hook or an argument
that is not told.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mm_core import hookspecs

PAGE = Path(__file__).with_name("hooks.md")
NEEDED = ("Called", "Threads", "Errors")
PARTS = (*NEEDED, "Given", "Answer", "Such as")

_HEAD = """\
# Hooks

A plugin is a module with some of these functions, marked `@hookimpl`; [plugins](plugins.md) tells
how it is installed. An implementation may leave out the arguments that it does not need. `MM_API`
is {api}; it rises only when a plugin must change.

<!-- Made by `nox -s hooks` from the docstrings of mm_core/hookspecs.py: change those. -->

| Hook | |
|---|---|
"""


class UndocumentedError(ValueError):
    """A hook or one of its arguments is not told."""


def page() -> str:
    """All of ``docs/hooks.md``."""
    hooks = {n: f for n, f in vars(hookspecs).items() if n.startswith("mm_")}
    rows = [f"| [`{name}`](#{name}) | {_summary(hook)} |" for name, hook in hooks.items()]
    sections = [section(name, hook) for name, hook in hooks.items()]
    return _HEAD.format(api=hookspecs.MM_API) + "\n".join([*rows, "", *sections])


def section(name: str, hook: Callable[..., Any]) -> str:
    """What is told of one hook. Raises `UndocumentedError` where something is missing."""
    told = parts(hook)
    wanted = {*NEEDED, "Such as"}
    signature = inspect.signature(hook, eval_str=False)
    if signature.parameters:
        wanted.add("Given")
    if signature.return_annotation != "None":
        wanted.add("Answer")
    if set(told) != wanted:
        raise UndocumentedError(f"{name}: its docstring has {sorted(told)}, not {sorted(wanted)}")
    lines = [
        f"## {name}",
        "",
        "```python",
        _signature(name, signature),
        "```",
        "",
        _summary(hook),
        "",
    ]
    lines += _arguments(name, told.get("Given", ""), signature)
    lines += [f"- **{part}**: {told[part]}" for part in (*NEEDED, "Answer") if part in told]
    return "\n".join([*lines, "", "```python", told["Such as"], "```", ""])


def parts(hook: Callable[..., Any]) -> Mapping[str, str]:
    """The parts of a hook's docstring, each as one line; the example as it stands."""
    text = inspect.getdoc(hook) or ""
    pieces = re.split(rf"^({'|'.join(PARTS)}):", text, flags=re.MULTILINE)[1:]
    found = dict(zip(pieces[::2], pieces[1::2], strict=True))
    example = textwrap.dedent(found.pop("Such as", ":").removeprefix(":")).strip("\n")
    given = textwrap.dedent(found.pop("Given", "")).strip("\n")
    told = {name: _words(value) for name, value in found.items()}
    return told | ({"Given": given} if given else {}) | ({"Such as": example} if example else {})


def _arguments(name: str, given: str, signature: inspect.Signature) -> list[str]:
    """A line for each argument, in the order of the signature."""
    found = re.split(r"^(\w+): ", given, flags=re.MULTILINE)[1:]
    told = dict(zip(found[::2], map(_words, found[1::2]), strict=True))
    if list(told) != list(signature.parameters):
        raise UndocumentedError(
            f"{name}: its arguments are {list(signature.parameters)}, told are {list(told)}"
        )
    return [f"- **`{argument}`**: {words}" for argument, words in told.items()]


def _signature(name: str, signature: inspect.Signature) -> str:
    arguments = [f"{p.name}: {p.annotation}" for p in signature.parameters.values()]
    return f"def {name}({', '.join(arguments)}) -> {signature.return_annotation}: ..."


def _summary(hook: Callable[..., Any]) -> str:
    return _markdown((inspect.getdoc(hook) or "").partition("\n\n")[0])


def _words(text: str) -> str:
    return _markdown(" ".join(text.split()))


def _markdown(text: str) -> str:
    """Our docstrings' ``code`` as Markdown's."""
    return text.replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
