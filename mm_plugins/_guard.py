"""Keeping requests out of the network that this machine is in, unless somebody said so.

What a URL names is looked up when a connection is made, and the very address that was
judged is the one that is connected to: a name that means another machine a moment later
gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable

from mm_core import PolicyError

Permit = Callable[[str, str], None]
"""``permit(host, address)``: raises `PolicyError` for an address that may not be connected to."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class Guard:
    """Refuses addresses inside: this machine, private networks, and what a cloud keeps there.

    `chosen` is a host that the settings name, such as a hub's own: it may be inside, and
    then whatever it leads to may be, too. With `allow_private` everything may.
    """

    def __init__(self, *, allow_private: bool = False, chosen: str | None = None) -> None:
        self._allow = allow_private
        self._chosen = None if chosen is None else chosen.lower()
        self._lock = threading.Lock()

    def __call__(self, host: str, address: str) -> None:
        """Raise `PolicyError` for an `address` of `host` that may not be connected to."""
        inside = is_inside(address)
        if host.lower() == self._chosen:
            with self._lock:
                self._allow = self._allow or inside
        elif inside and not self._allow:
            where = "" if host == address else f"at {address}, "
            raise PolicyError(
                f"{host} is {where}inside this network, and was not asked",
                hint="if it is meant, set allow_private: true for that source in mm.yaml",
            )


def is_inside(address: str) -> bool:
    """Whether an address is private, link-local, of this machine or otherwise not public."""
    found = _innermost(ipaddress.ip_address(address.partition("%")[0]))
    return not found.is_global or found.is_multicast


def dial(host: str, port: int, timeout: float, permit: Permit) -> socket.socket:
    """A connection to the first address of `host` that is permitted and answers.

    Raises the refusal where none is permitted, and `OSError` where none answers.
    """
    refused: PolicyError | None = None
    failed: OSError | None = None
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            permit(host, str(place[0]))
        except PolicyError as error:
            refused = error
            continue
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(place)
        except OSError as error:
            sock.close()
            failed = error
        else:
            return sock
    if failed is not None:
        raise failed
    if refused is not None:
        raise refused
    raise OSError(f"{host} has no address")


def _innermost(address: _Address) -> _Address:
    """The IPv4 address within an IPv6 one, where a gateway would lead there."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo and teredo[1]) or address
