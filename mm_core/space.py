"""A full disk is seen before the start, where anybody can say how full it is."""

from __future__ import annotations

from mm_core.exceptions import StorageError
from mm_core.registry import ModelRegistry
from mm_core.schemas import Action, ModelStatus, Plan, PlannedFile
from mm_core.sink import ResumableSink, Sink
from mm_core.sizes import size_in_words

_NOTHING_TO_STORE = (ModelStatus.AVAILABLE, ModelStatus.DOWNLOADING)


def refuse_to_begin_if_full(registry: ModelRegistry, plan: Plan) -> None:
    """`refuse_if_full`, but not where the version is there, or another is storing it now."""
    try:
        refuse_if_full(registry.sink, plan)
    except StorageError:
        entry = registry.get_model(plan.model_id, plan.version)
        if entry is None or entry.status not in _NOTHING_TO_STORE:
            raise


def refuse_if_full(sink: Sink, plan: Plan) -> None:
    """Raise `StorageError` if what `plan` fetches does not fit into what is free in `sink`.

    Parts that an earlier attempt stored need no more room. Silent where the
    sink cannot tell what is free, or the source does not state every size.
    """
    files = [planned for planned in plan.files if planned.action is Action.FETCH]
    free = sink.free_bytes() if files else None
    if free is None:
        return
    needed = _sum_of_sizes(files)
    if needed is None or needed <= free:
        return
    needed -= sum(size or 0 for size in _kept_sizes(sink, plan.prefix, files))
    if needed > free:
        raise StorageError(
            f"{plan.model_id} {plan.version} needs {size_in_words(needed)}, and {sink.root} has "
            f"{size_in_words(free)} left",
            hint="make room there, or choose another place; nothing was fetched",
        )


def kept_bytes(sink: Sink, plan: Plan) -> int | None:
    """How much of what `plan` fetches an earlier attempt has stored; no reader sees it yet.

    None where the sink has parts of a file and does not tell their size.
    """
    files = [planned for planned in plan.files if planned.action is Action.FETCH]
    return _sum(_kept_sizes(sink, plan.prefix, files)) if files else 0


def _sum_of_sizes(files: list[PlannedFile]) -> int | None:
    return _sum([planned.file.size for planned in files])


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _kept_sizes(sink: Sink, prefix: str, files: list[PlannedFile]) -> list[int | None]:
    """What is stored already of those of `files` that have anything; None for an unknown size."""
    if not isinstance(sink, ResumableSink):
        return []
    sizes = {planned.key: planned.file.size or 0 for planned in files}
    kept = {upload.key: upload.size for upload in sink.unfinished(prefix) if upload.key in sizes}
    return [None if size is None else min(size, sizes[key]) for key, size in kept.items()]
