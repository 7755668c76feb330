"""How connections are made: proxies and certificates of the environment."""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mm_core import ConfigError, remember_secret

if TYPE_CHECKING:
    from urllib3 import PoolManager

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by its name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for `url`; None for this machine and NO_PROXY."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def new_pool(proxy: str | None, timeouts: tuple[float, float]) -> PoolManager:
    """Connections straight or through `proxy`; `timeouts` to connect and to read, in seconds.

    Raises `ConfigError` for a proxy or certificates of the environment that cannot be used.
    """
    import urllib3

    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=timeouts[0], read=timeouts[1]),
        "maxsize": 64,
        "ssl_context": _ssl_context(),
    }
    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy)
    place = parts.netloc.rpartition("@")[2]
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        remember_secret(unquote(parts.password or ""))
        options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=secret)
    try:
        return urllib3.ProxyManager(f"{parts.scheme}://{place}", **options)
    except urllib3.exceptions.HTTPError as error:
        raise ConfigError(
            f"the proxy {parts.scheme}://{place} cannot be used",
            hint="HTTPS_PROXY, HTTP_PROXY or ALL_PROXY must be an http or https URL",
        ) from error


def _ssl_context() -> Any:
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context()
    name = next((name for name in _CA_VARIABLES if os.environ.get(name)), None)
    if name is None:
        context.load_default_certs()
        return context
    bundle = os.environ[name]
    try:
        if Path(bundle).is_dir():
            context.load_verify_locations(capath=bundle)
        else:
            context.load_verify_locations(cafile=bundle)
    except OSError as error:
        raise ConfigError(
            f"the certificates in {bundle!r} cannot be read: {error.strerror or error}",
            hint=f"{name} must name a PEM file, or a folder of them",
        ) from error
    return context
