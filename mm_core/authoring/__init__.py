"""For plugin authors: a new project, and what is wrong with one."""

from __future__ import annotations

KINDS = ("source", "sink", "policy", "executor", "command")
"""What a plugin of ours may add."""
