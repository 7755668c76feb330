"""Retention: which AVAILABLE versions are surplus, by `retention` in ``mm.yaml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mm_core.exceptions import ConfigError
from mm_core.names import fold
from mm_core.registry.state import Record, Row, State, is_available


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """An AVAILABLE version that retention takes out of use; its files wait for the grace.

    `aliases` are those that go with it. `added` is its place in the log.
    """

    model_id: str
    version: str
    size_bytes: int
    aliases: tuple[str, ...] = ()
    added: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The version as JSON data."""
        return {
            "model_id": self.model_id,
            "version": self.version,
            "bytes": self.size_bytes,
            "aliases": list(self.aliases),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What stays: the `keep_last` newest versions of each model, and those that aliases name.

    With `keep_aliases` only those aliases, and ``latest``, keep their versions; without
    it, all do.
    """

    keep_last: int
    keep_aliases: frozenset[str] | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Retention:
        """The section `retention`; `ConfigError` where it does not say how many to keep."""
        keep_last, aliases = settings.get("keep_last"), settings.get("keep_aliases")
        if keep_last is None:
            raise ConfigError(
                "retention.keep_last is not set, so nothing says which versions are surplus",
                hint="set `retention: {keep_last: 3}` in mm.yaml",
            )
        kept = None if aliases is None else frozenset(map(fold, ["latest", *aliases]))
        return cls(keep_last=keep_last, keep_aliases=kept)

    def surplus(self, state: State) -> Iterator[Retired]:
        """The versions that nothing keeps. Entries that were only registered are left out."""
        for record in state.models.values():
            ours = [r for r in record.versions.values() if is_available(r) and "path" not in r]
            ours.sort(key=lambda row: row["added"])
            for row in ours[: -self.keep_last]:
                if not self._is_kept(record, row):
                    yield _retired(record, row)

    def _is_kept(self, record: Record, row: Row) -> bool:
        names = {fold(alias) for alias in record.aliases_of(row["version"])}
        return bool(names if self.keep_aliases is None else names & self.keep_aliases)


def _retired(record: Record, row: Row) -> Retired:
    return Retired(
        model_id=record.model_id,
        version=row["version"],
        size_bytes=row.get("size_bytes", 0),
        aliases=record.aliases_of(row["version"]),
        added=tuple(row["added"]),
    )
