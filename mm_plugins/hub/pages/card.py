"""A model card as HTML: whoever wrote it is not trusted with anything but words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

MOST_BYTES = 100_000
"""The largest card that is shown: a longer one is a file to be read elsewhere."""

_FRONT = re.compile(r"\A\ufeff?---\r?\n.*?^---[ \t]*$\r?\n?", re.DOTALL | re.MULTILINE)
_LOWER = 2  # a card's first heading stands below two of the page
_DEEPEST = 6


@lru_cache(maxsize=64)
def rendered(text: str) -> Markup:
    """`text` in Markdown as HTML: no HTML of its own, no images, links to other places alone."""
    return Markup(_MARKDOWN.render(_FRONT.sub("", text, count=1)))  # noqa: S704  # made below


class _Renderer(RendererHTML):
    """Changes what a card could harm the page by; and what a keyboard could not reach."""

    def image(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """What it shows, in words: an image would be asked of another host."""
        return str(Markup("<i>[image: {}]</i>").format(tokens[index].content))

    def link_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """A link to another place; one that leads elsewhere is mere text."""
        where = str(tokens[index].attrGet("href") or "")
        if not leads_out(where):
            return "<a>"
        html = Markup('<a href="{}" rel="noopener noreferrer nofollow">')
        return str(html.format(where))

    def heading_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """A heading, below those of the page."""
        return f"<{_lower(tokens[index].tag)}>"

    def heading_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """The end of one."""
        return f"</{_lower(tokens[index].tag)}>\n"

    def fence(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """Code, which may be wider than the page."""
        return _code(tokens[index].content)

    def code_block(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """The same, by its indent."""
        return _code(tokens[index].content)

    def table_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """A table, which may be wider than the page."""
        return '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>\n'

    def table_close(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """The end of one."""
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """A cell, without the style that says how it is aligned."""
        return "<th>"

    def td_open(self, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        """The same."""
        return "<td>"


def leads_out(where: str) -> bool:
    """Whether a link names another place by http or https."""
    try:
        parts = urlsplit(where)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _lower(tag: str) -> str:
    return f"h{min(_DEEPEST, int(tag[1:]) + _LOWER)}"


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>\n'


_MARKDOWN = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
