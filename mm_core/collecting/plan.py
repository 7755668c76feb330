"""What a collection would do, as frozen values: every key, and its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mm_core.collecting.retention import Retention, Retired
from mm_core.schemas import ModelStatus, StoredObject, UnfinishedUpload, rfc3339


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
class DeadClaim:
    """A version whose puller has been silent for longer than the grace: it becomes FAILED."""

    model_id: str
    version: str
    claim: str

    def to_json(self) -> dict[str, Any]:
        """The claim as JSON data."""
        return {"model_id": self.model_id, "version": self.version, "claim": self.claim}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A version whose files go, and then its row; or a folder that no version names.

    `status` is None for the latter. `ended` is where in the log the version was
    removed or given up: if that has moved, it is another one by now. `sweeper` is the
    collector that began to sweep it and died. `manifests` are its file lists, `signatures`
    those over it.
    """

    model_id: str
    version: str
    status: ModelStatus | None = None
    ended: tuple[int, ...] = ()
    sweeper: str | None = None
    objects: tuple[StoredObject, ...] = ()
    manifests: tuple[StoredObject, ...] = ()
    signatures: tuple[StoredObject, ...] = ()

    @property
    def name(self) -> str:
        """``ID@VERSION``."""
        return f"{self.model_id}@{self.version}"

    @property
    def all_objects(self) -> tuple[StoredObject, ...]:
        """The files, the file lists and the signatures."""
        return (*self.objects, *self.manifests, *self.signatures)

    def to_json(self) -> dict[str, Any]:
        """The version as JSON data."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "status": None if self.status is None else self.status.value,
            "bytes": total(self.all_objects),
            "keys": keys_json(self.all_objects),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Strays:
    """Files in the folder of an AVAILABLE version that are none of its files.

    `added` is the version's place in the log, `manifest` its file list.
    """

    model_id: str
    version: str
    added: tuple[int, ...]
    manifest: str
    objects: tuple[StoredObject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """All that a collection may do; or, in a `Collected`, what it did.

    `versions` are swept, `orphans` as well: folders that no version names. `loose`
    are keys that no version could ever hold. `litter` are heartbeats of closed
    claims, left probes, and signatures over versions of which nothing is left. `kept`
    counts what is younger than `grace` seconds, in use, older than the registry, or
    cannot be locked. `retention` is what `retired` was chosen by.
    """

    grace: float
    retention: Retention | None = None
    retired: tuple[Retired, ...] = ()
    claims: tuple[DeadClaim, ...] = ()
    versions: tuple[Sweep, ...] = ()
    orphans: tuple[Sweep, ...] = ()
    strays: tuple[Strays, ...] = ()
    loose: tuple[StoredObject, ...] = ()
    litter: tuple[StoredObject, ...] = ()
    uploads: tuple[Leftover, ...] = ()
    kept: int = 0

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """All that is swept."""
        return (*self.versions, *self.orphans)

    @property
    def objects(self) -> Iterator[StoredObject]:
        """Every object that goes, those of unfinished uploads apart."""
        for sweep in self.sweeps:
            yield from sweep.all_objects
        for stray in self.strays:
            yield from stray.objects
        yield from self.loose
        yield from self.litter

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        rows = (self.retired, self.claims, self.versions, self.uploads)
        return not any(rows) and next(self.objects, None) is None

    @property
    def total_bytes(self) -> int | None:
        """The sum of the sizes; None where the store does not tell that of each upload."""
        parts = [found.upload.size for found in self.uploads]
        known = [size for size in parts if size is not None]
        return total(self.objects) + sum(known) if len(known) == len(parts) else None

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return {
            "grace_seconds": self.grace,
            "retired": [one.to_json() for one in self.retired],
            "claims": [one.to_json() for one in self.claims],
            "versions": [one.to_json() for one in self.versions],
            "orphans": [
                *(entry for one in self.orphans for entry in keys_json(one.all_objects)),
                *(entry for one in self.strays for entry in keys_json(one.objects)),
                *keys_json(self.loose),
            ],
            "litter": keys_json(self.litter),
            "uploads": [one.to_json() for one in self.uploads],
            "bytes": self.total_bytes,
            "kept": self.kept,
        }


def total(objects: Iterable[StoredObject]) -> int:
    """The bytes of `objects`."""
    return sum(stored.size for stored in objects)


def keys_json(objects: Iterable[StoredObject]) -> list[dict[str, Any]]:
    """Keys and bytes as JSON data."""
    return [{"key": stored.key, "bytes": stored.size} for stored in objects]
