"""Calls that came through a proxy: the addresses of their callers.

A proxy appends the address of its caller to the header x-forwarded-for.
https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/X-Forwarded-For
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from caseload_server.config import IpNetwork

Metadata = Iterable[tuple[str, str | bytes]]
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_FORWARDED_FOR: Final = "x-forwarded-for"
_ADDRESSES: Final = (_FORWARDED_FOR, "x-real-ip")
"""Headers whose value is addresses."""
_MARKS: Final = ("forwarded", "via")
"""Further headers that only a proxy sends."""
_MAX_LENGTH: Final = 64
"""No address is longer, and a longer text is not cached."""
_WITH_PORT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}")
"""An address as some proxies write it: an IPv6 address in brackets, or any with its port."""


class TrustedProxies:
    """The proxies in front of the server."""

    def __init__(self, networks: tuple[IpNetwork, ...]) -> None:
        self._networks = networks

    def has(self, peer: str) -> bool:
        """Returns whether a connection comes from a proxy. Args: peer, its address as grpc writes it."""
        return bool(self._networks) and self._trusts(_address(unquote(peer.partition(":")[2])))

    def caller(self, peer: str, metadata: Metadata) -> str:
        """Returns the address of a caller, as grpc writes it, but without a port.

        It is the last address in x-forwarded-for that is not a proxy's. Callers can send what is before it. The header
        of any other connection has no effect. If the header is missing or malformed, the result is the connection's
        address.

        Args: peer, the address of the connection; metadata, of the call.
        """
        if not self.has(peer):
            return peer
        found = None
        for entry in reversed(_entries(metadata, _FORWARDED_FOR)):
            found = _address(entry)
            if found is None or not self._trusts(found):
                break
        return _as_peer(found) if found else peer

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def is_forwarded(metadata: Metadata) -> bool:
    """Returns whether a proxy has forwarded a call that may come from another machine.

    A proxy on the same machine that says that its caller is there too, such as a gateway on loopback, does not count.
    """
    for name, value in metadata:
        if name in _MARKS:
            return True
        if name in _ADDRESSES and not all(map(_is_loopback, str(value).split(","))):
            return True
    return False


def _is_loopback(entry: str) -> bool:
    address = _address(entry)
    return address is not None and address.is_loopback


def _entries(metadata: Metadata, header: str) -> list[str]:
    return [entry for name, value in metadata if name == header for entry in str(value).split(",")]


def _address(text: str) -> _Address | None:
    """Parses an address, with or without a port. Returns None for anything else."""
    return _parse(text) if len(text) <= _MAX_LENGTH else None


@lru_cache(maxsize=4096)
def _parse(text: str) -> _Address | None:
    """Does the same, and rejects a zone: it could contain any character, and the address goes into the access log."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if address.version == 6 else None) or address


def _as_peer(address: _Address) -> str:
    return f"ipv4:{address}" if address.version == 4 else f"ipv6:%5B{address}%5D"
