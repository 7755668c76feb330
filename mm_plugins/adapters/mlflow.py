"""``mm://`` for MLflow: what a registry holds, as artifacts that are only read.

``mm://embed/minilm@prod`` is a version, ``mm://embed/minilm@prod/config.json`` a file of it,
as in `mm_plugins.filesystem`. They are looked for in the default backend of the settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from mm_core import (
    AuthError,
    IntegrityError,
    MissingExtraError,
    MMError,
    NotFoundError,
    TransientError,
    UsageError,
)
from mm_plugins.adapters._local import bring_file, in_words, local_path
from mm_plugins.filesystem import MMFileSystem

try:
    from mlflow.entities import FileInfo
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2 as codes
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
except ImportError as error:
    raise MissingExtraError(
        "artifacts of MLflow need MLflow", hint="pip install 'mlflow-skinny>=2.16'"
    ) from error

P = ParamSpec("P")
T = TypeVar("T")

_CODES = (
    (NotFoundError, codes.RESOURCE_DOES_NOT_EXIST),
    (FileNotFoundError, codes.RESOURCE_DOES_NOT_EXIST),
    (AuthError, codes.PERMISSION_DENIED),
    (TransientError, codes.TEMPORARILY_UNAVAILABLE),
    (UsageError, codes.INVALID_PARAMETER_VALUE),
    (IntegrityError, codes.DATA_LOSS),
    (MMError, codes.INTERNAL_ERROR),
)


def _as_mlflow_says_it(method: Callable[P, T]) -> Callable[P, T]:
    """Let `method` raise what callers of artifacts expect."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (MMError, FileNotFoundError) as error:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            text = in_words(error) if isinstance(error, MMError) else str(error)
            raise MlflowException(text, error_code=code) from error

    return translated


class ModelArtifactRepository(ArtifactRepository):  # type: ignore[misc]  # as Kedro's
    """The artifacts below one ``mm://`` URI; MLflow makes one for each call.

    What it has looked up once stays so: an alias that moves meanwhile mixes no versions.
    A whole version is a folder that is verified and kept on this machine, which nobody may
    change. With a destination, and for files and folders of a version, the files are read
    from the backend, and each is verified before it stands there under its name.
    """

    def __init__(self, artifact_uri: str, *args: Any, **options: Any) -> None:
        super().__init__(artifact_uri, *args, **options)
        self._fs = MMFileSystem(refresh=float("inf"), skip_instance_cache=True)

    @_as_mlflow_says_it
    def list_artifacts(self, path: str | None = None) -> list[Any]:
        """What stands in the folder `path`; nothing if that is a file."""
        place = self._place(path)
        if self._fs.isfile(place):
            return []
        above = self._place(None)
        return [
            FileInfo(
                path=row["name"].removeprefix(above).lstrip("/"),
                is_dir=row["type"] == "directory",
                file_size=None if row["type"] == "directory" else row["size"],
            )
            for row in self._fs.ls(place)
        ]

    @_as_mlflow_says_it
    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """Where the artifacts are on this machine."""
        version = None if dst_path else self._fs.version_at(self._place(artifact_path))
        if version is not None:
            return str(local_path(version))
        path: str = super().download_artifacts(artifact_path, dst_path)
        return path

    @_as_mlflow_says_it
    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        bring_file(self._fs, self._place(remote_file_path), Path(local_path))

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise MlflowException(
            f"{self.artifact_uri}: mm:// only reads: models come in by `mm pull` and `mm push`",
            error_code=codes.INVALID_PARAMETER_VALUE,
        )

    log_artifact = log_artifacts = delete_artifacts = _refuse

    def _place(self, path: str | None) -> str:
        """Where `path`, which is below the URI, is in the file system."""
        place: str = self._fs._strip_protocol(f"{self.artifact_uri.rstrip('/')}/{path or ''}")  # noqa: SLF001
        return place
