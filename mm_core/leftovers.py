"""Uploads that were begun and never finished: what they hold, and when they may go.

The age of an upload counts from its latest part, on S3 from its begin, since S3
lists nothing else: a pull that ran there for longer than the grace and was then
interrupted may lose its parts to the next collection, before it comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_core.exceptions import ConfigError, NotFoundError
from mm_core.registry import ModelRegistry
from mm_core.schemas import UnfinishedUpload, rfc3339
from mm_core.sink import ResumableSink, Sink

GRACE = 86_400.0
"""Seconds that parts wait for another attempt, where ``retention.grace`` does not say."""

_PREFIX = "models/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Parts that are `age` seconds old, by the store's own clock."""

    upload: UnfinishedUpload
    age: float

    def to_json(self) -> dict[str, Any]:
        """The leftover as JSON data; ``bytes`` is null where the store does not tell."""
        return {
            "key": self.upload.key,
            "modified": rfc3339(self.upload.modified),
            "age_seconds": int(self.age),
            "bytes": self.upload.size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection found and, unless it was a `dry_run`, deleted.

    `kept` counts the unfinished uploads that are too young or in use.
    """

    leftovers: tuple[Leftover, ...] = ()
    kept: int = 0
    dry_run: bool = False

    @property
    def total_bytes(self) -> int | None:
        """The sum of the sizes; None where the store does not tell each of them."""
        sizes = [found.upload.size for found in self.leftovers]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return {
            "dry_run": self.dry_run,
            "uploads": [found.to_json() for found in self.leftovers],
            "bytes": self.total_bytes,
            "kept": self.kept,
        }


def refuse_no_folder(sink: Sink, *, addressed: bool) -> None:
    """Raise where `sink` is a path with nothing to collect in, which a typing mistake makes.

    `NotFoundError` for one that is `addressed` and not there (a backend of
    ``mm.yaml`` may be as yet unused), `ConfigError` for one that is no folder.
    """
    if "://" in sink.root:
        return
    folder = Path(sink.root)
    if addressed and not folder.exists():
        raise NotFoundError(
            f"there is no folder {sink.root}", hint="name an existing one; see `mm backends list`"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"{sink.root} is not a folder", hint="name the folder that holds the models"
        )


def collect(registry: ModelRegistry, *, grace: float, dry_run: bool) -> Collected:
    """Discard the unfinished uploads of models that are older than `grace` seconds.

    Those of a version that somebody is pulling stay; a pull that has given no
    sign of life for `grace` seconds counts as dead. Nothing else is touched. A
    pull that comes back to parts which are gone fetches the file from its start.
    """
    sink = registry.sink
    uploads = list(sink.unfinished(_PREFIX)) if isinstance(sink, ResumableSink) else []
    if not uploads:
        return Collected(dry_run=dry_run)
    now = registry.store_time()
    leftovers = [
        Leftover(upload=upload, age=age)
        for upload in uploads
        if (age := (now - upload.modified).total_seconds()) >= grace
    ]
    in_use = tuple(registry.claimed_prefixes(silent_for=grace)) if leftovers else ()
    leftovers = [found for found in leftovers if not found.upload.key.startswith(in_use)]
    if not dry_run:
        assert isinstance(sink, ResumableSink)
        leftovers = [found for found in leftovers if sink.discard_unfinished(found.upload)]
    kept = len(uploads) - len(leftovers)
    return Collected(leftovers=tuple(leftovers), kept=kept, dry_run=dry_run)
