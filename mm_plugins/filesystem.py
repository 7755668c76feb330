"""``mm://`` for fsspec: what a registry holds, as a file system that only reads.

``mm://embed/minilm@prod/config.json`` is a file of the version that ``prod`` names; what
follows ``@`` is a version or an alias. Without it, the version that `ModelManager` takes
where none is named. Any library that opens fsspec's URLs opens it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn, ParamSpec, TypeVar

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from mm_core import (
    ModelEntry,
    ModelManager,
    ModelStatus,
    NotFoundError,
    Query,
    Sink,
    StoredFile,
    load_settings,
)

P = ParamSpec("P")
T = TypeVar("T")

_PROTOCOL = "mm"


def _as_a_disk_says_it(method: Callable[P, T]) -> Callable[P, T]:
    """Let `method` raise what callers of file systems expect."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from error

    return translated


@dataclass(frozen=True, slots=True)
class _Place:
    """What a path means: a folder of models, or something in a version of one."""

    version: ModelEntry | None
    root: str
    rest: str


class MMFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The models of one backend.

    `backend` is a name from ``mm.yaml``, a URL or a folder, and the default one if absent;
    `config` names another ``mm.yaml``. What a path means is looked up again after
    `refresh` seconds. The root lists the first parts of ids; a model lists the files of
    its default version. Nothing can be written.
    """

    protocol = _PROTOCOL
    root_marker = ""
    cachable = True
    _refuses: ClassVar[str] = "mm:// only reads: models come in by `mm pull` and `mm push`"

    def __init__(
        self,
        backend: str | None = None,
        config: str | None = None,
        refresh: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(**{**options, "use_listings_cache": False})
        self._backend = backend
        self._config = config
        self._refresh = refresh
        self._lock = threading.Lock()
        self._known: tuple[float, list[ModelEntry]] = (0.0, [])
        self._defaults: dict[str, ModelEntry] = {}
        self._files: dict[str, dict[str, StoredFile]] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(path).removeprefix(f"{_PROTOCOL}://").strip("/")

    @cached_property
    def _manager(self) -> ModelManager:
        settings = load_settings(Path(self._config)) if self._config else None
        return ModelManager(settings, backend=self._backend)

    @property
    def _sink(self) -> Sink:
        return self._manager.sink()

    # -- what a file system answers --------------------------------------------------------

    @_as_a_disk_says_it
    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """What stands in a folder: parts of ids, files, and folders of files."""
        path = self._strip_protocol(path)
        place = self._find(path)
        found = self._models_below(path) if place.version is None else self._in(place)
        rows = sorted(found, key=lambda row: str(row["name"]))
        return rows if detail else [row["name"] for row in rows]

    @_as_a_disk_says_it
    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """What stands under a path; a file's sha256 is told as well."""
        path = self._strip_protocol(path)
        place = self._find(path)
        if place.version is None:
            return _folder(path)
        files = self._files_of(place.version)
        file = files.get(place.rest)
        if file is not None:
            return self._row(path, file, place.version)
        if place.rest and not any(name.startswith(f"{place.rest}/") for name in files):
            raise NotFoundError(f"there is no {path!r} among the models")
        return _folder(path)

    @_as_a_disk_says_it
    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """The bytes of a file, or of a part of it; negative numbers count from its end."""
        file = self._file(path)
        first, last, _ = slice(start, end).indices(file.size)
        if first >= last:
            return b""
        return b"".join(map(bytes, self._sink.read(file.key, first, last)))

    def get_file(self, rpath: str, lpath: Any, callback: Any = None, **options: Any) -> None:
        """Bring a file to this machine, in a stream; a folder becomes one."""
        from fsspec.callbacks import DEFAULT_CALLBACK

        told = callback or DEFAULT_CALLBACK
        if self.isdir(rpath):
            _make_folder(Path(lpath))
            return
        file = self._file(rpath)
        told.set_size(file.size)
        _make_folder(Path(lpath).parent)
        with Path(lpath).open("wb") as out:
            for buffer in self._sink.read(file.key):
                told.relative_update(out.write(buffer))

    @_as_a_disk_says_it
    def checksum(self, path: str) -> str:
        """The sha256 of a file."""
        return self._file(path).sha256

    @_as_a_disk_says_it
    def ukey(self, path: str) -> str:
        """What changes when the bytes do."""
        return self._file(path).sha256

    @_as_a_disk_says_it
    def version_at(self, path: str) -> str | None:
        """``ID@VERSION`` where `path` is all of a version; None where it is anything else."""
        place = self._find(self._strip_protocol(path))
        if place.version is None or place.rest:
            return None
        return f"{place.version.model_id}@{place.version.version}"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> _ReadFile:
        if mode != "rb":
            self._refuse()
        options.pop("cache_options", None)
        return _ReadFile(self, self._strip_protocol(path), size=self.info(path)["size"], **options)

    # -- what it refuses -------------------------------------------------------------------

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise PermissionError(self._refuses)

    mkdir = makedirs = rmdir = rm_file = _rm = rm = cp_file = mv = put_file = pipe_file = touch = (
        _refuse
    )

    # -- what a path means -----------------------------------------------------------------

    def _find(self, path: str) -> _Place:
        parts = path.split("/") if path else []
        for place, part in enumerate(parts):
            name, mark, wanted = part.partition("@")
            if mark:
                model_id = "/".join([*parts[:place], name])
                root = "/".join(parts[: place + 1])
                return _Place(self._version(model_id, wanted), root, "/".join(parts[place + 1 :]))
        ids = {entry.model_id for entry in self._entries()}
        for count in range(1, len(parts) + 1):
            model_id = "/".join(parts[:count])
            if model_id in ids:
                return _Place(self._default(model_id), model_id, "/".join(parts[count:]))
        if path and not any(id_.startswith(f"{path}/") for id_ in ids):
            raise NotFoundError(f"there is no {path!r} among the models")
        return _Place(None, path, "")

    def _default(self, model_id: str) -> ModelEntry:
        """The version that is meant where none is named, remembered as long as the entries."""
        defaults = self._defaults
        known = defaults.get(model_id)
        return known or defaults.setdefault(model_id, self._manager.registry().resolve(model_id))

    def _version(self, model_id: str, wanted: str) -> ModelEntry:
        for entry in self._entries():
            if entry.model_id == model_id and wanted in (entry.version, *entry.aliases):
                return entry
        raise NotFoundError(f"there is no {model_id}@{wanted}")

    def _entries(self) -> list[ModelEntry]:
        """All AVAILABLE versions, as they were up to `refresh` seconds ago."""
        with self._lock:
            until, entries = self._known
            if time.monotonic() >= until:
                found = self._manager.registry().query(Query())
                entries = [e for e in found if e.status is ModelStatus.AVAILABLE and e.manifest]
                self._defaults = {}
                self._known = (time.monotonic() + self._refresh, entries)
            return entries

    def _files_of(self, entry: ModelEntry) -> dict[str, StoredFile]:
        key = entry.manifest or ""
        known = self._files.get(key)
        if known is None:
            manifest = self._manager.registry().manifest(entry)
            known = self._files[key] = {file.path: file for file in manifest.files}
        return known

    @_as_a_disk_says_it
    def _file(self, path: str) -> StoredFile:
        path = self._strip_protocol(path)
        place = self._find(path)
        file = None if place.version is None else self._files_of(place.version).get(place.rest)
        if file is None:
            if self.isdir(path):
                raise IsADirectoryError(path)
            raise NotFoundError(f"there is no {path!r} among the models")
        return file

    def _models_below(self, path: str) -> Iterator[dict[str, Any]]:
        prefix = f"{path}/" if path else ""
        ids = (e.model_id for e in self._entries() if e.model_id.startswith(prefix))
        for name in sorted({id_[len(prefix) :].partition("/")[0] for id_ in ids}):
            yield _folder(prefix + name)

    def _in(self, place: _Place) -> Iterable[dict[str, Any]]:
        assert place.version is not None
        files = self._files_of(place.version)
        if place.rest in files:
            return [self._row(f"{place.root}/{place.rest}", files[place.rest], place.version)]
        prefix = f"{place.rest}/" if place.rest else ""
        rows: dict[str, dict[str, Any]] = {}
        for name, file in files.items():
            if name.startswith(prefix):
                first, deeper, _ = name[len(prefix) :].partition("/")
                path = f"{place.root}/{prefix}{first}"
                rows[path] = _folder(path) if deeper else self._row(path, file, place.version)
        if place.rest and not rows:
            raise NotFoundError(f"there is no {place.root}/{place.rest} among the models")
        return rows.values()

    @staticmethod
    def _row(path: str, file: StoredFile, entry: ModelEntry) -> dict[str, Any]:
        return {
            "name": path,
            "size": file.size,
            "type": "file",
            "sha256": file.sha256,
            "version": entry.version,
            "mtime": entry.download_date.timestamp(),
        }


class _ReadFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file that is read in blocks."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start, end)
        return data


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
