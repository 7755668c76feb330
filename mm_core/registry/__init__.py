"""The registry: which versions of which models a store holds. See docs/storage-format.md."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mm_core.registry.chain import CommitRecord
    from mm_core.registry.claims import Claim
    from mm_core.registry.layout import probe_exclusive_create
    from mm_core.registry.registry import ModelRegistry
    from mm_core.registry.signing import Keys

__all__ = ["Claim", "CommitRecord", "Keys", "ModelRegistry", "probe_exclusive_create"]

_HOME = {
    "Claim": "mm_core.registry.claims",
    "CommitRecord": "mm_core.registry.chain",
    "Keys": "mm_core.registry.signing",
    "ModelRegistry": "mm_core.registry.registry",
    "probe_exclusive_create": "mm_core.registry.layout",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
