"""How old things are, by the store's own clock alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial

from mm_core.collecting.patience import patiently
from mm_core.registry.layout import log_key
from mm_core.sink import Sink


def old_commits(sink: Sink, commits: Iterable[int], *, before: datetime) -> set[int]:
    """Those of `commits` that were made at `before` or earlier.

    The log settles the order, so whatever comes before an old commit is old, and
    a few of them tell of all. One that is absent counts as young.
    """
    ranked = sorted(set(commits))
    known_old, first_young = 0, len(ranked)
    while known_old < first_young:
        middle = (known_old + first_young) // 2
        stored = patiently(partial(sink.stat, log_key(ranked[middle])))
        if stored is not None and stored.modified <= before:
            known_old = middle + 1
        else:
            first_young = middle
    return set(ranked[:known_old])


def ago(now: datetime, seconds: float) -> datetime:
    """`seconds` before `now`; the beginning of time where that is before it."""
    try:
        return now - timedelta(seconds=seconds)
    except OverflowError:
        return datetime.min.replace(tzinfo=now.tzinfo)
