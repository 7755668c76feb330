"""Open what an address names: a backend, or a source and the address in its own words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mm_core.config import Settings, build_config, is_address
from mm_core.config.problems import did_you_mean
from mm_core.exceptions import ConfigError, OfflineError, UsageError
from mm_core.plugins import Plugins
from mm_core.redaction import redact_url
from mm_core.sink import Sink
from mm_core.source import Source

S = TypeVar("S", Sink, Source)

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*):(?!//)(?P<path>.*)", re.DOTALL)
_EXAMPLES = (
    "give a URL such as hf://org/name, a folder such as ./model, or NAME:PATH with a NAME from "
    "the sources in mm.yaml"
)
_ROOTS = ("root", "base_url", "url")


def open_sink(settings: Settings, plugins: Plugins, backend: str) -> Sink:
    """The sink of a configured backend, or of a URL or path (``s3://bucket/prefix``, ``./models``).

    Raises `ConfigError` for a name that is not configured or settings that are
    wrong, `PluginError` for a type or scheme that no plugin offers, and
    `MissingExtraError` where the sink's library is not installed.
    """
    configured = settings.backends.get(backend)
    if configured is not None:
        kind = plugins.sink_type(configured.type)
        return _made(kind, configured.values, f"backends.{backend}", settings)
    if not is_address(backend):
        raise ConfigError(
            f"there is no backend named {backend!r}"
            f"{did_you_mean(backend, list(settings.backends)) or _known(settings.backends)}",
            hint="name one that is in mm.yaml, or give a URL, or a path that starts with ./ or /",
        )
    root = backend if "://" in backend else str(Path(backend).expanduser().absolute())
    return _made(plugins.sink_for(root), {"root": root}, redact_url(root), None)


def open_source(settings: Settings, plugins: Plugins, address: str) -> tuple[Source, str]:
    """The source that `address` names, and the address in that source's own words.

    `address` is ``NAME:PATH`` with a configured source, a URL, or the path of a
    folder that is there. The settings of a configured source also hold for a
    bare URL, if it is the only one that is meant for that URL: see `_settings_for`.

    Raises `UsageError` for an address that means nothing, `ConfigError` for
    wrong settings, `PluginError` for a scheme that no plugin answers, and
    `OfflineError` for a source that needs the network while ``offline`` is set.
    """
    named = _NAMED.fullmatch(address)
    if named is not None and named["name"] in settings.sources:
        return _open_named(settings, plugins, named["name"], named["path"])
    if "://" in address:
        return _open_url(settings, plugins, address)
    folder = Path(address).expanduser()
    if address.strip() and folder.is_dir():
        return _open_url(settings, plugins, str(folder.absolute()))
    if is_address(address):
        raise UsageError(f"there is no folder {address!r}", hint=_EXAMPLES)
    if named is not None:
        guess = did_you_mean(named["name"], list(settings.sources)) or _known(settings.sources)
        raise UsageError(f"there is no source named {named['name']!r}{guess}", hint=_EXAMPLES)
    hint = f"did you mean hf://{address}? {_EXAMPLES}" if address.count("/") == 1 else _EXAMPLES
    raise UsageError(f"{address!r} is neither a URL nor an existing folder", hint=hint)


def _open_named(settings: Settings, plugins: Plugins, name: str, path: str) -> tuple[Source, str]:
    configured = settings.sources[name]
    kind = plugins.source_type(configured.type)
    if not path.strip("/"):
        raise UsageError(f"{name}: names a source, but nothing in it", hint=f"write {name}:PATH")
    url = _in_words_of(kind, configured.values, f"sources.{name}", path.lstrip("/"))
    _refuse_offline(settings, kind, url)
    return _made(kind, configured.values, f"sources.{name}", settings), url


def _in_words_of(kind: type[Source], values: Mapping[str, Any], where: str, path: str) -> str:
    """`path` within a configured source: below its root, on its one host, or by its scheme."""
    root = next((str(values[key]) for key in _ROOTS if values.get(key)), None)
    if root is not None:
        return f"{root.rstrip('/')}/{path}"
    if "https" not in kind.schemes:
        return f"{kind.schemes[0]}://{path}" if kind.schemes else path
    hosts = [str(host) for host in values.get("allow_hosts") or ()]
    if len(hosts) == 1 and not set(hosts[0]) & set("*?["):
        return f"https://{hosts[0]}/{path}"
    raise ConfigError(
        f"{where} does not say where {path!r} is", hint=f"set {where}.base_url in mm.yaml"
    )


def _open_url(settings: Settings, plugins: Plugins, url: str) -> tuple[Source, str]:
    kind = plugins.source_for(url)
    _refuse_offline(settings, kind, url)
    where, values = _settings_for(settings, kind, url)
    return _made(kind, values, where, settings), url


def _refuse_offline(settings: Settings, kind: type[Source], url: str) -> None:
    on_disk = "://" not in url or url.lower().startswith("file:")
    if settings.defaults.offline and kind.needs_network and not on_disk:
        origin = settings.origin("defaults.offline")
        raise OfflineError(
            f"{redact_url(url)} needs the network, which is switched off ({origin})",
            hint="leave out --offline, MM_OFFLINE or defaults.offline, or use what is stored",
        )


def _settings_for(
    settings: Settings, kind: type[Source], url: str
) -> tuple[str, Mapping[str, Any]]:
    """The settings for a bare `url`: of the one configured source of that kind, else none.

    Of several, the one that is named like the scheme is meant. Settings for
    the open web hold credentials for some hosts only: there a source must
    cover the URL by its ``allow_hosts`` or its root.
    """
    scheme = urlsplit(url).scheme.lower()
    fitting = dict(_fitting(settings, kind, url, scheme))
    if scheme in fitting:
        return f"sources.{scheme}", fitting[scheme]
    if len(fitting) == 1:
        name, values = next(iter(fitting.items()))
        return f"sources.{name}", values
    return redact_url(url), {}


def _fitting(
    settings: Settings, kind: type[Source], url: str, scheme: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, configured in settings.sources.items():
        if configured.type != kind.type:
            continue
        if scheme not in ("http", "https") or _covers(configured.values, url):
            yield name, configured.values


def _covers(values: Mapping[str, Any], url: str) -> bool:
    host = (urlsplit(url).hostname or "").lower()
    if any(fnmatch.fnmatchcase(host, str(h).lower()) for h in values.get("allow_hosts") or ()):
        return True
    roots = (str(values[key]).rstrip("/") + "/" for key in _ROOTS if values.get(key))
    return any(url.startswith(root) for root in roots)


def _made(kind: type[S], values: Mapping[str, Any], where: str, settings: Settings | None) -> S:
    return kind(build_config(kind.Config, values, where, settings))


def _known(entries: Mapping[str, Any]) -> str:
    return f" (there are: {', '.join(sorted(entries))})" if entries else " (there are none)"
