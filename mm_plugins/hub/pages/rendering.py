"""Templates into HTML. All that is put into one is escaped, unless it is marked as HTML."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mm_core import rfc3339, size_in_words

FOLDER = Path(__file__).parent


def page(name: str, **values: Any) -> str:
    """The template `name`, filled in."""
    return _TEMPLATES.get_template(name).render(**values)


def _moment(moment: datetime | str | None) -> Markup:
    """A time, for people and for programs."""
    if moment is None:
        return Markup()
    if isinstance(moment, str):
        return Markup('<time datetime="{}">{}</time>').format(
            moment, moment[:16].replace("T", " ") + " UTC"
        )
    plain = moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}">{}</time>').format(rfc3339(moment), plain)


def _count(number: int) -> str:
    """A large number in few digits: ``7.2 B``. A header may state any number at all."""
    if number < 1000:
        return str(number)
    for unit, size in (("K", 10**3), ("M", 10**6), ("B", 10**9), ("T", 10**12)):
        if number < 1000 * size:
            return f"{number / size:.1f} {unit}"
    return "more than 10^15"


_TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "size": size_in_words,
    "moment": _moment,
    "count": _count,
    "path": quote,
    "query": lambda values: urlencode({k: v for k, v in values.items() if v}),
    "short": lambda text: text[:12] if len(text) == 40 else text,  # a commit
}
