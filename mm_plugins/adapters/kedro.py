"""Models in a Kedro catalog: ``type: mm_plugins.adapters.kedro.ModelDataset``."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mm_core import MissingExtraError, MMError, NotFoundError
from mm_plugins.adapters._local import in_words, local_path, open_manager

try:
    from kedro.io import AbstractDataset, DatasetError
except ImportError as error:
    raise MissingExtraError(
        "a Kedro catalog needs Kedro", hint="pip install 'kedro>=0.19.7'"
    ) from error

P = ParamSpec("P")
T = TypeVar("T")


def _as_kedro_says_it(method: Callable[P, T]) -> Callable[P, T]:
    """Let `method` raise what callers of datasets expect."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except MMError as error:
            raise DatasetError(in_words(error)) from error

    return translated


class ModelDataset(AbstractDataset):  # type: ignore[misc]  # without Kedro it has no types
    """A stored version, as a folder on this machine.

    `model` is a reference such as ``embed/minilm@prod``. `backend` is a name from
    ``mm.yaml``, a URL or a folder, and the default one if absent; `config` names another
    ``mm.yaml``. With `push`, a folder that is saved becomes a new version of the model,
    and what follows ``@`` is the alias that then names it. Kedro ignores `metadata`.
    """

    def __init__(
        self,
        *,
        model: str,
        backend: str | None = None,
        config: str | None = None,
        push: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._backend = backend
        self._config = config
        self._push = push
        self.metadata = metadata

    @_as_kedro_says_it
    def load(self) -> Path:
        """The folder with the version's verified files, which nobody may change."""
        return local_path(self._model, self._backend, self._config)

    @_as_kedro_says_it
    def save(self, data: str | os.PathLike[str]) -> None:
        """Store the folder `data` as a version. `DatasetError` unless `push` is set."""
        if not self._push:
            raise DatasetError(
                f"{self._model} is read only: bring models in by `mm pull` or `mm push`, "
                "or write `push: true` for it in the catalog"
            )
        model_id, *aliases = re.split("[@:]", self._model, maxsplit=1)
        with open_manager(self._backend, self._config) as manager:
            manager.push(Path(data), model_id, aliases=aliases)

    @_as_kedro_says_it
    def _exists(self) -> bool:
        with open_manager(self._backend, self._config) as manager:
            try:
                manager.registry().resolve(self._model)
            except NotFoundError:
                return False
            return True

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "backend": self._backend,
            "config": self._config,
            "push": self._push,
        }
