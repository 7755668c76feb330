"""What stands in YAML before a model card. A stranger wrote it."""

from __future__ import annotations

import re
from typing import Any

import yaml

_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_FROM_TAGS = (ValueError, LookupError, AttributeError, TypeError)
"""What PyYAML lets out of values that are not what their tags say, such as ``!!bool x``."""


class _Plain(yaml.SafeLoader):
    """YAML without aliases: by those a few lines stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a model card has no aliases")
        return super().compose_node(parent, index)


def front_matter(text: str) -> dict[str, Any]:
    """What stands in YAML before a model card; nothing where that cannot be read."""
    match = _FRONT.match(text)
    try:
        found = _Plain(match[1]).get_single_data() if match else None
    except (yaml.YAMLError, RecursionError, *_FROM_TAGS):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
