"""How connections are made: proxies and certificates of the environment."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from mm_core import ConfigError, StorageError, TransientError, remember_secret
from mm_plugins._guard import Permit, dial

_T = TypeVar("_T")

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_PORTS = {"http": 80, "https": 443}
_PROXY_HINT = "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY must be an http or https URL"
_TUNNEL_HEAD = 1 << 16
_RECORD = 1 << 14


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy of the environment; `authorization` is what Proxy-Authorization holds."""

    scheme: str
    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{authority(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an origin. Connections with equal routes serve each other's requests."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def is_tunnel(self) -> bool:
        """Whether the proxy passes on bytes that it cannot read."""
        return self.proxy is not None and self.scheme == "https"

    @property
    def shared(self) -> Route:
        """What connections are kept by: a proxy takes requests to all http origins."""
        if self.proxy is None or self.is_tunnel:
            return self
        return Route(self.scheme, "", 0, self.proxy)


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


def route_to(url: str) -> Route:
    """The way to the origin of `url`, through the proxy that the environment names for it.

    Raises `ValueError` for what is no http or https URL, `ConfigError` for a proxy
    that cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("no http or https URL")
    host = parts.hostname
    if not host.isascii():
        host = host.encode("idna").decode()
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    proxy = proxy_for(url)
    return Route(parts.scheme, host, port, None if proxy is None else _parse_proxy(proxy))


def authority(host: str, port: int, scheme: str | None = None) -> str:
    """``host:port``, an IPv6 address in brackets; without the port where `scheme` implies it."""
    place = f"[{host}]" if ":" in host else host
    return place if _PORTS.get(scheme or "") == port else f"{place}:{port}"


def connect(
    route: Route, timeout: float, context: ssl.SSLContext | None, permit: Permit | None = None
) -> Stream:
    """A new connection, ready for requests; each step may take `timeout` seconds.

    `permit` is asked about each address of the origin before it is connected to. A proxy
    is the environment's choice, and looks names up by itself.

    `context` is None only where nothing on the way is encrypted. Raises `OSError`
    for faults of the network, `StorageError` for a certificate that is not
    trusted, and for a proxy that refuses `ConfigError`, `StorageError` or
    `TransientError`.
    """
    proxy = route.proxy
    if proxy is None and permit is not None:
        sock = dial(route.host, route.port, timeout, permit)
    else:
        first = (route.host, route.port) if proxy is None else (proxy.host, proxy.port)
        sock = socket.create_connection(first, timeout)
    stream: Stream = sock
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy is not None and proxy.scheme == "https":
            stream = _encrypt(stream, context, proxy.host)
        if proxy is not None and route.is_tunnel:
            _open_tunnel(stream, proxy, authority(route.host, route.port))
        if route.scheme == "https":
            stream = _encrypt(stream, context, route.host)
    except BaseException:
        stream.close()
        raise
    return stream


def end_stream(stream: Stream) -> None:
    """End a connection, also for a thread that waits for it. Raises `OSError`."""
    if isinstance(stream, TlsInTls):
        stream.end()
    else:  # SSLSocket's own would take the encryption away under the reader
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


def ssl_context() -> ssl.SSLContext:
    """What is trusted: the certificates that the environment names, else the system's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    name = next((name for name in CA_VARIABLES if os.environ.get(name)), None)
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


def _parse_proxy(url: str) -> Proxy:
    shown = url.rpartition("@")[2]
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        host, port = parts.hostname, parts.port
        if parts.scheme not in _PORTS or not host:
            raise ValueError("no http or https URL")
    except ValueError:
        raise ConfigError(f"the proxy {shown} cannot be used", hint=_PROXY_HINT) from None
    authorization = None
    if parts.username is not None:
        password = unquote(parts.password or "")
        remember_secret(password)
        token = base64.b64encode(f"{unquote(parts.username)}:{password}".encode()).decode()
        remember_secret(token)
        authorization = f"Basic {token}"
    return Proxy(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, authorization)


def _open_tunnel(sock: Stream, proxy: Proxy, place: str) -> None:
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head = b""
    while not re.search(rb"\r?\n\r?\n", head):
        data = sock.recv(_RECORD)
        if not data or len(head) > _TUNNEL_HEAD:
            raise ConnectionError(f"the proxy {proxy} gave no answer that can be understood")
        head += data
    status = re.match(rb"HTTP/1\.\d (\d{3})", head)
    if status is None or not status[1].startswith(b"2"):
        raise _tunnel_refusal(proxy, place, int(status[1]) if status else 502)


def _tunnel_refusal(proxy: Proxy, place: str, status: int) -> Exception:
    what = f"the proxy {proxy} answered {status} when asked for {place}"
    if status == 407:
        return ConfigError(what, hint="check the user and password in HTTPS_PROXY")
    if status >= 500 or status in (408, 429):
        return TransientError(what, hint="look at the connection and try again")
    return StorageError(what, hint="NO_PROXY names the hosts that need no proxy")


def _encrypt(sock: Stream, context: ssl.SSLContext | None, host: str) -> Stream:
    assert context is not None
    assert isinstance(sock, socket.socket)
    name = host.rstrip(".")
    try:
        if isinstance(sock, ssl.SSLSocket):
            return TlsInTls(sock, context, name)
        return context.wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
        raise
    except ssl.SSLError as error:
        raise StorageError(
            f"no safe connection to {name}: {error}",
            hint="for a certificate of your own set SSL_CERT_FILE",
        ) from error


class TlsInTls:
    """An encrypted connection within the encrypted one to an https proxy.

    `ssl` can only lay the first over a socket. What `_wire` uses of a socket is here.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, name: str) -> None:
        self._outer = outer
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._coming, self._going, server_hostname=name)
        self._run(self._inner.do_handshake)

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        view = memoryview(data)
        for start in range(0, len(view), _RECORD):
            piece = view[start : start + _RECORD]
            self._run(partial(self._inner.write, piece))

    def recv(self, limit: int) -> bytes:
        """Some bytes; none at the end."""
        buffer = bytearray(limit)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def recv_into(self, buffer: memoryview) -> int:
        """How many bytes came; 0 at the end. One that was not announced is an `SSLEOFError`."""
        return self._run(lambda: int(self._inner.read(len(buffer), buffer)))

    def pending(self) -> int:
        """How many bytes have come that nobody took, as far as they are not in the socket."""
        return self._inner.pending() + self._coming.pending + self._outer.pending()

    def settimeout(self, seconds: float | None) -> None:
        """How long a step may take."""
        self._outer.settimeout(seconds)

    def fileno(self) -> int:
        """The number of the socket underneath."""
        return self._outer.fileno()

    def end(self) -> None:
        """End it, also for a thread that waits."""
        end_stream(self._outer)

    def close(self) -> None:
        """Give back the socket."""
        self._outer.close()

    def _run(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                if data := self._outer.recv(_RECORD):
                    self._coming.write(data)
                else:
                    self._coming.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if self._going.pending:
            self._outer.sendall(self._going.read())


Stream = socket.socket | TlsInTls
