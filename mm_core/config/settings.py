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
from mm_core.config.recipe import Recipe, follow, write_down
from mm_core.config.sections import (
    BUILT_IN_POLICIES,
    DEFAULT_SERVICE,
    Defaults,
    Document,
    PolicySet,
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """The service to run: its `type`, and the `values` for the ``Config`` of that type."""

    type: str = DEFAULT_SERVICE
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that was configured. Made by `load_settings`, or by hand in tests.

    Sizes are in bytes and times in seconds, however they were written. `files`
    are the files that were read, the weakest first. `interpolated` are the settings
    that came, in part at least, from a variable or another file. `policies` are the
    sets that were configured; those that hold are `policy_sets`. `recipe` is what
    another process makes the same settings of; None where they were made by hand.
    """

    defaults: Defaults = field(default_factory=Defaults)
    backends: Mapping[str, BackendSettings] = field(default_factory=dict)
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    retention: Mapping[str, Any] = field(default_factory=dict)
    registry: Mapping[str, Any] = field(default_factory=dict)
    signing: Mapping[str, Any] = field(default_factory=dict, repr=False)
    serve: ServiceSettings = field(default_factory=ServiceSettings)
    files: tuple[Path, ...] = ()
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict, repr=False)
    interpolated: frozenset[KeyPath] = frozenset()
    recipe: Recipe | None = field(default=None, repr=False, compare=False)

    def origin(self, key: str) -> str | None:
        """Where the setting `key` (``backends.lake.root``) comes from.

        ``mm.yaml:7``, ``MM_BACKENDS__LAKE__ROOT``, ``--backend flag`` or
        ``default``; None if there is no such setting.
        """
        if key in self._by_name:
            return str(self._by_name[key])
        known = dict(_leaves(self._document()))
        return "default" if key in {dotted(path) for path in known} else None

    @property
    def policy_sets(self) -> Mapping[str, Mapping[str, Any]]:
        """The sets of policies that hold, by name: those of ``mm.yaml``, and the built-in one."""
        return {**BUILT_IN_POLICIES, **self.policies}

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
        for policies in document["policies"].values():
            for type_ in policies.keys() - {"backends"}:
                for key in _secret_fields(plugins, "policies", type_) & policies[type_].keys():
                    policies[type_][key] = MASK
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
            "policies": {name: dict(values) for name, values in self.policy_sets.items()},
            "models": dict(self.models),
            "retention": dict(self.retention),
            "registry": dict(self.registry),
            "signing": dict(self.signing),
            "serve": {"type": self.serve.type, **self.serve.values},
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
    dotenv = locations.dotenv_file(project, cwd)
    environ = layers.with_dotenv(dotenv, environ, export_to)
    below = layers.merged(below, layers.environ_layer(environ, below, cwd))
    layer = layers.merged(below, layers.flag_layer(overrides or {}, cwd))
    layer = _with_local(_without_empty(layer), environ)
    settings = _checked(interpolate(layer, environ), tuple(paths))
    recipe = write_down(layer, settings.files, dotenv)
    return replace(settings, interpolated=references(layer), recipe=recipe)


def settings_from(recipe: Recipe) -> Settings:
    """The settings that `recipe` was made of, in this process.

    References are looked up in this process's environment, and in the ``.env`` of the
    recipe where that is there. Raises `ConfigError` as `load_settings`.
    """
    environ = layers.with_dotenv(recipe.dotenv, os.environ, os.environ)
    layer = follow(recipe, environ, Path.cwd())
    settings = _checked(interpolate(layer, environ), recipe.files)
    return replace(settings, interpolated=references(layer), recipe=recipe)


def build_config(
    cls: type[PluginConfig],
    values: Mapping[str, Any],
    where: str | KeyPath,
    settings: Settings | None,
) -> PluginConfig:
    """`values` as the `cls` of a plugin; `where` is their place, such as ``backends.lake``.

    Relative paths in fields that are a `Path` are relative to the file that names them.
    Raises `ConfigError` with a line for each wrong, missing or unknown setting,
    naming file and line where `settings` knows them.
    """
    from mm_core.config.plugin_values import remember_secrets, typed_values, with_paths

    path = (
        tuple(part for part in where.partition(".")[::2] if part)
        if isinstance(where, str)
        else where
    )
    find = settings.origin_near if settings is not None else lambda _path: None

    def folder_of(key: str) -> Path | None:
        origin = find((*path, key))
        return None if origin is None else origin.folder

    try:
        config = cls.model_validate(with_paths(cls, typed_values(cls, values), folder_of))
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
        policies={n: _policies(p) for n, p in document.policies.items()},
        models={
            n: m.model_dump(exclude_unset=True, mode="json") for n, m in document.models.items()
        },
        retention=document.retention.model_dump(exclude_unset=True),
        registry=_registry(layer, document.registry.model_dump(exclude_unset=True)),
        signing=_signing(layer, document.signing.model_dump(exclude_unset=True)),
        serve=ServiceSettings(
            type=document.serve.type, values=dict(document.serve.model_extra or {})
        ),
        files=files,
        origins=layer.origins,
    )
    _refuse_unknown_backends(settings)
    return _with_default_backend(settings)


def _policies(configured: PolicySet) -> dict[str, Any]:
    """One set as it stands in the file; `backends` is a list where it is given."""
    only = {} if configured.backends is None else {"backends": configured.backends}
    return {**only, **(configured.model_extra or {})}


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
    if values.get("signing_key"):
        values["signing_key"] = _absolute(layer, values["signing_key"], "registry", "signing_key")
    if "trusted_keys" in values:
        values["trusted_keys"] = [
            _absolute(layer, text, "registry", "trusted_keys", index)
            for index, text in enumerate(values["trusted_keys"])
        ]
    return values


def _signing(layer: Layer, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of signatures; relative paths are relative to their file."""
    for name in ("key_file", "certificate"):
        if values.get(name):
            values[name] = _absolute(layer, values[name], "signing", name)
    for name in ("chain", "public_keys", "certificate_roots"):
        if name in values:
            values[name] = [
                _absolute(layer, text, "signing", name, index)
                for index, text in enumerate(values[name])
            ]
    return values


def _absolute(layer: Layer, text: str, *path: str | int) -> str:
    origin = layer.origins.get(path) or layer.origins.get(path[:2])
    if origin is None or not origin.folder or text.startswith("~") or not is_key_file(text):
        return text
    return os.path.normpath(origin.folder / text)


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
    """A section without anything in it (``backends:``) is as if it were not there.

    So is a set of policies: only who writes ``default: {}`` means that nothing holds.
    """
    tree = {name: value for name, value in layer.tree.items() if value is not None}
    if isinstance(tree.get("policies"), dict):
        tree["policies"] = {n: v for n, v in tree["policies"].items() if v is not None}
    return Layer(tree, layer.origins)


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


def _refuse_unknown_backends(settings: Settings) -> None:
    """Raise `ConfigError` for a set of policies that is for a backend which there is not."""
    for name, values in settings.policies.items():
        for index, backend in enumerate(values.get("backends", ())):
            if backend in settings.backends or is_address(backend):
                continue
            path: KeyPath = ("policies", name, "backends", index)
            raise ConfigError(
                f"{settings.origin_near(path)}: {dotted(path)}: there is no backend named "
                f"{backend!r}{did_you_mean(backend, list(settings.backends))}",
                hint="a set without `backends` holds for all of them",
            )


def is_address(text: str) -> bool:
    """Whether `text` is a URL or a path, and so no name of a backend."""
    return "://" in text or text in (".", "..") or text.startswith(("./", "../", "/", "~"))


def _secret_fields(plugins: Plugins | None, section: str, type_: str) -> set[str]:
    if plugins is None:
        return set()
    find = {
        "backends": plugins.sink_type,
        "sources": plugins.source_type,
        "policies": plugins.policy_type,
    }
    try:
        found: Any = find[section](type_)
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
