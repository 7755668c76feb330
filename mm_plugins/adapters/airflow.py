"""Operators and a sensor for Apache Airflow, 2.9 and newer.

All work in the task's own process, and what they return goes through XCom as JSON. Errors
that no retry can help end a task at once; all others are left to the task's ``retries``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from mm_core import (
    AuthError,
    ConfigError,
    MissingExtraError,
    ModelEntry,
    ModelManager,
    NoStoreError,
    NotFoundError,
    PartialError,
    PolicyError,
    TransientError,
    UsageError,
    read_lockfile,
)
from mm_plugins.adapters._local import in_words, open_manager

try:
    try:
        from airflow.sdk import BaseOperator, BaseSensorOperator, PokeReturnValue
    except ImportError:  # Airflow 2
        from airflow.models import BaseOperator
        from airflow.sensors.base import BaseSensorOperator, PokeReturnValue
    try:
        from airflow.sdk.exceptions import AirflowFailException
    except ImportError:  # before Airflow 3.1
        from airflow.exceptions import AirflowFailException
except ImportError as error:
    raise MissingExtraError(
        "operators of Airflow need Airflow", hint="pip install 'apache-airflow>=2.9'"
    ) from error

__all__ = ["ModelSensor", "PullModelOperator", "SyncModelsOperator"]

_FINAL = (UsageError, NotFoundError, NoStoreError, AuthError, PolicyError)


class PullModelOperator(BaseOperator):  # type: ignore[misc]  # Airflow may not be installed
    """Bring a model from `source` into the backend `to`, as `ModelManager.pull` does.

    Returns ``{"model_id", "version", "reference", "path", "size_bytes", "fetched_bytes"}``,
    where ``reference`` names the very version, for tasks that `get` it. `config` names
    the ``mm.yaml`` on the workers.
    """

    template_fields: ClassVar[Sequence[str]] = (
        "source",
        "to",
        "model_id",
        "revision",
        "version",
        "aliases",
        "include",
        "exclude",
        "config",
    )

    def __init__(
        self,
        *,
        source: str,
        to: str | None = None,
        model_id: str | None = None,
        revision: str | None = None,
        version: str | None = None,
        aliases: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        config: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.to = to
        self.model_id = model_id
        self.revision = revision
        self.version = version
        self.aliases = aliases
        self.include = include
        self.exclude = exclude
        self.config = config

    def execute(self, context: Any) -> dict[str, Any]:
        """Pull."""
        self._cancelled = threading.Event()  # here, since operators are copied before they run
        with _manager(self.config) as manager:
            pulled = manager.pull(
                self.source,
                to=self.to,
                model_id=self.model_id,
                revision=self.revision,
                version=self.version,
                aliases=self.aliases,
                include=self.include,
                exclude=self.exclude,
                cancelled=self._cancelled,
            )
        return {**_facts(pulled.entry), "fetched_bytes": pulled.fetched_bytes}

    def on_kill(self) -> None:
        """Stop the pull; the next one goes on with what is stored."""
        if hasattr(self, "_cancelled"):
            self._cancelled.set()


class SyncModelsOperator(BaseOperator):  # type: ignore[misc]  # likewise
    """Make what `lockfile` says true on all backends, as ``mm sync --locked`` does.

    Returns what was done, step by step. Models that fail keep no others from being synced,
    and fail the task. `shard` (``2/4``) and `prune` are those of `ModelManager.sync`.
    """

    template_fields: ClassVar[Sequence[str]] = ("lockfile", "shard", "config")

    def __init__(
        self,
        *,
        lockfile: str,
        shard: str | None = None,
        prune: bool = False,
        config: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lockfile = lockfile
        self.shard = shard
        self.prune = prune
        self.config = config

    def execute(self, context: Any) -> dict[str, Any]:
        """Sync."""
        self._cancelled = threading.Event()
        with _manager(self.config) as manager:
            lock = read_lockfile(Path(self.lockfile))
            if lock is None:
                raise ConfigError(f"there is no {self.lockfile}", hint="`mm lock` makes it")
            synced = manager.sync(
                lock, shard=self.shard, prune=self.prune, cancelled=self._cancelled
            )
            if synced.failed:
                told = "; ".join(f"{name}: {error}" for name, error in synced.failed.items())
                raise PartialError(
                    f"{len(synced.failed)} of {len(synced.steps)} failed: {told}",
                    errors=synced.failed,
                )
        return synced.to_json()

    def on_kill(self) -> None:
        """Stop the pulls; the next sync goes on with what is stored."""
        if hasattr(self, "_cancelled"):
            self._cancelled.set()


class ModelSensor(BaseSensorOperator):  # type: ignore[misc]  # likewise
    """Wait until `reference` (``ID``, ``ID@VERSION`` or ``ID:ALIAS``) names an AVAILABLE version.

    Returns ``{"model_id", "version", "reference", "path", "size_bytes"}`` of it. A store that
    does not answer is asked again the next time. Between two looks the slot is free, since
    `mode` is ``reschedule`` unless another is asked for.
    """

    template_fields: ClassVar[Sequence[str]] = ("reference", "backend", "config")

    def __init__(
        self,
        *,
        reference: str,
        backend: str | None = None,
        config: str | None = None,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.reference = reference
        self.backend = backend
        self.config = config

    def poke(self, context: Any) -> PokeReturnValue:
        """Look once."""
        with _manager(self.config) as manager:
            try:
                entry = manager.registry(self.backend).resolve(self.reference)
            except (NotFoundError, TransientError) as error:
                self.log.info("%s", error)
                return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=_facts(entry))


def _facts(entry: ModelEntry) -> dict[str, Any]:
    """What other tasks need of a version."""
    return {
        "model_id": entry.model_id,
        "version": entry.version,
        "reference": f"{entry.model_id}@{entry.version}",
        "path": str(entry.path),
        "size_bytes": entry.size_bytes,
    }


@contextmanager
def _manager(config: str | None) -> Iterator[ModelManager]:
    """A manager; errors that no retry can help become Airflow's own that it does not retry."""
    try:
        with open_manager(config=config) as manager:
            yield manager
    except _FINAL as error:
        raise AirflowFailException(in_words(error)) from error
