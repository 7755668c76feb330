"""Settings: all that was configured, checked, each value with its origin."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, ValidationError

from mm_core.config import layers, locations
from mm_core.config.interpolation import interpolate, references
from mm_core.config.origins import KeyPath, Layer, Origin, dotted
from mm_core.config.problems import config_error, did_you_mean
from mm_core.config.sections import Defaults, Document
from mm_core.exceptions import ConfigError, PluginError
from mm_core.redaction import MASK, is_secret_name, redact

if TYPE_CHECKING:
    from mm_core.plugin_config import PluginConfig
    from mm_core.plugins import Plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """One backend: its `type`, and the `values` for the ``Config`` of that type of sink."""

    type: str
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """One source: its `type`, and the `values` for the ``Config`` of that type of source."""

    type: str
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that was configured. Made by `load_settings`, or by hand in tests.

    Sizes are in bytes and times in seconds, however they were written. `files`
    are the files that were read, the weakest first. `interpolated` are the settings
    that came, in part at least, from a variable or another file.
    """

    defaults: Defaults = field(default_factory=Defaults)
    backends: Mapping[str, BackendSettings] = field(default_factory=dict)
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)
    policies: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    retention: Mapping[str, Any] = field(default_factory=dict)
    registry: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict, repr=False)
    interpolated: frozenset[KeyPath] = frozenset()

    def origin(self, key: str) -> str | None:
        """Where the setting `key` (``backends.lake.root``) comes from.

        ``mm.yaml:7``, ``MM_BACKENDS__LAKE__ROOT``, ``--backend flag`` or
        ``default``; None if there is no such setting.
        """
        if key in self._by_name:
            return str(self._by_name[key])
        known = dict(_leaves(self._document()))
        return "default" if key in {dotted(path) for path in known} else None

    def origin_near(self, path: KeyPath) -> Origin | None:
        """The origin of the setting at `path`, else of the nearest one around it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path)

    def to_json(self, *, origin: bool = False, plugins: Plugins | None = None) -> dict[str, Any]:
        """The settings as JSON data, secrets masked; with `origin`, ``origins`` says where from.

        `plugins` tells which settings of a plugin are secret although their
        name does not sound so.
        """
        document: dict[str, Any] = _masked(self._document())
        for section in ("backends", "sources"):
            for name, entry in document[section].items():
                for key in _secret_fields(plugins, section, entry["type"]) & entry.keys():
                    document[section][name][key] = MASK
        document["files"] = [str(path) for path in self.files]
        if origin:
            document["origins"] = {
                dotted(path): str(self.origins.get(path, "default"))
                for path, _ in _leaves(self._document())
            }
        return document

    @cached_property
    def _by_name(self) -> dict[str, Origin]:
        return {dotted(path): origin for path, origin in self.origins.items()}

    def _document(self) -> dict[str, Any]:
        return {
            "version": 1,
            "defaults": self.defaults.model_dump(),
            "backends": {n: {"type": b.type, **b.values} for n, b in self.backends.items()},
            "sources": {n: {"type": s.type, **s.values} for n, s in self.sources.items()},
            "policies": dict(self.policies),
            "models": dict(self.models),
            "retention": dict(self.retention),
            "registry": dict(self.registry),
        }


def load_settings(
    file: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """Read the settings; the later of these are the stronger.

    The system's file, the user's file, `file` (else ``MM_CONFIG``, else
    ``mm.yaml`` in `cwd` or the nearest folder above), ``mm.local.yaml`` beside
    it, ``.env`` beside it, ``MM_…`` variables, and `overrides`, such as
    ``{"defaults.jobs": 4}``. Without any backend there is one named ``local``
    in the user's data folder.

    With the real environment (`environ` is None) the names in ``.env`` that
    vendors' libraries look up, such as ``AWS_PROFILE``, are put into
    `os.environ` where they are not set yet.

    Raises `ConfigError`, which names the file and line (or variable, or flag).
    """
    cwd = Path.cwd() if cwd is None else Path(cwd).absolute()
    export_to = os.environ if environ is None else None
    environ = os.environ if environ is None else environ
    project = locations.project_file(Path(file) if file is not None else None, environ, cwd)
    paths = [path for path in locations.files_to_read(project, environ) if path.is_file()]
    below = layers.merged(*(layers.file_layer(path, cwd) for path in paths))
    environ = layers.with_dotenv(locations.dotenv_file(project, cwd), environ, export_to)
    below = layers.merged(below, layers.environ_layer(environ, below, cwd))
    layer = layers.merged(below, layers.flag_layer(overrides or {}, cwd))
    layer = _with_local(_without_empty(layer), environ)
    settings = _checked(interpolate(layer, environ), tuple(paths))
    return replace(settings, interpolated=references(layer))


def build_config(
    cls: type[PluginConfig], values: Mapping[str, Any], where: str, settings: Settings | None
) -> PluginConfig:
    """`values` as the `cls` of a plugin; `where` is their place, such as ``backends.lake``.

    Raises `ConfigError` with a line for each wrong, missing or unknown setting,
    naming file and line where `settings` knows them.
    """
    from mm_core.config.plugin_values import remember_secrets, typed_values

    section, _, name = where.partition(".")
    path: KeyPath = (section, name) if name else (section,)
    find = settings.origin_near if settings is not None else lambda _path: None
    try:
        config = cls.model_validate(typed_values(cls, values))
    except ValidationError as error:
        raise config_error(error, cls, path, find) from None
    remember_secrets(config)
    return config


def _checked(layer: Layer, files: tuple[Path, ...]) -> Settings:
    probe = Settings(origins=layer.origins)
    try:
        document = Document.model_validate(layer.tree)
    except ValidationError as error:
        raise config_error(error, Document, (), probe.origin_near) from None
    settings = Settings(
        defaults=document.defaults,
        backends={
            name: BackendSettings(type=entry.type, values=_values(layer, "backends", name))
            for name, entry in document.backends.items()
        },
        sources={
            name: SourceSettings(type=entry.type, values=_values(layer, "sources", name))
            for name, entry in document.sources.items()
        },
        policies={n: p.model_dump(exclude_unset=True) for n, p in document.policies.items()},
        models={
            n: m.model_dump(exclude_unset=True, mode="json") for n, m in document.models.items()
        },
        retention=document.retention.model_dump(exclude_unset=True),
        registry=_registry(layer, document.registry.model_dump(exclude_unset=True)),
        files=files,
        origins=layer.origins,
    )
    return _with_default_backend(settings)


def _values(layer: Layer, section: str, name: str) -> dict[str, Any]:
    """The settings of one entry but its type; a relative root is relative to its file."""
    values = {key: value for key, value in layer.tree[section][name].items() if key != "type"}
    root, origin = values.get("root"), layer.origins.get((section, name, "root"))
    local = layer.tree[section][name]["type"] in ("local", "folder")
    if isinstance(root, str) and origin is not None and origin.folder and _is_relative(root, local):
        values["root"] = os.path.normpath(origin.folder / root)
    return values


def _registry(layer: Layer, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of registries; relative paths of keys are relative to their file."""

    def absolute(text: str, *path: str | int) -> str:
        origin = layer.origins.get(path) or layer.origins.get(path[:2])
        if origin is None or not origin.folder or text.startswith("~") or not is_key_file(text):
            return text
        return os.path.normpath(origin.folder / text)

    if values.get("signing_key"):
        values["signing_key"] = absolute(values["signing_key"], "registry", "signing_key")
    if "trusted_keys" in values:
        values["trusted_keys"] = [
            absolute(text, "registry", "trusted_keys", index)
            for index, text in enumerate(values["trusted_keys"])
        ]
    return values


