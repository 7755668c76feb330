"""The refs of a cached model: which commit a branch, a tag or an alias names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from mm_core import InvalidNameError, NotFoundError, Sink
from mm_plugins.sinks._hfcache_layout import Snapshot
from mm_plugins.sinks._keys import check_key


def write(disk: Sink, model_id: str, names: Mapping[str, str]) -> None:
    """Let `names`, and no others, name the snapshots of `model_id` that are ours in `disk`.

    A ref that the Hub's client has written since to a snapshot of its own stays.
    """
    folder = f"{Snapshot(model_id, '').repository}/refs/"
    shown = {ref.key[len(folder) :]: ref for ref in disk.list(folder)}
    for name, commit in names.items():
        ours = _marked(disk, model_id, commit)
        ref = shown.get(name)
        before = None if ref is None else _commit(disk, ref.key)
        if ours is None or before == commit or not _is_key(folder + name):
            continue
        theirs = before is not None and _marked(disk, model_id, before) is None
        if ref is None or not theirs or ref.modified <= ours:
            disk.put(folder + name, commit.encode())
    gone = [ref.key for name, ref in shown.items() if name not in names]
    disk.delete(key for key in gone if _marked(disk, model_id, _commit(disk, key)) is not None)


def _marked(disk: Sink, model_id: str, commit: str) -> datetime | None:
    """Since when this snapshot is ours; None for one that is not."""
    snapshot = Snapshot(model_id, commit)
    if not _is_key(snapshot.mark):
        return None
    mark = disk.stat(snapshot.mark)
    return None if mark is None else mark.modified


def _commit(disk: Sink, key: str) -> str:
    """What a ref names; nothing where it is gone or no text."""
    try:
        return b"".join(map(bytes, disk.read(key))).decode("ascii", "replace").strip()
    except NotFoundError:
        return ""


def _is_key(key: str) -> bool:
    try:
        return check_key(key) == key
    except InvalidNameError:
        return False
