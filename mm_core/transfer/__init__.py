"""The engine: carry out a plan. One function on values; everything else here serves it."""

from __future__ import annotations

from mm_core.transfer.engine import TransferOptions, transfer
from mm_core.transfer.progress import Progress, ProgressBook
from mm_core.transfer.rate import RateLimit

__all__ = ["Progress", "ProgressBook", "RateLimit", "TransferOptions", "transfer"]
