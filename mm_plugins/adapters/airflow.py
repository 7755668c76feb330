"""Models in Airflow: `PullModelOperator` brings one, `ModelSensor` waits for one.

For Airflow 2.9 and newer, 3 included. In a task of your own, ``mm_core.get`` is all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_core import MissingExtraError, ModelManager, NotFoundError
from mm_plugins.adapters._local import open_manager

try:
    try:
        from airflow.sdk import BaseOperator, BaseSensorOperator, PokeReturnValue
    except ImportError:  # Airflow 2
        from airflow.models import BaseOperator
        from airflow.sensors.base import BaseSensorOperator, PokeReturnValue
except ImportError as error:
    raise MissingExtraError(
        "operators of Airflow need Airflow", hint="pip install 'apache-airflow>=2.9'"
    ) from error


class PullModelOperator(BaseOperator):  # type: ignore[misc]  # without Airflow it has no types
    """Brings a model from its source into a backend; again, it moves nothing.

    `source` is what ``mm pull`` takes, and the other words are its options: `to` a backend by name
    or URL, and the default one if absent; `config` another ``mm.yaml``. Words in templates
    are filled in. A killed task stops its pull, and the next try goes on from there.

    Its XCom is a mapping with ``model_id``, ``version``, ``reference`` (``ID@VERSION``), ``path``,
    ``size_bytes`` and ``fetched_bytes``. Errors are those of `mm_core.ModelManager.pull`.
    """

    template_fields: Sequence[str] = ("source", "to", "revision", "model_id", "version", "aliases")

    def __init__(
        self,
        *,
        source: str,
        to: str | None = None,
        revision: str | None = None,
        model_id: str | None = None,
        version: str | None = None,
        aliases: Sequence[str] = (),
        config: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source = source
        self.to = to
        self.revision = revision
        self.model_id = model_id
        self.version = version
        self.aliases = aliases
        self.config = config
        self._running: ModelManager | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Pull."""
        with open_manager(config=_text(self.config)) as manager:
            self._running = manager
            pulled = manager.pull(
                self.source,
                to=self.to or None,
                revision=self.revision or None,
                model_id=self.model_id or None,
                version=self.version or None,
                aliases=list(self.aliases),
            )
        entry = pulled.entry
        self.log.info("%s@%s: %d bytes moved", entry.model_id, entry.version, pulled.fetched_bytes)
        return {
            "model_id": entry.model_id,
            "version": entry.version,
            "reference": f"{entry.model_id}@{entry.version}",
            "path": str(entry.path),
            "size_bytes": entry.size_bytes,
            "fetched_bytes": pulled.fetched_bytes,
        }

    def on_kill(self) -> None:
        """Stop the pull; what is stored so far can be taken up again."""
        if self._running is not None:
            self._running.cancel()


class ModelSensor(BaseSensorOperator):  # type: ignore[misc]  # likewise
    """Waits until a reference names a version that is AVAILABLE; its XCom is ``ID@VERSION``.

    `backend` is a name or a URL, and the default one if absent; `config` another ``mm.yaml``.
    Each look asks the registry alone. A backend that cannot be reached fails the task, unless
    ``soft_fail`` or ``silent_fail`` say otherwise, as for every sensor.
    """

    template_fields: Sequence[str] = ("reference", "backend")

    def __init__(
        self,
        *,
        reference: str,
        backend: str | None = None,
        config: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.reference = reference
        self.backend = backend
        self.config = config

    def poke(self, context: Any) -> PokeReturnValue:
        """Look once."""
        with open_manager(self.backend or None, _text(self.config)) as manager:
            try:
                entry = manager.registry().resolve(self.reference)
            except NotFoundError as error:
                self.log.info("not yet: %s", error)
                return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=f"{entry.model_id}@{entry.version}")


def _text(config: str | Path | None) -> str | None:
    return None if config is None else str(config)
