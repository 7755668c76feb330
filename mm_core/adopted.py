"""What adopting models is asked for and ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from mm_core.exceptions import MMError
from mm_core.schemas import ModelEntry


class AdoptOptions(TypedDict, total=False):
    """What `ModelManager.adopt` takes beside the address: the fields of `AdoptWishes`."""

    model_id: str | None
    version: str | None
    aliases: Sequence[str]
    with_aliases: bool
    depth: int
    share: bool
    dry_run: bool
    jobs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptWishes:
    """How models are adopted.

    `model_id` and `version` name one model; without them each is named by its
    folder, or as its layout has it, and by the digest of its content. With a
    `depth`, each folder so far below the address is a model, named by the last so
    many parts of its path. `with_aliases` takes over the names that the layout has
    for its versions. With `share`, a folder on the disk of a local backend is not
    copied: both keep the bytes once, under two names.
    """

    model_id: str | None = None
    version: str | None = None
    aliases: Sequence[str] = ()
    with_aliases: bool = False
    depth: int = 0
    share: bool = True
    dry_run: bool = False
    jobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedModel:
    """What became of one model: its entry, or an error, or neither in a dry run.

    `fetched_bytes` were read and written again; `copied_bytes` the store, or the
    disk, copied or shared by itself; `in_place_bytes` stayed where they were.
    """

    address: str
    model_id: str
    how: str
    version: str | None = None
    entry: ModelEntry | None = None
    fetched_bytes: int = 0
    copied_bytes: int = 0
    in_place_bytes: int = 0
    error: MMError | None = None

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "address": self.address,
            "model_id": self.model_id,
            "version": self.version,
            "how": self.how,
            "entry": None if self.entry is None else self.entry.to_json(),
            "fetched_bytes": self.fetched_bytes,
            "copied_bytes": self.copied_bytes,
            "in_place_bytes": self.in_place_bytes,
            "error": None
            if self.error is None
            else {"code": self.error.code, "message": str(self.error), "hint": self.error.hint},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What became of all models; failures are told, not raised."""

    backend: str
    models: tuple[AdoptedModel, ...]
    dry_run: bool = False

    @property
    def failed(self) -> dict[str, MMError]:
        """The errors, by the address of the model."""
        return {one.address: one.error for one in self.models if one.error is not None}

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        models = [one.to_json() for one in self.models]
        return {"backend": self.backend, "dry_run": self.dry_run, "models": models}
