"""The registry: which versions of which models a store holds. See docs/storage-format.md."""

from __future__ import annotations

from mm_core.registry.chain import CommitRecord
from mm_core.registry.claims import Claim
from mm_core.registry.layout import probe_exclusive_create
from mm_core.registry.registry import ModelRegistry

__all__ = ["Claim", "CommitRecord", "ModelRegistry", "probe_exclusive_create"]
