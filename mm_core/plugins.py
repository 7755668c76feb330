"""Plugins: discover them, look types up, and name the broken ones.

A plugin that cannot be imported, or whose hooks are misspelt, never stops the
house: it is kept by name with its error, shown by ``mm plugins list``, and
raised only when a type that nobody else offers is asked for.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import pluggy

from mm_core import hookspecs
from mm_core.exceptions import PluginError
from mm_core.executor import Executor
from mm_core.hookspecs import PROJECT
from mm_core.policy import Policy
from mm_core.redaction import redact
from mm_core.service import Service
from mm_core.signatures.port import Signer
from mm_core.sink import Sink
from mm_core.source import Source

_OFFERS = {
    "sources": "mm_sources",
    "sinks": "mm_sinks",
    "policies": "mm_policies",
    "signers": "mm_signers",
    "executors": "mm_executors",
    "services": "mm_services",
}
_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("mm_"))

_BASES: Mapping[str, type[Any]] = {
    "sources": Source,
    "sinks": Sink,
    "policies": Policy,
    "signers": Signer,
    "executors": Executor,
    "services": Service,
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One plugin: who it is, what it offers, and what is wrong with it, if anything."""

    name: str
    module: str
    distribution: str | None = None
    version: str | None = None
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hooks: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The plugin as JSON data."""
        return {
            "name": self.name,
            "module": self.module,
            "distribution": self.distribution,
            "version": self.version,
            "offers": {kind: list(types) for kind, types in self.offers.items()},
            "hooks": list(self.hooks),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    module: str
    distribution: str | None
    version: str | None


class Plugins:
    """A set of plugins. `Plugins([module, …])` holds just those; `discover` the installed ones."""

    def __init__(self, plugins: Iterable[object] = ()) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._found: dict[str, _Found] = {}
        self._errors: dict[str, str] = {}
        for plugin in plugins:
            name = getattr(plugin, "__name__", None) or type(plugin).__name__
            self._add(_Found(name, name, None, None), plugin)

    @classmethod
    def discover(cls, *, extra: Iterable[object] = ()) -> Plugins:
        """The plugins of all installed packages, and `extra` ones.

        ``MM_DISABLE_PLUGINS`` is a comma-separated list of names, or of modules, to leave out.
        """
        plugins = cls(extra)
        disabled = {n.strip() for n in os.environ.get("MM_DISABLE_PLUGINS", "").split(",")}
        entry_points = importlib.metadata.entry_points(group=PROJECT)
        for entry_point in sorted(entry_points, key=lambda e: (e.name, e.value)):
            if disabled.isdisjoint((entry_point.name, entry_point.value)):
                plugins._load(entry_point)
        return plugins

    @property
    def hook(self) -> pluggy.HookRelay:
        """Call a hook of all plugins: ``plugins.hook.mm_event(event=…)``."""
        return self._manager.hook

    @property
    def broken(self) -> Mapping[str, str]:
        """The errors of the plugins that do not work, by name."""
        self._types  # noqa: B018  # a hook that fails when asked is broken, too
        return dict(self._errors)

    def infos(self) -> tuple[PluginInfo, ...]:
        """All plugins, by name, the broken ones with their error."""
        return tuple(self._info(found) for _, found in sorted(self._found.items()))

    def sources(self) -> Mapping[str, type[Source]]:
        """The kinds of sources by type, without those that two plugins claim."""
        return {name: owners[0][1] for name, owners in self._unique("sources").items()}

    def sinks(self) -> Mapping[str, type[Sink]]:
        """The kinds of sinks by type, without those that two plugins claim."""
        return {name: owners[0][1] for name, owners in self._unique("sinks").items()}

    def offered(self, kind: str) -> frozenset[str]:
        """The types of a `kind` (``policies``) that any plugin offers, or that several claim."""
        return frozenset(self._types[kind])

    def policies(self) -> Mapping[str, type[Policy]]:
        """The kinds of policies by type, without those that two plugins claim."""
        return {name: owners[0][1] for name, owners in self._unique("policies").items()}

    def signers(self) -> Mapping[str, type[Signer]]:
        """The forms of signatures by type, without those that two plugins claim."""
        return {name: owners[0][1] for name, owners in self._unique("signers").items()}

    def executors(self) -> Mapping[str, type[Executor]]:
        """The kinds of executors by type, without those that two plugins claim."""
        return {name: owners[0][1] for name, owners in self._unique("executors").items()}

    def services(self) -> Mapping[str, type[Service]]:
        """The kinds of services by type, without those that two plugins claim."""
        return {name: owners[0][1] for name, owners in self._unique("services").items()}

    def source_type(self, name: str) -> type[Source]:
        """The source with ``type`` `name`; `PluginError` if there is none, or two."""
        found: type[Source] = self._lookup("sources", name)
        return found

    def sink_type(self, name: str) -> type[Sink]:
        """The sink with ``type`` `name`; `PluginError` if there is none, or two."""
        found: type[Sink] = self._lookup("sinks", name)
        return found

    def policy_type(self, name: str) -> type[Policy]:
        """The policy with ``type`` `name`; `PluginError` if there is none, or two."""
        found: type[Policy] = self._lookup("policies", name)
        return found

    def executor_type(self, name: str) -> type[Executor]:
        """The executor with ``type`` `name`; `PluginError` if there is none, or two."""
        found: type[Executor] = self._lookup("executors", name)
        return found

    def service_type(self, name: str) -> type[Service]:
        """The service with ``type`` `name`; `PluginError` if there is none, or two."""
        found: type[Service] = self._lookup("services", name)
        return found

    def source_for(self, url: str) -> type[Source]:
        """The source that answers `url`: by its scheme, else by asking each."""
        return self._for_url("sources", url, self.sources())

    def sink_for(self, url: str) -> type[Sink]:
        """The sink for a root such as `url`: by its scheme, else by asking each."""
        return self._for_url("sinks", url, self.sinks())

    def _load(self, entry_point: importlib.metadata.EntryPoint) -> None:
        distribution = entry_point.dist
        found = _Found(
            entry_point.name,
            entry_point.value,
            distribution.name if distribution else None,
            distribution.version if distribution else None,
        )
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a stranger's import may do anything
            found = self._named(found)
            self._errors[found.name] = _words(error)
        else:
            self._add(found, plugin)

    def _add(self, found: _Found, plugin: object) -> None:
        found = self._named(found)
        try:
            _check_hooks(plugin)
            self._manager.register(plugin, name=found.name)
        except Exception as error:  # noqa: BLE001  # a stranger's attributes may raise anything
            if self._manager.get_plugin(found.name) is plugin:
                self._manager.unregister(name=found.name)
            self._errors[found.name] = _words(error)

    def _named(self, found: _Found) -> _Found:
        """Note `found`, under a longer name where its own is taken by another package's."""
        while found.name in self._found:
            found = replace(found, name=f"{found.name} ({found.module})")
        self._found[found.name] = found
        return found

    @cached_property
    def _types(self) -> dict[str, dict[str, list[tuple[str, type[Any]]]]]:
        """For each kind of offer: type name -> [(plugin name, class)]."""
        table: dict[str, dict[str, list[tuple[str, type[Any]]]]] = {kind: {} for kind in _OFFERS}
        for kind, hook in _OFFERS.items():
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                try:
                    for offered in impl.function():
                        _check_offer(offered, kind)
                        owners = table[kind].setdefault(offered.type, [])
                        owners.append((impl.plugin_name, offered))
                except Exception as error:  # noqa: BLE001  # as above: named, not raised
                    self._errors[impl.plugin_name] = f"{hook}: {_words(error)}"
        return table

    def _unique(self, kind: str) -> dict[str, list[tuple[str, type[Any]]]]:
        return {name: owners for name, owners in self._types[kind].items() if len(owners) == 1}

    def _lookup(self, kind: str, name: str) -> Any:
        owners = self._types[kind].get(name, [])
        if len(owners) == 1:
            return owners[0][1]
        if owners:
            names = " and ".join(plugin for plugin, _ in owners)
            raise PluginError(
                f"two plugins offer {kind} of type {name!r}: {names}",
                hint="uninstall one, or name it in MM_DISABLE_PLUGINS",
            )
        known = ", ".join(sorted(self._types[kind])) or "none"
        close = difflib.get_close_matches(name, self._types[kind], n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise PluginError(
            f"no plugin offers {kind} of type {name!r} (there are: {known}){guess}"
            f"{self._broken_note()}",
            hint="install the plugin, or see `mm plugins list`",
        )

    def _for_url(self, kind: str, url: str, types: Mapping[str, type[T]]) -> type[T]:
        scheme = url.partition("://")[0].lower() if "://" in url else ""
        matches = [name for name, t in types.items() if scheme in getattr(t, "schemes", ())]
        if not matches:
            matches = [name for name, t in types.items() if self._answers(t, url)]
        if len(matches) == 1:
            return types[matches[0]]
        what = f"{scheme}://" if scheme else repr(redact(url))
        if matches:
            raise PluginError(
                f"several {kind} answer {what}: {', '.join(sorted(matches))}",
                hint="name one with its type in mm.yaml",
            )
        raise PluginError(
            f"no plugin answers {what} among {kind}{self._broken_note()}",
            hint="see `mm plugins list` for what is installed",
        )

    def _answers(self, kind: type[Any], url: str) -> bool:
        try:
            return bool(kind.answers(url))
        except Exception as error:  # noqa: BLE001  # one plugin's fault must not hide the others
            self._errors[kind.__module__] = f"{kind.__qualname__}.answers: {_words(error)}"
            return False

    def _broken_note(self) -> str:
        if not self._errors:
            return ""
        broken = "; ".join(f"{name}: {error}" for name, error in sorted(self._errors.items()))
        return f"; broken plugins: {broken}"

    def _info(self, found: _Found) -> PluginInfo:
        offers = {
            kind: tuple(
                name
                for name, owners in types.items()
                if any(plugin == found.name for plugin, _ in owners)
            )
            for kind, types in self._types.items()
        }
        plugin = self._manager.get_plugin(found.name)
        return PluginInfo(
            name=found.name,
            module=found.module,
            distribution=found.distribution,
            version=found.version,
            offers={kind: types for kind, types in offers.items() if types},
            hooks=tuple(h for h in _HOOKS if plugin is not None and hasattr(plugin, h)),
            error=self._errors.get(found.name),
        )


def _check_hooks(plugin: object) -> None:
    """Raise `PluginError` for a hook that is misspelt, or that was not marked."""
    for name in dir(plugin):
        marks = getattr(getattr(plugin, name, None), f"{PROJECT}_impl", None)
        hook = (marks.get("specname") or name) if isinstance(marks, dict) else None
        if hook is not None and hook not in _HOOKS:
            close = difflib.get_close_matches(hook, _HOOKS, n=1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise PluginError(f"there is no hook named {hook}{guess}")
        if hook is None and name in _HOOKS:
            raise PluginError(f"{name} is not marked with @hookimpl")


def _check_offer(offered: object, kind: str) -> None:
    """Raise `PluginError` for what is no usable class of that kind."""
    if not isinstance(offered, type):
        raise PluginError(f"{offered!r} is not a class")
    name = offered.__qualname__
    if not issubclass(offered, _BASES.get(kind, object)):
        raise PluginError(f"{name} is no {_BASES[kind].__name__}")
    if missing := getattr(offered, "__abstractmethods__", None):
        raise PluginError(f"{name} does not define {', '.join(sorted(missing))}")
    if not isinstance(getattr(offered, "type", None), str):
        raise PluginError(f"{name} has no `type`, the word for it in mm.yaml")
    if isinstance(getattr(offered, "schemes", ()), str):
        raise PluginError(f"{name}.schemes is a text; it must be a tuple of texts")


def _words(error: BaseException) -> str:
    text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
    return redact(text)
