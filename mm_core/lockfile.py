"""``mm.lock``: the models of ``mm.yaml``, resolved to commits, files, sizes and hashes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_core.exceptions import ConfigError, IntegrityError, MMError
from mm_core.names import check_alias, check_model_id, check_path, check_version
from mm_core.schemas import ModelType, Plan, RemoteFile

FORMAT = 1
NAME = "mm.lock"

_ASKED = ("source", "revision", "include", "exclude", "version", "type", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedModel:
    """One model as it was resolved.

    `asked` is what of ``mm.yaml`` it was resolved from: where that has changed, the
    lock is out of date. `files` maps each path to what its source states of it, as
    `stated` writes that. `revision` is None where the source has none that is fixed.
    `aliases` are those that a sync sets.
    """

    model_id: str
    asked: Mapping[str, Any]
    version: str
    revision: str | None
    files: Mapping[str, str]
    license: str | None = None
    model_type: ModelType = ModelType.OTHER
    aliases: tuple[str, ...] = ()

    @property
    def largest(self) -> int:
        """The size of its largest file, of those whose size is known."""
        return max((size_of(text) or 0 for text in self.files.values()), default=0)

    @property
    def size_bytes(self) -> int | None:
        """The sum of all files; None where the size of one is not known."""
        sizes = [size_of(text) for text in self.files.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockfile:
    """All that is locked, by model id.

    `gone` are models that were locked once, with the aliases that a sync set, for `--prune`.
    """

    models: Mapping[str, LockedModel] = field(default_factory=dict)
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_text(self) -> str:
        """The file: always the same for the same content, a line for each file of a model."""
        models = {name: _model_json(model) for name, model in sorted(self.models.items())}
        document: dict[str, Any] = {"format": FORMAT, "models": models}
        if self.gone:
            document["gone"] = {name: list(self.gone[name]) for name in sorted(self.gone)}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def asked_of(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings of a model says what it is, and not where it goes."""
    return {name: wanted[name] for name in _ASKED if wanted.get(name)}


def locked(model_id: str, asked: Mapping[str, Any], plan: Plan) -> LockedModel:
    """What `plan` resolved a model to."""
    return LockedModel(
        model_id=model_id,
        asked=asked,
        version=plan.version,
        revision=plan.snapshot.revision,
        files={planned.file.path: stated(planned.file) for planned in plan.files},
        license=plan.snapshot.license,
        model_type=plan.model_type,
    )


def stated(file: RemoteFile) -> str:
    """What a source states of a file, in a line: ``612 sha256:…``, ``? git-sha1:…``, ``612``."""
    size = "?" if file.size is None else str(file.size)
    if file.sha256 is not None:
        return f"{size} sha256:{file.sha256}"
    return size if file.git_sha1 is None else f"{size} git-sha1:{file.git_sha1}"


def size_of(text: str) -> int | None:
    """The size in what `stated` wrote."""
    size = text.partition(" ")[0]
    return int(size) if size.isdecimal() else None


def refuse_other_files(files: Sequence[RemoteFile], expected: Mapping[str, str], of: str) -> None:
    """Raise `IntegrityError`, naming them, if `files` are not those that are `expected`."""
    found = {file.path: stated(file) for file in files}
    wrong = [
        f"{path} is missing" if path not in found else f"{path} is {found[path]}, not {text}"
        for path, text in sorted(expected.items())
        if found.get(path) != text
    ]
    wrong += [f"{path} is new" for path in sorted(found.keys() - expected.keys())]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise IntegrityError(
            f"{of} is not what is locked: {'; '.join(wrong[:3])}{more}",
            hint="if that is right, `mm lock --upgrade` locks what is there now",
        )


def read_lockfile(path: Path) -> Lockfile | None:
    """What stands in `path`; None where there is no such file. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        return _parsed(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, MMError) as error:
        raise ConfigError(
            f"{path} is no lock of this program: {error}",
            hint="it is made by `mm lock`: take it from version control, or remove it",
        ) from error


def write_lockfile(path: Path, content: Lockfile) -> bool:
    """Put `content` there in one step; whether that changed anything."""
    text = content.to_text()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return False
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return True


def _model_json(model: LockedModel) -> dict[str, Any]:
    told = {
        "asked": dict(model.asked),
        "version": model.version,
        "revision": model.revision,
        "license": model.license,
        "type": None if model.model_type is ModelType.OTHER else model.model_type.value,
        "aliases": list(model.aliases) or None,
    }
    kept = {name: value for name, value in told.items() if value is not None}
    return {**kept, "files": dict(sorted(model.files.items()))}


def _parsed(document: Any) -> Lockfile:
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']}, and this is {FORMAT}")
    return Lockfile(
        models=dict(_models(document["models"])),
        gone={
            check_model_id(name): tuple(map(check_alias, aliases))
            for name, aliases in document.get("gone", {}).items()
        },
    )


def _models(found: Mapping[str, Any]) -> Iterator[tuple[str, LockedModel]]:
    for name, told in found.items():
        files = {check_path(path): str(text) for path, text in told["files"].items()}
        if not files:
            raise ValueError(f"{name} has no files")
        yield (
            check_model_id(name),
            LockedModel(
                model_id=name,
                asked=dict(told["asked"]),
                version=check_version(told["version"]),
                revision=told.get("revision"),
                files=files,
                license=told.get("license"),
                model_type=ModelType(told.get("type", ModelType.OTHER.value)),
                aliases=tuple(map(check_alias, told.get("aliases", ()))),
            ),
        )