def is_key_file(text: str) -> bool:
    """Whether one of ``registry.trusted_keys`` names a file, and is not the key itself."""
    return not _KEY.fullmatch(text)


_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")


def _is_relative(root: str, local: bool) -> bool:
    if root in (".", "..") or root.startswith(("./", "../")):
        return True
    return local and "://" not in root and not root.startswith("~") and not Path(root).is_absolute()


def _with_local(layer: Layer, environ: Mapping[str, str]) -> Layer:
    if layer.tree.get("backends"):
        return layer
    local = {"type": "local", "root": str(locations.data_folder(environ))}
    return Layer({**layer.tree, "backends": {"local": local}}, layer.origins)


def _without_empty(layer: Layer) -> Layer:
    """A section without anything in it (``backends:``) is as if it were not there."""
    return Layer({k: v for k, v in layer.tree.items() if v is not None}, layer.origins)


def _with_default_backend(settings: Settings) -> Settings:
    name = settings.defaults.backend
    if name is None and len(settings.backends) == 1:
        only = next(iter(settings.backends))
        return replace(settings, defaults=settings.defaults.model_copy(update={"backend": only}))
    if name is None or name in settings.backends or is_address(name):
        return settings
    origin = settings.origin("defaults.backend")
    raise ConfigError(
        f"{origin}: defaults.backend: there is no backend named {name!r}"
        f"{did_you_mean(name, list(settings.backends))}",
        hint=f"the backends are {', '.join(sorted(settings.backends))}",
    )


def is_address(text: str) -> bool:
    """Whether `text` is a URL or a path, and so no name of a backend."""
    return "://" in text or text in (".", "..") or text.startswith(("./", "../", "/", "~"))


def _secret_fields(plugins: Plugins | None, section: str, type_: str) -> set[str]:
    if plugins is None:
        return set()
    try:
        found = plugins.sink_type(type_) if section == "backends" else plugins.source_type(type_)
    except PluginError:
        return set()
    fields = found.Config.model_fields.items()
    return {name for name, info in fields if "SecretStr" in str(info.annotation)}


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        inner = "token" if name == "headers" else ""
        return {key: _masked(item, inner or str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(item, name) for item in value]
    if isinstance(value, SecretStr) or (value not in (None, "") and is_secret_name(name)):
        return MASK
    return redact(value) if isinstance(value, str) else value


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping):
        if path:
            yield path, value
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, value
