"""Garbage collection: a frozen plan of what may go, and a run that does no more than it says.

Nothing that the registry offers is ever touched. Why that holds in spite of
stalled writers, stalled collectors and wrong clocks: docs/adr/0013.
"""

from __future__ import annotations

from mm_core.collecting.plan import GcPlan
from mm_core.collecting.retention import Retention
from mm_core.collecting.run import Collected, collect
from mm_core.collecting.survey import GRACE, make_gc_plan, refuse_no_folder

__all__ = [
    "GRACE",
    "Collected",
    "GcPlan",
    "Retention",
    "collect",
    "make_gc_plan",
    "refuse_no_folder",
]
